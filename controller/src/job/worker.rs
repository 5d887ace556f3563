//! Claims pruning jobs and runs them, one at a time: leased, heartbeaten, safe to run twice.

use std::sync::Arc;
use std::time::Duration;

use pleach_prune::PruneError;
use pleach_store::jobs;
use pleach_store::jobs::{Job, Lease};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{PRUNE, Tracker, prune};
use crate::random;
use crate::reconcile::{Context, ReconcileError, wait};

/// Time after which a silent worker is taken for dead.
const LEASE_MS: i64 = 30_000;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs jobs until `shutdown`; a job under way then goes back into the queue.
pub(crate) async fn serve(context: Arc<Context>, shutdown: CancellationToken) {
    let mut wake = context.wake.listen();
    let interval = Duration::from_millis(context.config.reconcile_interval_ms);
    let worker = format!("{}-{}", std::process::id(), random::hex::<4>().unwrap_or_default());
    while !shutdown.is_cancelled() {
        match claim(&context, &worker).await {
            Ok(Some((lease, job))) => {
                if let Err(error) = work(&context, &lease, &job, &shutdown).await {
                    tracing::error!(job.id = %lease.job, error = error.chain(), "the end of a job could not be stored");
                }
                context.wake.all();
            }
            Ok(None) => wait(&mut wake, interval, &shutdown).await,
            Err(error) => {
                tracing::error!(error = error.chain(), "no job could be claimed; trying again");
                wait(&mut wake, interval, &shutdown).await;
            }
        }
    }
}

async fn claim(context: &Context, worker: &str) -> Result<Option<(Lease, Job)>, ReconcileError> {
    let now_ms = random::now_ms();
    let mut session = context.store.write().await?;
    let claimed = jobs::claim(&mut session, PRUNE, worker, now_ms + LEASE_MS, now_ms).await?;
    session.commit().await?;
    Ok(claimed)
}

async fn work(context: &Context, lease: &Lease, job: &Job, shutdown: &CancellationToken) -> Result<(), ReconcileError> {
    tracing::info!(job.id = %lease.job, job.subject = job.work.subject, job.attempt = lease.attempt, "job begins");
    let tracker = Arc::new(Tracker::new(shutdown.clone()));
    let run = prune::run(&context.controller, &context.engine, lease, &job.work.payload, &tracker);
    tokio::pin!(run);
    let mut beat = tokio::time::interval(HEARTBEAT_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut held = true;
    let result = loop {
        tokio::select! {
            result = &mut run => break result,
            _ = beat.tick(), if held => {
                held = heartbeat(context, lease, &tracker).await;
                if !held {
                    tracker.cancel();
                }
            }
        }
    };
    finish(context, lease, result, held && shutdown.is_cancelled()).await
}

/// Whether the lease is still held; a database that does not answer is not a lost lease.
async fn heartbeat(context: &Context, lease: &Lease, tracker: &Tracker) -> bool {
    let beat = async {
        let (stage, fraction) = tracker.at();
        let now_ms = random::now_ms();
        let mut session = context.store.write().await?;
        let held = jobs::heartbeat(&mut session, lease, stage.name(), fraction, now_ms + LEASE_MS, now_ms).await?;
        session.commit().await?;
        Ok::<_, pleach_store::StoreError>(held)
    };
    beat.await.unwrap_or(true)
}

async fn finish(context: &Context, lease: &Lease, result: Result<(), ReconcileError>, stopping: bool) -> Result<(), ReconcileError> {
    let Err(error) = result else {
        tracing::info!(job.id = %lease.job, "job succeeded");
        return Ok(());
    };
    let now_ms = random::now_ms();
    let mut session = context.store.write().await?;
    let cancelled = matches!(error, ReconcileError::Prune(PruneError::Cancelled(_)));
    if cancelled && stopping {
        jobs::release(&mut session, lease, now_ms).await?;
    } else if !cancelled && error.is_final() {
        tracing::error!(job.id = %lease.job, error = error.chain(), "job failed");
        jobs::fail(&mut session, lease, &error.chain(), now_ms).await?;
    } else {
        // A lost lease leaves nothing to say; a passing failure runs out of its lease and is tried again.
        tracing::warn!(job.id = %lease.job, error = error.chain(), "job ended early");
    }
    Ok(session.commit().await?)
}
