//! Completes a rollout once every active device of its class has proved the bundle by signed evidence.

use pleach_domain::state::RolloutState;
use pleach_store::{Page, audit, rollouts};

use super::{Context, Progress, ReconcileError, entry};

/// Completes what is complete.
///
/// # Errors
/// [`ReconcileError::Store`].
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let running = rollouts::running(&mut context.store.read().await?, Page::default()).await?;
    let mut changed = false;
    for rollout in running.into_iter().filter(|r| r.devices > 0 && r.proven == r.devices) {
        let mut session = context.store.write().await?;
        if rollouts::change(&mut session, &rollout.id, RolloutState::Running, RolloutState::Completed, at_ms).await? {
            audit::append(&mut session, &entry("rollout.complete", rollout.id.as_str()), at_ms).await?;
            session.commit().await?;
            changed = true;
        }
    }
    Ok(Progress::of(changed))
}
