//! What the gates of a rollout say: what its devices measured, against devices of the class that run what ran before.

use std::collections::BTreeMap;

use pleach_domain::gate::{Against, Count, Gate, Reading, Risk, percentile, rates, thresholds_us};
use pleach_domain::policy::Policy;
use pleach_domain::rollout::Gates;
use pleach_domain::{Digest, LatencyHistogram};
use pleach_store::rollouts::Rollout;
use pleach_store::windows::Tally;
use pleach_store::{Page, Session, bundles, policies, variants, windows};

use super::ReconcileError;

/// Windows of the control that its percentile is taken from, the newest: they are of the same time as the canary's newest.
const CONTROL_WINDOWS: u32 = 2_000;

/// Reads every gate of a rollout. `base`: the rollout that completed before it, if any.
///
/// # Errors
/// [`ReconcileError::Store`]; [`ReconcileError::Missing`] for a bundle without its variant or policy.
pub(super) async fn read(
    session: &mut Session,
    rollout: &Rollout,
    base: Option<&Rollout>,
    gates: &Gates,
) -> Result<Vec<Reading>, ReconcileError> {
    let (canary, policy) = bundle(session, rollout).await?;
    let control = match base {
        Some(base) => Some(bundle(session, base).await?.0),
        None => None,
    };
    let since_ms = rollout.created_at_ms;
    let own = windows::tally(session, &canary, since_ms).await?;
    let others = match &control {
        Some(digest) => windows::tally(session, digest, since_ms).await?,
        None => Vec::new(),
    };
    let risk = gates.risk();
    let compare = |gate, count: fn(&Tally) -> Count, fixed: f64, effect| {
        let (own, others): (Vec<Count>, Vec<Count>) = (own.iter().map(count).collect(), others.iter().map(count).collect());
        let against = if control.is_some() { Against::Control(&others) } else { Against::Rate(fixed) };
        rates(gate, &own, against, effect, risk)
    };
    let mut readings = Vec::new();
    if let Some(effect) = gates.max_error_rise {
        readings.push(compare(Gate::Errors, |t| Count { events: t.errors, trials: t.requests }, 0.0, effect));
    }
    if let Some(effect) = gates.max_accuracy_drop {
        let wrong = |t: &Tally| Count { events: t.labelled.saturating_sub(t.correct), trials: t.labelled };
        readings.push(compare(Gate::Accuracy, wrong, 1.0 - policy.accuracy_floor, effect));
    }
    if let Some(effect) = gates.max_p95_rise {
        readings.push(latency(session, &canary, control.as_ref(), since_ms, (effect, &policy, risk)).await?);
    }
    Ok(readings)
}

async fn latency(
    session: &mut Session,
    canary: &Digest,
    control: Option<&Digest>,
    since_ms: i64,
    (effect, policy, risk): (f64, &Policy, Risk),
) -> Result<Reading, ReconcileError> {
    let mut before = LatencyHistogram::new();
    if let Some(control) = control {
        for row in windows::of_bundle(session, control, since_ms, Page::of(CONTROL_WINDOWS)).await? {
            before.merge(&row.window.latency);
        }
        if before.count() == 0 {
            // Nothing to hold the canary against yet.
            return Ok(percentile(&[], &[], risk));
        }
    }
    let p95_us = if control.is_some() { before.quantile_us(0.95) } else { policy.slo_p95_us };
    let (low_us, high_us) = thresholds_us(p95_us, effect);
    let mut devices: BTreeMap<_, (Count, Count)> = BTreeMap::new();
    for row in windows::of_bundle(session, canary, since_ms, Page::of(Page::MAX_LIMIT)).await? {
        let (low, high) = devices.entry(row.device).or_default();
        let latency = &row.window.latency;
        for (count, us) in [(low, low_us), (high, high_us)] {
            *count = Count { events: count.events + latency.count_above(us), trials: count.trials + latency.count() };
        }
    }
    let (low, high): (Vec<Count>, Vec<Count>) = devices.into_values().unzip();
    Ok(percentile(&low, &high, risk))
}

async fn bundle(session: &mut Session, rollout: &Rollout) -> Result<(Digest, Policy), ReconcileError> {
    let missing = |what| ReconcileError::Missing { what, id: rollout.bundle.to_string() };
    let bundle = bundles::find(session, &rollout.bundle).await?.ok_or_else(|| missing("bundle"))?;
    let variant = variants::find(session, &bundle.variant).await?.ok_or_else(|| missing("variant of bundle"))?;
    let policy = policies::find(session, &variant.budget.policy).await?.ok_or_else(|| missing("policy of bundle"))?;
    Ok((bundle.digest, policy.policy))
}
