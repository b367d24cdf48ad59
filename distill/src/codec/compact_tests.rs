//! The compact layouts against the example in docs/wire.md and one written from it alone, a bit at a
//! time.

use proptest::prelude::*;

use super::super::{Ids, decode, encode};
use super::*;

#[path = "compact_bad_tests.rs"]
mod bad;

const BOTH: [Codec; 2] = [Codec::Compact, Codec::Compact8];

/// The example of docs/wire.md, made by hand: 4 entries of 100 classes, each id cut behind its lower
/// floor(log2(100 / 4)) = 4 bits. By ascending id: 7 = 0 7, 40 = 2 8, 42 = 2 a, 99 = 6 3; the upper
/// parts 0, 2, 2, 6 set the bits 0, 2 + 1, 2 + 2, 6 + 3. The values 2.5, -1, 3, 2.5 are 8,191.875,
/// 65,535, 0, 8,191.875 steps of 4 / 65,535 below 3, or 31.875, 255, 0, 31.875 of 4 / 255.
fn example() -> TopK {
    TopK {
        k: 4,
        ids: vec![42, 7, 99, 40],
        scaled: vec![3.0, 2.5, 2.5, -1.0],
        log_z: vec![3.75],
        log_rest: vec![-2.0],
    }
}

#[rustfmt::skip]
const EXAMPLE: [u8; 48] = [
    0x4c, 0x54, 0x4b, 1,  16, 1, 0, 0,  1, 0, 0, 0,  4, 0, 0, 0,  100, 0, 0, 0, // head
    0, 0, 0x40, 0x40,  0x81, 0, 0x80, 0x38,                                     // top, step
    0, 0, 0x70, 0x40,  0, 0, 0, 0xc0,                                           // log_z, log_rest
    0x87, 0x3a,  0x19, 0x02,                                                    // lower, upper
    0x00, 0x20,  0xff, 0xff,  0, 0,  0x00, 0x20,                                // codes
];

#[rustfmt::skip]
const EXAMPLE_8: [u8; 44] = [
    0x4c, 0x54, 0x4b, 1,  8, 1, 0, 0,  1, 0, 0, 0,  4, 0, 0, 0,  100, 0, 0, 0,
    0, 0, 0x40, 0x40,  0x81, 0x80, 0x80, 0x3c,
    0, 0, 0x70, 0x40,  0, 0, 0, 0xc0,
    0x87, 0x3a,  0x19, 0x02,
    0x20,  0xff,  0,  0x20,
];

/// 4 entries of 100 classes.
fn read(bytes: &[u8], codec: Codec) -> Result<TopK, CodecError> {
    decode(bytes, 1, 4, codec, Ids::Sent { classes: 100 })
}

#[test]
fn the_documents_example_is_written_and_read_as_it_stands_there() {
    let document = include_str!("../../../docs/wire.md");
    for (codec, bytes) in BOTH.into_iter().zip([&EXAMPLE[..], &EXAMPLE_8[..]]) {
        let layout = Layout { codec, classes: Some(100) };
        assert_eq!(encode(&example(), 0..1, layout).unwrap(), bytes, "{codec}");
        let back = read(bytes, codec).unwrap();
        assert_eq!((&back.ids, back.log_z[0], back.log_rest[0]), (&example().ids, 3.75, -2.0));
        assert_eq!((back.scaled[0], back.scaled[1]), (3.0, back.scaled[2]));
        for (back, sent) in back.scaled.iter().zip(example().scaled) {
            let off = f64::from(back - sent).abs();
            assert!(off <= 4.0 * codec.error_share() + 1e-7, "{codec}: {sent} became {back}");
        }
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for part in [0..20, 20..28, 28..36, 36..38, 38..40, 40..bytes.len()] {
            let part = format!("`{}`", hex[part].join(" "));
            assert!(document.contains(&part), "docs/wire.md lacks {part} of {codec}");
        }
    }
}

/// docs/wire.md, a bit at a time: the bytes of a signal.
fn reference_bytes(signal: &TopK, codec: Codec, classes: Option<usize>) -> Vec<u8> {
    let (rows, k) = (signal.rows(), signal.k);
    let most = if codec == Codec::Compact { 65_535.0 } else { 255.0 };
    let width = if codec == Codec::Compact { 2 } else { 1 };
    let mut bytes = b"LTK\x01".to_vec();
    bytes.extend([8 * width as u8, u8::from(classes.is_some()), 0, 0]);
    for number in [rows, k, classes.unwrap_or(0)] {
        bytes.extend((number as u32).to_le_bytes());
    }
    let scale = |row: usize| {
        let values = &signal.scaled[row * k..][..k];
        let top = values.iter().copied().reduce(|a, b| if b > a { b } else { a }).unwrap();
        let least = values.iter().copied().reduce(|a, b| if b < a { b } else { a }).unwrap();
        let exact = (f64::from(top) - f64::from(least)) / most;
        let mut step = (exact as f32).next_down().max(0.0);
        while f64::from(step) < exact {
            step = step.next_up();
        }
        (top, step)
    };
    (0..rows).for_each(|row| bytes.extend(scale(row).0.to_le_bytes()));
    (0..rows).for_each(|row| bytes.extend(scale(row).1.to_le_bytes()));
    signal.log_z.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    signal.log_rest.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    let entries = |row: usize| {
        let mut entries: Vec<usize> = (row * k..(row + 1) * k).collect();
        if classes.is_some() {
            entries.sort_by_key(|&entry| signal.ids[entry]);
        }
        entries
    };
    let mut bits = |of_row: &dyn Fn(usize, &mut Vec<bool>)| {
        for row in 0..rows {
            let mut bits = Vec::new();
            of_row(row, &mut bits);
            let byte = |bits: &[bool]| (0..bits.len()).map(|i| u8::from(bits[i]) << i).sum::<u8>();
            bytes.extend(bits.chunks(8).map(byte));
        }
    };
    if let Some(classes) = classes {
        let lower = (0..).take_while(|&l| classes / k >= 1 << (l + 1)).count();
        bits(&|row, bits| {
            for entry in entries(row) {
                bits.extend((0..lower).map(|bit| signal.ids[entry] >> bit & 1 == 1));
            }
        });
        bits(&|row, bits| {
            bits.resize(k + ((classes - 1) >> lower), false);
            for (rank, entry) in entries(row).into_iter().enumerate() {
                bits[(signal.ids[entry] >> lower) as usize + rank] = true;
            }
        });
    }
    for row in 0..rows {
        let (top, step) = scale(row);
        for entry in entries(row) {
            let steps = (f64::from(top) - f64::from(signal.scaled[entry])) / f64::from(step);
            let code = if step == 0.0 { 0.0 } else { steps.round() };
            bytes.extend(&(code as u16).to_le_bytes()[..width]);
        }
    }
    bytes
}

/// What arrives of a signal: values as their codes say, in descending order, of equal ones the lower id
/// first; of named ids in their own order.
fn reference_arrived(signal: &TopK, codec: Codec, sent: bool) -> TopK {
    let most = if codec == Codec::Compact { 65_535 } else { 255 };
    let mut arrived = signal.clone();
    for row in 0..signal.rows() {
        let entries = row * signal.k..(row + 1) * signal.k;
        let scale = Scale::of(&signal.scaled[entries.clone()], most);
        let coded = signal.scaled[entries.clone()].iter().map(|&value| {
            let (top, step) = (f64::from(scale.top), f64::from(scale.step));
            let steps = if step == 0.0 { 0.0 } else { (top - f64::from(value)) / step };
            let code = steps.round() as u16;
            (top - f64::from(code) * step) as f32
        });
        let mut pairs: Vec<(f32, u32)> =
            coded.zip(signal.ids[entries.clone()].iter().copied()).collect();
        if sent {
            pairs.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        }
        for (entry, (value, id)) in entries.zip(pairs) {
            (arrived.scaled[entry], arrived.ids[entry]) = (value, id);
        }
    }
    arrived
}

/// A signal with every number as bits, so that 0 is not -0.
fn bits(signal: &TopK) -> [Vec<u32>; 4] {
    let of = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    [signal.ids.clone(), of(&signal.scaled), of(&signal.log_z), of(&signal.log_rest)]
}

/// Both ways as the reference has them, in both codecs, with ids and without.
fn check(signal: &TopK, classes: usize) {
    let (rows, k) = (signal.rows(), signal.k);
    for codec in BOTH {
        for ids in [Ids::Sent { classes }, Ids::Known(&signal.ids)] {
            let layout = ids.layout(codec);
            let wanted = reference_bytes(signal, codec, layout.classes);
            assert_eq!(encode(signal, 0..rows, layout).unwrap(), wanted, "{codec} {signal:?}");
            assert_eq!(wanted.len(), layout.bytes(rows, k));
            let back = decode(&wanted, rows, k, codec, ids).unwrap();
            let arrived = reference_arrived(signal, codec, layout.classes.is_some());
            assert_eq!(bits(&back), bits(&arrived), "{codec} {signal:?}");
        }
    }
}

/// Different ids below `classes`, spread by `stride`, which has no divisor in common with it.
fn spread(rows: usize, k: usize, classes: usize, stride: usize) -> Vec<u32> {
    let id = |row: usize, n: usize| ((n * stride + 13 * row) % classes) as u32;
    (0..rows).flat_map(|row| (0..k).map(move |n| id(row, n))).collect()
}

fn signal_of(rows: &[Vec<f32>], ids: Vec<u32>) -> TopK {
    TopK {
        k: rows[0].len(),
        ids,
        scaled: rows.concat(),
        log_z: rows.iter().map(|row| row[0] / 3.0).collect(),
        log_rest: (0..rows.len()).map(|n| [-0.75, f32::NEG_INFINITY][n % 2]).collect(),
    }
}

#[test]
fn rows_of_every_length_and_any_classes_are_as_the_document_says() {
    for k in 1..70 {
        let value = |row: usize, i: usize| 9.0 - ((i * 37 + row * 11) % 101) as f32 / 7.0;
        let rows: Vec<Vec<f32>> =
            (0..3).map(|row| (0..k).map(|i| value(row, i)).collect()).collect();
        for classes in [k, k + 1, 2 * k - 1, 2 * k, 2 * k + 1, 97, 151_936, 1 << 24] {
            // 1, or a prime that divides none of them.
            for stride in [1, 104_729] {
                if classes >= k {
                    check(&signal_of(&rows, spread(3, k, classes, stride)), classes);
                }
            }
        }
    }
}

#[test]
fn the_first_and_the_last_ids_there_are_travel() {
    let classes = 151_936;
    let last = classes as u32 - 64;
    for ids in [0..64, last..last + 64] {
        let falling: Vec<f32> = (0..64).map(|n| 8.0 - n as f32 / 4.0).collect();
        check(&signal_of(&[falling], ids.rev().collect()), classes);
    }
}

#[test]
fn values_equal_as_they_are_read_come_by_ascending_id() {
    // 2.2001 is above 2.2 by about a hundredth of the 8-bit step: sent first, read as equal.
    let signal = signal_of(&[vec![3.0, 2.2001, 2.2, 1.0]], vec![5, 9, 4, 7]);
    let layout = Layout { codec: Codec::Compact8, classes: Some(10) };
    let bytes = encode(&signal, 0..1, layout).unwrap();
    let ids = Ids::Sent { classes: 10 };
    assert_eq!(decode(&bytes, 1, 4, Codec::Compact8, ids).unwrap().ids, [5, 4, 9, 7]);
    // Codes that differ and mean the same float32: steps of 0.01 at 1e30.
    let mut bytes = encode(&signal_of(&[vec![1e30, 1e30]], vec![5, 4]), 0..1, layout).unwrap();
    bytes[24..28].copy_from_slice(&0.01f32.to_le_bytes());
    let codes = bytes.len() - 2;
    bytes[codes..].copy_from_slice(&[200, 3]);
    assert_eq!(decode(&bytes, 1, 2, Codec::Compact8, ids).unwrap().ids, [4, 5]);
}

#[test]
fn rows_at_the_edges_of_float32_are_as_the_document_says() {
    let tiny = f32::from_bits(1);
    for row in [
        vec![3.25; 5],
        vec![-0.0; 5],
        vec![-1.0, -0.0, 0.0, -2.0, 0.0],
        vec![tiny, 0.0, -tiny, 3.0 * tiny],
        (0..300).map(|n| n as f32 * -tiny).collect(),
        vec![1.7e38, -1.6e38, 0.0, 1e-40, -1.0],
        vec![f32::MAX, 0.0, 1.0, f32::MAX.next_down()],
        vec![1e30, 1e30f32.next_down(), 1e30f32.next_up(), 1e30],
    ] {
        let ids = spread(1, row.len(), 1009, 31);
        check(&signal_of(&[row], ids), 1009);
    }
}

#[test]
fn halves_are_rounded_up_and_those_beside_them_to_the_nearest() {
    // 0 to 255 in steps of 1: every half is a float32, and so are its neighbours.
    let halves: Vec<f32> = (0..255).map(|n| 255.0 - (n as f32 + 0.5)).collect();
    for near in [f32::next_down, |half| half, f32::next_up] {
        let row: Vec<f32> = halves.iter().map(|&half| near(half)).chain([0.0, 255.0]).collect();
        let ids = spread(1, row.len(), 1009, 31);
        check(&signal_of(&[row], ids), 1009);
    }
}

#[test]
fn sizes_are_those_of_the_contract() {
    let row = |codec, k| Layout { codec, classes: Some(151_936) }.row_bytes(k);
    let sizes = |k| BOTH.map(|codec| row(codec, k));
    assert_eq!([sizes(1), sizes(16), sizes(64)], [[22, 21], [79, 63], [250, 186]]);
    assert_eq!([sizes(1024), sizes(151_936)], [[3_237, 2_213], [341_872, 189_936]]);
    let named = Layout { codec: Codec::Compact8, classes: None };
    assert_eq!((named.row_bytes(64), named.head_bytes(), named.bytes(0, 64)), (80, 20, 0));
    for codec in BOTH {
        for classes in [None, Some(0), Some(151_936), Some(usize::MAX)] {
            let layout = Layout { codec, classes };
            assert_eq!(layout.row_bytes(usize::MAX), usize::MAX);
            assert_eq!(layout.bytes(usize::MAX, 3), usize::MAX);
            assert!(layout.row_bytes(0) >= 16);
        }
    }
}

/// Rows of one length with different ids, numbers at every scale, and how many classes there are.
fn signals() -> impl Strategy<Value = (TopK, usize)> {
    let number = prop_oneof![
        -30.0f32..30.0,
        any::<f32>().prop_map(|x| if x.is_finite() { x / 2.0 } else { x.signum() }),
        (any::<i8>(), Just(1e-44f32)).prop_map(|(n, unit)| f32::from(n) * unit),
        (0u8..4).prop_map(f32::from),
    ]
    .prop_map(|x| if x.is_nan() { 0.0 } else { x });
    let size = (1usize..5, 1usize..90, prop_oneof![90usize..400, Just(151_936), Just(1 << 24)]);
    size.prop_flat_map(move |(rows, k, classes)| {
        let ids = prop::collection::vec(any::<usize>(), k).prop_map(move |draws| {
            // The first k of all classes, each exchanged with one behind it.
            let mut moved = std::collections::BTreeMap::new();
            let exchange = |(at, draw): (usize, usize)| {
                let other = at + draw % (classes - at);
                let here = moved.get(&at).copied().unwrap_or(at);
                moved.insert(other, here).unwrap_or(other) as u32
            };
            draws.into_iter().enumerate().map(exchange).collect::<Vec<_>>()
        });
        let row = (prop::collection::vec(number.clone(), k), ids);
        (prop::collection::vec(row, rows), Just(classes))
    })
    .prop_map(|(rows, classes)| {
        let (values, ids): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        (signal_of(&values, ids.concat()), classes)
    })
}

proptest! {
    #[test]
    fn any_rows_are_as_the_document_says((signal, classes) in signals()) {
        check(&signal, classes);
    }
}
