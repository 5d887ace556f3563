//! libFuzzer's loop around the target `bundle`.
#![no_main]

#[path = "../../crates/artifact/tests/fuzz/targets.rs"]
#[allow(dead_code)] // each binary drives one target
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::bundle(bytes);
});
