//! The fleet in counts, for whoever shows all of it at once. Reads only.

use pleach_domain::ClassId;
use pleach_domain::state::{DeviceState, Observed};

use crate::column::{count, parse};
use crate::error::StoreError;
use crate::session::Session;

/// Devices by state, in no order; states without devices are absent.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn devices(session: &mut Session) -> Result<Vec<(DeviceState, u64)>, StoreError> {
    let rows = sqlx::query_as::<_, (String, i64)>("SELECT state, COUNT(*) FROM devices GROUP BY state")
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("fleet.devices"))?;
    rows.iter().map(|(state, n)| Ok((parse("devices.state", state)?, count("devices", *n)?))).collect()
}

/// Devices by their class and the state of their newest assignment, by class; devices without an assignment are absent.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn deployments(session: &mut Session) -> Result<Vec<(ClassId, Observed, u64)>, StoreError> {
    let rows = sqlx::query_as::<_, (String, String, i64)>(
        "SELECT d.class, a.state, COUNT(*)
        FROM devices d JOIN assignments a ON a.device = d.id AND a.sequence = d.assignment_sequence
        WHERE d.class IS NOT NULL AND d.state = 'active'
        GROUP BY d.class, a.state ORDER BY d.class, a.state",
    )
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("fleet.deployments"))?;
    let one = |(class, state, n): &(String, String, i64)| {
        Ok((parse("devices.class", class)?, parse("assignments.state", state)?, count("assignments", *n)?))
    };
    rows.iter().map(one).collect()
}
