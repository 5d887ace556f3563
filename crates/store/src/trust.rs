//! Trust metadata as it was signed: one row for each role and version.

use crate::column::{count, int};
use crate::error::StoreError;
use crate::session::Session;

/// One signed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Version, from 1.
    pub version: u64,
    /// The bytes that were signed, with their signatures.
    pub bytes: Vec<u8>,
    /// When it expires.
    pub expires_at_ms: i64,
}

/// Publishes the next version of a role. Answers whether that version was free: of two who publish the same, one wins.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn publish(session: &mut Session, role: &str, metadata: &Metadata, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO trust_metadata (role, version, bytes, expires_at_ms, created_at_ms)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (role, version) DO NOTHING",
    )
    .bind(role)
    .bind(int(metadata.version))
    .bind(&metadata.bytes)
    .bind(metadata.expires_at_ms)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("trust.publish"))?;
    Ok(done.rows_affected() == 1)
}

/// The newest version of a role.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn newest(session: &mut Session, role: &str) -> Result<Option<Metadata>, StoreError> {
    let row: Option<(i64, Vec<u8>, i64)> = sqlx::query_as(
        r"SELECT version, bytes, expires_at_ms
        FROM trust_metadata
        WHERE role = $1
        ORDER BY version DESC
        LIMIT 1",
    )
    .bind(role)
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("trust.newest"))?;
    row.map(metadata).transpose()
}

/// Versions of a role after `version`, ascending; at most 64.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn after(session: &mut Session, role: &str, version: u64) -> Result<Vec<Metadata>, StoreError> {
    let rows: Vec<(i64, Vec<u8>, i64)> = sqlx::query_as(
        r"SELECT version, bytes, expires_at_ms
        FROM trust_metadata
        WHERE role = $1 AND version > $2
        ORDER BY version
        LIMIT 64",
    )
    .bind(role)
    .bind(int(version))
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("trust.after"))?;
    rows.into_iter().map(metadata).collect()
}

fn metadata((version, bytes, expires_at_ms): (i64, Vec<u8>, i64)) -> Result<Metadata, StoreError> {
    Ok(Metadata { version: count("trust_metadata.version", version)?, bytes, expires_at_ms })
}
