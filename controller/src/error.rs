//! What can end or hinder a controller.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A failure outside of any single request. Requests answer with [`crate::rest::problem::Failure`] or a gRPC status.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControllerError {
    /// A configuration that cannot be used.
    #[error("configuration: {0}")]
    Config(String),
    /// A file or socket operation failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address asked for.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key file that cannot be used.
    #[error("key file {}: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without its content.
        reason: String,
    },
    /// A certificate could not be made or read.
    #[error("cannot {doing}: {reason}")]
    Certificate {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        reason: String,
    },
    /// The operating system gave no randomness.
    #[error("randomness of the operating system: {0}")]
    Random(String),
    /// The store refused.
    #[error("store")]
    Store(#[from] pleach_store::StoreError),
    /// Metadata could not be signed.
    #[error("trust metadata")]
    Trust(#[from] pleach_trust::TrustError),
    /// ONNX Runtime could not be opened.
    #[error("ONNX Runtime")]
    Inference(#[from] pleach_inference::InferenceError),
    /// The REST server ended.
    #[error("REST server")]
    Api(#[source] io::Error),
    /// The server for agents ended.
    #[error("server for agents")]
    Gateway(#[source] tonic::transport::Error),
    /// TLS refused its configuration.
    #[error("TLS configuration")]
    Tls(#[source] rustls::Error),
}

impl ControllerError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    pub(crate) fn certificate<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Self::Certificate { doing, reason: reason.to_string() }
    }
}
