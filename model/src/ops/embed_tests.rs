//! Tests of gathering and scattering: exact, since nothing but addition in a known order happens.

use candle_core::DType;
use proptest::prelude::*;

use super::super::testing::{matrix, on_threads, random, values, zeros};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn rows_are_taken_and_given_back_in_order(
        r in 1_usize..50, d in 1_usize..40, ids in prop::collection::vec(any::<u32>(), 0..200),
        seed: u64,
    ) {
        let ids: Vec<u32> = ids.iter().map(|id| id % r as u32).collect();
        let (w, grad) = (random(seed, r * d), random(seed ^ 1, ids.len() * d));
        let gathered = gather_rows(&matrix(&w, r, d), &ids).unwrap();
        prop_assert_eq!(gathered.dims(), [ids.len(), d]);
        let mut expected = w.clone();
        for (j, &id) in ids.iter().enumerate() {
            let row = id as usize * d..(id as usize + 1) * d;
            prop_assert_eq!(&values(&gathered)[j * d..(j + 1) * d], &w[row.clone()]);
            for (acc, g) in expected[row].iter_mut().zip(&grad[j * d..(j + 1) * d]) {
                *acc += g;
            }
        }
        let acc = matrix(&w, r, d);
        scatter_add_rows(&acc, &ids, &matrix(&grad, ids.len(), d)).unwrap();
        prop_assert_eq!(values(&acc), expected);
    }
}

#[test]
fn many_rows_scattered_by_many_threads_keep_their_order() {
    let (r, d, n) = (37, 64, 4000);
    assert!(n * d > PARALLEL_FROM);
    let ids: Vec<u32> = (0..n as u32).map(|j| (j * j + 3 * j) % r as u32).collect();
    let grad = random(5, n * d);
    let mut expected = vec![0.0; r * d];
    for (id, g) in ids.iter().zip(grad.chunks_exact(d)) {
        math::add_assign(&mut expected[*id as usize * d..(*id as usize + 1) * d], g);
    }
    for threads in [1, 2, 5] {
        let acc = zeros((r, d));
        on_threads(threads, || scatter_add_rows(&acc, &ids, &matrix(&grad, n, d))).unwrap();
        assert!(values(&acc) == expected, "{threads} threads");
    }
}

#[test]
fn a_stored_half_precision_matrix_is_widened() {
    let w = matrix(&[1.0, -2.5, 0.125, 7.0], 2, 2).to_dtype(DType::F16).unwrap();
    assert_eq!(values(&gather_rows(&w, &[1, 0, 1]).unwrap()), [0.125, 7.0, 1.0, -2.5, 0.125, 7.0]);
}

#[test]
fn an_id_beyond_the_matrix_is_named() {
    let w = zeros((3, 2));
    let message = gather_rows(&w, &[0, 3]).unwrap_err().to_string();
    assert!(message.contains("id 3 at place 1") && message.contains("3 rows"), "{message}");
    assert!(scatter_add_rows(&w, &[9], &zeros((1, 2))).is_err());
    assert!(scatter_add_rows(&w, &[1], &zeros((1, 3))).is_err());
}
