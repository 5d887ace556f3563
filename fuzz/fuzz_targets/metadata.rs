//! libFuzzer's loop around the target `metadata`.
#![no_main]

#[path = "../../crates/trust/tests/fuzz/targets.rs"]
#[allow(dead_code)] // each binary drives one target
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::metadata(bytes);
});
