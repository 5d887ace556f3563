//! Sets the first budget of a class under a policy revision and model version.

use pleach_store::budgets::{Budget, BudgetKey};
use pleach_store::{atlases, audit, budgets};

use super::scope::{self, Scope};
use super::{Context, Progress, ReconcileError, entry};

/// Writes the budget where a class has an atlas and its newest budget, if any, is of an older policy revision or model version.
///
/// # Errors
/// [`ReconcileError::Store`].
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let scopes = scope::all(&mut context.store.read().await?).await?;
    let mut changed = false;
    for scope in scopes {
        changed |= plan(context, &scope, at_ms).await?;
    }
    Ok(Progress::of(changed))
}

async fn plan(context: &Context, scope: &Scope, at_ms: i64) -> Result<bool, ReconcileError> {
    let policy = &scope.policy.policy;
    let mut session = context.store.read().await?;
    if !atlases::exists(&mut session, &scope.atlas()).await? {
        return Ok(false);
    }
    let newest = budgets::newest(&mut session, &scope.class.id, &policy.name).await?;
    drop(session);
    let stands = |b: &Budget| (b.policy_revision, &b.model, b.model_version) == (scope.policy.revision, &policy.model, scope.model.version);
    if newest.as_ref().is_some_and(stands) {
        return Ok(false);
    }
    let latency_us = policy.slo_p95_us as f64 * policy.adaptation.first_target_share;
    let budget = of_policy(scope, newest.map_or(0, |b| b.key.revision) + 1, latency_us, at_ms);
    let mut session = context.store.write().await?;
    if !budgets::insert(&mut session, &budget).await? {
        return Ok(false);
    }
    let subject = format!("{} {latency_us:.0} us", budget.key);
    audit::append(&mut session, &entry("budget.set", &subject), at_ms).await?;
    session.commit().await?;
    Ok(true)
}

/// A budget with the floors and bounds of the policy, without a decision behind it.
pub(super) fn of_policy(scope: &Scope, revision: u32, latency_us: f64, at_ms: i64) -> Budget {
    let policy = &scope.policy.policy;
    Budget {
        key: BudgetKey { class: scope.class.id.clone(), policy: policy.name.clone(), revision },
        policy_revision: scope.policy.revision,
        model: policy.model.clone(),
        model_version: scope.model.version,
        latency_us,
        max_size_bytes: policy.max_size_bytes,
        accuracy_floor: policy.accuracy_floor,
        batch: policy.request_batch,
        criterion: policy.criterion.name().to_owned(),
        decision: None,
        created_at_ms: at_ms,
    }
}
