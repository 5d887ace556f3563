//! Device classes.

use std::collections::BTreeMap;

use pleach_domain::class::Class;
use sqlx::FromRow;

use crate::column::{count, from_json, int, parse, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// A class and how many active devices are in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassRow {
    /// The class.
    pub class: Class,
    /// Active devices in it.
    pub devices: u64,
    /// When it was founded.
    pub created_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    id: String,
    architecture: String,
    vector: String,
    inference_threads: i64,
    kernels: String,
    created_at_ms: i64,
    devices: i64,
}

impl TryFrom<Row> for ClassRow {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let kernel_mean_us: BTreeMap<String, f64> = from_json("classes.kernels", &row.kernels)?;
        let class = Class {
            id: parse("classes.id", &row.id)?,
            architecture: row.architecture,
            vector: row.vector,
            inference_threads: count("classes.inference_threads", row.inference_threads)?,
            kernel_mean_us,
        };
        Ok(Self { class, devices: count("classes.devices", row.devices)?, created_at_ms: row.created_at_ms })
    }
}

/// Founds a class.
///
/// # Errors
/// [`StoreError::Sql`], also when the class is there already (see [`StoreError::is_duplicate`]).
pub async fn insert(session: &mut Session, class: &Class, at_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        r"INSERT INTO classes (id, architecture, vector, inference_threads, kernels, created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(class.id.as_str())
    .bind(&class.architecture)
    .bind(&class.vector)
    .bind(int(class.inference_threads))
    .bind(to_json("classes.kernels", &class.kernel_mean_us)?)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("classes.insert"))?;
    Ok(())
}

/// Every class, oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<ClassRow>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT c.id, c.architecture, c.vector, c.inference_threads, c.kernels, c.created_at_ms,
            (SELECT COUNT(*) FROM devices d WHERE d.class = c.id AND d.state = 'active') AS devices
        FROM classes c
        ORDER BY c.created_at_ms, c.id
        LIMIT $1",
    )
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("classes.list"))?
    .into_iter()
    .map(ClassRow::try_from)
    .collect()
}
