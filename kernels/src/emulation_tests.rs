//! Tests of the emulation itself: errors that were planted are found, and said.

use super::*;
use crate::Argument::Buffer;

const THREADS: u32 = 64;

/// Whether there are kernels to run; without a compiler of C++20 the test is skipped.
fn emulated(test: &str) -> bool {
    if !AVAILABLE {
        test_support::skip(test, "c++", "no compiler of C++20 was found (g++ 10 or newer, $CXX)");
    }
    AVAILABLE
}

/// Runs a planted kernel over x [2 · threads] and y of so many elements, with room for a float a thread.
fn planted(kernel: &'static str, y_len: usize) -> (Result<(), String>, Vec<f32>) {
    let mut memory = Memory::default();
    let x: Vec<f32> = (0..2 * THREADS).map(|at| 1.0 / (at as f32 + 3.0)).collect();
    let (x, y) = (memory.of("x", &x[..x_len(kernel)]), memory.of("y", &vec![0.0_f32; y_len]));
    let arguments = vec![Buffer(x), Buffer(y)];
    let blocks = [if kernel.contains("any_order") { 2 } else { 1 }, 1];
    let call = Call { kernel, blocks, threads: THREADS, memory: 4 * THREADS, arguments };
    let found = run(&call, &mut memory);
    (found, memory.floats(y))
}

fn x_len(kernel: &str) -> usize {
    THREADS as usize * if kernel.contains("any_order") { 2 } else { 1 }
}

#[test]
fn a_sound_kernel_is_run_and_nothing_is_said() {
    if !emulated("a_sound_kernel_is_run_and_nothing_is_said") {
        return;
    }
    let (found, y) = planted("planted_nothing", 64);
    assert_eq!((found, y[0], y[63]), (Ok(()), 1.0 / 66.0, 1.0 / 3.0));
}

#[test]
fn planted_errors_are_found_and_said() {
    if !emulated("planted_errors_are_found_and_said") {
        return;
    }
    for (kernel, len, said) in [
        ("planted_no_barrier", 64, "a race"),
        ("planted_used_again", 128, "a race"),
        ("planted_one_barrier_of_two", 128, "a race"),
        ("planted_reads_beyond", 64, "touches byte 1 beyond `x` of 256 bytes"),
        ("planted_writes_beyond", 64, "touches byte 1 beyond `y` of 256 bytes"),
        ("planted_block_beyond", 64, "touches byte 1 beyond `block memory` of 256 bytes"),
        ("planted_writes_input", 64, "writes to `x`, which is read only"),
        ("planted_barriers_apart", 64, "another thread waits at another barrier"),
        ("planted_lanes_missing", 64, "waits for a lane that has ended"),
        ("planted_sum_in_any_order", 1, "a race"),
        ("planted_slots_in_any_order", 64, "a race"),
    ] {
        let said_of_it = planted(kernel, len).0.expect_err(kernel);
        assert!(said_of_it.contains(said) && said_of_it.starts_with(kernel), "{said_of_it}");
    }
}

#[test]
fn what_no_order_shows_is_in_the_numbers() {
    if !emulated("what_no_order_shows_is_in_the_numbers") {
        return;
    }
    let (found, y) = planted("planted_never_written", 64);
    assert!(found.is_ok() && y.iter().all(|y| y.is_nan()), "{found:?} {y:?}");
    let (found, y) = planted("planted_half_a_sum", 64);
    let sum: f32 = (0..32).map(|at| 1.0 / (at as f32 + 3.0)).sum();
    assert!(found.is_ok() && (y[0] - sum).abs() > 0.1 * sum, "{found:?} {y:?}");
    // What the first lane has doubles in each of five rounds; the last one has all of its warp once.
    let (found, y) = planted("planted_running_sum", 64);
    assert!(found.is_ok() && (y[0] - 32.0 / 3.0).abs() < 1e-5, "{found:?} {y:?}");
    let sum: f32 = (32..64).map(|at| 1.0 / (at as f32 + 3.0)).sum();
    assert!((y[63] - sum).abs() < 1e-5 * sum, "{y:?}");
}

#[test]
fn other_arguments_than_a_kernel_takes_are_refused() {
    if !emulated("other_arguments_than_a_kernel_takes_are_refused") {
        return;
    }
    let mut memory = Memory::default();
    let (x, y) = (memory.of("x", &[1.0_f32]), memory.of("y", &[half::bf16::ZERO]));
    let mut call = Call {
        kernel: "planted_nothing",
        blocks: [1, 1],
        threads: 1,
        memory: 4,
        arguments: vec![Buffer(x), Buffer(y)],
    };
    assert_eq!(
        run(&call, &mut memory),
        Err("planted_nothing: it takes rf,wf and is given fb".to_owned())
    );
    call.arguments = vec![Buffer(x), Argument::F32(1.0)];
    assert!(run(&call, &mut memory).is_err());
    call.kernel = "planted_nowhere";
    assert_eq!(run(&call, &mut memory), Err("planted_nowhere: there is no such kernel".to_owned()));
}
