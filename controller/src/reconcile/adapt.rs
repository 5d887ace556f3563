//! Hands what the devices of a class measured to the adaptation rule, and carries out what it decides.

use std::collections::BTreeMap;

use pleach_domain::LatencyHistogram;
use pleach_domain::adapt::{DeviceEvidence, Evidence, FrontPoint, Outcome, decide};
use pleach_domain::policy::AdaptationRules;
use pleach_domain::state::VariantState;
use pleach_store::budgets::Budget;
use pleach_store::decisions::Decision;
use pleach_store::variants::Variant;
use pleach_store::windows::WindowRow;
use pleach_store::{Page, Session, assignments, audit, budgets, bundles, decisions, rollouts, variants, windows};

use super::scope::{self, Scope};
use super::{Context, Progress, ReconcileError, entry, ids, plan};

/// A budget that differs by less than this factor from one that was rejected would be rejected again.
const SAME_BUDGET: f64 = 1.05;

/// What runs on a class, and what its devices measured lately.
struct Observed {
    bundle: bundles::Bundle,
    variant: Variant,
    newest: Budget,
    evidence: Evidence,
}

/// Decides for every class whose newest budget runs on its devices.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Document`] for a report that this version cannot read.
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let scopes = scope::all(&mut context.store.read().await?).await?;
    let mut changed = false;
    for scope in scopes {
        let mut session = context.store.read().await?;
        let Some(observed) = observe(&mut session, &scope, at_ms).await? else { continue };
        let before = decisions::newest(&mut session, &scope.class.id, &scope.policy.policy.name).await?;
        drop(session);
        let outcome = decide(&scope.policy.policy, &observed.evidence);
        let news = before.is_none_or(|b| b.bundle != observed.bundle.id || kind(&b.outcome) != kind(&outcome));
        if news && !futile(context, &observed, &outcome).await? {
            changed |= carry_out(context, &scope, observed, outcome, at_ms).await?;
        }
    }
    Ok(Progress::of(changed))
}

/// What tells decisions apart: the outcome, and for a hold its words without their numbers.
fn kind(outcome: &Outcome) -> (u8, String) {
    match outcome {
        Outcome::Hold { reason } => (0, reason.chars().filter(|c| !c.is_ascii_digit()).collect()),
        Outcome::PruneMore { .. } => (1, String::new()),
        Outcome::PruneLess { .. } => (2, String::new()),
    }
}

/// Whether the outcome's budget has just been found infeasible.
async fn futile(context: &Context, observed: &Observed, outcome: &Outcome) -> Result<bool, ReconcileError> {
    let (Outcome::PruneMore { budget_us, .. } | Outcome::PruneLess { budget_us, .. }) = outcome else { return Ok(false) };
    if observed.newest.key == observed.variant.budget {
        return Ok(false);
    }
    let latest = variants::list(&mut context.store.read().await?, Some(&observed.newest.key.class), Page::default()).await?;
    let rejected = latest.iter().any(|v| v.budget == observed.newest.key && v.state == VariantState::Rejected);
    Ok(rejected && (budget_us / observed.newest.latency_us).ln().abs() < SAME_BUDGET.ln())
}

/// `None` while a newer budget is on its way to the devices, or nothing runs yet.
async fn observe(session: &mut Session, scope: &Scope, at_ms: i64) -> Result<Option<Observed>, ReconcileError> {
    let policy = &scope.policy.policy;
    let Some(rollout) = rollouts::newest(session, &scope.class.id).await? else { return Ok(None) };
    let Some(bundle) = bundles::find(session, &rollout.bundle).await? else { return Ok(None) };
    let Some(variant) = variants::find(session, &bundle.variant).await? else { return Ok(None) };
    let Some(newest) = budgets::newest(session, &scope.class.id, &policy.name).await? else { return Ok(None) };
    let settled = newest.key == variant.budget || rejected(session, &newest).await?;
    let proven = assignments::proven(session, &rollout, Page::of(Page::MAX_LIMIT)).await?;
    let (Some(first), Some(middle)) = (proven.first(), proven.get(proven.len() / 2)) else { return Ok(None) };
    if !settled {
        return Ok(None);
    }
    let (first_ms, middle_ms) = (first.changed_at_ms, middle.changed_at_ms);
    let since: BTreeMap<_, _> = proven.iter().map(|d| (&d.device, d.changed_at_ms)).collect();
    let mut recent = windows::of_bundle(session, &bundle.digest, first_ms, Page::of(Page::MAX_LIMIT)).await?;
    recent.retain(|w| since.get(&w.device).is_some_and(|&proven_ms| w.received_at_ms > proven_ms));
    let part = |name: &str| variant.report.get(name).cloned().unwrap_or_default();
    let front: Vec<FrontPoint> = serde_json::from_value(part("front")).map_err(ReconcileError::document("front of a variant"))?;
    let planned = serde_json::from_value(part("predicted_latency_p50_us"));
    let planned_us: f64 = planned.map_err(ReconcileError::document("predicted latency of a variant"))?;
    let evidence = Evidence {
        devices: by_device(&recent, &policy.adaptation),
        planned_us,
        budget_us: variant.budget_us,
        front,
        proven_seconds: u32::try_from((at_ms - middle_ms).max(0) / 1_000).unwrap_or(u32::MAX),
    };
    Ok(Some(Observed { bundle, variant, newest, evidence }))
}

async fn rejected(session: &mut Session, budget: &Budget) -> Result<bool, ReconcileError> {
    let variants = variants::list(session, Some(&budget.key.class), Page::default()).await?;
    Ok(variants.iter().any(|v| v.budget == budget.key && v.state == VariantState::Rejected))
}

/// The newest windows of each device, merged, no more than a decision needs: old ones would hide that a device has become slower.
fn by_device(windows: &[WindowRow], rules: &AdaptationRules) -> Vec<DeviceEvidence> {
    let mut devices: BTreeMap<_, (u32, u64, LatencyHistogram)> = BTreeMap::new();
    for row in windows.iter().filter(|w| w.window.requests > 0) {
        let (count, requests, latency) = devices.entry(&row.device).or_default();
        if *count < rules.min_windows || *requests < rules.min_requests {
            *count += 1;
            *requests += row.window.requests;
            latency.merge(&row.window.latency);
        }
    }
    let evidence = |(windows, requests, latency): (u32, u64, LatencyHistogram)| DeviceEvidence {
        windows,
        requests,
        p50_us: latency.quantile_us(0.5),
        p95_us: latency.quantile_us(0.95),
    };
    devices.into_values().map(evidence).collect()
}

async fn carry_out(context: &Context, scope: &Scope, observed: Observed, outcome: Outcome, at_ms: i64) -> Result<bool, ReconcileError> {
    let policy = &scope.policy.policy;
    let (action, budget_us) = match &outcome {
        Outcome::Hold { .. } => ("decision.hold", None),
        Outcome::PruneMore { budget_us, .. } => ("decision.prune-more", Some(*budget_us)),
        Outcome::PruneLess { budget_us, .. } => ("decision.prune-less", Some(*budget_us)),
    };
    let subject = scope.subject();
    let id: pleach_domain::id::DecisionId = ids::derived("d", &format!("{subject}/{at_ms}"))?;
    let revision = observed.newest.key.revision + 1;
    let mut session = context.store.write().await?;
    let decision = Decision {
        id: id.clone(),
        class: scope.class.id.clone(),
        model: policy.model.clone(),
        policy: policy.name.clone(),
        policy_revision: scope.policy.revision,
        bundle: observed.bundle.id,
        outcome,
        evidence: observed.evidence,
        budget_revision: budget_us.map(|_| revision),
        at_ms,
    };
    decisions::insert(&mut session, &decision).await?;
    if let Some(latency_us) = budget_us {
        let budget = Budget { decision: Some(id), ..plan::of_policy(scope, revision, latency_us, at_ms) };
        if !budgets::insert(&mut session, &budget).await? {
            return Ok(false);
        }
    }
    audit::append(&mut session, &entry(action, &subject), at_ms).await?;
    session.commit().await?;
    Ok(true)
}
