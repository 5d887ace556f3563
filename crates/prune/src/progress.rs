//! How the engine tells where it is, and learns that it should stop.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::PruneError;

/// A stage of the engine, in the order of the journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Decoding, folding, grouping.
    Load,
    /// Equality proofs on the caller's data.
    Prove,
    /// Gram matrices from calibration data.
    Statistics,
    /// Order of removal within each group.
    Rank,
    /// Divergence of the outputs when one group is narrowed.
    Probe,
    /// Choice of widths for the budget.
    Solve,
    /// Least squares, front to back.
    Reconstruct,
    /// Accuracy and latency of dense and pruned.
    Evaluate,
}

impl Stage {
    /// Lower-case name, as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Prove => "prove",
            Self::Statistics => "statistics",
            Self::Rank => "rank",
            Self::Probe => "probe",
            Self::Solve => "solve",
            Self::Reconstruct => "reconstruct",
            Self::Evaluate => "evaluate",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Watches a run. Called often and from one thread: keep it cheap.
pub trait Progress: Sync {
    /// `fraction` (0..=1) of `stage` is done.
    fn report(&self, stage: Stage, fraction: f64);

    /// Whether to stop at the next opportunity; the run then ends with [`PruneError::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing and never cancels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _stage: Stage, _fraction: f64) {}
}

/// A part of a stage that reports itself: passes on that the caller wants to stop, and nothing else.
pub(crate) struct Within<'a>(pub(crate) &'a dyn Progress);

impl Progress for Within<'_> {
    fn report(&self, _stage: Stage, _fraction: f64) {}

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Reports `done` of `all` steps of a stage, and stops the run if the caller asked for it.
pub(crate) fn step(progress: &dyn Progress, stage: Stage, done: usize, all: usize) -> Result<(), PruneError> {
    if progress.cancelled() {
        return Err(PruneError::Cancelled(stage));
    }
    progress.report(stage, done as f64 / all.max(1) as f64);
    Ok(())
}
