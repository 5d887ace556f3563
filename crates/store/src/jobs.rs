//! Jobs: heavy work, leased to one worker at a time and safe to run twice.

use pleach_domain::id::JobId;
use pleach_domain::state::JobState;
use sqlx::FromRow;

use crate::column::{count, int, parse};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// Work to be done, once: a kind has at most one job for a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// Identifier.
    pub id: JobId,
    /// Kind, e.g. `prune`.
    pub kind: String,
    /// What it is for, in words that are unique within the kind.
    pub subject: String,
    /// What the worker needs, as JSON.
    pub payload: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The work.
    pub work: NewJob,
    /// State.
    pub state: JobState,
    /// Attempts begun.
    pub attempt: u32,
    /// Stage it is in.
    pub stage: String,
    /// Share of the stage done, 0 to 1.
    pub progress: f64,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was queued.
    pub created_at_ms: i64,
}

/// A worker's hold on a job: only with the lease it was given can a worker change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Job.
    pub job: JobId,
    /// Worker.
    pub worker: String,
    /// Attempt.
    pub attempt: u32,
}

#[derive(FromRow)]
struct Row {
    id: String,
    kind: String,
    subject: String,
    payload: String,
    state: String,
    attempt: i64,
    stage: String,
    progress: f64,
    error: Option<String>,
    created_at_ms: i64,
}

impl TryFrom<Row> for Job {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            work: NewJob { id: parse("jobs.id", &row.id)?, kind: row.kind, subject: row.subject, payload: row.payload },
            state: parse("jobs.state", &row.state)?,
            attempt: count("jobs.attempt", row.attempt)?,
            stage: row.stage,
            progress: row.progress,
            error: row.error,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Queues a job. Answers whether there was none of its kind for its subject, in whatever state.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn enqueue(session: &mut Session, job: &NewJob, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO jobs (id, kind, subject, payload, state, lease_until_ms, attempt, stage, progress, created_at_ms, changed_at_ms)
        VALUES ($1, $2, $3, $4, 'queued', 0, 0, '', 0.0, $5, $5)
        ON CONFLICT (kind, subject) DO NOTHING",
    )
    .bind(job.id.as_str())
    .bind(&job.kind)
    .bind(&job.subject)
    .bind(&job.payload)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("jobs.enqueue"))?;
    Ok(done.rows_affected() == 1)
}

/// Leases the oldest queued job of a kind. Of two workers who reach for the same, one gets it and the other `None`.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn claim(
    session: &mut Session,
    kind: &str,
    worker: &str,
    lease_until_ms: i64,
    at_ms: i64,
) -> Result<Option<(Lease, Job)>, StoreError> {
    let row = sqlx::query_as::<_, Row>(
        r"UPDATE jobs
        SET state = 'running', worker = $2, lease_until_ms = $3, attempt = attempt + 1, stage = '', progress = 0.0, changed_at_ms = $4
        WHERE state = 'queued'
            AND id = (SELECT id FROM jobs WHERE kind = $1 AND state = 'queued' ORDER BY created_at_ms, id LIMIT 1)
        RETURNING id, kind, subject, payload, state, attempt, stage, progress, error, created_at_ms",
    )
    .bind(kind)
    .bind(worker)
    .bind(lease_until_ms)
    .bind(at_ms)
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("jobs.claim"))?;
    let Some(job) = row.map(Job::try_from).transpose()? else { return Ok(None) };
    Ok(Some((Lease { job: job.work.id.clone(), worker: worker.to_owned(), attempt: job.attempt }, job)))
}

/// Prolongs a lease and notes progress (`progress` 0 to 1 of `stage`). Answers false when the lease is lost or the job cancelled:
/// the worker must stop.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn heartbeat(
    session: &mut Session,
    lease: &Lease,
    stage: &str,
    progress: f64,
    lease_until_ms: i64,
    at_ms: i64,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE jobs
        SET lease_until_ms = $4, stage = $5, progress = $6, changed_at_ms = $7
        WHERE id = $1 AND worker = $2 AND attempt = $3 AND state = 'running'",
    )
    .bind(lease.job.as_str())
    .bind(&lease.worker)
    .bind(int(lease.attempt))
    .bind(lease_until_ms)
    .bind(stage)
    .bind(progress)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("jobs.heartbeat"))?;
    Ok(done.rows_affected() == 1)
}

/// Ends a job well. Answers false when the lease is lost; then the session must not be committed.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn succeed(session: &mut Session, lease: &Lease, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE jobs
        SET state = 'succeeded', progress = 1.0, error = NULL, changed_at_ms = $4
        WHERE id = $1 AND worker = $2 AND attempt = $3 AND state = 'running'",
    )
    .bind(lease.job.as_str())
    .bind(&lease.worker)
    .bind(int(lease.attempt))
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("jobs.succeed"))?;
    Ok(done.rows_affected() == 1)
}

/// Gives a job up. Answers false when the lease is lost.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn fail(session: &mut Session, lease: &Lease, error: &str, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE jobs
        SET state = 'failed', error = $4, changed_at_ms = $5
        WHERE id = $1 AND worker = $2 AND attempt = $3 AND state = 'running'",
    )
    .bind(lease.job.as_str())
    .bind(&lease.worker)
    .bind(int(lease.attempt))
    .bind(error)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("jobs.fail"))?;
    Ok(done.rows_affected() == 1)
}

/// Puts a job back into the queue, e.g. when its worker shuts down; the attempt does not count.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn release(session: &mut Session, lease: &Lease, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE jobs
        SET state = 'queued', worker = NULL, attempt = attempt - 1, changed_at_ms = $4
        WHERE id = $1 AND worker = $2 AND attempt = $3 AND state = 'running'",
    )
    .bind(lease.job.as_str())
    .bind(&lease.worker)
    .bind(int(lease.attempt))
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("jobs.release"))?;
    Ok(done.rows_affected() == 1)
}

/// Takes a job back. Answers whether it was queued or running.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn cancel(session: &mut Session, id: &JobId, reason: &str, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE jobs
        SET state = 'cancelled', error = $2, changed_at_ms = $3
        WHERE id = $1 AND state IN ('queued', 'running')",
    )
    .bind(id.as_str())
    .bind(reason)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("jobs.cancel"))?;
    Ok(done.rows_affected() == 1)
}

/// Takes back jobs whose worker stopped beating: into the queue, or failed after `max_attempts`. Answers how many.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn expire_leases(session: &mut Session, max_attempts: u32, at_ms: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        r"UPDATE jobs
        SET state = CASE WHEN attempt >= $1 THEN 'failed' ELSE 'queued' END,
            error = 'worker ' || COALESCE(worker, '') || ' stopped in stage ' || stage || ', attempt ' || CAST(attempt AS TEXT),
            worker = NULL,
            changed_at_ms = $2
        WHERE state = 'running' AND lease_until_ms < $2",
    )
    .bind(int(max_attempts))
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("jobs.expire_leases"))?;
    Ok(done.rows_affected())
}

/// Jobs that are queued or running, oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn live(session: &mut Session, kind: &str, page: Page) -> Result<Vec<Job>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT id, kind, subject, payload, state, attempt, stage, progress, error, created_at_ms
        FROM jobs
        WHERE kind = $1 AND state IN ('queued', 'running')
        ORDER BY created_at_ms, id
        LIMIT $2",
    )
    .bind(kind)
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("jobs.live"))?
    .into_iter()
    .map(Job::try_from)
    .collect()
}

/// The newest jobs, newest last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Job>, StoreError> {
    let mut rows = sqlx::query_as::<_, Row>(
        r"SELECT id, kind, subject, payload, state, attempt, stage, progress, error, created_at_ms
        FROM jobs
        ORDER BY created_at_ms DESC, id DESC
        LIMIT $1",
    )
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("jobs.list"))?;
    rows.reverse();
    rows.into_iter().map(Job::try_from).collect()
}
