//! libFuzzer's program for `fuzz::packed`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz::packed::run(input);
});
