//! Models: immutable versions of trained networks and their data.

use pleach_domain::Digest;
use pleach_domain::id::ModelName;
use sqlx::FromRow;

use crate::column::{count, int, parse};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// What a version is made of; the files are blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewModel {
    /// Name, shared by the versions.
    pub name: ModelName,
    /// What it does, e.g. `classification`.
    pub task: String,
    /// The ONNX file.
    pub onnx: Digest,
    /// Calibration samples.
    pub calibration: Digest,
    /// Labelled validation set.
    pub validation: Digest,
    /// Multiply-accumulates for one sample.
    pub macs: u64,
    /// Parameters.
    pub parameters: u64,
    /// Size of the ONNX file in bytes.
    pub size_bytes: u64,
}

/// One version of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Version, from 1.
    pub version: u32,
    /// What it is made of.
    pub content: NewModel,
    /// When it was registered.
    pub created_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    name: String,
    version: i64,
    task: String,
    onnx: String,
    calibration: String,
    validation: String,
    macs: i64,
    parameters: i64,
    size_bytes: i64,
    created_at_ms: i64,
}

impl TryFrom<Row> for Model {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            version: count("models.version", row.version)?,
            content: NewModel {
                name: parse("models.name", &row.name)?,
                task: row.task,
                onnx: parse("models.onnx", &row.onnx)?,
                calibration: parse("models.calibration", &row.calibration)?,
                validation: parse("models.validation", &row.validation)?,
                macs: count("models.macs", row.macs)?,
                parameters: count("models.parameters", row.parameters)?,
                size_bytes: count("models.size_bytes", row.size_bytes)?,
            },
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Registers the next version and answers its number.
///
/// # Errors
/// [`StoreError::Sql`], also when another registration of the same name came between (see [`StoreError::is_duplicate`]).
pub async fn insert(session: &mut Session, model: &NewModel, at_ms: i64) -> Result<u32, StoreError> {
    let (version,): (i64,) = sqlx::query_as(
        r"INSERT INTO models (name, version, task, onnx, calibration, validation, macs, parameters, size_bytes, created_at_ms)
        VALUES ($1, (SELECT COALESCE(MAX(version), 0) + 1 FROM models WHERE name = $1), $2, $3, $4, $5, $6, $7, $8, $9)
        RETURNING version",
    )
    .bind(model.name.as_str())
    .bind(&model.task)
    .bind(model.onnx.to_string())
    .bind(model.calibration.to_string())
    .bind(model.validation.to_string())
    .bind(int(model.macs))
    .bind(int(model.parameters))
    .bind(int(model.size_bytes))
    .bind(at_ms)
    .fetch_one(session.connection())
    .await
    .map_err(StoreError::sql("models.insert"))?;
    count("models.version", version)
}

/// One version of a model.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn find(session: &mut Session, name: &ModelName, version: u32) -> Result<Option<Model>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT name, version, task, onnx, calibration, validation, macs, parameters, size_bytes, created_at_ms
        FROM models
        WHERE name = $1 AND version = $2",
    )
    .bind(name.as_str())
    .bind(int(version))
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("models.find"))?
    .map(Model::try_from)
    .transpose()
}

/// The newest version of a model.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn newest(session: &mut Session, name: &ModelName) -> Result<Option<Model>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT name, version, task, onnx, calibration, validation, macs, parameters, size_bytes, created_at_ms
        FROM models
        WHERE name = $1
        ORDER BY version DESC
        LIMIT 1",
    )
    .bind(name.as_str())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("models.newest"))?
    .map(Model::try_from)
    .transpose()
}

/// Every version, by name and version.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Model>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT name, version, task, onnx, calibration, validation, macs, parameters, size_bytes, created_at_ms
        FROM models
        ORDER BY name, version
        LIMIT $1",
    )
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("models.list"))?
    .into_iter()
    .map(Model::try_from)
    .collect()
}
