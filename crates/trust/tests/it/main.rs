//! Claims about trust, through the public API: one module for a group of attacks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod agreement;
mod alteration;
mod attacks;
mod chain;
mod client;
mod fleet;
mod keys;
mod refresh;
mod rotation;
mod text;
mod wycheproof;
