//! Measurement tasks: what a representative device times for its class.

use pleach_domain::id::ModelName;
use pleach_domain::profile::MeasuredKernel;
use pleach_domain::{ClassId, DeviceId, Digest};
use sqlx::FromRow;

use crate::column::{count, from_json, int, parse, to_json};
use crate::error::StoreError;
use crate::session::Session;

/// What an atlas is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AtlasKey {
    /// Class.
    pub class: ClassId,
    /// Model.
    pub model: ModelName,
    /// Version of the model.
    pub model_version: u32,
    /// Rows in one request.
    pub batch: u32,
}

/// A task.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Identifier.
    pub id: String,
    /// What it is for.
    pub key: AtlasKey,
    /// Device that times.
    pub device: DeviceId,
    /// The encoded set of graphs, a blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Wall time to spend on each graph, in milliseconds.
    pub budget_ms: u32,
    /// When the device is given up.
    pub deadline_at_ms: i64,
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskState {
    /// The device has not answered.
    Open,
    /// The device answered.
    Done(Vec<MeasuredKernel>),
    /// The device could not, or did not in time.
    Failed(String),
}

#[derive(FromRow)]
struct Row {
    id: String,
    class: String,
    model: String,
    model_version: i64,
    batch: i64,
    device: String,
    blob: String,
    length: i64,
    budget_ms: i64,
    state: String,
    timings: Option<String>,
    error: Option<String>,
    deadline_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, class, model, model_version, batch, device, blob, length, budget_ms, state, timings, error, deadline_at_ms
            FROM measurements ",
            $rest
        )
    };
}

impl TryFrom<Row> for (Task, TaskState) {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let state = match (row.state.as_str(), row.timings) {
            ("open", _) => TaskState::Open,
            ("done", Some(timings)) => TaskState::Done(from_json("measurements.timings", &timings)?),
            _ => TaskState::Failed(row.error.unwrap_or_default()),
        };
        let key = AtlasKey {
            class: parse("measurements.class", &row.class)?,
            model: parse("measurements.model", &row.model)?,
            model_version: count("measurements.model_version", row.model_version)?,
            batch: count("measurements.batch", row.batch)?,
        };
        let task = Task {
            id: row.id,
            key,
            device: parse("measurements.device", &row.device)?,
            blob: parse("measurements.blob", &row.blob)?,
            length: count("measurements.length", row.length)?,
            budget_ms: count("measurements.budget_ms", row.budget_ms)?,
            deadline_at_ms: row.deadline_at_ms,
        };
        Ok((task, state))
    }
}

/// Opens a task.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn insert(session: &mut Session, task: &Task, at_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        r"INSERT INTO measurements (id, class, model, model_version, batch, device, blob, length, budget_ms, state,
            created_at_ms, deadline_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'open', $10, $11)",
    )
    .bind(&task.id)
    .bind(task.key.class.as_str())
    .bind(task.key.model.as_str())
    .bind(int(task.key.model_version))
    .bind(int(task.key.batch))
    .bind(task.device.as_str())
    .bind(task.blob.to_string())
    .bind(int(task.length))
    .bind(int(task.budget_ms))
    .bind(at_ms)
    .bind(task.deadline_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("measurements.insert"))?;
    Ok(())
}

/// Every task for an atlas, oldest first; at most 100.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn of_atlas(session: &mut Session, key: &AtlasKey) -> Result<Vec<(Task, TaskState)>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE class = $1 AND model = $2 AND model_version = $3 AND batch = $4 ORDER BY created_at_ms, id LIMIT 100"
    ))
    .bind(key.class.as_str())
    .bind(key.model.as_str())
    .bind(int(key.model_version))
    .bind(int(key.batch))
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("measurements.of_atlas"))?
    .into_iter()
    .map(TryFrom::try_from)
    .collect()
}

/// Open tasks of a device, oldest first; at most 10.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn open_of_device(session: &mut Session, device: &DeviceId) -> Result<Vec<Task>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE device = $1 AND state = 'open' ORDER BY created_at_ms, id LIMIT 10"))
        .bind(device.as_str())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("measurements.open_of_device"))?
        .into_iter()
        .map(|row| <(Task, TaskState)>::try_from(row).map(|(task, _)| task))
        .collect()
}

/// Stores a device's answer. Answers whether the task was open and the device's own.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn finish(session: &mut Session, id: &str, device: &DeviceId, timings: &[MeasuredKernel]) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE measurements
        SET state = 'done', timings = $3
        WHERE id = $1 AND device = $2 AND state = 'open'",
    )
    .bind(id)
    .bind(device.as_str())
    .bind(to_json("measurements.timings", &timings)?)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("measurements.finish"))?;
    Ok(done.rows_affected() == 1)
}

/// Gives a task up, whether it was open or its answer was of no use. Answers whether that was new.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn fail(session: &mut Session, id: &str, device: &DeviceId, error: &str) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE measurements
        SET state = 'failed', error = $3
        WHERE id = $1 AND device = $2 AND state <> 'failed'",
    )
    .bind(id)
    .bind(device.as_str())
    .bind(error)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("measurements.fail"))?;
    Ok(done.rows_affected() == 1)
}
