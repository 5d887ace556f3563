//! Everything that should be true of one device, read at once: what the gateway sends down.

use pleach_domain::id::PolicyName;
use pleach_domain::state::DeviceState;
use pleach_domain::{DeviceId, Digest};
use sqlx::FromRow;

use crate::column::{count, parse};
use crate::error::StoreError;
use crate::measurements::{self, Task};
use crate::policies::{self, RevisedPolicy};
use crate::session::Session;

/// What one device should do.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// What to run; `None`: nothing yet.
    pub deployment: Option<Assigned>,
    /// What to time.
    pub measurements: Vec<Task>,
}

/// What to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// Sequence of the assignment.
    pub sequence: u64,
    /// SHA-256 of the bundle's ciphertext.
    pub digest: Digest,
    /// The director's signed statement.
    pub metadata: Vec<u8>,
    /// The content key, wrapped for the device.
    pub wrap: Vec<u8>,
    /// The policy that the bundle was made for, in its newest revision.
    pub policy: Option<RevisedPolicy>,
}

#[derive(FromRow)]
struct Row {
    sequence: i64,
    digest: String,
    metadata: Vec<u8>,
    wrap: Vec<u8>,
    policy: String,
}

/// What should be true of a device.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn of_device(session: &mut Session, device: &DeviceId) -> Result<Desired, StoreError> {
    let row = sqlx::query_as::<_, Row>(
        r"SELECT a.sequence, b.digest, a.metadata, a.wrap, v.policy
        FROM devices d
        JOIN assignments a ON a.device = d.id AND a.sequence = d.assignment_sequence
        JOIN bundles b ON b.id = a.bundle
        JOIN variants v ON v.id = b.variant
        WHERE d.id = $1",
    )
    .bind(device.as_str())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("desired.of_device"))?;
    let deployment = match row {
        None => None,
        Some(row) => {
            let name: PolicyName = parse("variants.policy", &row.policy)?;
            Some(Assigned {
                sequence: count("assignments.sequence", row.sequence)?,
                digest: parse("bundles.digest", &row.digest)?,
                metadata: row.metadata,
                wrap: row.wrap,
                policy: policies::find(session, &name).await?,
            })
        }
    };
    Ok(Desired { deployment, measurements: measurements::open_of_device(session, device).await? })
}

/// What moves when a device's desired state does: cheap to read for all devices at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    state: DeviceState,
    assignment: i64,
    newest_open_task_at_ms: i64,
    open_tasks: i64,
}

/// The mark of every device.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn marks(session: &mut Session) -> Result<Vec<(DeviceId, Mark)>, StoreError> {
    let rows: Vec<(String, String, i64, i64, i64)> = sqlx::query_as(
        r"SELECT d.id, d.state, d.assignment_sequence, COALESCE(m.newest, 0), COALESCE(m.open, 0)
        FROM devices d
        LEFT JOIN (
            SELECT device, MAX(created_at_ms) AS newest, COUNT(*) AS open
            FROM measurements
            WHERE state = 'open'
            GROUP BY device) m ON m.device = d.id",
    )
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("desired.marks"))?;
    rows.into_iter()
        .map(|(id, state, assignment, newest_open_task_at_ms, open_tasks)| {
            let mark = Mark { state: parse("devices.state", &state)?, assignment, newest_open_task_at_ms, open_tasks };
            Ok((parse("devices.id", &id)?, mark))
        })
        .collect()
}
