#![no_main]

#[allow(dead_code, reason = "the other target's half")]
#[path = "../../tests/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzed::row(data));
