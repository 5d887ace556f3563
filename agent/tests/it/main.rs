//! The agent as a process, against a controller that does as it is told: also what a real one never would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)] // tests

mod agent;
mod bundle;
mod clients;
mod delivery;
mod enrolment;
mod lab;
mod recovery;
mod sandbox;
