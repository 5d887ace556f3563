//! The controller's servers over real TLS on loopback, with a real store on SQLite and a real ONNX Runtime; its reconcilers on
//! SQLite and on PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken expectation is a failed test

mod delivery;
mod enrolment;
mod fleet;
mod harness;
mod reconcile;
mod reports;
mod rest;
mod uploads;
