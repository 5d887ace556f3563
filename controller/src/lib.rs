//! The controller: gRPC for agents, REST for people, reconcilers between them.
//!
//! A stage never calls the next one. It writes a row, wakes the others, and the next stage finds it.

pub mod authority;
pub mod config;
pub mod controller;
mod enrolment_token;
pub mod error;
mod files;
pub mod gateway;
pub mod job;
pub mod keys;
pub mod presence;
mod random;
pub mod reconcile;
pub mod rest;
pub mod serve;
mod tls;
pub mod wake;

pub use config::Config;
pub use controller::{Controller, Shared};
pub use error::ControllerError;
