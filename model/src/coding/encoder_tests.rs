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

/// The coordinates of a row in steps, in `f64`.
fn exact(encoder: &Encoder, centred: &[f32], rung: Rung) -> Vec<f64> {
    let rows = encoder.matrix.chunks(WIDTH);
    let coordinate = |row: &[f32]| {
        let terms = centred.iter().zip(row).map(|(x, a)| f64::from(*x) * f64::from(*a));
        terms.sum::<f64>() / rung.step()
    };
    rows.map(coordinate).collect()
}

/// At the finest step at which a row bears it, rounding is there and is within its share.
#[test]
fn rounding_moves_coordinates_by_no_more_than_its_share_of_the_step() {
    let (encoder, hidden) = drawn();
    let Some(laid) = &encoder.laid else { return };
    for (row, hidden) in hidden.chunks(WIDTH).enumerate() {
        let mut centred: Vec<f32> =
            hidden.iter().zip(encoder.code.mean()).map(|(h, m)| h - m).collect();
        if row % 3 == 0 {
            // One that is nearly all there is, and as far off as can be.
            centred[row] = 100.0 * (1.0 + 1.0 / 256.0 + 1e-6);
        }
        let bears = |rung: &i16| encoder.bears_rounding(&centred, Rung(*rung));
        let rung = Rung((-800..800).find(bears).unwrap());
        let mut found = Vec::new();
        encoder.coordinates(&[0], Some(laid), &centred, rung, &mut found);
        let apart = exact(&encoder, &centred, rung).into_iter().zip(&found);
        let squares: f64 = apart.map(|(z, found)| (z - f64::from(*found)).powi(2)).sum();
        let apart = (squares / DIRECTIONS as f64).sqrt() / ROUNDING_SHARE;
        assert!(0.3 < apart && apart < 1.2, "row {row}: {apart} of the share");
    }
}

/// How far a number is from its coordinate, in steps: half of one, and what computing it was off by.
#[test]
fn numbers_are_the_nearest_but_for_a_small_share_of_the_step() {
    let (encoder, hidden) = drawn();
    for rung in [Rung(0), Rung(-32), Rung(-64), Rung(-160)] {
        let numbers = encoder.numbers(&hidden, rung).unwrap();
        for (hidden, numbers) in hidden.chunks(WIDTH).zip(numbers.chunks(DIRECTIONS)) {
            let centred: Vec<f32> =
                hidden.iter().zip(encoder.code.mean()).map(|(h, m)| h - m).collect();
            for (z, &number) in exact(&encoder, &centred, rung).into_iter().zip(numbers) {
                if number.abs() > MAX_NUMBER {
                    // Its row travels as it is.
                    continue;
                }
                let beyond = (z - f64::from(number)).abs() - 0.5;
                assert!(beyond < 6.0 * ROUNDING_SHARE, "{rung}: {beyond}");
            }
        }
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
