//! The two entry points: [`analyse`] once per model and criterion, [`prune`] once per device class and budget.

use pleach_domain::dataset::Dataset;
use pleach_domain::runtime::Runtime;

use crate::atlas::Atlas;
use crate::criteria::Criterion;
use crate::error::PruneError;
use crate::progress::Progress;
use crate::report::{FrozenPart, Outcome, Target};

/// Everything that does not depend on the device: the folded graph, its groups, statistics, orders of removal and the
/// loss of each group at each width. Made once per model and criterion, kept in memory, shared between runs.
#[derive(Debug)]
pub struct Analysis {
    frozen: Vec<FrozenPart>,
}

impl Analysis {
    /// What is never narrowed, and why.
    pub fn frozen(&self) -> &[FrozenPart] {
        &self.frozen
    }
}

/// Analyses a model: folds it, finds its coupling groups, proves that they may be cut, and ranks their channels by calibration data.
///
/// Labels in `calibration` are not used. Deterministic, whatever the number of threads.
///
/// # Errors
/// [`PruneError::Model`] for a file that is no usable ONNX model, [`PruneError::Data`] for data that do not fit it,
/// [`PruneError::Proof`] when a cut would not be exact, [`PruneError::Runtime`], [`PruneError::Cancelled`].
pub fn analyse(
    model: &[u8],
    calibration: &Dataset,
    criterion: Criterion,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Analysis, PruneError> {
    let _ = (model, calibration, criterion, runtime, progress);
    Err(PruneError::Numerics("not built yet".to_owned()))
}

/// Makes the most accurate variant that keeps to `target` on the class of `atlas`.
///
/// `calibration` is the data that was analysed; `validation` must be labelled. The dense model, folded, is delivered as it is
/// where it already meets the target; nothing slower than that is ever delivered.
///
/// # Errors
/// As [`analyse`], and [`PruneError::Atlas`] for an atlas of another model or batch, [`PruneError::Target`] for a target out of range.
pub fn prune(
    analysis: &Analysis,
    atlas: &Atlas,
    target: &Target,
    calibration: &Dataset,
    validation: &Dataset,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Outcome, PruneError> {
    let _ = (analysis, atlas, target, calibration, validation, runtime, progress);
    Err(PruneError::Numerics("not built yet".to_owned()))
}
