//! The bytes of draws read a second time, from docs/wire.md alone, a bit at a time.

use proptest::prelude::*;

use super::*;

/// What such bytes say; none where the document says that they are no draws.
fn meaning(bytes: &[u8]) -> Option<Draws> {
    (bytes.len() >= 24).then_some(())?;
    let number = |at: usize| (0..4).fold(0, |sum, i| sum | u64::from(bytes[at + i]) << (8 * i));
    let [rows, n, k, classes] = [8, 12, 16, 20].map(number);
    let width = bytes[4];
    let sound = bytes[..4] == *b"LDR\x01" && bytes[5..8] == [0; 3] && (width == 16 || width == 32);
    (sound && n >= 1 && classes >= 1 && k <= classes).then_some(())?;
    let bits: Vec<bool> =
        bytes[24..].iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1 == 1)).collect();
    let mut reader = Bits { bits, at: 0 };
    let mut signal = Draws::new(n as u32, k as usize);
    for _ in 0..rows {
        let mut rest = 0.0f32;
        if k > 0 {
            rest = f32::from_bits(reader.number(32)? as u32);
            signal.exact_ids.extend(reader.ids(k, classes)?);
            for _ in 0..k {
                let code = reader.number(width.into())?;
                signal.exact_log_p.push(if width == 32 {
                    f32::from_bits(code as u32)
                } else {
                    half(code)
                });
            }
        }
        signal.log_rest.push(rest);
        let mut left = if rest == f32::NEG_INFINITY { 0 } else { n };
        let mut counts = Vec::new();
        while left > 0 {
            let length = reader.zeros()?;
            (length < 32).then_some(())?;
            let count = (1 << length) + reader.number(length)?;
            left = left.checked_sub(count)?;
            counts.push(count as u32);
        }
        signal.ids.extend(reader.ids(counts.len() as u64, classes)?);
        signal.counts.extend(counts);
        signal.ends.push(signal.ids.len());
        let exact = &signal.exact_ids[signal.exact_ids.len() - k as usize..];
        let logs = &signal.exact_log_p[signal.exact_log_p.len() - k as usize..];
        let drawn = &signal.ids[signal.drawn(signal.rows() - 1)];
        let log = |x: &f32| x.is_finite() && *x <= 0.0;
        let sum: f64 =
            logs.iter().map(|&x| f64::from(x).exp()).sum::<f64>() + f64::from(rest).exp();
        let sound = drawn.iter().all(|id| !exact.contains(id))
            && logs.iter().all(log)
            && (log(&rest) || rest == f32::NEG_INFINITY)
            && (sum - 1.0).abs() <= 0.02;
        sound.then_some(())?;
    }
    let spare = &reader.bits[reader.at..];
    (spare.len() < 8 && !spare.contains(&true)).then_some(signal)
}

/// An IEEE half: a sign, 5 bits of exponent, 10 of fraction.
fn half(code: u64) -> f32 {
    let (sign, exponent, fraction) = (code >> 15, code >> 10 & 31, (code & 1023) as f32);
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 => {
            if fraction == 0.0 {
                f32::INFINITY
            } else {
                f32::NAN
            }
        }
        _ => (1024.0 + fraction) * 2f32.powi(exponent as i32 - 25),
    };
    if sign == 1 { -size } else { size }
}

struct Bits {
    bits: Vec<bool>,
    at: usize,
}

impl Bits {
    fn bit(&mut self) -> Option<bool> {
        self.at += 1;
        self.bits.get(self.at - 1).copied()
    }

    fn number(&mut self, width: u64) -> Option<u64> {
        (0..width).try_fold(0, |sum, place| Some(sum | u64::from(self.bit()?) << place))
    }

    fn zeros(&mut self) -> Option<u64> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
        }
        Some(zeros)
    }

    fn ids(&mut self, count: u64, classes: u64) -> Option<Vec<u32>> {
        let lower =
            (0..40).take_while(|l| count > 0 && (count << (l + 1)) <= classes).count() as u64;
        let mut next = 0;
        let mut ids = Vec::new();
        for _ in 0..count {
            let id = next + (self.zeros()? << lower) + self.number(lower)?;
            (id < classes).then_some(())?;
            ids.push(id as u32);
            next = id + 1;
        }
        Some(ids)
    }
}

/// Both readers of one mind, to the bit; whether these are draws.
fn check(bytes: &[u8]) -> bool {
    let read = Head::read(bytes).and_then(|head| decode(bytes, &head));
    let wanted = meaning(bytes);
    match (&read, &wanted) {
        (Ok(read), Some(wanted)) => {
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(read, wanted);
            assert_eq!(bits(&read.exact_log_p), bits(&wanted.exact_log_p));
            let head = Head::read(bytes).expect("a head");
            let again = encode(read, 0..head.rows, head.classes, head.values);
            assert_eq!(again.expect("what was read"), bytes, "one way to be written");
        }
        (Err(_), None) => {}
        _ => panic!("{read:?} where the document says {wanted:?}: {bytes:02x?}"),
    }
    wanted.is_some()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Few draws over few classes, so that bits that are drawn are often draws.
    #[test]
    fn any_bits_are_read_as_the_document_says(
        (rows, n, classes) in (0u32..4, 1u32..5, 1u32..9),
        rest in prop::collection::vec(any::<u8>(), 0..6),
        spare in 0usize..40,
    ) {
        let head = Head { rows: rows as usize, draws: n, k: 0, classes: classes as usize, values: Values::F32 };
        let mut bytes = [&head.bytes()[..], &rest].concat();
        check(&bytes);
        // Cut where the last row ends, as often as not.
        let end = 8 * HEAD_BYTES + spare;
        bytes.truncate(end.div_ceil(8));
        if let Some(last) = bytes.last_mut().filter(|_| !end.is_multiple_of(8) && end > 8 * HEAD_BYTES) {
            *last &= (1 << (end % 8)) - 1;
        }
        check(&bytes);
    }

    #[test]
    fn changed_bytes_are_read_as_the_document_says(
        (signal, classes) in super::tests::any_draws(),
        halves: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u32..8), 0..4),
    ) {
        let values = if halves { Values::F16 } else { Values::F32 };
        let mut bytes = encode(&signal, 0..signal.rows(), classes, values).expect("bytes");
        prop_assert!(check(&bytes));
        for (at, bit) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            check(&bytes);
        }
    }
}

#[test]
fn bits_that_are_drawn_are_often_draws() {
    let head = Head { rows: 1, draws: 2, k: 0, classes: 5, values: Values::F32 };
    let with = |row: u8| check(&[&head.bytes()[..], &[row]].concat());
    assert!((0..=255).filter(|&row| with(row)).count() >= 15);
    // All the 15 multisets of two of five classes, and no byte twice the same.
    let all = (0..5u32).flat_map(|a| (a..5).map(move |b| [a, b]));
    for ids in all {
        let mut signal = Draws::new(2, 0);
        signal.push([], 0.0, ids);
        assert!(check(&encode(&signal, 0..1, 5, Values::F32).expect("bytes")), "{ids:?}");
    }
}
