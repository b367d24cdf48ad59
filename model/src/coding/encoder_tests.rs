//! Tests of what rounding does to numbers.

use distill::coded::{MAX_NUMBER, Parts};
use distill::fingerprint::Fingerprint;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const WIDTH: usize = 200;
const DIRECTIONS: usize = 190;
const ROWS: usize = 60;

/// A code of this matrix, and hidden states of which every seventh is a thousand times as large.
fn drawn() -> (Encoder, Vec<f32>) {
    let mut random = StdRng::seed_from_u64(6);
    let mut centred = || random.random::<f32>() - 0.5;
    let matrix: Vec<f32> = (0..DIRECTIONS * WIDTH).map(|_| centred()).collect();
    let code = Code::new(Parts {
        model: Fingerprint([0; 32]),
        mean: (0..WIDTH).map(|_| centred()).collect(),
        spreads: &[1.0; DIRECTIONS],
        // Nothing is decoded here.
        matrix: &[1.0; WIDTH * DIRECTIONS],
        standardised: (0..10_000).map(|_| centred()).collect(),
    });
    let size = |row: usize| if row % 7 == 3 { 1000.0 } else { 1.0 };
    let hidden = (0..ROWS * WIDTH).map(|at| size(at / WIDTH) * centred()).collect();
    (Encoder::new(Arc::new(code.unwrap()), matrix).unwrap(), hidden)
}

/// How far a number is from its coordinate, in steps: half of one, and what computing it was off by.
#[test]
fn numbers_are_the_nearest_but_for_a_small_share_of_the_step() {
    let (encoder, hidden) = drawn();
    for rung in [Rung(0), Rung(-32), Rung(-64), Rung(-160)] {
        let numbers = encoder.numbers(&hidden, rung).unwrap();
        let mut squares = 0.0;
        for (hidden, numbers) in hidden.chunks(WIDTH).zip(numbers.chunks(DIRECTIONS)) {
            for (row, &number) in encoder.matrix.chunks(WIDTH).zip(numbers) {
                if number.abs() > MAX_NUMBER {
                    // Its row travels as it is.
                    continue;
                }
                let terms = hidden.iter().zip(encoder.code.mean()).zip(row);
                let z: f64 = terms.map(|((h, m), a)| f64::from(h - m) * f64::from(*a)).sum();
                let beyond = (z / rung.step() - f64::from(number)).abs() - 0.5;
                // Six times the root mean square it may be off by.
                assert!(beyond < 6.0 * ROUNDING_SHARE, "{rung}: {beyond}");
                squares += beyond.max(0.0).powi(2);
            }
        }
        assert!((squares / numbers.len() as f64).sqrt() < ROUNDING_SHARE, "{rung}");
    }
}

#[test]
fn the_numbers_of_a_row_do_not_depend_on_the_others() {
    let (encoder, hidden) = drawn();
    // Where large rows are computed otherwise than small ones, if the processor has two ways.
    let rung = Rung(-16);
    let all = encoder.numbers(&hidden, rung).unwrap();
    let ways = hidden.chunks(WIDTH).map(|row| encoder.bears_rounding(row, rung));
    assert_eq!(ways.clone().any(|rounded| rounded), encoder.laid.is_some());
    assert!(ways.clone().any(|rounded| !rounded));
    for (row, numbers) in hidden.chunks(WIDTH).zip(all.chunks(DIRECTIONS)) {
        assert_eq!(encoder.numbers(row, rung).unwrap(), numbers);
    }
}
