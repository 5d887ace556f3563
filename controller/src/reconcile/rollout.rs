//! Begins a rollout for the newest bundle of a class, under the rules of its policy.

use pleach_domain::rollout::Approval;
use pleach_domain::state::RolloutState;
use pleach_store::rollouts::Rollout;
use pleach_store::{Page, audit, bundles, rollouts, variants};

use super::scope;
use super::{Context, Progress, ReconcileError, entry, ids};

/// Begins rollouts that are missing and aborts older ones of the same class that are still under way.
///
/// # Errors
/// [`ReconcileError::Store`].
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let mut session = context.store.read().await?;
    let waiting = bundles::without_rollout(&mut session, Page::default()).await?;
    if waiting.is_empty() {
        return Ok(Progress::Nothing);
    }
    let scopes = scope::all(&mut session).await?;
    let mut begin = Vec::new();
    for bundle in waiting {
        let policy = variants::find(&mut session, &bundle.variant).await?.map(|v| v.budget.policy);
        let scope = scopes.iter().find(|s| s.class.id == bundle.class && Some(&s.policy.policy.name) == policy.as_ref());
        begin.extend(scope.map(|scope| (bundle, &scope.policy)));
    }
    drop(session);
    let mut changed = false;
    for (bundle, policy) in begin {
        let rules = policy.policy.rollout.clone();
        let (state, reason) = match rules.approval {
            Approval::None => (RolloutState::Running, String::new()),
            Approval::SecondPerson => (RolloutState::WaitingForApproval, "a second person has to approve it".to_owned()),
        };
        let rollout = Rollout {
            id: ids::named("r", &bundle.digest)?,
            class: bundle.class,
            bundle: bundle.id,
            state,
            rules,
            begun_by: policy.applied_by.clone(),
            approved_by: String::new(),
            wave: 0,
            since_ms: at_ms,
            reason,
            readings: Vec::new(),
            created_at_ms: at_ms,
        };
        let mut session = context.store.write().await?;
        if !rollouts::insert(&mut session, &rollout).await? {
            continue;
        }
        rollouts::abort_others(&mut session, &rollout.class, &rollout.id, at_ms).await?;
        let subject = format!("{} of {} to {}", rollout.id, rollout.bundle, rollout.class);
        audit::append(&mut session, &entry("rollout.begin", &subject), at_ms).await?;
        session.commit().await?;
        changed = true;
    }
    Ok(Progress::of(changed))
}
