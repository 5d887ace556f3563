//! Queues a job for each budget that has no variant; takes back jobs whose budget no longer holds or whose worker is gone.

use pleach_domain::id::JobId;
use pleach_domain::state::JobState;
use pleach_store::budgets::BudgetKey;
use pleach_store::jobs::NewJob;
use pleach_store::{Page, audit, budgets, jobs};

use super::scope::{self, Scope};
use super::{Context, Progress, ReconcileError, entry, ids};
use crate::job::{MAX_ATTEMPTS, PRUNE};

/// Keeps the queue of pruning jobs in step with the budgets.
///
/// # Errors
/// [`ReconcileError::Store`]; [`ReconcileError::Document`] for a job that another version queued.
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let mut session = context.store.read().await?;
    let scopes = scope::all(&mut session).await?;
    let unpruned = budgets::unpruned(&mut session, Page::default()).await?;
    let live = jobs::live(&mut session, PRUNE, Page::default()).await?;
    let leased = live.iter().any(|job| job.state == JobState::Running);
    let mut superseded = Vec::new();
    for job in live {
        let key: BudgetKey = serde_json::from_str(&job.work.payload).map_err(ReconcileError::document("payload of a job"))?;
        let newest = budgets::newest(&mut session, &key.class, &key.policy).await?;
        if !governs(&scopes, &key) || newest.is_none_or(|b| b.key != key) {
            superseded.push((job.work.id, key));
        }
    }
    drop(session);
    let mut changed = leased && expire(context, at_ms).await?;
    for (id, key) in superseded {
        changed |= cancel(context, &id, &key, at_ms).await?;
    }
    for budget in unpruned.into_iter().filter(|b| governs(&scopes, &b.key)) {
        changed |= enqueue(context, &budget.key, at_ms).await?;
    }
    Ok(Progress::of(changed))
}

fn governs(scopes: &[Scope], key: &BudgetKey) -> bool {
    scopes.iter().any(|s| s.class.id == key.class && s.policy.policy.name == key.policy)
}

async fn expire(context: &Context, at_ms: i64) -> Result<bool, ReconcileError> {
    let mut session = context.store.write().await?;
    let expired = jobs::expire_leases(&mut session, MAX_ATTEMPTS, at_ms).await?;
    session.commit().await?;
    Ok(expired > 0)
}

async fn cancel(context: &Context, id: &JobId, key: &BudgetKey, at_ms: i64) -> Result<bool, ReconcileError> {
    let mut session = context.store.write().await?;
    let done = jobs::cancel(&mut session, id, "a newer budget took its place", at_ms).await?;
    if done {
        audit::append(&mut session, &entry("job.cancel", &key.to_string()), at_ms).await?;
        session.commit().await?;
    }
    Ok(done)
}

async fn enqueue(context: &Context, key: &BudgetKey, at_ms: i64) -> Result<bool, ReconcileError> {
    let subject = key.to_string();
    let payload = serde_json::to_string(key).map_err(ReconcileError::document("payload of a job"))?;
    let job = NewJob { id: ids::derived("j", &format!("{PRUNE}/{subject}"))?, kind: PRUNE.to_owned(), subject, payload };
    let mut session = context.store.write().await?;
    let queued = jobs::enqueue(&mut session, &job, at_ms).await?;
    session.commit().await?;
    Ok(queued)
}
