//! Rollouts: how a bundle spreads over the devices of its class that it is for.

use pleach_domain::gate::Reading;
use pleach_domain::id::RolloutId;
use pleach_domain::rollout::RolloutRules;
use pleach_domain::state::{Observed, RolloutState};
use pleach_domain::{BundleId, ClassId, DeviceId};
use sqlx::FromRow;

use crate::column::{count, from_json, int, parse, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};
use crate::tokens::Labels;

/// A rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Identifier.
    pub id: RolloutId,
    /// Class.
    pub class: ClassId,
    /// Bundle.
    pub bundle: BundleId,
    /// State.
    pub state: RolloutState,
    /// Its rules, as they stood when it began.
    pub rules: RolloutRules,
    /// Who applied the policy that it follows from; empty when nobody noted it.
    pub begun_by: String,
    /// Who approved it; empty when nobody did.
    pub approved_by: String,
    /// Wave, from 0.
    pub wave: usize,
    /// When this wave or state began.
    pub since_ms: i64,
    /// Why it is in this state.
    pub reason: String,
    /// What its gates said last.
    pub readings: Vec<Reading>,
    /// When it began.
    pub created_at_ms: i64,
}

/// How many active devices are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices that it is for.
    pub members: u64,
    /// Devices whose newest assignment is its bundle.
    pub given: u64,
    /// Of these, proven.
    pub proven: u64,
    /// Of these, failed or refused.
    pub failed: u64,
    /// Devices that it sends back to another bundle, which have not settled yet.
    pub returning: u64,
    /// Devices that it sent back to another bundle, which failed or refused that.
    pub stranded: u64,
}

/// A device that may be for a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Device.
    pub device: DeviceId,
    /// Its labels.
    pub labels: Labels,
}

/// A device's place in a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Devices before it, whose turn comes first.
    pub before: u64,
    /// Whether it has been given the bundle.
    pub given: bool,
}

#[derive(FromRow)]
struct Row {
    id: String,
    class: String,
    bundle: String,
    state: String,
    rules: String,
    begun_by: String,
    approved_by: String,
    wave: i64,
    since_ms: i64,
    reason: String,
    readings: String,
    created_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.class, r.bundle, r.state, r.rules, r.begun_by, r.approved_by, r.wave, r.since_ms, r.reason, r.readings,
                r.created_at_ms
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
            rules: from_json("rollouts.rules", &row.rules)?,
            begun_by: row.begun_by,
            approved_by: row.approved_by,
            wave: count("rollouts.wave", row.wave)?,
            since_ms: row.since_ms,
            reason: row.reason,
            readings: from_json("rollouts.readings", &row.readings)?,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Begins a rollout as it is given. Answers whether there was none of that identifier.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn insert(session: &mut Session, rollout: &Rollout) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO rollouts (id, class, bundle, state, rules, begun_by, approved_by, wave, since_ms, reason, readings, created_at_ms,
            changed_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)
        ON CONFLICT (id) DO NOTHING",
    )
    .bind(rollout.id.as_str())
    .bind(rollout.class.as_str())
    .bind(rollout.bundle.as_str())
    .bind(rollout.state.as_str())
    .bind(to_json("rollouts.rules", &rollout.rules)?)
    .bind(&rollout.begun_by)
    .bind(&rollout.approved_by)
    .bind(int(rollout.wave))
    .bind(rollout.since_ms)
    .bind(&rollout.reason)
    .bind(to_json("rollouts.readings", &rollout.readings)?)
    .bind(rollout.created_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.insert"))?;
    Ok(done.rows_affected() == 1)
}

/// Aborts every rollout of a class that spreads or may come to, but for one; those that send devices back go on. Answers how many.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn abort_others(session: &mut Session, class: &ClassId, keep: &RolloutId, at_ms: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        r"UPDATE rollouts
        SET state = 'aborted', reason = $4, since_ms = $3, changed_at_ms = $3
        WHERE class = $1 AND id <> $2 AND state IN ('draft', 'waiting-for-approval', 'running', 'paused')",
    )
    .bind(class.as_str())
    .bind(keep.as_str())
    .bind(at_ms)
    .bind(format!("{keep} took its place"))
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.abort_others"))?;
    Ok(done.rows_affected())
}

/// Moves a rollout from one state to another. Answers whether it was in the first.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn change(
    session: &mut Session,
    id: &RolloutId,
    (from, to): (RolloutState, RolloutState),
    reason: &str,
    at_ms: i64,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE rollouts
        SET state = $3, reason = $4, since_ms = $5, changed_at_ms = $5
        WHERE id = $1 AND state = $2",
    )
    .bind(id.as_str())
    .bind(from.as_str())
    .bind(to.as_str())
    .bind(reason)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.change"))?;
    Ok(done.rows_affected() == 1)
}

/// Notes who approved a rollout that waits for it, and lets it run. Answers whether it waited.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn approve(session: &mut Session, id: &RolloutId, by: &str, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE rollouts
        SET state = 'running', approved_by = $2, reason = '', since_ms = $3, changed_at_ms = $3
        WHERE id = $1 AND state = 'waiting-for-approval'",
    )
    .bind(id.as_str())
    .bind(by)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.approve"))?;
    Ok(done.rows_affected() == 1)
}

/// Goes on to the next wave. Answers whether the rollout was running in wave `from`.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn widen(session: &mut Session, id: &RolloutId, from: usize, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE rollouts
        SET wave = wave + 1, reason = '', since_ms = $3, changed_at_ms = $3
        WHERE id = $1 AND wave = $2 AND state = 'running'",
    )
    .bind(id.as_str())
    .bind(int(from))
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.widen"))?;
    Ok(done.rows_affected() == 1)
}

/// Notes what a rollout waits for, and what its gates say, while it is in a state.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn note(
    session: &mut Session,
    (id, state): (&RolloutId, RolloutState),
    reason: &str,
    readings: &[Reading],
    at_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        r"UPDATE rollouts
        SET reason = $2, readings = $3, changed_at_ms = $4
        WHERE id = $1 AND state = $5",
    )
    .bind(id.as_str())
    .bind(reason)
    .bind(to_json("rollouts.readings", &readings)?)
    .bind(at_ms)
    .bind(state.as_str())
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.note"))?;
    Ok(())
}

/// A rollout by its identifier.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn find(session: &mut Session, id: &RolloutId) -> Result<Option<Rollout>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE r.id = $1"))
        .bind(id.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.find"))?
        .map(Rollout::try_from)
        .transpose()
}

/// The rollouts that stand: of each class those under way, and the newest completed one, which still takes devices in. Newest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn standing(session: &mut Session) -> Result<Vec<Rollout>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE r.state IN ('waiting-for-approval', 'running', 'paused', 'halting')
            OR r.state = 'completed' AND NOT EXISTS (
                SELECT 1 FROM rollouts n
                WHERE n.class = r.class AND n.state = 'completed'
                    AND (n.created_at_ms > r.created_at_ms OR n.created_at_ms = r.created_at_ms AND n.id > r.id))
        ORDER BY r.created_at_ms DESC, r.id DESC"
    ))
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.standing"))?
    .into_iter()
    .map(Rollout::try_from)
    .collect()
}

/// The rollout whose bundle the devices of a class should have or be about to have: the newest that was not taken back.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn newest(session: &mut Session, class: &ClassId) -> Result<Option<Rollout>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE r.class = $1 AND r.state NOT IN ('halting', 'reverted', 'aborted') ORDER BY r.created_at_ms DESC, r.id DESC LIMIT 1"
    ))
    .bind(class.as_str())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.newest"))?
    .map(Rollout::try_from)
    .transpose()
}

/// The newest rollouts, newest last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Rollout>, StoreError> {
    let mut rows = sqlx::query_as::<_, Row>(select!("ORDER BY r.created_at_ms DESC, r.id DESC LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.list"))?;
    rows.reverse();
    rows.into_iter().map(Rollout::try_from).collect()
}

/// How far a rollout is.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn counts(session: &mut Session, rollout: &Rollout) -> Result<Counts, StoreError> {
    let (members,): (i64,) = sqlx::query_as(
        r"SELECT COUNT(*)
        FROM rollout_members m JOIN devices d ON d.id = m.device AND d.state = 'active'
        WHERE m.rollout = $1",
    )
    .bind(rollout.id.as_str())
    .fetch_one(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.members"))?;
    // Whoever assigned it: a device that a later rollout sent back here counts as well.
    let states: Vec<(String, i64)> = sqlx::query_as(
        r"SELECT a.state, COUNT(*)
        FROM assignments a JOIN devices d ON d.id = a.device AND d.assignment_sequence = a.sequence AND d.state = 'active'
        WHERE a.bundle = $1
        GROUP BY a.state",
    )
    .bind(rollout.bundle.as_str())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.counts"))?;
    let back: Vec<(String, i64)> = sqlx::query_as(
        r"SELECT a.state, COUNT(*)
        FROM assignments a JOIN devices d ON d.id = a.device AND d.assignment_sequence = a.sequence AND d.state = 'active'
        WHERE a.rollout = $1 AND a.bundle <> $2
        GROUP BY a.state",
    )
    .bind(rollout.id.as_str())
    .bind(rollout.bundle.as_str())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.back"))?;
    let mut counts = Counts { members: count("rollouts.members", members)?, ..Counts::default() };
    for (state, devices) in back {
        let devices: u64 = count("rollouts.back", devices)?;
        match parse("assignments.state", &state)? {
            Observed::Failed | Observed::Refused => counts.stranded += devices,
            Observed::Offered | Observed::Delivering | Observed::Staged | Observed::Probation => counts.returning += devices,
            Observed::Proven | Observed::Superseded => {}
        }
    }
    for (state, devices) in states {
        let devices: u64 = count("rollouts.counts", devices)?;
        counts.given += devices;
        match parse("assignments.state", &state)? {
            Observed::Proven => counts.proven += devices,
            Observed::Failed | Observed::Refused => counts.failed += devices,
            Observed::Offered | Observed::Delivering | Observed::Staged | Observed::Probation | Observed::Superseded => {}
        }
    }
    Ok(counts)
}

/// Devices that a rollout gave its bundle since a time.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn given_since(session: &mut Session, rollout: &Rollout, since_ms: i64) -> Result<u64, StoreError> {
    let (given,): (i64,) = sqlx::query_as(r"SELECT COUNT(*) FROM assignments WHERE rollout = $1 AND bundle = $2 AND assigned_at_ms > $3")
        .bind(rollout.id.as_str())
        .bind(rollout.bundle.as_str())
        .bind(since_ms)
        .fetch_one(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.given_since"))?;
    count("rollouts.given_since", given)
}

/// Active devices of a class that were not considered for its newest standing rollout since they changed.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn unconsidered(session: &mut Session, class: &ClassId, newest: &RolloutId, page: Page) -> Result<Vec<Candidate>, StoreError> {
    // Two ranges of the index instead of "other than", which would read the whole class.
    let rows: Vec<(String, String)> = sqlx::query_as(
        r"SELECT id, labels FROM devices WHERE class = $1 AND considered < $2 AND state = 'active'
        UNION ALL
        SELECT id, labels FROM devices WHERE class = $1 AND considered > $2 AND state = 'active'
        LIMIT $3",
    )
    .bind(class.as_str())
    .bind(newest.as_str())
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.unconsidered"))?;
    rows.into_iter()
        .map(|(id, labels)| Ok(Candidate { device: parse("devices.id", &id)?, labels: from_json("devices.labels", &labels)? }))
        .collect()
}

/// Notes that a device was considered for a rollout and those that stand beside it.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn considered(session: &mut Session, device: &DeviceId, newest: &RolloutId) -> Result<(), StoreError> {
    sqlx::query(r"UPDATE devices SET considered = $2 WHERE id = $1")
        .bind(device.as_str())
        .bind(newest.as_str())
        .execute(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.considered"))?;
    Ok(())
}

/// Takes a device into a rollout, at a place; it keeps the place it has.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn enlist(session: &mut Session, rollout: &RolloutId, device: &DeviceId, place: i64) -> Result<(), StoreError> {
    sqlx::query(
        r"INSERT INTO rollout_members (rollout, device, place, given)
        VALUES ($1, $2, $3, 0)
        ON CONFLICT (rollout, device) DO NOTHING",
    )
    .bind(rollout.as_str())
    .bind(device.as_str())
    .bind(place)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.enlist"))?;
    Ok(())
}

/// Takes a device out of a rollout that has not given it anything.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn dismiss(session: &mut Session, rollout: &RolloutId, device: &DeviceId) -> Result<(), StoreError> {
    sqlx::query(r"DELETE FROM rollout_members WHERE rollout = $1 AND device = $2 AND given = 0")
        .bind(rollout.as_str())
        .bind(device.as_str())
        .execute(session.connection())
        .await
        .map_err(StoreError::sql("rollouts.dismiss"))?;
    Ok(())
}

/// A device's place in a rollout; `None` when it is not for it.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn place(session: &mut Session, rollout: &RolloutId, device: &DeviceId) -> Result<Option<Place>, StoreError> {
    let row: Option<(i64, i64)> = sqlx::query_as(
        r"SELECT m.given, (
            SELECT COUNT(*) FROM rollout_members o WHERE o.rollout = m.rollout AND (o.place < m.place OR o.place = m.place AND o.device < m.device))
        FROM rollout_members m
        WHERE m.rollout = $1 AND m.device = $2",
    )
    .bind(rollout.as_str())
    .bind(device.as_str())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("rollouts.place"))?;
    row.map(|(given, before)| Ok(Place { given: given == 1, before: count("rollout_members.place", before)? })).transpose()
}
