//! Rollouts: how a bundle spreads over its class.

use pleach_domain::id::RolloutId;
use pleach_domain::state::RolloutState;
use pleach_domain::{BundleId, ClassId};
use sqlx::FromRow;

use crate::column::{count, parse};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// A rollout and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Identifier.
    pub id: RolloutId,
    /// Class.
    pub class: ClassId,
    /// Bundle.
    pub bundle: BundleId,
    /// State.
    pub state: RolloutState,
    /// Active devices of the class.
    pub devices: u64,
    /// Active devices whose assignment from it is proven.
    pub proven: u64,
    /// Active devices whose assignment from it failed or was refused.
    pub failed: u64,
    /// When it began.
    pub created_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    id: String,
    class: String,
    bundle: String,
    state: String,
    created_at_ms: i64,
    devices: i64,
    proven: i64,
    failed: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.class, r.bundle, r.state, r.created_at_ms,
                (SELECT COUNT(*) FROM devices d WHERE d.class = r.class AND d.state = 'active') AS devices,
                (SELECT COUNT(*) FROM assignments a JOIN devices d ON d.id = a.device
                    WHERE a.rollout = r.id AND a.state = 'proven' AND d.state = 'active') AS proven,
                (SELECT COUNT(*) FROM assignments a JOIN devices d ON d.id = a.device
                    WHERE a.rollout = r.id AND a.state IN ('failed', 'refused') AND d.state = 'active') AS failed
            FROM rollouts r ",
            $rest
        )
    };
}

impl TryFrom<Row> for Rollout {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("rollouts.id", &row.id)?,
            class: parse("rollouts.class", &row.class)?,
            bundle: parse("rollouts.bundle", &row.bundle)?,
            state: parse("rollouts.state", &row.state)?,
            devices: count("rollouts.devices", row.devices)?,
            proven: count("rollouts.proven", row.proven)?,
            failed: count("rollouts.failed", row.failed)?,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Begins a rollout, running at once. Answers whether there was none of that identifier.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn insert(session: &mut Session, id: &RolloutId, class: &ClassId, bundle: &BundleId, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO rollouts (id, class, bundle, state, created_at_ms, changed_at_ms)
        VALUES ($1, $2, $3, 'running', $4, $4)
        ON CONFLICT (id) DO NOTHING",
    )
    .bind(id.as_str())
    .bind(class.as_str())
    .bind(bundle.as_str())
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.insert"))?;
    Ok(done.rows_affected() == 1)
}

/// Aborts every rollout of a class that is under way, but for one. Answers how many.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn abort_others(session: &mut Session, class: &ClassId, keep: &RolloutId, at_ms: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        r"UPDATE rollouts
        SET state = 'aborted', changed_at_ms = $3
        WHERE class = $1 AND id <> $2 AND state IN ('draft', 'waiting-for-approval', 'running', 'paused')",
    )
    .bind(class.as_str())
    .bind(keep.as_str())
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.abort_others"))?;
    Ok(done.rows_affected())
}

/// Moves a rollout from one state to another. Answers whether it was in the first.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn change(session: &mut Session, id: &RolloutId, from: RolloutState, to: RolloutState, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE rollouts
        SET state = $3, changed_at_ms = $4
        WHERE id = $1 AND state = $2",
    )
    .bind(id.as_str())
    .bind(from.as_str())
    .bind(to.as_str())
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.change"))?;
    Ok(done.rows_affected() == 1)
}

/// The newest rollout of a class: the one that new devices join.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn newest(session: &mut Session, class: &ClassId) -> Result<Option<Rollout>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE r.class = $1 ORDER BY r.created_at_ms DESC, r.id DESC LIMIT 1"))
        .bind(class.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.newest"))?
        .map(Rollout::try_from)
        .transpose()
}

/// Rollouts that are running, oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn running(session: &mut Session, page: Page) -> Result<Vec<Rollout>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE r.state = 'running' ORDER BY r.created_at_ms, r.id LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.running"))?
        .into_iter()
        .map(Rollout::try_from)
        .collect()
}

/// The newest rollouts, newest last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Rollout>, StoreError> {
    let mut rows = sqlx::query_as::<_, Row>(select!("ORDER BY r.created_at_ms DESC, r.id DESC LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.list"))?;
    rows.reverse();
    rows.into_iter().map(Rollout::try_from).collect()
}
