//! The agent as a process, against a controller that does as it is told: also what a real one never would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)] // tests
#![allow(dead_code)] // some of the agent and the lab is for the benchmark alone

mod agent;
mod bundle;
mod clients;
mod commands;
mod delivery;
mod disk;
mod enrolment;
mod lab;
mod power;
mod recovery;
mod sandbox;
