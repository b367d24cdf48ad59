//! The arrays in a message, in the codecs packed and raw: bytes that are no signal are refused whole, and those that are one say
//! what docs/wire.md has them say; a signal that can travel arrives within the error stated there.
//!
//! An input's first byte says which way: bytes to read, or numbers to write.

use distill::codec::{Codec, CodecError, Ids, Layout, decode, encode};
use distill::signal::TopK;

use crate::answers::assert_distinct;
use crate::draw::Draw;
use crate::memory::peak;

/// Bytes that reading may take for each of the signal's: two of a code become four of a number.
const MEMORY_A_BYTE: usize = 4;
/// And whatever its length: the words of an error.
const MEMORY: usize = 1 << 10;

/// Tries an input; whether bytes were a signal, or a signal could travel.
///
/// # Panics
/// When a law is broken.
pub fn run(input: &[u8]) -> bool {
    let Some((way, rest)) = input.split_first() else { return false };
    match way % 2 {
        0 => read(Draw::new(rest)),
        _ => write(Draw::new(rest)),
    }
}

/// Bytes to read, with what the receiver knows of them.
struct Question<'a> {
    bytes: &'a [u8],
    rows: usize,
    k: usize,
    codec: Codec,
    ids: Ids<'a>,
}

fn read(mut draw: Draw<'_>) -> bool {
    let codec = draw.of(&[Codec::Packed, Codec::Raw]);
    let known = draw.once_in(2);
    let rows: usize = draw.of_or_any(&[1, 2, 3, 4, 5, 0]);
    let k: usize = draw.of_or_any(&[1, 2, 3, 4, 5, 8, 17, 64, 0]);
    let classes = draw.of(&[151_936, k, 40, 1 << 24, (1 << 24) + 1, 0]);
    let whole = !draw.once_in(8);
    let distinct = !draw.once_in(4);
    let few = rows.max(1).saturating_mul(k.max(1)) <= 512 && rows <= 512;
    let ids: Vec<u32> = match known && few {
        true => (0..rows * k + usize::from(draw.once_in(16))).map(|_| draw.any()).collect(),
        false => vec![],
    };
    let ids = if known { Ids::Known(&ids) } else { Ids::Sent { classes } };
    let mut bytes = draw.rest().to_vec();
    if whole && few {
        bytes.resize(ids.layout(codec).bytes(rows, k), 0);
        if distinct && !known {
            number(&mut bytes, rows, k, codec);
        }
    }
    Question { bytes: &bytes, rows, k, codec, ids }.check()
}

/// Puts ids in the place of ids that differ within a row, by the bytes that were there.
fn number(bytes: &mut [u8], rows: usize, k: usize, codec: Codec) {
    let (start, width) = if codec == Codec::Packed { (16 * rows, 3) } else { (8 * rows, 4) };
    for (entry, id) in bytes[start..][..rows * k * width].chunks_exact_mut(width).enumerate() {
        let number = (entry % k) as u32 + k as u32 * u32::from(id[0]);
        id.copy_from_slice(&number.to_le_bytes()[..width]);
    }
}

impl Question<'_> {
    fn check(&self) -> bool {
        let &Self { bytes, rows, k, codec, ids } = self;
        let (found, memory) = peak(|| decode(bytes, rows, k, codec, ids));
        // One bit a class tells which ids have come.
        let of_ids = match ids {
            Ids::Sent { classes } => classes / 8,
            Ids::Known(ids) => 4 * ids.len(),
        };
        let allowed = MEMORY + MEMORY_A_BYTE * bytes.len() + of_ids;
        assert!(memory <= allowed, "{memory} bytes held for {}", bytes.len());
        let signal = agreed(found, self.meaning(), (rows, k), ids);
        signal.is_some_and(|signal| {
            self.check_way_back(&signal);
            true
        })
    }

    /// docs/wire.md, a number at a time; none where it says that these bytes are no signal.
    fn meaning(&self) -> Option<TopK> {
        let &Self { bytes, rows, k, codec, ids } = self;
        let entries = rows.checked_mul(k).filter(|_| k > 0)?;
        let (value, others) = if codec == Codec::Packed { (2, 16) } else { (4, 8) };
        let a_row = k.saturating_mul(value).saturating_add(others);
        let width = if codec == Codec::Packed { 3 } else { 4 };
        let mut signal = TopK::new(k);
        let of_ids = match ids {
            Ids::Known(ids) => {
                signal.ids = ids.to_vec();
                (ids.len() == entries).then_some(0)?
            }
            Ids::Sent { classes } => {
                let may = k <= classes && (codec == Codec::Raw || classes <= 1 << 24);
                may.then_some(entries.saturating_mul(width))?
            }
        };
        (rows.saturating_mul(a_row).saturating_add(of_ids) == bytes.len()).then_some(())?;
        let number = |at: usize, width: usize| {
            bytes[at..at + width].iter().rev().fold(0u32, |sum, &byte| sum << 8 | u32::from(byte))
        };
        let float = |at: usize| f32::from_bits(number(at, 4));
        let columns = if codec == Codec::Packed { 4 } else { 2 };
        let first = 4 * columns * rows;
        for row in 0..rows {
            let column = |which: usize| float(4 * (which * rows + row));
            signal.log_z.push(column(columns - 2));
            signal.log_rest.push(column(columns - 1));
            for entry in row * k..(row + 1) * k {
                if of_ids > 0 {
                    signal.ids.push(number(first + width * entry, width));
                }
                signal.scaled.push(if codec == Codec::Packed {
                    let code = number(first + of_ids + 2 * entry, 2);
                    (f64::from(column(0)) - f64::from(code) * f64::from(column(1))) as f32
                } else {
                    float(first + of_ids + 4 * entry)
                });
            }
            let packed = codec == Codec::Packed;
            (!packed || column(0).is_finite() && column(1).is_finite()).then_some(())?;
        }
        let ids_are_classes = match ids {
            Ids::Known(_) => true,
            Ids::Sent { classes } => signal.ids.chunks(k).all(|row| {
                let mut sorted = row.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                sorted.len() == k && row.iter().all(|&id| (id as usize) < classes)
            }),
        };
        let numbers = signal.scaled.iter().chain(&signal.log_z).all(|number| number.is_finite());
        let mass = |&number: &f32| number.is_finite() || number == f32::NEG_INFINITY;
        (ids_are_classes && numbers && signal.log_rest.iter().all(mass)).then_some(signal)
    }

    /// What was read can be written: in the raw codec the same bytes, in the packed one what is
    /// within its error of them.
    fn check_way_back(&self, signal: &TopK) {
        let written = encode(signal, 0..self.rows, self.ids.layout(self.codec));
        if written.is_err() && self.codec == Codec::Packed && at_the_edge(signal) {
            return;
        }
        let bytes = written.expect("a signal that has been read");
        if self.codec == Codec::Raw {
            return assert_eq!(bytes, self.bytes);
        }
        let back = decode(&bytes, self.rows, self.k, self.codec, self.ids);
        let back = back.expect("a signal that was written");
        assert_eq!(back.ids, signal.ids);
        assert_arrived(&back, signal, self.codec);
    }
}

fn write(mut draw: Draw<'_>) -> bool {
    let codec = draw.of(&[Codec::Packed, Codec::Raw]);
    let classes = if codec == Codec::Packed { 1 << 24 } else { 1 << 32 };
    let layout = Layout { codec, classes: (!draw.once_in(2)).then_some(classes) };
    travels(&drawn(&mut draw), layout)
}

/// What was found, if it is what the document says; none where both say that it is no signal.
pub(crate) fn agreed(
    found: Result<TopK, CodecError>,
    wanted: Option<TopK>,
    (rows, k): (usize, usize),
    ids: Ids<'_>,
) -> Option<TopK> {
    match (found, wanted) {
        (Ok(signal), Some(wanted)) => {
            assert_eq!(bits(&signal), bits(&wanted));
            assert_eq!((signal.k, signal.rows()), (k, rows));
            if let Ids::Sent { classes } = ids {
                assert_distinct(&signal.ids, k, classes);
            }
            Some(signal)
        }
        (Err(error), None) => {
            assert!(!error.to_string().is_empty());
            None
        }
        (found, wanted) => panic!("{found:?} where the document says {wanted:?}"),
    }
}

/// A signal by decisions, most of them good ones.
pub(crate) fn drawn(draw: &mut Draw<'_>) -> TopK {
    let (rows, k) = (draw.up_to(5), draw.up_to(19));
    let mut signal = TopK::new(k);
    let stride = draw.of(&[1, 7, 1 << 10, 0]);
    signal.ids = (0..rows * k).map(|n| n as u32 * stride).collect();
    let scale = draw.of_or_any(&[1.0, 1e-44, 1e4, 1e38, f32::MAX, 0.0]);
    let number = |draw: &mut Draw<'_>| match draw.up_to(9) {
        0 => f32::from(draw.any::<i8>()) * scale,
        1 => scale,
        2 => -scale,
        3 => draw.any(),
        _ => f32::from(draw.any::<i16>()) / 4096.0 * scale,
    };
    signal.scaled = (0..rows * k).map(|_| number(draw)).collect();
    signal.log_z = (0..rows).map(|_| number(draw)).collect();
    signal.log_rest = (0..rows).map(|_| draw.of_or_any(&[-1.0, f32::NEG_INFINITY])).collect();
    match draw.up_to(31) {
        31 => drop(signal.ids.pop()),
        30 => drop(signal.scaled.pop()),
        29 => drop(signal.log_rest.pop()),
        28 => signal.ids.iter_mut().take(3).for_each(|id| *id = draw.any()),
        _ => {}
    }
    signal
}

/// Whether the arrays belong together and their numbers are finite.
pub(crate) fn is_sound(signal: &TopK) -> bool {
    let (rows, k) = (signal.rows(), signal.k);
    let mass = |&number: &f32| number.is_finite() || number == f32::NEG_INFINITY;
    let whole = signal.ids.len() == rows * k
        && signal.scaled.len() == rows * k
        && signal.log_rest.len() == rows
        && k > 0;
    whole
        && signal.scaled.iter().chain(&signal.log_z).all(|number| number.is_finite())
        && signal.log_rest.iter().all(mass)
}

/// A signal of finite numbers arrives; another is refused.
fn travels(signal: &TopK, layout: Layout) -> bool {
    let (rows, k) = (signal.rows(), signal.k);
    let three_bytes = layout.codec == Codec::Packed && layout.classes.is_some();
    let named = !three_bytes || signal.ids.iter().all(|&id| id < 1 << 24);
    let written = encode(signal, 0..rows, layout);
    let may = is_sound(signal) && named;
    let edge = may && layout.codec == Codec::Packed && at_the_edge(signal);
    assert!(edge || written.is_ok() == may, "{signal:?}: {written:?}");
    let Ok(bytes) = written else { return false };
    assert_eq!(bytes.len(), rows * layout.row_bytes(k));
    let ids = layout.classes.map_or(Ids::Known(&signal.ids), |classes| Ids::Sent { classes });
    match decode(&bytes, rows, k, layout.codec, ids) {
        Ok(back) if layout.codec == Codec::Raw => assert_eq!(bits(&back), bits(signal)),
        Ok(back) => {
            assert_eq!(back.ids, signal.ids);
            assert_arrived(&back, signal, Codec::Packed);
        }
        // Writing does not look for ids that come twice: no model answers so.
        Err(CodecError::DuplicateId { .. }) => {
            let twice = |row: &[u32]| (1..k).any(|at| row[..at].contains(&row[at]));
            assert!(signal.ids.chunks(k).any(twice), "{signal:?}");
        }
        Err(error) => panic!("{signal:?} was written and cannot be read: {error}"),
    }
    true
}

/// Rows so close to the smallest float32 that every codec but the raw one may refuse them.
pub(crate) fn at_the_edge(signal: &TopK) -> bool {
    signal.scaled.iter().any(|&value| value < -3.4e38)
}

/// The values, which come in the order they were sent in, are within the error of the codec; what a row
/// has is the same.
pub(crate) fn assert_arrived(back: &TopK, sent: &TopK, codec: Codec) {
    let most = if codec == Codec::Compact8 { 255.0 } else { 65_535.0 };
    assert_eq!(back.k, sent.k);
    assert_eq!(bits(back)[2..], bits(sent)[2..]);
    for (sent, back) in sent.scaled.chunks(sent.k).zip(back.scaled.chunks(sent.k)) {
        let wide = |value: f32| f64::from(value);
        let largest = sent.iter().copied().map(wide).fold(f64::MIN, f64::max);
        let smallest = sent.iter().copied().map(wide).fold(f64::MAX, f64::min);
        // The step is itself a float32, and so is the result.
        let step = (largest - smallest) / most * (1.0 + 2f64.powi(-23)) + 1.5e-45;
        for (&sent, &back) in sent.iter().zip(back) {
            let half_ulp = wide(back.abs()) * 2f64.powi(-24) + 1e-45;
            let off = (wide(sent) - wide(back)).abs();
            assert!(off <= step / 2.0 + half_ulp, "{sent:e} became {back:e}");
        }
    }
}

/// Every number as bits, so that 0 is not -0.
pub(crate) fn bits(signal: &TopK) -> [Vec<u32>; 4] {
    let of = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    [signal.ids.clone(), of(&signal.scaled), of(&signal.log_z), of(&signal.log_rest)]
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    // Way, codec, known, rows, k (2 bytes each), classes, whole, distinct; 0 is the first of each.
    let packed = [
        vec![0, 0, 0, 0, 1, 0, 2, 0, 0, 0],
        floats(&[2.0, -0.25, 1.0 / 65_536.0, 0.0, 3.0, 0.5, -1.0, f32::NEG_INFINITY]),
        vec![1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0, 0, 5, 0, 0, 6, 0, 0, 0, 0, 255, 255, 255, 127, 1],
    ];
    let raw = [vec![0, 1, 0, 0, 1, 0, 2, 0, 0, 0], floats(&[3.0, 0.5, -1.0, -2.0, 0.0, 1.0])];
    let known = [vec![0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0], vec![7, 0, 0, 0, 9, 0, 0, 0]];
    vec![
        packed.concat(),
        raw.concat(),
        known.concat(),
        vec![1, 0, 0, 2, 3, 0, 0, 0, 4, 0, 16, 4, 0, 32, 0, 1, 1, 2, 4, 1, 1],
        vec![1, 1, 1, 1, 4, 1, 0, 1],
    ]
}
