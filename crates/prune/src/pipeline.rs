//! From an analysed model to a variant: choose widths for a device class and budget, reconstruct, judge, deliver or refuse.

use pleach_domain::dataset::Dataset;
use pleach_domain::runtime::Runtime;

use crate::atlas::Atlas;
use crate::analysis::Analysis;
use crate::error::PruneError;
use crate::progress::Progress;
use crate::report::{Outcome, Target};

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
