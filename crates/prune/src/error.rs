//! What can go wrong while a model is analysed and pruned.

use pleach_domain::DomainError;
use pleach_domain::runtime::RuntimeError;
use thiserror::Error;

use crate::progress::Stage;

/// A failed analysis or pruning run. A budget that cannot be met is no error: see [`crate::Outcome::Rejected`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PruneError {
    /// The model cannot be decoded, folded or cut.
    #[error("model cannot be used")]
    Model(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The model is valid, but has a form that the engine does not handle.
    #[error("model has {got}: expected {expected}")]
    Unsupported {
        /// What the engine handles.
        expected: &'static str,
        /// What the model has.
        got: String,
    },
    /// A rewritten graph did not compute what the dense one computes; nothing was delivered.
    #[error("proof {proof:?} failed: {detail}")]
    Proof {
        /// Which equality was tried.
        proof: &'static str,
        /// By how much it was missed, and where.
        detail: String,
    },
    /// Calibration or validation data that do not fit the model.
    #[error("{role} data do not fit the model")]
    Data {
        /// `calibration` or `validation`.
        role: &'static str,
        /// What does not fit, with expected and got.
        #[source]
        source: DomainError,
    },
    /// Timings that do not belong to the plan they are given for.
    #[error("atlas: {0}")]
    Atlas(String),
    /// Bytes that are no analysis of the model.
    #[error("analysis cannot be read: {0}")]
    Cache(String),
    /// A target out of its range.
    #[error(transparent)]
    Target(DomainError),
    /// The lent runtime refused or failed.
    #[error("running the model failed in stage {stage}")]
    Runtime {
        /// Where.
        stage: Stage,
        /// Why.
        #[source]
        source: RuntimeError,
    },
    /// Sums that are not finite or not positive definite although they were made so.
    #[error("numerics: {0}")]
    Numerics(String),
    /// The caller asked to stop.
    #[error("cancelled in stage {0}")]
    Cancelled(Stage),
}
