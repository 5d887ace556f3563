//! The agent of one device, in two halves.
//!
//! The control half (everything here but [`runtime`]) holds identity, trust, delivery and telemetry; it never loads ONNX
//! Runtime. The data half ([`runtime`]) serves inference and sees neither keys nor state. [`supervisor`] joins them.

pub mod backoff;
pub mod boot;
pub mod check;
pub mod clock;
pub mod config;
pub mod control;
pub mod error;
pub mod files;
pub mod identity;
pub mod keys;
pub mod ledger;
pub mod listeners;
pub mod profile;
pub mod runtime;
pub mod service;
pub mod spool;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod tls;
pub mod token;

pub use error::AgentError;
