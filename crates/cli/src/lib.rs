//! The command line `pleach`, and the client of the REST interface that other tools of the project share.
//!
//! Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage,
//! 3 the controller could not be reached, 4 no variant keeps what was asked for, 130 cancelled. `inspect` and `prune` need no controller.

pub mod args;
pub mod client;
pub mod commands;
pub mod error;
pub mod inspect;
mod model_file;
pub mod prune;
pub mod table;

pub use client::{Client, Connection};
pub use error::ClientError;
