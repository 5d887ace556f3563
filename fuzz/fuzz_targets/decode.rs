//! libFuzzer's loop around the target `decode`.
#![no_main]

#[path = "../../crates/prune/tests/fuzz/targets.rs"]
#[allow(dead_code)] // each binary drives one target
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::decode(bytes);
});
