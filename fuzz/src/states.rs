//! What came with hidden states: their bytes in every form, draws, codes, output matrices, and the
//! segments answers are kept in. Bytes that are none are refused whole; those that are one are what they
//! would be written as.
//!
//! An input's first byte says as what the rest is read, the second as how many rows, and whether it is
//! given the head and the length that it would need.

use std::sync::{Arc, LazyLock};

use distill::cache::{
    Identity, Place, SEGMENT_HEADER_BYTES, Space, scan, segment_header, write_record,
};
use distill::codec::draws::{self, Head, Values};
use distill::coded::{Code, Parts, Rung};
use distill::fingerprint::Fingerprint;
use distill::hidden::{self, HiddenForm};
use distill::matrix::OutputMatrix;
use distill::signal::{DrawKey, Draws};

use crate::memory::peak;

/// Bytes that reading may take for each of its input's: half a byte of a hidden state becomes 4, a draw of
/// a few bits 12, and each is held twice while it is put together.
const MEMORY_A_BYTE: usize = 300;
/// And whatever its length: 36 tables of a code, with 4,096 places each.
const MEMORY: usize = 1 << 20;
/// Numbers of a hidden state here.
const WIDTH: usize = 6;
/// Classes here.
const CLASSES: usize = 300;
/// Rows that bytes are read as.
const ROWS: [usize; 4] = [1, 3, 65, 130];
const FORMS: [HiddenForm; 4] =
    [HiddenForm::F32, HiddenForm::Bf16, HiddenForm::Int8, HiddenForm::Int4];
const RUNG: Rung = Rung(-32);

/// Tries an input; whether the bytes were what they were read as.
///
/// # Panics
/// When a law is broken.
pub fn run(input: &[u8]) -> bool {
    let [way, decisions, rest @ ..] = input else { return false };
    let rows = ROWS[usize::from(decisions % 4)];
    let (form, dressed) = (FORMS[usize::from(way % 9 % 4)], decisions & 0x80 != 0);
    let whole = (way % 9 < 4 && dressed).then(|| dress(rest, rows, form));
    let rest = whole.as_deref().unwrap_or(rest);
    let allowed = MEMORY + MEMORY_A_BYTE * rest.len();
    // What is made once is no input's.
    small_code();
    let (read, memory) = peak(|| match way % 9 {
        0..4 => plain(rest, rows, form),
        4 => coded(rest, rows),
        5 => drawn(rest, rows),
        6 => code(rest),
        7 => matrix(rest),
        _ => segment(rest),
    });
    assert!(memory <= allowed, "{memory} bytes held for {}", rest.len());
    read
}

/// These bytes as the numbers of hidden states, with the head and the length such have: what is changed
/// is then a number.
fn dress(bytes: &[u8], rows: usize, form: HiddenForm) -> Vec<u8> {
    let mut whole = hidden::encode(&[], WIDTH, form).expect("a head");
    whole.extend_from_slice(bytes);
    whole.resize(hidden::HEAD_BYTES + rows * form.row_bytes(WIDTH), 0);
    whole
}

fn plain(bytes: &[u8], rows: usize, form: HiddenForm) -> bool {
    let Ok(states) = hidden::decode(bytes, rows, WIDTH, form) else { return false };
    assert_eq!((states.rows(), states.width), (rows, WIDTH));
    assert!(states.values.iter().all(|x| x.is_finite()));
    if let HiddenForm::F32 | HiddenForm::Bf16 = form {
        assert_eq!(hidden::encode(&states.values, WIDTH, form).as_deref(), Ok(bytes));
    }
    true
}

/// A code of few directions.
fn small_code() -> &'static Arc<Code> {
    static CODE: LazyLock<Arc<Code>> = LazyLock::new(|| {
        let diagonal = |i: usize| if i.is_multiple_of(WIDTH + 1) { 1.5 } else { 0.25 };
        let matrix: Vec<f64> = (0..WIDTH * WIDTH).map(diagonal).collect();
        let spreads: Vec<f64> = (0..WIDTH as i32).map(|i| 2f64.powi(-i)).collect();
        let standardised = (0..4000).map(|i| ((i * 37 % 200) as f32 - 100.0) / 40.0).collect();
        let (model, mean) = (Fingerprint([7; 32]), vec![0.5; WIDTH]);
        let code =
            Code::new(Parts { model, mean, spreads: &spreads, matrix: &matrix, standardised });
        Arc::new(code.expect("a code"))
    });
    &CODE
}

fn coded(bytes: &[u8], rows: usize) -> bool {
    let code = small_code();
    let Ok(numbers) = code.decode(bytes, rows) else { return false };
    assert_eq!(numbers.numbers.len(), rows * code.directions());
    let states = code.reconstruct(RUNG, &numbers);
    assert_eq!(states.rows(), rows);
    // A part read alone is the same part.
    let part = rows / 3..rows - rows / 4;
    let alone = code.decode_range(bytes, rows, part.clone()).expect("rows that were read");
    let directions = code.directions();
    assert_eq!(alone.numbers, numbers.numbers[part.start * directions..part.end * directions]);
    true
}

fn drawn(bytes: &[u8], rows: usize) -> bool {
    let Ok(found) = Head::read(bytes) else { return false };
    let wanted = Head { rows, classes: CLASSES, values: Values::F32, ..found };
    let Ok(signal) = draws::decode(bytes, &wanted) else { return false };
    assert_eq!(signal.check(CLASSES), Ok(()));
    let again = draws::encode(&signal, 0..rows, CLASSES, Values::F32);
    assert_eq!(again.as_deref(), Ok(bytes));
    true
}

fn code(bytes: &[u8]) -> bool {
    let Ok(code) = Code::from_bytes(bytes) else { return false };
    assert_eq!(code.to_bytes(), bytes);
    assert_eq!(code.fingerprint(), Fingerprint::of(bytes));
    true
}

fn matrix(bytes: &[u8]) -> bool {
    let Ok(matrix) = OutputMatrix::parse(bytes) else { return false };
    let OutputMatrix { rows, width, form, values } = matrix;
    assert_eq!(rows * width * form.bytes(), values.len());
    true
}

fn space() -> Space {
    let (model, tokenizer) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
    let signal = "top-k k=2".to_owned();
    Identity { model, tokenizer, classes: CLASSES as u32, signal, temperature: Some(2.0) }.space()
}

fn segment(bytes: &[u8]) -> bool {
    let Ok(found) = scan(bytes, 0, &space()) else { return false };
    let mut end = SEGMENT_HEADER_BYTES;
    for record in &found.records {
        let start = record.offset as usize;
        assert!(start >= end, "records overlap");
        end = start + record.length as usize;
        assert!(end <= bytes.len(), "a record beyond its file");
    }
    !found.records.is_empty()
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let values: Vec<f32> = (0..65 * WIDTH).map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0).collect();
    let of = |way: u8, rows: u8, bytes: Vec<u8>| [vec![way, rows], bytes].concat();
    let mut seeds = Vec::new();
    for (way, form) in (0..).zip(FORMS) {
        for (place, rows) in [(0, 1), (1, 3)] {
            let bytes = hidden::encode(&values[..rows * WIDTH], WIDTH, form).expect("states");
            seeds.push(of(way, place, bytes.clone()));
            seeds.push(of(way, 0x80 | place, bytes[hidden::HEAD_BYTES..].to_vec()));
        }
    }
    let code = small_code();
    for (place, rows, scale) in [(0, 1, 4.0), (1, 3, 40_000.0), (2, 65, 4.0), (1, 3, 0.0)] {
        let states = &values[..rows * WIDTH];
        let numbers: Vec<i32> = states.iter().map(|x| (x * scale) as i32).collect();
        seeds.push(of(4, place, code.encode(RUNG, &numbers, states)));
    }
    for k in [0, 3] {
        let mut signal = Draws::new(16, k);
        for position in 0..3 {
            let key = DrawKey { seed: 1, token_checksum: 2, position };
            let logit = |j: u32| f64::from((j * 31 + position * 7) % 17);
            let logits: Vec<f64> = (0..CLASSES as u32).map(logit).collect();
            signal.push_exact(&logits, 2.0, &key.uniforms(16));
        }
        let bytes = draws::encode(&signal, 0..3, CLASSES, Values::F32).expect("draws");
        seeds.push(of(5, 1, bytes));
    }
    seeds.push(of(6, 0, code.to_bytes()));
    for values in [[1.0, -2.0, 0.5, 0.0], [0.1, 0.2, 0.3, 0.4]] {
        seeds.push(of(7, 0, distill::matrix::encode(&values, 2).0));
    }
    let mut file = segment_header(0, &space()).to_vec();
    for (n, payload) in [&b"one"[..], b"", b"three"].into_iter().enumerate() {
        let key = space().key(&[n as u32, 1], std::slice::from_ref(&(0..1)));
        let place = Place { segment: 0, offset: file.len() as u32 };
        assert!(write_record(&mut file, &key, payload, place), "a record");
    }
    seeds.push(of(8, 0, file));
    seeds
}
