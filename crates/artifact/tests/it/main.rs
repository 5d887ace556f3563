//! Claims about sealed bundles, through the public API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bundle;
mod layout;
mod manifest;
mod sealing;
mod transfer;
mod wraps;
mod wycheproof;
