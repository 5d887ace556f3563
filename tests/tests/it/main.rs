//! Everything that needs more than one crate, in one binary: a module for each stage of the journey.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)] // a test that cannot go on fails

mod dashboard;
mod faults;
mod harness;
mod journey;
mod refusals;
mod simulator;
mod tidy;
mod tuf;
