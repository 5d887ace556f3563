//! What can go wrong between the control half and its runtime.

use std::io;
use std::time::Duration;

use pleach_proto::WireError;
use thiserror::Error;

/// The runtime half could not be started, asked or believed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// The child process could not be started.
    #[error("starting the runtime failed")]
    Spawn(#[source] io::Error),
    /// The runtime is gone.
    #[error("the runtime has ended: {detail}")]
    Exited {
        /// How it ended, e.g. `signal: 11 (SIGSEGV)`.
        detail: String,
    },
    /// A request could not be handed over.
    #[error("{request} could not be sent to the runtime")]
    Send {
        /// The request.
        request: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("the runtime did not answer {request} within {} ms", after.as_millis())]
    Deadline {
        /// The request.
        request: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The runtime did what was asked, and it failed.
    #[error("{request} failed at check {check}: {detail}")]
    Failed {
        /// The request.
        request: &'static str,
        /// The check that failed, e.g. `known-answer`.
        check: String,
        /// More about it.
        detail: String,
    },
    /// An answer that does not fit.
    #[error("the runtime's answer to {request} is not valid")]
    Reply {
        /// The request.
        request: &'static str,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
}
