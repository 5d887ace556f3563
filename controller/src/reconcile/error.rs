//! What can go wrong in a reconciler or a job.

use pleach_domain::DomainError;
use pleach_domain::runtime::RuntimeError;
use thiserror::Error;

use crate::error::ControllerError;

/// A failed stage. It is tried again; see [`ReconcileError::is_final`] for what trying again cannot mend.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReconcileError {
    /// The store refused.
    #[error("store")]
    Store(#[from] pleach_store::StoreError),
    /// Something of the controller itself failed.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// The engine refused the model, the data or the atlas.
    #[error("pruning engine")]
    Prune(#[from] pleach_prune::PruneError),
    /// The engine has refused this model or its data before; the reason, in words.
    #[error("the model cannot be pruned: {0}")]
    Unusable(String),
    /// The bundle could not be sealed, or its key not be wrapped.
    #[error("bundle")]
    Artifact(#[from] pleach_artifact::ArtifactError),
    /// Metadata could not be signed.
    #[error("trust metadata")]
    Trust(#[from] pleach_trust::TrustError),
    /// A value out of its range.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// A row that another one names is not there.
    #[error("{what} {id} is missing")]
    Missing {
        /// Kind of row.
        what: &'static str,
        /// Which.
        id: String,
    },
    /// A document in a row that this version cannot read.
    #[error("{what} cannot be read")]
    Document {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A model could not be run on this machine.
    #[error("running the model of variant {variant} failed")]
    Run {
        /// Which variant.
        variant: String,
        /// Why.
        #[source]
        source: RuntimeError,
    },
    /// A blocking task panicked or was stopped.
    #[error("task ended early: {0}")]
    Task(String),
}

impl ReconcileError {
    pub(crate) fn document(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Document { what, source }
    }

    /// Whether trying again would end the same way: what was given is wrong, not what surrounds it.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Prune(_) | Self::Artifact(_) | Self::Trust(_) | Self::Domain(_) | Self::Missing { .. } | Self::Document { .. } => true,
            Self::Run { .. } | Self::Unusable(_) => true,
            Self::Store(_) | Self::Controller(_) | Self::Task(_) => false,
        }
    }

    /// As an error of the controller that starts.
    pub(crate) fn into_controller(self) -> ControllerError {
        match self {
            Self::Store(error) => error.into(),
            Self::Trust(error) => error.into(),
            Self::Controller(error) => error,
            other => ControllerError::Config(other.chain()),
        }
    }

    /// The error and its sources in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}
