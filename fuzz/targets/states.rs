//! libFuzzer's program for `fuzz::states`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz::states::run(input);
});
