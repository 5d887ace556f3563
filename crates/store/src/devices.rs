//! Devices: enrolled machines, their identity, profile and class.

use pleach_domain::id::TokenId;
use pleach_domain::profile::HardwareProfile;
use pleach_domain::state::DeviceState;
use pleach_domain::{ClassId, DeviceId, Digest};
use sqlx::FromRow;

use crate::column::{count, from_json, int, key, parse, parse_some, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};
use crate::tokens::Labels;

/// The certificate that a device holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// SHA-256 of the DER.
    pub fingerprint: Digest,
    /// End of its validity.
    pub expires_at_ms: i64,
}

/// A machine that enrols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// Identifier.
    pub id: DeviceId,
    /// Token it enrolled with.
    pub token: TokenId,
    /// Labels from the token.
    pub labels: Labels,
    /// Ed25519 public key that signs its reports.
    pub identity_key: [u8; 32],
    /// X25519 public key that content keys are wrapped for.
    pub sealing_key: [u8; 32],
    /// Its certificate.
    pub certificate: Certificate,
    /// Changes at every boot.
    pub boot_id: String,
}

/// A device.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// What it enrolled with, as it stands now.
    pub enrolled: NewDevice,
    /// State.
    pub state: DeviceState,
    /// Highest report sequence that is stored.
    pub report_sequence: u64,
    /// Highest assignment sequence that was given.
    pub assignment_sequence: u64,
    /// Profile, once sent.
    pub profile: Option<HardwareProfile>,
    /// Class, once classified.
    pub class: Option<ClassId>,
    /// Why it is in this class.
    pub class_reason: Option<String>,
    /// When it was last heard.
    pub last_seen_at_ms: Option<i64>,
    /// When it enrolled.
    pub enrolled_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    id: String,
    state: String,
    token: String,
    labels: String,
    identity_key: String,
    sealing_key: String,
    certificate_serial: String,
    certificate_fingerprint: String,
    certificate_expires_at_ms: i64,
    boot_id: String,
    report_sequence: i64,
    assignment_sequence: i64,
    profile: Option<String>,
    class: Option<String>,
    class_reason: Option<String>,
    last_seen_at_ms: Option<i64>,
    enrolled_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, state, token, labels, identity_key, sealing_key, certificate_serial, certificate_fingerprint,
                certificate_expires_at_ms, boot_id, report_sequence, assignment_sequence, profile, class, class_reason,
                last_seen_at_ms, enrolled_at_ms
            FROM devices ",
            $rest
        )
    };
}

impl TryFrom<Row> for Device {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let enrolled = NewDevice {
            id: parse("devices.id", &row.id)?,
            token: parse("devices.token", &row.token)?,
            labels: from_json("devices.labels", &row.labels)?,
            identity_key: key("devices.identity_key", &row.identity_key)?,
            sealing_key: key("devices.sealing_key", &row.sealing_key)?,
            certificate: Certificate {
                serial: row.certificate_serial,
                fingerprint: parse("devices.certificate_fingerprint", &row.certificate_fingerprint)?,
                expires_at_ms: row.certificate_expires_at_ms,
            },
            boot_id: row.boot_id,
        };
        Ok(Self {
            enrolled,
            state: parse("devices.state", &row.state)?,
            report_sequence: count("devices.report_sequence", row.report_sequence)?,
            assignment_sequence: count("devices.assignment_sequence", row.assignment_sequence)?,
            profile: row.profile.map(|p| from_json("devices.profile", &p)).transpose()?,
            class: parse_some("devices.class", row.class.as_deref())?,
            class_reason: row.class_reason,
            last_seen_at_ms: row.last_seen_at_ms,
            enrolled_at_ms: row.enrolled_at_ms,
        })
    }
}

/// Enrols a device, which is active at once.
///
/// # Errors
/// [`StoreError::Sql`], also when its identifier or identity key is there already (see [`StoreError::is_duplicate`]).
pub async fn insert(session: &mut Session, device: &NewDevice, at_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        r"INSERT INTO devices (id, state, token, labels, identity_key, sealing_key, certificate_serial, certificate_fingerprint,
            certificate_expires_at_ms, boot_id, report_sequence, assignment_sequence, last_seen_at_ms, enrolled_at_ms, changed_at_ms)
        VALUES ($1, 'active', $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, $10, $10, $10)",
    )
    .bind(device.id.as_str())
    .bind(device.token.as_str())
    .bind(to_json("devices.labels", &device.labels)?)
    .bind(hex::encode(device.identity_key))
    .bind(hex::encode(device.sealing_key))
    .bind(&device.certificate.serial)
    .bind(device.certificate.fingerprint.to_string())
    .bind(device.certificate.expires_at_ms)
    .bind(&device.boot_id)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.insert"))?;
    Ok(())
}

/// A device by its identifier.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn find(session: &mut Session, id: &DeviceId) -> Result<Option<Device>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE id = $1"))
        .bind(id.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("devices.find"))?
        .map(Device::try_from)
        .transpose()
}

/// A device by its identity key.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn find_by_identity(session: &mut Session, identity_key: &[u8; 32]) -> Result<Option<Device>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE identity_key = $1"))
        .bind(hex::encode(identity_key))
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("devices.find_by_identity"))?
        .map(Device::try_from)
        .transpose()
}

/// The state of a device and nothing else: cheap enough for every call.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn state(session: &mut Session, id: &DeviceId) -> Result<Option<DeviceState>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as(r"SELECT state FROM devices WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("devices.state"))?;
    row.map(|(state,)| parse("devices.state", &state)).transpose()
}

/// Every device, by identifier.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Device>, StoreError> {
    sqlx::query_as::<_, Row>(select!("ORDER BY id LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("devices.list"))?
        .into_iter()
        .map(Device::try_from)
        .collect()
}

/// Active devices of a class, the longest silent last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn of_class(session: &mut Session, class: &ClassId, page: Page) -> Result<Vec<Device>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE class = $1 AND state = 'active' ORDER BY last_seen_at_ms DESC, id LIMIT $2"))
        .bind(class.as_str())
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("devices.of_class"))?
        .into_iter()
        .map(Device::try_from)
        .collect()
}

/// Active devices with a profile and no class, oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn unclassified(session: &mut Session, page: Page) -> Result<Vec<Device>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE state = 'active' AND profile IS NOT NULL AND class IS NULL ORDER BY enrolled_at_ms, id LIMIT $1"
    ))
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("devices.unclassified"))?
    .into_iter()
    .map(Device::try_from)
    .collect()
}

/// Puts a device into a class. Answers whether it was active and had none.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn classify(session: &mut Session, id: &DeviceId, class: &ClassId, reason: &str, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE devices
        SET class = $2, class_reason = $3, considered = '', changed_at_ms = $4
        WHERE id = $1 AND class IS NULL AND state = 'active'",
    )
    .bind(id.as_str())
    .bind(class.as_str())
    .bind(reason)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.classify"))?;
    Ok(done.rows_affected() == 1)
}

/// Replaces a device's labels; standing rollouts consider it anew. Answers whether there is such a device that is not cut off.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn set_labels(session: &mut Session, id: &DeviceId, labels: &Labels, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE devices
        SET labels = $2, considered = '', changed_at_ms = $3
        WHERE id = $1 AND state <> 'revoked'",
    )
    .bind(id.as_str())
    .bind(to_json("devices.labels", labels)?)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.set_labels"))?;
    Ok(done.rows_affected() == 1)
}

/// Stores a device's profile; its class stays as it is.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn set_profile(session: &mut Session, id: &DeviceId, profile: &HardwareProfile, at_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        r"UPDATE devices
        SET profile = $2, changed_at_ms = $3
        WHERE id = $1",
    )
    .bind(id.as_str())
    .bind(to_json("devices.profile", profile)?)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.set_profile"))?;
    Ok(())
}

/// Replaces a device's certificate, when it is active.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn set_certificate(session: &mut Session, id: &DeviceId, certificate: &Certificate, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE devices
        SET certificate_serial = $2, certificate_fingerprint = $3, certificate_expires_at_ms = $4, changed_at_ms = $5
        WHERE id = $1 AND state = 'active'",
    )
    .bind(id.as_str())
    .bind(&certificate.serial)
    .bind(certificate.fingerprint.to_string())
    .bind(certificate.expires_at_ms)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.set_certificate"))?;
    Ok(done.rows_affected() == 1)
}

/// Notes that a device was heard, and its boot.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn seen(session: &mut Session, id: &DeviceId, boot_id: &str, at_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        r"UPDATE devices
        SET last_seen_at_ms = $2, boot_id = $3
        WHERE id = $1",
    )
    .bind(id.as_str())
    .bind(at_ms)
    .bind(boot_id)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.seen"))?;
    Ok(())
}

/// Takes a report's place in the order. Answers false when this or a later one is stored already: then the report is to be
/// acknowledged and otherwise ignored. Belongs in the session that stores what the report holds.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn accept_report(session: &mut Session, id: &DeviceId, sequence: u64, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE devices
        SET report_sequence = $2, last_seen_at_ms = $3
        WHERE id = $1 AND report_sequence < $2 AND state = 'active'",
    )
    .bind(id.as_str())
    .bind(int(sequence))
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.accept_report"))?;
    Ok(done.rows_affected() == 1)
}

/// Takes the next assignment sequence of an active device; `None` when it is not active.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn next_assignment(session: &mut Session, id: &DeviceId) -> Result<Option<u64>, StoreError> {
    let row: Option<(i64,)> = sqlx::query_as(
        r"UPDATE devices
        SET assignment_sequence = assignment_sequence + 1
        WHERE id = $1 AND state = 'active'
        RETURNING assignment_sequence",
    )
    .bind(id.as_str())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("devices.next_assignment"))?;
    row.map(|(sequence,)| count("devices.assignment_sequence", sequence)).transpose()
}

/// Has an active device wait for a person. Answers whether it was active.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn suspend(session: &mut Session, id: &DeviceId, at_ms: i64) -> Result<bool, StoreError> {
    change_state(session, id, (DeviceState::Active, DeviceState::Pending), at_ms).await
}

/// Lets a device that waits for a person into the fleet. Answers whether it waited.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn approve(session: &mut Session, id: &DeviceId, at_ms: i64) -> Result<bool, StoreError> {
    change_state(session, id, (DeviceState::Pending, DeviceState::Active), at_ms).await
}

async fn change_state(
    session: &mut Session,
    id: &DeviceId,
    (from, to): (DeviceState, DeviceState),
    at_ms: i64,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE devices
        SET state = $3, changed_at_ms = $4
        WHERE id = $1 AND state = $2",
    )
    .bind(id.as_str())
    .bind(from.as_str())
    .bind(to.as_str())
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.change_state"))?;
    Ok(done.rows_affected() == 1)
}

/// Cuts a device off for ever. Answers whether it was not so already.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn revoke(session: &mut Session, id: &DeviceId, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE devices
        SET state = 'revoked', changed_at_ms = $2
        WHERE id = $1 AND state <> 'revoked'",
    )
    .bind(id.as_str())
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("devices.revoke"))?;
    Ok(done.rows_affected() == 1)
}
