//! The latency atlas of a device class: what to time, and what a network of given widths will take.
//!
//! Timing may happen elsewhere: [`AtlasPlan::for_model`] says what to time, [`Atlas::from_timings`] reads the answers.
//! The graphs to be timed hold no parameter of the model (constants of the right shapes), so they may travel unsealed.
//!
//! A network takes `a · Σ kernels + b`: each layer's fused kernel is interpolated between a few measured widths, and `a` and `b`
//! are fitted to whole networks, timed as well (additive tables are off by up to a third until corrected by whole networks).

mod grid;
mod roles;
mod twins;

use std::collections::BTreeMap;
use std::time::Duration;

use pleach_domain::DomainError;
use pleach_domain::runtime::{Runtime, TimedModel, Timing};
use serde::{Deserialize, Serialize};

use crate::analysis::Analysis;
use crate::error::PruneError;
use crate::levels::{Plan, Site, drop_dominated, drop_hopeless};
use crate::progress::Stage;
use crate::solve::{Choice, Cost, Levels, Problem, Term};

use grid::Grid;
use roles::Roles;
pub(crate) use twins::fingerprint;

/// Largest batch and width step.
const MOST: usize = 4096;
/// Factors by which whole networks may differ from the sum of their kernels; beyond, the sum is only scaled.
const BELIEVED: std::ops::Range<f64> = 0.2..5.0;

/// One graph to be timed.
#[derive(Clone, Debug)]
pub struct PlanItem {
    /// Stable name: the same key means the same graph, whatever the model.
    pub key: String,
    /// The graph and its inputs.
    pub model: TimedModel,
}

/// What to time for one model on one device class. Deterministic; a few kilobytes a graph plus its inputs.
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
    /// device's measured kernels favour: its hardware profile says which).
    ///
    /// # Errors
    /// [`PruneError::Target`] when `batch` or `width_step` is out of 1..=4096; [`PruneError::Model`] when a graph cannot be built.
    pub fn for_model(analysis: &Analysis, batch: usize, width_step: usize) -> Result<Self, PruneError> {
        for (field, got) in [("batch", batch), ("width_step", width_step)] {
            if !(1..=MOST).contains(&got) {
                let (got, expected) = (got.to_string(), format!("1 to {MOST}"));
                return Err(PruneError::Target(DomainError::Field { field: field.to_owned(), got, expected }));
            }
        }
        let grid = Grid::new(&analysis.network, width_step);
        let (mut items, choices) = match Roles::of(&analysis.network, &grid.sites) {
            Some(roles) => (Vec::new(), [roles.choices, grid.whole()].concat()),
            None => (grid.kernels(batch)?, grid.whole()),
        };
        for choice in choices {
            let whole = twins::whole(analysis, &analysis.plan(&grid.sites, &choice), batch)?;
            if items.iter().all(|item: &PlanItem| item.key != whole.key) {
                items.push(whole);
            }
        }
        let plain = twins::plain(analysis, batch)?;
        if items.iter().all(|item: &PlanItem| item.key != plain.key) {
            items.push(plain);
        }
        Ok(Self { batch, width_step, items })
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

    /// Predicted mean latency of one batch of the dense, folded model, in microseconds.
    ///
    /// # Errors
    /// [`PruneError::Atlas`] when the atlas is of another model.
    pub fn dense_latency_us(&self, analysis: &Analysis) -> Result<f64, PruneError> {
        let (problem, _) = self.problem(analysis)?;
        Ok(problem.cost(&problem.time, &problem.dense()))
    }

    /// Whether the device runs the network faster in fewer nodes than in its own.
    ///
    /// # Errors
    /// [`PruneError::Atlas`] when the atlas is of another model.
    pub(crate) fn rewrites(&self, analysis: &Analysis) -> Result<bool, PruneError> {
        let fewer = self.timing(&twins::whole(analysis, &Plan::default(), self.batch)?.key)?;
        Ok(fewer.min_us <= self.timing(&twins::plain(analysis, self.batch)?.key)?.min_us)
    }

    fn timing(&self, key: &str) -> Result<&Timing, PruneError> {
        let found = self.timings.get(key).filter(|t| t.mean_us.is_finite() && t.mean_us > 0.0 && t.min_us > 0.0);
        found.ok_or_else(|| PruneError::Atlas(format!("no time for {key}: the atlas is of another model or batch")))
    }

    /// The choice of levels as a problem, with the sites it is about: losses, predicted times in microseconds and sizes in bytes.
    pub(crate) fn problem(&self, analysis: &Analysis) -> Result<(Problem, Vec<Site>), PruneError> {
        let grid = Grid::new(&analysis.network, self.width_step);
        // A kernel's fastest call is what the kernel takes; what else a device does to a call shows in whole networks.
        let whole = |choice: &Choice| self.timing(&twins::whole(analysis, &analysis.plan(&grid.sites, choice), self.batch)?.key);
        let kernels = match Roles::of(&analysis.network, &grid.sites) {
            Some(roles) => {
                let times = roles.choices.iter().map(|c| whole(c).map(|t| t.min_us)).collect::<Result<Vec<_>, _>>()?;
                roles.cost(&grid.sites, &times)
            }
            None => Cost { constant: 0.0, terms: grid.time_terms(self.batch, &|key: &str| self.timing(key).map(|t| t.min_us))? },
        };
        let levels = |site: &Site| Levels {
            shares: site.levels.iter().map(|&l| site.left(l) as f64 / site.size.max(1) as f64).collect(),
            losses: site.levels.iter().map(|&l| analysis.loss(site.place, l)).collect(),
        };
        let sites = grid.sites.iter().map(levels).collect();
        let mut problem = Problem { sites, time: kernels, size: grid.size(analysis.network.model.encode().len()) };
        let (mut points, mut means, mut least) = (Vec::new(), 0.0, 0.0);
        for choice in grid.whole() {
            let whole = whole(&choice)?;
            points.push((problem.cost(&problem.time, &choice), whole.min_us));
            means += whole.mean_us;
            least += whole.min_us;
        }
        let (factor, constant) = fit(&points);
        let slower = means / least;
        problem.time = scaled(&problem.time, factor * slower, constant * slower);
        let mut sites = grid.sites;
        drop_hopeless(&mut problem, &mut sites);
        drop_dominated(&mut problem, &mut sites);
        Ok((problem, sites))
    }
}

fn scaled(cost: &Cost, factor: f64, constant: f64) -> Cost {
    let term = |t: &Term| Term { sites: t.sites.clone(), table: t.table.iter().map(|x| x * factor).collect() };
    Cost { constant: factor * cost.constant + constant, terms: cost.terms.iter().map(term).collect() }
}

/// Factor and constant that take sums of kernels to whole networks with the least relative squares.
fn fit(points: &[(f64, f64)]) -> (f64, f64) {
    let (mut ss, mut s1, mut n1, mut sy, mut y1) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for &(sum, whole) in points {
        let (x, one) = (sum / whole, 1.0 / whole);
        ss += x * x;
        s1 += x * one;
        n1 += one * one;
        sy += x;
        y1 += one;
    }
    let determinant = ss * n1 - s1 * s1;
    let factor = (sy * n1 - y1 * s1) / determinant;
    let constant = (ss * y1 - s1 * sy) / determinant;
    if determinant > 1e-9 * ss * n1 && BELIEVED.contains(&factor) { (factor, constant) } else { (sy / ss.max(f64::MIN_POSITIVE), 0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_finds_the_line_through_whole_networks() {
        let (factor, constant) = fit(&[(100.0, 110.0), (50.0, 65.0), (20.0, 38.0)]);
        assert!((factor - 0.9).abs() < 1e-9 && (constant - 20.0).abs() < 1e-9, "{factor} {constant}");
    }

    #[test]
    fn one_network_only_scales() {
        assert_eq!(fit(&[(100.0, 80.0)]), (0.8, 0.0));
        let (factor, constant) = fit(&[(100.0, 80.0), (100.0, 80.0)]);
        assert!((factor - 0.8).abs() < 1e-9 && constant == 0.0);
    }
}
