//! From predictions to what holds: the budget is moved until a variant, timed on this machine, keeps its goal.
//!
//! What is measured is taken to grow evenly with what is predicted: the line through the last two variants says where the next
//! budget should lie; budgets that held and that did not close in on it from both sides.

use pleach_domain::runtime::Timing;
use pleach_onnx::Model;

use crate::report::{Goal, Target};
use crate::solve::Choice;

/// Variants that are built at most.
const TRIES: usize = 6;
/// Share of the goal that the next budget aims at.
const AIM: f64 = 0.985;
/// A variant that needs more than this share of what it may is not narrowed for nothing.
const TIGHT: f64 = 0.95;
/// Budgets that differ by less are the same.
const CLOSE: f64 = 1.01;

/// A variant that was built and measured.
pub(crate) struct Built {
    pub(crate) choice: Choice,
    pub(crate) model: Model,
    pub(crate) divergence: f64,
    /// Predicted time in microseconds.
    pub(crate) predicted_us: f64,
    /// Of the model as uploaded and of the variant, interleaved.
    pub(crate) latency: [Timing; 2],
    /// Peak memory of one call.
    pub(crate) memory_bytes: u64,
}

impl Built {
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

    /// Median latency of dense over that of the variant.
    pub(crate) fn speedup(&self) -> f64 {
        self.latency[0].p50_us / self.latency[1].p50_us.max(f64::MIN_POSITIVE)
    }
}

/// The search for the budget.
pub(crate) struct Search<'a> {
    target: &'a Target,
    tries: usize,
    /// Longest predicted time that held, shortest that did not.
    held: f64,
    missed: f64,
    /// Predicted time and ratio of the variant before.
    before: Option<(f64, f64)>,
    /// The best variant so far: of least divergence that keeps the goal, else nearest to it.
    best: Option<Built>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(target: &'a Target) -> Self {
        Self { target, tries: 0, held: 0.0, missed: f64::INFINITY, before: None, best: None }
    }

    /// Takes a variant, and says which budget to try next, in predicted microseconds; `None` when the search is over.
    pub(crate) fn next(&mut self, built: Built) -> Option<f64> {
        let (ratio, predicted) = (built.ratio(self.target), built.predicted_us);
        tracing::debug!(ratio, predicted, divergence = built.divergence, speedup = built.speedup(), "measured variant");
        let repeated = self.best.as_ref().is_some_and(|b| b.choice == built.choice) && self.tries > 0;
        self.tries += 1;
        if ratio <= 1.0 {
            self.held = self.held.max(predicted);
        } else {
            self.missed = self.missed.min(predicted);
        }
        let better = |best: &Built| {
            let of = best.ratio(self.target);
            if ratio <= 1.0 { of > 1.0 || built.divergence < best.divergence } else { of > 1.0 && ratio < of }
        };
        if self.best.as_ref().is_none_or(better) {
            self.best = Some(built);
        }
        let over = self.tries >= TRIES || (TIGHT..=1.0).contains(&ratio) || repeated && ratio <= 1.0;
        // Where nothing missed yet, the first and widest variant holds.
        if over || self.missed.is_infinite() || self.held * CLOSE >= self.missed {
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

    pub(crate) fn finish(self) -> Option<Built> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search over a made-up machine that needs `machine(predicted)` microseconds, dense 100; returns what is delivered.
    fn search(goal: Goal, machine: impl Fn(f64) -> f64) -> (f64, usize) {
        let target = Target { goal: Some(goal), ..Target::default() };
        let mut search = Search::new(&target);
        let (mut budget, mut tries) = (100.0, 0);
        loop {
            let timing = |us: f64| Timing { mean_us: us, min_us: us, p50_us: us, p95_us: us, calls: 1 };
            let built = Built {
                choice: vec![budget as usize],
                model: pleach_onnx::builder::GraphBuilder::new("empty").build().unwrap(),
                divergence: 1.0 / budget,
                predicted_us: budget,
                latency: [timing(100.0), timing(machine(budget))],
                memory_bytes: 0,
            };
            tries += 1;
            match search.next(built) {
                Some(next) => budget = next,
                None => break (search.finish().unwrap().latency[1].p50_us, tries),
            }
        }
    }

    #[test]
    fn a_machine_slower_than_predicted_is_met_from_below() {
        let (us, tries) = search(Goal::Speedup(2.0), |predicted| 30.0 + 0.7 * predicted);
        assert!((46.0..=50.0).contains(&us) && tries <= TRIES, "{us} in {tries}");
    }

    #[test]
    fn what_dense_keeps_is_not_narrowed() {
        assert_eq!(search(Goal::P95Us(120.0), |predicted| predicted).1, 1);
    }

    #[test]
    fn an_impossible_goal_ends_with_the_nearest_variant() {
        let (us, tries) = search(Goal::P50Us(1.0), |predicted| 20.0 + 0.1 * predicted);
        assert!(us < 21.0 && tries <= TRIES, "{us} in {tries}");
    }
}
