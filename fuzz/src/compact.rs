//! The arrays in a message, in the compact codecs: bytes that are no signal are refused whole, and those
//! that are one say what docs/wire.md has them say; a signal that can travel arrives within the error
//! stated there, in the order stated there.
//!
//! An input's first byte says which way: bytes to read, or numbers to write.

use distill::codec::{Codec, Ids, Layout, decode, encode};
use distill::signal::TopK;

use crate::draw::Draw;
use crate::memory::peak;
use crate::packed::{agreed, assert_arrived, at_the_edge, drawn, is_sound};

/// Bytes that reading may take for each of the signal's: ids of two bits and codes of eight become 8,
/// and are sorted in as many, beside 4 of ids, a row at a time.
const MEMORY_A_BYTE: usize = 20;
/// And whatever its length: the words of an error.
const MEMORY: usize = 1 << 10;
/// Bytes of the head.
const HEAD: usize = 20;

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
    let codec = draw.of(&[Codec::Compact, Codec::Compact8]);
    let known = draw.once_in(3);
    let rows: usize = draw.of_or_any(&[1, 2, 3, 4, 5, 0]);
    let k: usize = draw.of_or_any(&[1, 2, 3, 4, 5, 8, 17, 64, 0]);
    let classes = draw.of(&[151_936, k, 100, k.saturating_add(1), 1 << 24, (1 << 24) + 1, 0]);
    let whole = !draw.once_in(8);
    let (headed, ascending) = (!draw.once_in(8), !draw.once_in(4));
    let few = rows.max(1).saturating_mul(k.max(1)) <= 512 && rows <= 512;
    let ids: Vec<u32> = match known && few {
        true => (0..rows * k + usize::from(draw.once_in(16))).map(|_| draw.any()).collect(),
        false => vec![],
    };
    let ids = if known { Ids::Known(&ids) } else { Ids::Sent { classes } };
    let mut question = Question { bytes: &[], rows, k, codec, ids };
    let mut bytes = draw.rest().to_vec();
    if let Some(length) = (whole && few && k > 0).then(|| question.length()).flatten() {
        bytes.resize(length, 0);
        if headed && rows > 0 {
            bytes[..HEAD].copy_from_slice(&question.head());
        }
        if ascending && rows > 0 && !known {
            question.number(&mut bytes, classes);
        }
    }
    question.bytes = &bytes;
    question.check()
}

/// Where a row's ids are, as docs/wire.md counts.
#[derive(Clone, Copy)]
struct Places {
    lower: usize,
    lower_bytes: usize,
    upper_bytes: usize,
}

impl Places {
    fn of(k: usize, classes: usize) -> Self {
        let lower = (0..63).take_while(|l| (classes / k) >> (l + 1) > 0).count();
        let upper_bits = k + ((classes - 1) >> lower);
        Self { lower, lower_bytes: (k * lower).div_ceil(8), upper_bytes: upper_bits.div_ceil(8) }
    }
}

impl Question<'_> {
    fn code(&self) -> usize {
        if self.codec == Codec::Compact { 2 } else { 1 }
    }

    /// None where there are no such signals.
    fn places(&self) -> Option<Option<Places>> {
        match self.ids {
            Ids::Known(ids) => (Some(ids.len()) == self.rows.checked_mul(self.k)).then_some(None),
            Ids::Sent { classes } => {
                let may = (self.k..=1 << 24).contains(&classes);
                may.then(|| Some(Places::of(self.k, classes)))
            }
        }
    }

    fn length(&self) -> Option<usize> {
        let of_ids = self.places()?.map_or(0, |ids| ids.lower_bytes + ids.upper_bytes);
        if self.rows == 0 {
            return Some(0);
        }
        let row = self.k.checked_mul(self.code())?.checked_add(16 + of_ids)?;
        self.rows.checked_mul(row)?.checked_add(HEAD)
    }

    fn head(&self) -> [u8; HEAD] {
        let (sent, classes) = match self.ids {
            Ids::Known(_) => (0, 0),
            Ids::Sent { classes } => (1, classes as u32),
        };
        let numbers = [self.rows as u32, self.k as u32, classes].map(u32::to_le_bytes).concat();
        let begin = [0x4c, 0x54, 0x4b, 1, 8 * self.code() as u8, sent, 0, 0];
        std::array::from_fn(|at| if at < 8 { begin[at] } else { numbers[at - 8] })
    }

    /// Puts ids that ascend in the place of ids, by the bytes that were there.
    fn number(&self, bytes: &mut [u8], classes: usize) {
        let (places, rows, k) = (Places::of(self.k, classes), self.rows, self.k);
        let lower = HEAD + 16 * rows;
        let upper = lower + rows * places.lower_bytes;
        for row in 0..rows {
            let (lower, upper) =
                (lower + row * places.lower_bytes, upper + row * places.upper_bytes);
            let seed: Vec<u8> = bytes[lower..lower + places.lower_bytes].to_vec();
            bytes[lower..lower + places.lower_bytes].fill(0);
            bytes[upper..upper + places.upper_bytes].fill(0);
            let gap = classes / k;
            for rank in 0..k {
                let by = seed.get(rank).copied().unwrap_or(0);
                let id = rank * gap + usize::from(by) % gap;
                let mut set = |from: usize, bit: usize| bytes[from + bit / 8] |= 1 << (bit % 8);
                set(upper, (id >> places.lower) + rank);
                for bit in (0..places.lower).filter(|bit| id >> bit & 1 == 1) {
                    set(lower, rank * places.lower + bit);
                }
            }
        }
    }

    fn check(&self) -> bool {
        let &Self { bytes, rows, k, codec, ids } = self;
        let (found, memory) = peak(|| decode(bytes, rows, k, codec, ids));
        let of_ids = match ids {
            Ids::Sent { .. } => 0,
            Ids::Known(ids) => 4 * ids.len(),
        };
        let allowed = MEMORY + MEMORY_A_BYTE * bytes.len() + of_ids;
        assert!(memory <= allowed, "{memory} bytes held for {}", bytes.len());
        let signal = agreed(found, self.meaning(), (rows, k), ids);
        signal.is_some_and(|signal| {
            travels(&signal, ids.layout(codec));
            true
        })
    }

    /// docs/wire.md, a bit at a time; none where it says that these bytes are no signal.
    fn meaning(&self) -> Option<TopK> {
        let &Self { bytes, rows, k, ids, .. } = self;
        let places = (k > 0).then(|| self.places())??;
        (self.length()? == bytes.len()).then_some(())?;
        let mut signal = TopK::new(k);
        if rows == 0 {
            return Some(signal);
        }
        (bytes[..HEAD] == self.head()).then_some(())?;
        let float = |at: usize| f32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let mut codes = HEAD + 16 * rows;
        codes += rows * places.map_or(0, |ids| ids.lower_bytes + ids.upper_bytes);
        for row in 0..rows {
            let column = |which: usize| float(HEAD + 4 * (which * rows + row));
            let (top, step) = (f64::from(column(0)), f64::from(column(1)));
            signal.log_z.push(column(2));
            signal.log_rest.push(column(3));
            let named = match (ids, places) {
                (Ids::Sent { classes }, Some(places)) => self.ids_of(row, places, classes)?,
                (Ids::Known(ids), _) => ids[row * k..][..k].to_vec(),
                _ => return None,
            };
            let code = |entry: usize| match self.code() {
                1 => f64::from(bytes[codes + entry]),
                _ => {
                    f64::from(bytes[codes + 2 * entry])
                        + 256.0 * f64::from(bytes[codes + 2 * entry + 1])
                }
            };
            let value = |rank: usize| (top - code(row * k + rank) * step) as f32;
            (top.is_finite() && step.is_finite()).then_some(())?;
            let mut entries: Vec<_> = (0..k).map(|rank| (value(rank), named[rank])).collect();
            entries.iter().all(|entry| entry.0.is_finite()).then_some(())?;
            if places.is_some() {
                entries.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            }
            signal.scaled.extend(entries.iter().map(|entry| entry.0));
            signal.ids.extend(entries.iter().map(|entry| entry.1));
        }
        is_sound(&signal).then_some(signal)
    }

    /// The ids of a row in ascending order; none where they are not, or a bit is nobody's.
    fn ids_of(&self, row: usize, places: Places, classes: usize) -> Option<Vec<u32>> {
        let (rows, k) = (self.rows, self.k);
        let lower = HEAD + 16 * rows;
        let upper = lower + rows * places.lower_bytes + row * places.upper_bytes;
        let lower = lower + row * places.lower_bytes;
        let bit =
            |from: usize, bit: usize| usize::from(self.bytes[from + bit / 8] >> (bit % 8) & 1);
        let set: Vec<usize> = (0..8 * places.upper_bytes).filter(|&n| bit(upper, n) == 1).collect();
        let spare = (k * places.lower..8 * places.lower_bytes).any(|n| bit(lower, n) == 1);
        (set.len() == k && !spare).then_some(())?;
        let id = |(rank, place): (usize, &usize)| {
            let low = (0..places.lower).map(|n| bit(lower, rank * places.lower + n) << n);
            ((place - rank) << places.lower) + low.sum::<usize>()
        };
        let ids: Vec<usize> = set.iter().enumerate().map(id).collect();
        let right = ids.is_sorted_by(|a, b| a < b) && ids.iter().all(|&id| id < classes);
        right.then(|| ids.into_iter().map(|id| id as u32).collect())
    }
}

fn write(mut draw: Draw<'_>) -> bool {
    let codec = draw.of(&[Codec::Compact, Codec::Compact8]);
    let classes = draw.of(&[None, Some(1 << 24), Some(100), Some(151_936), Some((1 << 24) + 1)]);
    travels(&drawn(&mut draw), Layout { codec, classes })
}

/// A signal of finite numbers and different classes arrives; another is refused.
fn travels(signal: &TopK, layout: Layout) -> bool {
    let (rows, k, codec) = (signal.rows(), signal.k, layout.codec);
    let written = encode(signal, 0..rows, layout);
    let sound = is_sound(signal);
    let named = rows == 0
        || layout.classes.is_none_or(|classes| {
            let different = |row: &[u32]| (1..row.len()).all(|at| !row[..at].contains(&row[at]));
            (k..=1 << 24).contains(&classes)
                && signal.ids.iter().all(|&id| (id as usize) < classes)
                && (!sound || signal.ids.chunks(k).all(different))
        });
    let may = sound && named;
    assert!(may && at_the_edge(signal) || written.is_ok() == may, "{signal:?}: {written:?}");
    let Ok(bytes) = written else { return false };
    let ids = layout.classes.map_or(Ids::Known(&signal.ids), |classes| Ids::Sent { classes });
    let question = Question { bytes: &bytes, rows, k, codec, ids };
    assert_eq!(question.length().filter(|_| rows > 0), (rows > 0).then_some(bytes.len()));
    if rows == 0 {
        return true;
    }
    let back = decode(&bytes, rows, k, codec, ids).expect("a signal that was written");
    let (back, sent) = (by_id(&back, &ids), by_id(signal, &ids));
    assert_eq!(back.ids, sent.ids);
    assert_arrived(&back, &sent, codec);
    true
}

/// With the entries of each row by ascending id, where the codec orders them.
fn by_id(signal: &TopK, ids: &Ids<'_>) -> TopK {
    let mut sorted = signal.clone();
    if let Ids::Known(ids) = ids {
        assert_eq!(&signal.ids, ids);
        return sorted;
    }
    for at in (0..signal.ids.len()).step_by(signal.k) {
        let entries = at..at + signal.k;
        let mut row: Vec<_> =
            entries.clone().map(|entry| (signal.ids[entry], signal.scaled[entry])).collect();
        row.sort_by_key(|entry| entry.0);
        for (entry, (id, value)) in entries.zip(row) {
            (sorted.ids[entry], sorted.scaled[entry]) = (id, value);
        }
    }
    sorted
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    // Way, codec, known, rows, k (2 bytes each), classes, whole, headed, ascending; 0 is the first of
    // each. Then the head, which is put right, and the scales of a row.
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let scales = floats(&[2.0, 1.0 / 65_536.0, 3.0, -1.0]);
    let read = |decisions: [u8; 11]| {
        [&decisions[..], &[0; HEAD], &scales, &[9, 200, 31, 7, 80, 3, 255, 1, 2, 250]].concat()
    };
    vec![
        read([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        read([0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]),
        read([0, 1, 0, 0, 0, 0, 4, 2, 0, 0, 0]),
        read([0, 1, 0, 0, 0, 0, 6, 4, 0, 0, 0]),
        read([0, 0, 0, 0, 0, 0, 5, 1, 0, 0, 0]),
        vec![1, 0, 1, 2, 3, 0, 0, 0, 4, 0, 16, 4, 0, 32, 0, 1, 1, 2, 4, 1, 1],
        vec![1, 1, 0, 1, 4, 1, 0, 1],
        vec![1, 1, 3, 2, 9, 1, 0, 0],
    ]
}
