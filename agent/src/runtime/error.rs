//! What the runtime half refuses, and how each refusal looks in gRPC and in HTTP.

use std::io;

use axum::http::StatusCode;
use pleach_inference::InferenceError;
use pleach_proto::runtime;
use thiserror::Error;
use tonic::{Code, Status};

/// The runtime half cannot come up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuntimeHalfError {
    /// Standard input is no channel to a control half.
    #[error("standard input is no channel: `pleach-agent runtime` is started by `pleach-agent run`, not by hand")]
    NoChannel(#[source] io::Error),
    /// ONNX Runtime cannot be opened.
    #[error("ONNX Runtime cannot be opened")]
    Inference(#[from] InferenceError),
    /// The control half did not hand the listeners over.
    #[error("no listeners came from the control half")]
    NoListeners(#[source] io::Error),
    /// A thread or the asynchronous executor cannot start.
    #[error("starting {what} failed")]
    Start {
        /// What was started.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The inference API ended.
    #[error("the inference API failed")]
    Serve(#[source] tonic::transport::Error),
}

/// A request of the control half that failed: the check, and its words.
#[derive(Debug, Error)]
#[error("{check}: {detail}")]
pub(crate) struct Failure {
    /// Which check failed, e.g. `known-answer`.
    pub(crate) check: &'static str,
    /// What was expected and what came.
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn new(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, detail: detail.into() }
    }

    /// A failure in the words of an error and its causes.
    pub(crate) fn of(check: &'static str, error: &dyn std::error::Error) -> Self {
        Self { check, detail: crate::error::chain(error) }
    }
}

impl From<Failure> for runtime::Failure {
    fn from(failure: Failure) -> Self {
        Self { check: failure.check.to_owned(), detail: failure.detail }
    }
}

/// A request of an application that is not answered.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    /// No bundle is active.
    #[error("no model is serving on this device yet")]
    NoModel,
    /// Another model than the one that serves.
    #[error("model {name:?} is not here: this device serves {serving:?}")]
    UnknownModel { name: String, serving: String },
    /// Another version than the one that serves.
    #[error("version {version:?} of model {name:?} is not here: this device serves version {serving}")]
    UnknownVersion { name: String, version: String, serving: u64 },
    /// Too many requests wait already.
    #[error("overloaded: {waiting} requests wait already; try again later")]
    Overloaded { waiting: usize },
    /// A request on the loopback port without its token.
    #[error("no valid token: expected the header `authorization: Bearer TOKEN`")]
    Unauthorized,
    /// The answer did not come within the time that the request gave.
    #[error("no answer within the time that the request gave")]
    Deadline,
    /// The request does not fit the protocol or the model.
    #[error("{0}")]
    Invalid(String),
    /// The model ran and failed.
    #[error("inference failed: {0}")]
    Failed(String),
}

impl ServeError {
    pub(crate) fn invalid(words: impl Into<String>) -> Self {
        Self::Invalid(words.into())
    }

    /// The one table of codes for both protocols.
    fn codes(&self) -> (Code, StatusCode) {
        match self {
            Self::NoModel => (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
            Self::UnknownModel { .. } | Self::UnknownVersion { .. } => (Code::NotFound, StatusCode::NOT_FOUND),
            Self::Overloaded { .. } => (Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS),
            Self::Deadline => (Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT),
            Self::Unauthorized => (Code::Unauthenticated, StatusCode::UNAUTHORIZED),
            Self::Invalid(_) => (Code::InvalidArgument, StatusCode::BAD_REQUEST),
            Self::Failed(_) => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    pub(crate) fn http_status(&self) -> StatusCode {
        self.codes().1
    }
}

impl From<ServeError> for Status {
    fn from(error: ServeError) -> Self {
        Self::new(error.codes().0, error.to_string())
    }
}
