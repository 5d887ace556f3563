//! Begins a rollout for the newest bundle of a class; one wave in this version.

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
        if scopes.iter().any(|s| s.class.id == bundle.class && Some(&s.policy.policy.name) == policy.as_ref()) {
            begin.push(bundle);
        }
    }
    drop(session);
    let mut changed = false;
    for bundle in begin {
        let id = ids::named("r", &bundle.digest)?;
        let mut session = context.store.write().await?;
        if !rollouts::insert(&mut session, &id, &bundle.class, &bundle.id, at_ms).await? {
            continue;
        }
        rollouts::abort_others(&mut session, &bundle.class, &id, at_ms).await?;
        let subject = format!("{id} of {} to {}", bundle.id, bundle.class);
        audit::append(&mut session, &entry("rollout.begin", &subject), at_ms).await?;
        session.commit().await?;
        changed = true;
    }
    Ok(Progress::of(changed))
}
