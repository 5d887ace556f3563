//! From predictions to what holds: the budget is moved until what is timed on this machine keeps the goal.
//!
//! What is measured is taken to grow evenly with what is predicted: the line through the last two points says where the next
//! budget should lie; budgets that held and that did not close in on it from both sides. What weights a network holds does not
//! change its time, so the budget is found with networks that are cut and not solved.

use pleach_domain::runtime::Timing;
use pleach_onnx::Model;

use crate::report::{Goal, Target};
use crate::solve::Choice;

/// Networks that are timed at most.
const TRIES: usize = 6;
/// Share of the goal that the next budget aims at.
pub(crate) const AIM: f64 = 0.985;
/// A network that needs more than this share of what it may is not widened for nothing.
const TIGHT: f64 = 0.96;
/// Budgets that differ by less are the same.
const CLOSE: f64 = 1.01;

/// What one call of a network takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Of the model as uploaded and of the network, interleaved.
    pub(crate) latency: [Timing; 2],
    /// Peak memory of one call.
    pub(crate) memory_bytes: u64,
}

impl Measured {
    /// Measured over allowed: at most 1 where the goal and the memory are kept.
    pub(crate) fn ratio(&self, target: &Target) -> f64 {
        let [dense, pruned] = &self.latency;
        let latency = match target.goal {
            Some(Goal::P50Us(us)) => pruned.p50_us / us,
            Some(Goal::P95Us(us)) => pruned.p95_us / us,
            Some(Goal::Speedup(factor)) => factor * pruned.p50_us / dense.p50_us,
            None => 0.0,
        };
        let memory = target.max_memory_bytes.map_or(0.0, |most| self.memory_bytes as f64 / most.max(1) as f64);
        latency.max(memory)
    }

    /// Median latency of dense over that of the network.
    pub(crate) fn speedup(&self) -> f64 {
        self.latency[0].p50_us / self.latency[1].p50_us.max(f64::MIN_POSITIVE)
    }
}

/// A variant that was built and measured.
pub(crate) struct Built {
    pub(crate) choice: Choice,
    pub(crate) model: Model,
    pub(crate) divergence: f64,
    /// Predicted time in microseconds.
    pub(crate) predicted_us: f64,
    pub(crate) measured: Measured,
}

/// The search for the budget.
#[derive(Debug)]
pub(crate) struct Search {
    tries: usize,
    /// Longest predicted time that held, shortest that did not.
    held: f64,
    missed: f64,
    /// Predicted time and ratio of the network before.
    before: Option<(f64, f64)>,
}

impl Search {
    /// A search that begins with what was predicted for the whole network and what came of it, and its first budget.
    pub(crate) fn new(predicted: f64, ratio: f64) -> (Self, f64) {
        if ratio <= 1.0 {
            return (Self { tries: 0, held: 0.0, missed: f64::INFINITY, before: None }, f64::MAX);
        }
        (Self { tries: 0, held: 0.0, missed: predicted, before: Some((predicted, ratio)) }, predicted * AIM / ratio)
    }

    /// Takes what was predicted for a network and what came of it; says which budget to try next, in predicted microseconds, or
    /// `None` when the search is over.
    pub(crate) fn next(&mut self, predicted: f64, ratio: f64) -> Option<f64> {
        tracing::debug!(ratio, predicted, "timed network");
        self.tries += 1;
        if ratio <= 1.0 {
            self.held = self.held.max(predicted);
        } else {
            self.missed = self.missed.min(predicted);
        }
        // Where nothing missed yet, the widest holds.
        let over = self.tries >= TRIES || (TIGHT..=1.0).contains(&ratio) || self.missed.is_infinite();
        if over || self.held * CLOSE >= self.missed {
            return None;
        }
        let line = self.before.filter(|b| (b.0 - predicted).abs() > 1e-3 * predicted && (b.1 - ratio) / (b.0 - predicted) > 0.0);
        let wanted = match line {
            Some((x, y)) => predicted + (AIM - ratio) * (x - predicted) / (y - ratio),
            None => predicted * AIM / ratio,
        };
        self.before = Some((predicted, ratio));
        let inside = wanted > self.held * CLOSE.sqrt() && wanted * CLOSE.sqrt() < self.missed;
        Some(if inside { wanted } else { (self.held + self.missed) / 2.0 })
    }

    /// The longest predicted time that held; `None` when none did.
    pub(crate) fn held(&self) -> Option<f64> {
        (self.held > 0.0).then_some(self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search on a made-up machine that needs `machine(predicted)` microseconds, for a goal of so many; returns what the
    /// network of the budget found needs, and how many were timed.
    fn search(goal_us: f64, machine: impl Fn(f64) -> f64) -> (Option<f64>, usize) {
        let (mut search, mut budget) = Search::new(100.0, machine(100.0) / goal_us);
        let mut tries = 1;
        while let Some(next) = search.next(budget, machine(budget) / goal_us) {
            budget = next;
            tries += 1;
        }
        (search.held().map(machine), tries)
    }

    #[test]
    fn a_machine_slower_than_predicted_is_met_from_below() {
        let (us, tries) = search(50.0, |predicted| 30.0 + 0.7 * predicted);
        assert!(us.is_some_and(|us| (47.0..=50.0).contains(&us)) && tries <= 3, "{us:?} in {tries}");
    }

    #[test]
    fn a_machine_faster_than_predicted_is_not_asked_for_more_than_it_needs() {
        let (us, tries) = search(50.0, |predicted| predicted.powf(1.3) / 100f64.powf(0.3));
        assert!(us.is_some_and(|us| (47.0..=50.0).contains(&us)) && tries <= TRIES, "{us:?} in {tries}");
    }

    #[test]
    fn an_impossible_goal_holds_nowhere() {
        let (us, tries) = search(1.0, |predicted| 20.0 + 0.1 * predicted);
        assert!(us.is_none() && tries <= TRIES, "{us:?} in {tries}");
    }

    #[test]
    fn memory_counts_beside_the_goal() {
        let timing = |us: f64| Timing { mean_us: us, min_us: us, p50_us: us, p95_us: 2.0 * us, calls: 1 };
        let measured = Measured { latency: [timing(100.0), timing(40.0)], memory_bytes: 300 };
        let target = Target { goal: Some(Goal::Speedup(2.0)), ..Target::default() };
        assert!((measured.ratio(&target) - 0.8).abs() < 1e-12);
        assert!((measured.ratio(&Target { goal: Some(Goal::P95Us(160.0)), ..target }) - 0.5).abs() < 1e-12);
        assert!((measured.ratio(&Target { max_memory_bytes: Some(200), ..target }) - 1.5).abs() < 1e-12);
    }
}
