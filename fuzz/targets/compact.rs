//! libFuzzer's program for `fuzz::compact`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz::compact::run(input);
});
