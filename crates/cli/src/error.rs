//! What can go wrong between a client and the controller.

use std::io;
use std::path::PathBuf;

use pleach_proto::rest::Problem;

/// A failed call of the REST interface.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A local file could not be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What the file is.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The CA file holds no certificate.
    #[error("{}: expected certificates in PEM, found none", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The token cannot stand in a header.
    #[error("the API token holds characters that no token has")]
    Token,
    /// The address of the controller is no https address.
    #[error("controller address {value:?}: expected https://host:port")]
    Address {
        /// What came.
        value: String,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up the HTTPS client")]
    Setup(#[source] reqwest::Error),
    /// No answer, after all retries.
    #[error("no answer from {url}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The controller refused, in words.
    #[error("{} ({}, HTTP {})", problem.detail, problem.code, problem.status)]
    Refused {
        /// What it said.
        problem: Problem,
    },
    /// The answer is not what this version of the interface knows.
    #[error("{url}: unexpected answer")]
    Answer {
        /// What was asked.
        url: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The answer is larger than any answer should be.
    #[error("{url}: answer of more than {limit} bytes")]
    TooLarge {
        /// What was asked.
        url: String,
        /// Most bytes that are read.
        limit: usize,
    },
}

impl ClientError {
    /// Machine-readable code of a refusal, e.g. `model-invalid`.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { problem } => Some(&problem.code),
            Self::Read { .. }
            | Self::NoCertificate { .. }
            | Self::Token
            | Self::Address { .. }
            | Self::Setup(_)
            | Self::Unreachable { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. } => None,
        }
    }
}
