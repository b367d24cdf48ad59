//! A second reader of codes and coded rows, written from docs/wire.md alone, a bit at a time.

use super::tests::{code, drawn};
use super::{MAX_NUMBER, Rung};

/// A code's bytes, front to back.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let (taken, rest) = self.0.split_at(bytes);
        self.0 = rest;
        taken.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    fn i16(&mut self) -> i64 {
        i64::from(self.number(2) as u16 as i16)
    }

    fn f32(&mut self) -> f32 {
        f32::from_bits(self.number(4) as u32)
    }
}

/// What the document says a code holds.
struct Said {
    exponent: i64,
    width: usize,
    directions: usize,
    mean: Vec<f32>,
    classes: Vec<i64>,
    matrix: Vec<i64>,
    /// Lowest number, widths.
    tables: Vec<(i64, Vec<u64>)>,
}

fn said(bytes: &[u8]) -> Said {
    assert_eq!(&bytes[..8], b"LMBKCODE");
    let mut bytes = Bytes(&bytes[8..]);
    assert_eq!(bytes.number(2), 1);
    let exponent = bytes.i16();
    let (width, directions) = (bytes.number(4) as usize, bytes.number(4) as usize);
    bytes.0 = &bytes.0[32..];
    let mean = (0..width).map(|_| bytes.f32()).collect();
    let classes = (0..directions).map(|_| bytes.i16()).collect();
    let matrix =
        (0..width * directions).map(|_| i64::from(bytes.number(4) as u32 as i32)).collect();
    let mut table = || {
        let (lowest, symbols) = (bytes.i16(), bytes.number(2));
        (lowest, (0..symbols).map(|_| bytes.number(2)).collect())
    };
    let tables = (0..36).map(|_| table()).collect();
    assert_eq!((bytes.number(4), bytes.0.len()), (0, 0), "no rates, and nothing behind them");
    Said { exponent, width, directions, mean, classes, matrix, tables }
}

/// A block of rows.
struct Block<'a> {
    states: [u64; 2],
    words: Bytes<'a>,
    symbols: usize,
}

impl Block<'_> {
    fn place(&self) -> u64 {
        self.states[self.symbols % 2] % 4096
    }

    /// Takes the symbol of the interval from `start` on.
    fn take(&mut self, start: u64, width: u64) {
        let x = self.states[self.symbols % 2];
        let mut x = width * (x / 4096) + x % 4096 - start;
        if x < 65_536 {
            x = 65_536 * x + self.words.number(2);
        }
        self.states[self.symbols % 2] = x;
        self.symbols += 1;
    }

    fn bits(&mut self, n: u32) -> u64 {
        let mut value = 0;
        let mut left = n;
        while left > 0 {
            let n = left.min(12);
            left -= n;
            let width = 4096 >> n;
            let symbol = self.place() / width;
            self.take(symbol * width, width);
            value = value << n | symbol;
        }
        value
    }

    fn gamma(&mut self) -> i64 {
        let mut l = 0;
        while self.bits(1) == 0 {
            l += 1;
        }
        ((1 << l | self.bits(l)) - 1) as i64
    }

    fn by_table(&mut self, (lowest, widths): &(i64, Vec<u64>)) -> i64 {
        let (place, mut start) = (self.place(), 0);
        for (symbol, &width) in widths.iter().enumerate() {
            if place < start + width {
                self.take(start, width);
                let end = lowest + widths.len() as i64 - 1;
                if symbol + 1 < widths.len() {
                    return lowest + symbol as i64;
                }
                let below = self.bits(1) == 1;
                let distance = self.gamma();
                return if below { lowest - 1 - distance } else { end + distance };
            }
            start += width;
        }
        panic!("the widths sum to 4,096")
    }
}

/// Numbers, or a hidden state as it is.
enum Row {
    Numbers(Vec<i64>),
    Verbatim(Vec<f32>),
}

fn row(said: &Said, rung: i64, block: &mut Block<'_>) -> Row {
    let place = block.place();
    let (start, width) = match place {
        0..4000 => (0, 4000),
        4000..4092 => (4000, 92),
        _ => (4092, 4),
    };
    block.take(start, width);
    if start == 4092 {
        let states = (0..said.width).map(|_| f32::from_bits(block.bits(32) as u32));
        return Row::Verbatim(states.collect());
    }
    let zero = |(lowest, widths): &(i64, Vec<u64>)| widths[(-lowest) as usize];
    let least = said.tables.iter().position(|table| zero(table) < 4092).expect("a loud table");
    let class = |at: usize| (said.classes[at] - rung + 2).div_euclid(4).min(60);
    let spoken = (0..said.directions).take_while(|&at| class(at) >= least as i64 - 24).count();
    let mut numbers = vec![0; said.directions];
    if start == 4000 {
        let silent = said.directions - spoken;
        let bits = (0..).find(|bits| 1 << bits >= silent).expect("bits");
        for _ in 0..=block.gamma() {
            let place = spoken + block.bits(bits) as usize;
            let negative = block.bits(1) == 1;
            let magnitude = block.gamma() + 1;
            numbers[place] = if negative { -magnitude } else { magnitude };
        }
    }
    for (at, number) in numbers.iter_mut().enumerate().take(spoken) {
        let class = class(at);
        if class < 12 {
            *number = block.by_table(&said.tables[(class + 24) as usize]);
            continue;
        }
        let s = (class - 8).div_euclid(4) as u32;
        let upper = block.by_table(&said.tables[(class - 4 * i64::from(s) + 24) as usize]);
        *number = (upper << s) + block.bits(s) as i64 - (1 << (s - 1));
    }
    Row::Numbers(numbers)
}

/// Rows of 64 a block, all blocks but the last with their length in front.
fn rows(said: &Said, bytes: &[u8], rows: usize) -> (i64, Vec<Row>) {
    let mut head = Bytes(bytes);
    assert_eq!((head.number(1), head.number(1)), (0xc0, 1));
    let rung = head.i16();
    let blocks = rows.div_ceil(64);
    let mut lengths: Vec<usize> = (1..blocks).map(|_| head.number(4) as usize).collect();
    lengths.push(head.0.len() - lengths.iter().sum::<usize>());
    let mut all = Vec::new();
    for (number, length) in lengths.into_iter().enumerate() {
        let (bytes, rest) = head.0.split_at(length);
        head.0 = rest;
        let mut words = Bytes(bytes);
        let states = [words.number(4), words.number(4)];
        let mut block = Block { states, words, symbols: 0 };
        all.extend((number * 64..rows.min(number * 64 + 64)).map(|_| row(said, rung, &mut block)));
        assert_eq!(block.states, [65_536; 2]);
        assert!(block.words.0.is_empty());
    }
    (rung, all)
}

/// Numbers, escapes, exceptions and verbatim rows, and the hidden states they stand for.
#[test]
fn what_is_written_is_what_the_document_says() {
    let code = code(24, 24);
    let said = said(&code.to_bytes());
    for rung in [-90, -33, 0, 32].map(Rung) {
        let count = 150;
        let mut numbers = drawn(&code, rung, count, 4);
        numbers[24 * 70] = 20_000;
        numbers[24 * 71 + 23] = -3;
        numbers[24 * 71 + 22] = 7;
        numbers[24 * 149 + 2] = -MAX_NUMBER - 1;
        let hidden: Vec<f32> = (0..count * 24).map(|at| at as f32 - 900.5).collect();
        let bytes = code.encode(rung, &numbers, &hidden);
        let states = code.reconstruct(rung, &code.decode(&bytes, count).unwrap());
        let (found, rows) = rows(&said, &bytes, count);
        assert_eq!(found, i64::from(rung.0));
        let unit = (f64::from(rung.0) / 16.0).exp2() * (said.exponent as f64).exp2();
        for (at, row) in rows.iter().enumerate() {
            let states = &states.values[24 * at..24 * (at + 1)];
            match row {
                Row::Verbatim(hidden) => {
                    assert!(numbers[24 * at..24 * (at + 1)].iter().any(|n| n.abs() > MAX_NUMBER));
                    assert_eq!(hidden, states);
                }
                Row::Numbers(row) => {
                    let wanted = numbers[24 * at..24 * (at + 1)].iter().map(|&n| i64::from(n));
                    assert!(wanted.eq(row.iter().copied()), "row {at} at {rung}");
                    for (line, (&state, mean)) in states.iter().zip(&said.mean).enumerate() {
                        let entries = &said.matrix[24 * line..24 * (line + 1)];
                        let sum: i64 = entries.iter().zip(row).map(|(m, n)| m * n).sum();
                        let wanted = f64::from(*mean) + unit * sum as f64;
                        assert!((f64::from(state) - wanted).abs() <= 1e-7 * wanted.abs().max(1.0));
                    }
                }
            }
        }
    }
}
