//! Assignments: what one device should run, and what it has proved about it.

use pleach_domain::id::{RolloutId, VariantId};
use pleach_domain::state::Observed;
use pleach_domain::{BundleId, ClassId, DeviceId, Digest};
use sqlx::FromRow;

use crate::column::{count, int, parse};
use crate::error::StoreError;
use crate::rollouts::Rollout;
use crate::session::{Page, Session};

/// An assignment as it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAssignment {
    /// Device.
    pub device: DeviceId,
    /// Sequence, from `devices::next_assignment` in the same session.
    pub sequence: u64,
    /// Rollout that assigns.
    pub rollout: RolloutId,
    /// Bundle.
    pub bundle: BundleId,
    /// The director's signed statement.
    pub metadata: Vec<u8>,
    /// The content key, wrapped for the device.
    pub wrap: Vec<u8>,
    /// When the statement expires.
    pub expires_at_ms: i64,
}

/// A device that waits for its assignment from a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unassigned {
    /// Device.
    pub device: DeviceId,
    /// Its X25519 public key.
    pub sealing_key: [u8; 32],
    /// Rollout.
    pub rollout: RolloutId,
    /// Bundle of the rollout.
    pub bundle: BundleId,
}

/// The newest assignment of a device, with what is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Device.
    pub device: DeviceId,
    /// Class that the bundle was made for.
    pub class: ClassId,
    /// Sequence.
    pub sequence: u64,
    /// Rollout that assigned it.
    pub rollout: RolloutId,
    /// Bundle.
    pub bundle: BundleId,
    /// SHA-256 of the bundle's ciphertext.
    pub digest: Digest,
    /// Variant inside.
    pub variant: VariantId,
    /// State the device has proved.
    pub state: Observed,
    /// The check that failed.
    pub failed_check: Option<String>,
    /// More about it.
    pub detail: Option<String>,
    /// When it was assigned.
    pub assigned_at_ms: i64,
    /// When its state last changed.
    pub changed_at_ms: i64,
}

/// Signed evidence about an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Device that signed it.
    pub device: &'a DeviceId,
    /// Sequence of the assignment.
    pub sequence: u64,
    /// Bundle that the device names.
    pub digest: &'a Digest,
    /// State that it has reached.
    pub state: Observed,
    /// The check that failed.
    pub failed_check: Option<&'a str>,
    /// More about it.
    pub detail: Option<&'a str>,
}

#[derive(FromRow)]
struct Row {
    device: String,
    class: String,
    sequence: i64,
    rollout: String,
    bundle: String,
    digest: String,
    variant: String,
    state: String,
    failed_check: Option<String>,
    detail: Option<String>,
    assigned_at_ms: i64,
    changed_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT a.device, b.class, a.sequence, a.rollout, a.bundle, b.digest, b.variant, a.state, a.failed_check, a.detail,
                a.assigned_at_ms, a.changed_at_ms
            FROM assignments a JOIN bundles b ON b.id = a.bundle ",
            $rest
        )
    };
}

impl TryFrom<Row> for Deployment {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            device: parse("assignments.device", &row.device)?,
            class: parse("bundles.class", &row.class)?,
            sequence: count("assignments.sequence", row.sequence)?,
            rollout: parse("assignments.rollout", &row.rollout)?,
            bundle: parse("assignments.bundle", &row.bundle)?,
            digest: parse("bundles.digest", &row.digest)?,
            variant: parse("bundles.variant", &row.variant)?,
            state: parse("assignments.state", &row.state)?,
            failed_check: row.failed_check,
            detail: row.detail,
            assigned_at_ms: row.assigned_at_ms,
            changed_at_ms: row.changed_at_ms,
        })
    }
}

/// The next active devices that a rollout is for and has not given its bundle, in the order of their places; not those that a newer
/// rollout has given something. None when the bundle was withdrawn.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn missing(session: &mut Session, rollout: &Rollout, page: Page) -> Result<Vec<Unassigned>, StoreError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        r"SELECT d.id, d.sealing_key, b.id
        FROM rollout_members m
        JOIN devices d ON d.id = m.device AND d.state = 'active'
        JOIN bundles b ON b.id = $2 AND b.state = 'sealed'
        WHERE m.rollout = $1 AND m.given = 0
            AND NOT EXISTS (
                SELECT 1 FROM assignments a JOIN rollouts n ON n.id = a.rollout
                WHERE a.device = d.id AND a.sequence = d.assignment_sequence AND n.created_at_ms > $3)
        ORDER BY m.place, m.device
        LIMIT $4",
    )
    .bind(rollout.id.as_str())
    .bind(rollout.bundle.as_str())
    .bind(rollout.created_at_ms)
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("assignments.missing"))?;
    rows.into_iter().map(|row| unassigned(rollout, row)).collect()
}

/// Active devices that still have the bundle of a rollout that is taken back, each with what it goes back to: what it proved last
/// before, else `base`. Devices without either are left out.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn returnable(
    session: &mut Session,
    rollout: &Rollout,
    base: Option<&BundleId>,
    page: Page,
) -> Result<Vec<Unassigned>, StoreError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        r"SELECT device, sealing_key, target FROM (
            SELECT d.id AS device, d.sealing_key AS sealing_key, COALESCE((
                SELECT p.bundle FROM assignments p JOIN bundles b ON b.id = p.bundle AND b.state = 'sealed'
                WHERE p.device = a.device AND p.bundle <> a.bundle AND p.proven_at_ms IS NOT NULL
                ORDER BY p.sequence DESC
                LIMIT 1), $2) AS target
            FROM assignments a JOIN devices d ON d.id = a.device AND d.assignment_sequence = a.sequence AND d.state = 'active'
            WHERE a.bundle = $1) x
        WHERE target <> '' AND target <> $1
        ORDER BY device
        LIMIT $3",
    )
    .bind(rollout.bundle.as_str())
    .bind(base.map_or("", BundleId::as_str))
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("assignments.returnable"))?;
    rows.into_iter().map(|row| unassigned(rollout, row)).collect()
}

fn unassigned(rollout: &Rollout, (device, sealing_key, bundle): (String, String, String)) -> Result<Unassigned, StoreError> {
    Ok(Unassigned {
        device: parse("devices.id", &device)?,
        sealing_key: crate::column::key("devices.sealing_key", &sealing_key)?,
        rollout: rollout.id.clone(),
        bundle: parse("bundles.id", &bundle)?,
    })
}

/// Gives an assignment; older ones of the device are superseded, and its rollout has given it.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn insert(session: &mut Session, new: &NewAssignment, at_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        r"UPDATE assignments
        SET state = 'superseded', changed_at_ms = $2
        WHERE device = $1 AND state NOT IN ('superseded', 'refused')",
    )
    .bind(new.device.as_str())
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("assignments.supersede"))?;
    sqlx::query(
        r"INSERT INTO assignments (device, sequence, rollout, bundle, metadata, wrap, state, expires_at_ms, assigned_at_ms, changed_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, 'offered', $7, $8, $8)",
    )
    .bind(new.device.as_str())
    .bind(int(new.sequence))
    .bind(new.rollout.as_str())
    .bind(new.bundle.as_str())
    .bind(&new.metadata)
    .bind(&new.wrap)
    .bind(new.expires_at_ms)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("assignments.insert"))?;
    sqlx::query(r"UPDATE rollout_members SET given = 1 WHERE rollout = $1 AND device = $2")
        .bind(new.rollout.as_str())
        .bind(new.device.as_str())
        .execute(session.connection())
        .await
        .map_err(StoreError::sql("assignments.given"))?;
    Ok(())
}

/// Applies signed evidence where [`Observed::may_become`] allows it. Answers the state before when it changed; repeated, late and
/// unknown events change nothing.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn observe(session: &mut Session, event: &Event<'_>, at_ms: i64) -> Result<Option<Observed>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as(
        r"SELECT a.state
        FROM assignments a JOIN bundles b ON b.id = a.bundle
        WHERE a.device = $1 AND a.sequence = $2 AND b.digest = $3",
    )
    .bind(event.device.as_str())
    .bind(int(event.sequence))
    .bind(event.digest.to_string())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("assignments.state"))?;
    let Some((state,)) = row else { return Ok(None) };
    let before: Observed = parse("assignments.state", &state)?;
    if !before.may_become(event.state) {
        return Ok(None);
    }
    let done = sqlx::query(
        r"UPDATE assignments
        SET state = $4, failed_check = $5, detail = $6, changed_at_ms = $7,
            proven_at_ms = CASE WHEN $4 = 'proven' THEN $7 ELSE proven_at_ms END
        WHERE device = $1 AND sequence = $2 AND state = $3",
    )
    .bind(event.device.as_str())
    .bind(int(event.sequence))
    .bind(before.as_str())
    .bind(event.state.as_str())
    .bind(event.failed_check.map(str::to_owned))
    .bind(event.detail.map(str::to_owned))
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("assignments.observe"))?;
    Ok((done.rows_affected() == 1).then_some(before))
}

/// The newest assignment of a device.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn of_device(session: &mut Session, device: &DeviceId) -> Result<Option<Deployment>, StoreError> {
    sqlx::query_as::<_, Row>(select!("JOIN devices d ON d.id = a.device AND d.assignment_sequence = a.sequence WHERE d.id = $1"))
        .bind(device.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("assignments.of_device"))?
        .map(Deployment::try_from)
        .transpose()
}

/// The newest assignment of each device, by device.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn deployments(session: &mut Session, page: Page) -> Result<Vec<Deployment>, StoreError> {
    sqlx::query_as::<_, Row>(select!("JOIN devices d ON d.id = a.device AND d.assignment_sequence = a.sequence ORDER BY a.device LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("assignments.deployments"))?
        .into_iter()
        .map(Deployment::try_from)
        .collect()
}

/// Assignments of a rollout's bundle that are proven, the latest proven last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn proven(session: &mut Session, rollout: &Rollout, page: Page) -> Result<Vec<Deployment>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE a.rollout = $1 AND a.bundle = $2 AND a.state = 'proven' ORDER BY a.changed_at_ms, a.device LIMIT $3"
    ))
    .bind(rollout.id.as_str())
    .bind(rollout.bundle.as_str())
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("assignments.proven"))?
    .into_iter()
    .map(Deployment::try_from)
    .collect()
}

/// The newest assignments of active devices whose statement expires before `before_ms`, soonest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn expiring(session: &mut Session, before_ms: i64, page: Page) -> Result<Vec<Deployment>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "JOIN devices d ON d.id = a.device AND d.assignment_sequence = a.sequence AND d.state = 'active'
        WHERE a.expires_at_ms < $1 AND b.state = 'sealed'
        ORDER BY a.expires_at_ms, a.device
        LIMIT $2"
    ))
    .bind(before_ms)
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("assignments.expiring"))?
    .into_iter()
    .map(Deployment::try_from)
    .collect()
}

/// Replaces the statement of an assignment by one that lasts longer.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn renew(
    session: &mut Session,
    device: &DeviceId,
    sequence: u64,
    metadata: &[u8],
    expires_at_ms: i64,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE assignments
        SET metadata = $3, expires_at_ms = $4
        WHERE device = $1 AND sequence = $2 AND expires_at_ms < $4",
    )
    .bind(device.as_str())
    .bind(int(sequence))
    .bind(metadata)
    .bind(expires_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("assignments.renew"))?;
    Ok(done.rows_affected() == 1)
}
