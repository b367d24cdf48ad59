//! libFuzzer's program for `fuzz::bodies`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz::bodies::run(input);
});
