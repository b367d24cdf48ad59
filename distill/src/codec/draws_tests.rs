//! Draws as bytes: written by hand, there and back, their length, hostile bytes.

use proptest::prelude::*;

use super::*;
use crate::signal::{DrawKey, DrawsError};

/// Four draws of 100 classes: 7 twice, 40, 99.
fn plain() -> Draws {
    let mut signal = Draws::new(4, 0);
    signal.push([], 0.0, [7, 7, 40, 99]);
    signal
}

// Head, then by bits, the first lowest: counts 2, 1, 1 as 010, 1, 1; of the gaps 7, 32, 58 the lower
// floor(log2(100 / 3)) = 5 bits behind the upper ones: 1 11100, 01 00000, 01 01011.
#[rustfmt::skip]
const PLAIN: [u8; 28] = [
    0x4c, 0x44, 0x52, 1,  32, 0, 0, 0,  1, 0, 0, 0,  4, 0, 0, 0,  0, 0, 0, 0,  100, 0, 0, 0,
    0xfa, 0x11, 0xa8, 0x01,
];

/// 42 exact, and 7 drawn twice of the others.
fn union() -> Draws {
    let mut signal = Draws::new(2, 1);
    signal.push([(42, -0.5)], -0.9375, [7, 7]);
    signal
}

// -0.9375 is the f32 0xbf700000; then by bits 1 010101 (42, 6 lower bits), the half 0xb800, 010 (twice),
// 1 111000 (7).
#[rustfmt::skip]
const UNION: [u8; 33] = [
    0x4c, 0x44, 0x52, 1,  16, 0, 0, 0,  1, 0, 0, 0,  2, 0, 0, 0,  1, 0, 0, 0,  100, 0, 0, 0,
    0, 0, 0x70, 0xbf,  0x55, 0, 0x5c, 0x3d, 0,
];

#[test]
fn bytes_are_as_written_by_hand() {
    for (signal, values, bytes) in
        [(plain(), Values::F32, &PLAIN[..]), (union(), Values::F16, &UNION)]
    {
        assert_eq!(encode(&signal, 0..1, 100, values).unwrap(), bytes);
        let head = Head { rows: 1, draws: signal.draws, k: signal.k, classes: 100, values };
        assert_eq!(Head::read(bytes).unwrap(), head);
        assert_eq!(decode(bytes, &head).unwrap(), signal);
    }
}

/// The examples of docs/wire.md are these.
#[test]
fn the_document_has_the_same_examples() {
    let document = include_str!("../../../docs/wire.md");
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    for bytes in [&PLAIN[..], &UNION] {
        for part in [&bytes[..HEAD_BYTES], &bytes[HEAD_BYTES..]] {
            assert!(document.contains(&format!("`{}`", hex(part))), "{}", hex(part));
        }
    }
}

/// Rows drawn from logits that fall like those of a language model: steep, and the lower ids likelier.
fn drawn(rows: u32, draws: u32, k: usize, classes: usize, steep: f64) -> Draws {
    let mut signal = Draws::new(draws, k);
    for row in 0..rows {
        let logit = |id: usize| {
            let noise = (id as u32).wrapping_mul(2_654_435_761).wrapping_add(row * 40_503) >> 16;
            f64::from(noise % 1024) / 256.0 - steep * ((id + 1) as f64).ln()
        };
        let logits: Vec<f64> = (0..classes).map(logit).collect();
        let key = DrawKey { seed: 3, token_checksum: 5, position: row };
        signal.push_exact(&logits, 1.0, &key.uniforms(draws));
    }
    signal
}

/// So that 16 draws are of about 12 ids.
const STEEP: f64 = 1.55;

/// Against the promise of 40 bytes a token, the log-probability of the next token among them.
#[test]
#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn sixteen_draws_of_a_real_vocabulary_take_less_than_forty_bytes_a_token() {
    let signal = drawn(24, 16, 0, 151_936, STEEP);
    let distinct = signal.ids.len() as f64 / 24.0;
    assert!((11.0..=13.0).contains(&distinct), "{distinct} ids a row");
    let bytes = encode(&signal, 0..24, 151_936, Values::F32).unwrap();
    let a_token = (bytes.len() - HEAD_BYTES) as f64 / 24.0 + 4.0;
    println!("{distinct:.1} ids a row, {a_token:.1} bytes a token");
    assert!(a_token < 30.0, "{a_token}");
    // In the worst case, 16 different ids wherever they are.
    assert_eq!(row_bytes_bound(16, 0, 151_936, Values::F32), 37);
    // With 16 exact entries beside them.
    let signal = drawn(8, 16, 16, 151_936, STEEP);
    for (values, most) in [(Values::F16, 100.0), (Values::F32, 132.0)] {
        let bytes = encode(&signal, 0..8, 151_936, values).unwrap();
        let a_token = (bytes.len() - HEAD_BYTES) as f64 / 8.0 + 4.0;
        println!("with 16 exact entries in {values:?}: {a_token:.1} bytes a token");
        assert!(a_token < most, "{a_token}");
    }
}

#[test]
fn bounds_hold_for_every_small_row_and_for_the_longest_gaps() {
    for classes in 1..=40usize {
        for m in 1..=classes {
            // All the gap at the end, at the beginning, and even.
            for ids in [
                (0..m as u32 - 1).chain([classes as u32 - 1]).collect::<Vec<_>>(),
                ((classes - m) as u32..classes as u32).collect(),
                (0..m as u32).map(|n| ((n as usize + 1) * classes / m) as u32 - 1).collect(),
            ] {
                for draws in m as u32..m as u32 + 9 {
                    let mut signal = Draws::new(draws, 0);
                    let again = vec![ids[0]; draws as usize - m];
                    signal.push([], 0.0, again.into_iter().chain(ids.iter().copied()));
                    let head = Head { rows: 1, draws, k: 0, classes, values: Values::F32 };
                    let bytes = encode(&signal, 0..1, classes, Values::F32).unwrap();
                    assert!(bytes.len() <= head.bytes_bound(), "{classes} {ids:?} {draws}");
                    assert_eq!(decode(&bytes, &head).unwrap(), signal);
                }
            }
        }
    }
    assert_eq!(row_bytes_bound(u32::MAX, usize::MAX, usize::MAX, Values::F32), usize::MAX / 8 + 1);
    let all = Head { rows: usize::MAX, draws: 9, k: 3, classes: 100, values: Values::F16 };
    assert!(all.bytes_bound() > usize::MAX / 9);
}

#[test]
fn halves_are_within_their_error() {
    let log_p = [-1e-5f32, -0.101, -2.345_678, -6.9, -1234.567, -1e6, f32::MIN, -0.0];
    for found in log_p {
        let half = nearest_half(found).to_f32();
        let off = (f64::from(half) - f64::from(found).max(-65_504.0)).abs();
        let allowed = f64::from(found.abs()) * 2f64.powi(-11) + 2f64.powi(-25);
        assert!(off <= allowed && half <= 0.0, "{found} {half}");
    }
}

/// Any draws that can be: n, k, classes and ids.
pub(super) fn any_draws() -> impl Strategy<Value = (Draws, usize)> {
    let sizes = (1u32..60, 0usize..6, prop_oneof![1usize..40, Just(4096), Just(151_936)]);
    sizes.prop_flat_map(|(draws, k, classes)| {
        let k = k.min(classes);
        let ids = prop::collection::vec(0..classes as u32, draws as usize + k);
        prop::collection::vec(ids, 0..5)
            .prop_map(move |rows| (of_ids(draws, k, classes, &rows), classes))
    })
}

fn of_ids(draws: u32, k: usize, classes: usize, rows: &[Vec<u32>]) -> Draws {
    let mut signal = Draws::new(draws, k);
    for row in rows {
        let mut exact: Vec<u32> = row[..k].to_vec();
        exact.sort_unstable();
        exact.dedup();
        let spare = (0..classes as u32).filter(|id| !exact.contains(id)).take(k - exact.len());
        let spare: Vec<u32> = spare.collect();
        exact.extend(spare);
        exact.sort_unstable();
        let mut drawn: Vec<u32> = row[k..].to_vec();
        drawn.sort_unstable();
        drawn.retain(|id| !exact.contains(id));
        let missing = draws as usize - drawn.len();
        match drawn.first().copied().or((0..classes as u32).find(|id| !exact.contains(id))) {
            Some(first) => drawn.splice(0..0, vec![first; missing]).for_each(drop),
            None => drawn.clear(),
        }
        drawn.sort_unstable();
        let (share, rest) = match (k, drawn.is_empty()) {
            (0, _) => (0.0, 0.0),
            (_, true) => (1.0 / k as f32, f32::NEG_INFINITY),
            (_, false) => (0.75 / k as f32, 0.25f32.ln()),
        };
        signal.push(exact.into_iter().map(|id| (id, share.ln())), rest, drawn);
    }
    signal
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_was_drawn_arrives_and_its_rows_alone_too((signal, classes) in any_draws()) {
        let rows = signal.rows();
        let head = Head { rows, draws: signal.draws, k: signal.k, classes, values: Values::F32 };
        let bytes = encode(&signal, 0..rows, classes, Values::F32).unwrap();
        prop_assert!(bytes.len() <= head.bytes_bound());
        prop_assert_eq!(&decode(&bytes, &head).unwrap(), &signal);
        for row in 0..rows {
            let head = Head { rows: 1, ..head };
            let bytes = encode(&signal, row..row + 1, classes, Values::F32).unwrap();
            prop_assert!(bytes.len() <= HEAD_BYTES + row_bytes_bound(signal.draws, signal.k, classes, Values::F32));
            prop_assert_eq!(decode(&bytes, &head).unwrap(), signal.slice(row..row + 1));
        }
        let halves = encode(&signal, 0..rows, classes, Values::F16).unwrap();
        let back = decode(&halves, &Head { values: Values::F16, ..head }).unwrap();
        prop_assert_eq!((&back.ids, &back.counts, &back.log_rest), (&signal.ids, &signal.counts, &signal.log_rest));
        for (found, sent) in back.exact_log_p.iter().zip(&signal.exact_log_p) {
            prop_assert!((found - sent).abs() <= sent.abs() * 2f32.powi(-11) + 2f32.powi(-25));
        }
    }

    /// Whatever is taken is written in one way only: bytes that are read are those it is written as.
    #[test]
    fn changed_bytes_are_refused_or_are_what_they_say(
        (signal, classes) in any_draws(),
        halves: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in 0usize..6,
    ) {
        let values = if halves { Values::F16 } else { Values::F32 };
        let mut bytes = encode(&signal, 0..signal.rows(), classes, values).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let Ok(head) = Head::read(&bytes) else { return Ok(()) };
        if let Ok(found) = decode(&bytes, &head) {
            prop_assert_eq!(found.check(head.classes), Ok(()));
            prop_assert_eq!(encode(&found, 0..found.rows(), head.classes, head.values).unwrap(), bytes);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        head in (0u32..4, 1u32..9, 0u32..4, 1u32..200, any::<bool>()),
        rest in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let (rows, draws, k, classes, halves) = head;
        let (values, k) = (if halves { Values::F16 } else { Values::F32 }, k.min(classes));
        let head = Head { rows: rows as usize, draws, k: k as usize, classes: classes as usize, values };
        let bytes = [&head.bytes()[..], &rest].concat();
        if let Ok(found) = decode(&bytes, &head) {
            prop_assert_eq!(encode(&found, 0..found.rows(), head.classes, values).unwrap(), bytes);
        }
    }
}

#[test]
fn other_heads_are_refused_with_both_values() {
    let refused = |at: usize, byte: u8, says: &str| {
        let mut bytes = PLAIN;
        let head = Head::read(&bytes).unwrap();
        bytes[at] = byte;
        let error = decode(&bytes, &head).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(0, 0x4d, "the bytes begin with [4d, 44, 52]");
    refused(3, 2, "version 2 of draws, known here is 1");
    refused(4, 8, "8 bits a value");
    refused(7, 1, "reserved bytes [0, 0, 1]");
    refused(12, 0, "1 rows of 0 draws");
    refused(16, 101, "101 exact entries over 100 classes");
    refused(20, 0, "over 0 classes");
    refused(8, 2, "rows: 2");
    refused(4, 16, "values: F16");
    let short = DrawsCodecError::NoHead { found: 23 };
    assert_eq!(Head::read(&PLAIN[..23]), Err(short));
}

#[test]
fn rows_that_are_no_draws_are_refused_by_name() {
    let refused = |bytes: &[u8], says: &str| {
        let error = decode(bytes, &Head::read(bytes).unwrap()).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    let plain = |rest: &[u8]| [&PLAIN[..HEAD_BYTES], rest].concat();
    refused(&plain(&[0xfa, 0x11, 0xa8]), "row 0: the bytes end in it");
    refused(&plain(&[]), "row 0: the bytes end in it");
    refused(&plain(&[0xfa, 0x11, 0xa8, 0x03]), "7 bits behind the last row");
    refused(&plain(&[0xfa, 0x11, 0xa8, 0x01, 0]), "15 bits behind the last row");
    // 01 11 is a count of 6 or 7.
    refused(&plain(&[0b1_1100, 0, 0, 0]), "row 0: more draws than 4");
    // A count of 2^32.
    refused(&plain(&[0, 0, 0, 0, 1, 0, 0, 0, 0]), "no number of 32 bits");
    // One id, drawn four times (00 1 00), with 6 lower bits: 64 + 63.
    refused(&plain(&[0b0100_0100, 0b11_1111 << 1 >> 1, 0]), "row 0: an id beyond the 100 classes");
    let mut mass = UNION;
    mass[HEAD_BYTES + 3] = 0xc0;
    let error = decode(&mass, &Head::read(&mass).unwrap()).unwrap_err();
    assert!(matches!(error, DrawsCodecError::Draws(DrawsError::Mass { row: 0, .. })), "{error}");
    // And what is none is not written.
    let mut broken = plain_with_a_count_too_many();
    let error = encode(&broken, 0..1, 100, Values::F32).unwrap_err();
    assert!(matches!(error, DrawsCodecError::Draws(DrawsError::Count { found: 5, .. })), "{error}");
    broken.draws = 0;
    let error = encode(&broken, 0..1, 100, Values::F32).unwrap_err();
    assert!(matches!(error, DrawsCodecError::Impossible { draws: 0, .. }), "{error}");
}

fn plain_with_a_count_too_many() -> Draws {
    let mut signal = plain();
    signal.counts[0] += 1;
    signal
}
