//! libFuzzer's loop around the target `groups`.
#![no_main]

#[path = "../../crates/prune/tests/fuzz/targets.rs"]
#[allow(dead_code)] // each binary drives one target
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::groups(bytes);
});
