//! libFuzzer's program for `fuzz::reply`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| drop(fuzz::reply::run(input)));
