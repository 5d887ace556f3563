//! What can go wrong in the agent's control half.

use std::io;
use std::path::{Path, PathBuf};

use pleach_artifact::ArtifactError;
use pleach_domain::DomainError;
use pleach_proto::WireError;
use thiserror::Error;

/// A step of the agent that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration cannot be read or has a key that does not fit.
    #[error("configuration is not valid")]
    ConfigSyntax(#[source] Box<figment::Error>),
    /// A configured value out of its range.
    #[error("configuration: {key} is {got}, expected {expected}")]
    Config {
        /// Key of the value.
        key: &'static str,
        /// What is configured.
        got: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A file or folder of the agent could not be used.
    #[error("{doing} {} failed", path.display())]
    File {
        /// What was being done, e.g. `writing`.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No agent runs on this state folder.
    #[error("no agent answers on {}: is it running?", path.display())]
    NoDoor {
        /// Its socket for commands.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A command was not answered.
    #[error("the agent did not answer on {}", path.display())]
    Door {
        /// Its socket for commands.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The inference API cannot listen.
    #[error("cannot listen on {}", at.display())]
    Listen {
        /// Socket or address.
        at: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file that is longer than it can be.
    #[error("{} has more than {most} bytes", path.display())]
    FileTooLong {
        /// The file.
        path: PathBuf,
        /// Longest it may be, in bytes.
        most: u64,
    },
    /// Another agent uses the same state folder.
    #[error("state folder {} is in use by another agent", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A file that does not hold what it should.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An enrolment token that cannot be read.
    #[error("enrolment token is malformed: {0}")]
    Token(&'static str),
    /// The device has no identity and no token to get one with.
    #[error("this device is not enrolled: give it a token with --token-file, or run `pleach-agent enroll`")]
    NotEnrolled,
    /// The controller's answer to an enrolment does not fit what was asked.
    #[error("the controller's certificate for this device is refused: {0}")]
    Certificate(String),
    /// A key or request that could not be made.
    #[error("making {0} failed")]
    Crypto(&'static str),
    /// The TLS configuration was refused.
    #[error("TLS configuration failed")]
    Tls(#[source] rustls::Error),
    /// No connection to the controller.
    #[error("connecting to {controller} failed")]
    Connect {
        /// Its address.
        controller: String,
        /// The cause.
        #[source]
        source: tonic::transport::Error,
    },
    /// The controller answered a call with an error.
    #[error("{call} failed: {}: {}", status.code(), status.message())]
    Call {
        /// The call.
        call: &'static str,
        /// Its answer.
        status: Box<tonic::Status>,
    },
    /// The controller did not answer in time.
    #[error("{call} did not answer within {seconds} s")]
    Deadline {
        /// The call.
        call: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The controller ended the stream in words.
    #[error("the controller refuses this device: {code}: {message}")]
    Refused {
        /// Machine-readable.
        code: String,
        /// For people.
        message: String,
    },
    /// The stream ended.
    #[error("the controller closed the stream")]
    Closed,
    /// A message that does not fit Pleach's types.
    #[error("message from the controller")]
    Wire(#[from] WireError),
    /// A value that does not fit Pleach's types.
    #[error("value from outside")]
    Domain(#[from] DomainError),
    /// A bundle or key that was refused.
    #[error("bundle or key")]
    Artifact(#[from] ArtifactError),
    /// The agent on this device does not answer on its socket.
    #[error("no agent answers on {}", socket.display())]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: tonic::transport::Error,
    },
}

impl AgentError {
    /// Names the file beside an I/O error.
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    /// Names the call beside its error status.
    pub(crate) fn call(call: &'static str) -> impl FnOnce(tonic::Status) -> Self {
        move |status| Self::Call { call, status: Box::new(status) }
    }

    /// Whether a file could not be written because the disk is full.
    pub fn is_disk_full(&self) -> bool {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            Self::File { source, .. } => full(source),
            _ => false,
        }
    }
}

/// The whole chain of an error in one line, for a log or a report.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
