//! Latency atlases, as documents of the pruning engine.

use pleach_domain::DeviceId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::column::{from_json, int, to_json};
use crate::error::StoreError;
use crate::measurements::AtlasKey;
use crate::session::Session;

/// Stores an atlas that `device` measured. Answers whether there was none.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn insert(
    session: &mut Session,
    key: &AtlasKey,
    device: &DeviceId,
    atlas: &impl Serialize,
    at_ms: i64,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO atlases (class, model, model_version, batch, device, document, created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (class, model, model_version, batch) DO NOTHING",
    )
    .bind(key.class.as_str())
    .bind(key.model.as_str())
    .bind(int(key.model_version))
    .bind(int(key.batch))
    .bind(device.as_str())
    .bind(to_json("atlases.document", atlas)?)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("atlases.insert"))?;
    Ok(done.rows_affected() == 1)
}

/// An atlas.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn find<A: DeserializeOwned>(session: &mut Session, key: &AtlasKey) -> Result<Option<A>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as(
        r"SELECT document
        FROM atlases
        WHERE class = $1 AND model = $2 AND model_version = $3 AND batch = $4",
    )
    .bind(key.class.as_str())
    .bind(key.model.as_str())
    .bind(int(key.model_version))
    .bind(int(key.batch))
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("atlases.find"))?;
    row.map(|(document,)| from_json("atlases.document", &document)).transpose()
}

/// Whether there is an atlas.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn exists(session: &mut Session, key: &AtlasKey) -> Result<bool, StoreError> {
    let (atlases,): (i64,) = sqlx::query_as(
        r"SELECT COUNT(*)
        FROM atlases
        WHERE class = $1 AND model = $2 AND model_version = $3 AND batch = $4",
    )
    .bind(key.class.as_str())
    .bind(key.model.as_str())
    .bind(int(key.model_version))
    .bind(int(key.batch))
    .fetch_one(session.connection())
    .await
    .map_err(StoreError::sql("atlases.exists"))?;
    Ok(atlases > 0)
}
