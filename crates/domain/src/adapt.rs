//! The adaptation loop's decision: observed windows of a class against the policy, in; a decision with its evidence, out.
//!
//! Pure and replayable: the decision row holds [`Evidence`], and [`decide`] gives the same outcome for it at any time.

use serde::{Deserialize, Serialize};

use crate::policy::Policy;

/// What one device of the class measured on the running bundle since it was proven there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceEvidence {
    /// Windows counted.
    pub windows: u32,
    /// Requests counted.
    pub requests: u64,
    /// Median latency in microseconds.
    pub p50_us: u64,
    /// 95th percentile of latency in microseconds.
    pub p95_us: u64,
}

/// One point of a class's latency/accuracy front, as the engine predicted it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontPoint {
    /// Predicted mean latency of a request in microseconds.
    pub latency_us: f64,
    /// Expected divergence from the full model, in nats.
    pub divergence: f64,
}

/// Everything a decision rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// One entry for each reporting device of the class.
    pub devices: Vec<DeviceEvidence>,
    /// Latency that the running variant was planned for: its predicted mean in microseconds.
    pub planned_us: f64,
    /// Latency that the class's current budget allows, in microseconds.
    pub budget_us: f64,
    /// The class's front; points may come in any order.
    pub front: Vec<FrontPoint>,
    /// Seconds since half of the class's devices have proved the running bundle; late joiners do not put a decision off.
    pub proven_seconds: u32,
}

/// What the loop does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Leave things as they are.
    Hold {
        /// Why, in words.
        reason: String,
    },
    /// Set a smaller budget.
    PruneMore {
        /// The new budget in microseconds of predicted mean latency.
        budget_us: f64,
        /// Why, in words.
        reason: String,
    },
    /// Set a larger budget.
    PruneLess {
        /// The new budget in microseconds of predicted mean latency.
        budget_us: f64,
        /// Why, in words.
        reason: String,
    },
}

/// A budget must change by at least this factor to be worth a new variant.
const SMALLEST_CHANGE: f64 = 1.05;
/// One decision shrinks a budget by at most this factor, whatever devices claim.
const LARGEST_CUT: f64 = 4.0;
/// One decision widens a budget by at most this factor: a slim variant may fit into one burst of a CPU quota, so that latency grows
/// faster than in proportion, and missing the objective costs more than one more step.
const LARGEST_RISE: f64 = 2.0;
/// A variant that takes less than this share of its budget is held back by something else: its size, or the full model is reached.
const BINDING_SHARE: f64 = 0.8;
/// Headroom is used only when the front promises at least this relative fall in divergence.
const SMALLEST_GAIN: f64 = 0.1;

/// Decides for one class.
///
/// The class's p95 is the median over its devices of each device's p95, so a minority of lying devices cannot steer it.
/// Observed over planned latency corrects the plan: a new budget aims at `target_share` of the SLO in corrected time.
pub fn decide(policy: &Policy, evidence: &Evidence) -> Outcome {
    let rules = &policy.adaptation;
    let windows: u64 = evidence.devices.iter().map(|d| u64::from(d.windows)).sum();
    let requests: u64 = evidence.devices.iter().map(|d| d.requests).sum();
    if windows < u64::from(rules.min_windows) || requests < rules.min_requests {
        return hold(format!("{windows} windows with {requests} requests: waiting for {} with {}", rules.min_windows, rules.min_requests));
    }
    if evidence.proven_seconds < rules.cooldown_seconds {
        return hold(format!("cooling down: proven {} s ago, {} s to wait for", evidence.proven_seconds, rules.cooldown_seconds));
    }
    let p95_us = median(evidence.devices.iter().map(|d| d.p95_us as f64).collect());
    let slo_us = policy.slo_p95_us as f64;
    let correction = p95_us / evidence.planned_us.max(1.0);
    let wanted_us = slo_us * rules.target_share / correction;
    let budget_us = wanted_us.clamp(evidence.budget_us / LARGEST_CUT, evidence.budget_us * LARGEST_RISE);
    if p95_us > slo_us {
        // Relative to what runs, not to what was allowed: a variant may sit well below its budget.
        let ceiling_us = evidence.planned_us / SMALLEST_CHANGE;
        let reason = format!("p95 {p95_us:.0} us breaks the SLO of {slo_us:.0} us; devices take {correction:.2} times the planned time");
        return Outcome::PruneMore { budget_us: budget_us.min(ceiling_us), reason };
    }
    if p95_us >= slo_us * rules.headroom_share {
        return hold(format!("p95 {p95_us:.0} us is inside the SLO of {slo_us:.0} us without headroom to use"));
    }
    if budget_us < evidence.budget_us * SMALLEST_CHANGE {
        return hold(format!("p95 {p95_us:.0} us leaves headroom, but the budget is already {:.0} us", evidence.budget_us));
    }
    if evidence.planned_us < evidence.budget_us * BINDING_SHARE {
        let (planned_us, budget_us) = (evidence.planned_us, evidence.budget_us);
        return hold(format!(
            "p95 {p95_us:.0} us leaves headroom, but the variant takes {planned_us:.0} us of its {budget_us:.0} us: latency is not what binds"
        ));
    }
    let (now, then) = (divergence_at(&evidence.front, evidence.planned_us), divergence_at(&evidence.front, budget_us));
    match (now, then) {
        (Some(now), Some(then)) if then < now * (1.0 - SMALLEST_GAIN) => Outcome::PruneLess {
            budget_us,
            reason: format!(
                "p95 {p95_us:.0} us leaves headroom under the SLO of {slo_us:.0} us; expected divergence falls from {now:.5} to {then:.5}"
            ),
        },
        _ => hold(format!("p95 {p95_us:.0} us leaves headroom, but a larger budget gains no accuracy")),
    }
}

fn hold(reason: String) -> Outcome {
    Outcome::Hold { reason }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Lowest divergence among the points that fit in `latency_us` (with a little slack for rounding).
fn divergence_at(front: &[FrontPoint], latency_us: f64) -> Option<f64> {
    front.iter().filter(|p| p.latency_us <= latency_us * 1.005).map(|p| p.divergence).min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let mut p: Policy = serde_json::from_str(r#"{"name":"p","model":"m","slo_p95_us":10000,"accuracy_floor":0.8}"#).unwrap();
        p.adaptation.cooldown_seconds = 30;
        p
    }

    fn evidence(p95s: &[u64]) -> Evidence {
        let devices = p95s.iter().map(|&p95_us| DeviceEvidence { windows: 10, requests: 500, p50_us: p95_us / 2, p95_us }).collect();
        let front = [(3_000.0, 0.09), (5_000.0, 0.04), (7_000.0, 0.01), (12_000.0, 0.0)]
            .map(|(latency_us, divergence)| FrontPoint { latency_us, divergence });
        Evidence { devices, planned_us: 7_000.0, budget_us: 7_000.0, front: front.to_vec(), proven_seconds: 100 }
    }

    #[test]
    fn a_broken_slo_prunes_more_in_corrected_time() {
        let Outcome::PruneMore { budget_us, .. } = decide(&policy(), &evidence(&[14_000])) else { panic!() };
        assert!((budget_us - 4_250.0).abs() < 1.0, "{budget_us}");
    }

    #[test]
    fn headroom_prunes_less_only_when_the_front_gains() {
        let mut e = evidence(&[5_000]);
        e.planned_us = 5_000.0;
        e.budget_us = 5_000.0;
        assert!(matches!(decide(&policy(), &e), Outcome::PruneLess { budget_us, .. } if (budget_us - 8_500.0).abs() < 1.0));
        e.front.iter_mut().for_each(|p| p.divergence = 0.01);
        assert!(matches!(decide(&policy(), &e), Outcome::Hold { .. }));
    }

    #[test]
    fn headroom_is_left_alone_where_latency_does_not_bind() {
        let mut e = evidence(&[2_000]);
        e.planned_us = 3_000.0;
        assert!(matches!(decide(&policy(), &e), Outcome::Hold { reason } if reason.contains("not what binds")));
    }

    #[test]
    fn a_minority_of_lying_devices_cannot_steer() {
        assert!(matches!(decide(&policy(), &evidence(&[8_000, 8_100, 7_900, 50_000_000, 60_000_000])), Outcome::Hold { .. }));
    }

    #[test]
    fn one_decision_cuts_a_budget_by_at_most_four_times() {
        let Outcome::PruneMore { budget_us, .. } = decide(&policy(), &evidence(&[50_000_000])) else { panic!() };
        assert!(budget_us >= 7_000.0 / 4.0);
    }

    #[test]
    fn one_decision_widens_a_budget_by_at_most_twice() {
        let mut e = evidence(&[500]);
        (e.planned_us, e.budget_us) = (5_000.0, 5_000.0);
        assert!(matches!(decide(&policy(), &e), Outcome::PruneLess { budget_us, .. } if (budget_us - 10_000.0).abs() < 1.0));
    }

    #[test]
    fn waits_for_windows_and_cooldown() {
        let mut e = evidence(&[14_000]);
        e.proven_seconds = 5;
        assert!(matches!(decide(&policy(), &e), Outcome::Hold { .. }));
        e.proven_seconds = 100;
        e.devices[0].windows = 1;
        assert!(matches!(decide(&policy(), &e), Outcome::Hold { .. }));
    }
}
