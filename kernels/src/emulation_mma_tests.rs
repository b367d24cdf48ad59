//! Tests of the emulated tensor cores and copies: products are those of plain sums, errors that were planted are found.

use super::*;
use crate::Argument::Buffer;

/// Whether there are kernels to run; without a compiler of C++20 the test is skipped.
fn emulated(test: &str) -> bool {
    if !AVAILABLE {
        test_support::skip(test, "c++", "no compiler of C++20 was found (g++ 10 or newer, $CXX)");
    }
    AVAILABLE
}

/// Small whole numbers, whose products and sums no type here rounds: `[2, 16, 16]`.
fn operands() -> Vec<f32> {
    (0..512).map(|at| ((at * 37 + at / 16 * 11) % 13) as f32 - 6.0).collect()
}

/// Runs a planted kernel of so many threads over [`operands`], and what it leaves in y `[256]`.
fn planted(kernel: &'static str, threads: u32) -> (Result<(), String>, Vec<f32>) {
    let mut memory = Memory::default();
    let (x, y) = (memory.of("x", &operands()), memory.of("y", &[0.0_f32; 256]));
    let arguments = vec![Buffer(x), Buffer(y)];
    let call = Call { kernel, blocks: [1, 1], threads, memory: 1024, arguments };
    (run(&call, &mut memory), memory.floats(y))
}

#[test]
fn products_of_a_warp_are_those_of_plain_sums() {
    if !emulated("products_of_a_warp_are_those_of_plain_sums") {
        return;
    }
    let x = operands();
    let sum = |row: usize, column: usize| -> f32 {
        (0..16).map(|k| x[row * 16 + k] * x[256 + k * 16 + column]).sum()
    };
    let exact: Vec<f32> = (0..256).map(|at| sum(at / 16, at % 16)).collect();
    for kernel in ["planted_mma", "planted_ldmatrix", "planted_ldmatrix_trans"] {
        assert_eq!(planted(kernel, 32), (Ok(()), exact.clone()), "{kernel}");
    }
    let (found, y) = planted("planted_mma_swapped", 32);
    assert!(found.is_ok() && y != exact);
}

#[test]
fn copies_arrive_when_they_were_waited_for() {
    if !emulated("copies_arrive_when_they_were_waited_for") {
        return;
    }
    let (found, y) = planted("planted_copies", 64);
    let x = operands();
    assert_eq!((found, y[0], y[63], y[64]), (Ok(()), x[1], x[0], x[65]));
}

#[test]
fn errors_around_products_and_copies_are_found_and_said() {
    if !emulated("errors_around_products_and_copies_are_found_and_said") {
        return;
    }
    for (kernel, said) in [
        ("planted_ldmatrix_off", "a row begins at no multiple of 16 bytes"),
        ("planted_ldmatrix_elsewhere", "is to be in the block's memory, and is not"),
        ("planted_mma_lanes_missing", "waits for a lane that has ended"),
        ("planted_copies_no_wait", "a race"),
        ("planted_copies_one_wait", "a race"),
        ("planted_copies_no_barrier", "a race"),
        ("planted_copies_too_early", "a race"),
        ("planted_copies_off", "a copy begins at no multiple of its size"),
    ] {
        let said_of_it = planted(kernel, threads(kernel)).0.expect_err(kernel);
        assert!(said_of_it.contains(said) && said_of_it.starts_with(kernel), "{said_of_it}");
    }
}

/// Products are of one warp, copies of two.
fn threads(kernel: &str) -> u32 {
    if kernel.contains("copies") { 64 } else { 32 }
}
