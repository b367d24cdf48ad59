//! Tests of the coded hidden state: every number comes back, near the bound, and damage is found.

use super::*;
use proptest::prelude::*;

/// Whole numbers from a seed, as good as random.
fn noise(seed: u64, at: u64) -> u64 {
    let mixed = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Near enough a standard normal: twelve uniform numbers.
fn normal(seed: u64, at: u64) -> f64 {
    let uniform = |n| (noise(seed, at * 12 + n) >> 11) as f64 / (1u64 << 53) as f64;
    (0..12).map(uniform).sum::<f64>() - 6.0
}

/// A code of spreads that fall by half from direction to direction.
pub(super) fn code(width: usize, directions: usize) -> Code {
    let spreads: Vec<f64> = (0..directions).map(|j| 8.0 * (-(j as f64) / 2.0).exp2()).collect();
    let matrix: Vec<f64> = (0..width * directions).map(|at| normal(1, at as u64)).collect();
    Code::new(Parts {
        model: Fingerprint([7; 32]),
        mean: (0..width).map(|at| normal(2, at as u64) as f32).collect(),
        spreads: &spreads,
        matrix: &matrix,
        standardised: (0..20_000).map(|at| normal(3, at) as f32).collect(),
    })
    .unwrap()
}

/// Numbers as coordinates of these spreads would have at a step.
pub(super) fn drawn(code: &Code, rung: Rung, rows: usize, seed: u64) -> Vec<i32> {
    let directions = code.directions();
    let number = |at: usize| {
        let spread = 8.0 * (-((at % directions) as f64) / 2.0).exp2();
        (normal(seed, at as u64) * spread / rung.step()).round() as i32
    };
    (0..rows * directions).map(number).collect()
}

fn to_i16(numbers: &[i32]) -> Vec<i16> {
    numbers.iter().map(|&number| number as i16).collect()
}

/// A number is other than 0 where a coordinate is beyond half a step: by numbers drawn with the spreads.
#[test]
fn directions_that_often_speak_come_first_and_are_counted() {
    let code = code(16, 16);
    for rung in [Rung(-16), Rung(0), Rung(24)] {
        let rows = 4000;
        let numbers = drawn(&code, rung, rows, 9);
        let share = |direction: usize| {
            let of = numbers.iter().skip(direction).step_by(16);
            of.filter(|&&number| number != 0).count() as f64 / rows as f64
        };
        for least in [0.02, 0.1, 0.5, 0.9] {
            let frequent = code.frequent(rung, least);
            // Tables are made for every quarter octave, spreads go by half octaves.
            assert!(
                (0..frequent).all(|direction| share(direction) > 0.7 * least),
                "{rung} {least}"
            );
            assert!(
                (frequent..16).all(|direction| share(direction) < 1.4 * least),
                "{rung} {least}"
            );
        }
    }
}

#[test]
fn a_step_is_a_power_of_the_sixteenth_root_of_two() {
    for rung in (-40..=40).chain([-1600, 1600]) {
        let wanted = (f64::from(rung) / 16.0).exp2();
        assert!((Rung(rung).step() / wanted - 1.0).abs() < 1e-15, "{rung}");
    }
}

#[test]
fn rows_come_back_in_whole_and_in_part_and_close_to_the_bound() {
    let code = code(24, 16);
    for rung in [-48, -17, 0, 22].map(Rung) {
        let rows = 500;
        let numbers = drawn(&code, rung, rows, 5);
        let hidden = vec![0.5; rows * 24];
        let bytes = code.encode(rung, &numbers, &hidden);
        assert_eq!(rung_of(&bytes), Ok(rung));
        let read = code.decode(&bytes, rows).unwrap();
        assert_eq!(read.numbers, to_i16(&numbers));
        assert!(read.verbatim.is_empty());
        for wanted in [0..1, 63..65, 130..131, 200..500, 499..500, 7..7] {
            let part = code.decode_range(&bytes, rows, wanted.clone()).unwrap();
            assert_eq!(part.numbers, to_i16(&numbers[wanted.start * 16..wanted.end * 16]));
        }
        let bound = code.information(rung, &numbers) / 8.0;
        let found = bytes.len() as f64;
        // Beside the numbers a row says that it is plain; a block has 12 bytes of its own.
        let most = 1.005 * bound + rows as f64 * 0.035 / 8.0 + 12.0 * 8.0 + 4.0;
        assert!(found > bound && found < most, "{rung}: {found} of {bound}");
    }
}

/// No number is clipped: what the tables do not cover, silent directions, and what is beyond 16 bits.
#[test]
fn exceptions_escapes_and_verbatim_rows_come_back() {
    let (code, rung) = (code(24, 24), Rung(32));
    assert!(code.codings(rung).len() < 22, "the last directions are silent");
    let mut numbers = drawn(&code, rung, 5, 6);
    numbers[0] = 31_000;
    numbers[24 + 23] = -4;
    numbers[24 + 22] = MAX_NUMBER;
    numbers[2 * 24 + 3] = MAX_NUMBER + 1;
    let hidden: Vec<f32> = (0..5 * 24).map(|at| normal(8, at) as f32 * 1e9).collect();
    let read = code.decode(&code.encode(rung, &numbers, &hidden), 5).unwrap();
    let mut wanted = to_i16(&numbers);
    wanted[2 * 24..3 * 24].fill(0);
    assert_eq!(read.numbers, wanted);
    assert_eq!(read.verbatim, [(2, hidden[48..72].to_vec())]);
    let states = code.reconstruct(rung, &read);
    assert_eq!(states.values[48..72], hidden[48..72]);
}

/// The matrix and the mean by hand: h = mean + matrix · number · step.
#[test]
fn a_hidden_state_is_the_mean_and_the_matrix_times_the_numbers() {
    let code = Code::new(Parts {
        model: Fingerprint([0; 32]),
        mean: vec![1.0, -2.0],
        spreads: &[4.0, 1.0],
        matrix: &[0.5, 0.25, -1.0, 3.0],
        standardised: (0..1000).map(|at| normal(3, at) as f32).collect(),
    })
    .unwrap();
    let numbers = Numbers { numbers: vec![4, -2, 0, 0], verbatim: Vec::new() };
    let states = code.reconstruct(Rung(-16), &numbers);
    assert_eq!(states.values, [1.0 + 0.5 * 1.5, -2.0 - 5.0, 1.0, -2.0]);
    assert_eq!(f64::from(code.matrix()[3]) * code.unit(Rung(-16)), 1.5);
}

#[test]
fn the_finest_step_within_bytes_and_the_coarsest_within_an_error_are_chosen() {
    let rate = |rung, bytes, divergence| Rate { rung: Rung(rung), bytes, divergence };
    let code =
        code(4, 4).with_rates(vec![rate(-4, 60.0, 1e-4), rate(0, 40.0, 1e-3), rate(4, 20.0, 1e-2)]);
    assert_eq!(code.rung_for_bytes(44.0).map(|r| r.rung), Some(Rung(0)));
    assert_eq!(code.rung_for_bytes(60.0).map(|r| r.rung), Some(Rung(-4)));
    assert_eq!(code.rung_for_bytes(19.0), None);
    assert_eq!(code.rung_for_divergence(5e-3).map(|r| r.rung), Some(Rung(0)));
    assert_eq!(code.rung_for_divergence(5e-5), None);
}

#[test]
fn a_code_is_its_bytes_and_damage_is_found() {
    let rates = vec![Rate { rung: Rung(-3), bytes: 41.5, divergence: 0.01 }];
    let code = code(6, 5).with_rates(rates);
    let bytes = code.to_bytes();
    let read = Code::from_bytes(&bytes).unwrap();
    assert_eq!((&read, read.fingerprint()), (&code, code.fingerprint()));
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    assert_ne!(Code::from_bytes(&other).unwrap().fingerprint(), code.fingerprint());
    for length in 0..bytes.len() {
        assert!(Code::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    let message = |at: usize, to: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = to;
        Code::from_bytes(&bytes).unwrap_err().to_string()
    };
    assert!(message(0, b'X').contains("LMBKCODE"));
    assert!(message(8, 2).contains("version is 2"));
    let tables = 52 + 4 * 6 + 2 * 5 + 4 * 30;
    assert!(message(tables + 4, 0).contains("of class -24"), "{}", message(tables + 4, 0));
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(Code::from_bytes(&longer).unwrap_err().to_string().contains("1 bytes too many"));
}

#[test]
fn numbers_that_are_not_finite_make_no_code() {
    let with = |mean: f32, spread: f64, entry: f64, shape: f32| {
        let parts = Parts {
            model: Fingerprint([0; 32]),
            mean: vec![mean],
            spreads: &[spread],
            matrix: &[entry],
            standardised: vec![0.0, shape],
        };
        Code::new(parts).is_ok()
    };
    assert!(with(0.0, 1.0, 1.0, 1.0));
    assert!(!with(f32::NAN, 1.0, 1.0, 1.0));
    assert!(!with(0.0, 0.0, 1.0, 1.0));
    assert!(!with(0.0, 1.0, f64::INFINITY, 1.0));
    assert!(!with(0.0, 1.0, 1.0, f32::NAN));
}

proptest! {
    /// Bits that are flipped, bytes that are cut off or added: an error, or rows of numbers within range.
    #[test]
    fn damaged_rows_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        rows in 0usize..140,
    ) {
        let (code, rung) = (code(8, 8), Rung(-24));
        let numbers = drawn(&code, rung, 130, 9);
        let mut bytes = code.encode(rung, &numbers, &vec![0.0; 130 * 8]);
        for (at, by) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= by;
        }
        let length = cut.index(bytes.len() + 1);
        for bytes in [&bytes[..], &bytes[..length]] {
            if let Ok(read) = code.decode(bytes, rows) {
                prop_assert_eq!(read.numbers.len(), rows * 8);
                prop_assert!(read.numbers.iter().all(|&n| i32::from(n).abs() <= MAX_NUMBER));
            }
        }
    }

    #[test]
    fn damaged_codes_never_panic(
        at in any::<prop::sample::Index>(),
        by in 1u8..,
    ) {
        let mut bytes = code(3, 2).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        if let Ok(code) = Code::from_bytes(&bytes) {
            let read = code.decode(&code.encode(Rung(0), &[1, 2], &[0.0; 3]), 1);
            prop_assert!(read.is_ok(), "{:?}", read);
        }
    }
}
