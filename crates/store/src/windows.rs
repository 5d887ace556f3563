//! Telemetry windows: append-only and idempotent.

use pleach_domain::metrics::Confusion;
use pleach_domain::window::Window;
use pleach_domain::{ClassId, DeviceId, Digest, LatencyHistogram};
use sqlx::{AssertSqlSafe, Executor, FromRow};

use crate::column::{count, from_json, int, parse, parse_some, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// A window and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowRow {
    /// Device.
    pub device: DeviceId,
    /// Class of the device.
    pub class: Option<ClassId>,
    /// The window.
    pub window: Window,
    /// When it arrived.
    pub received_at_ms: i64,
}

/// Which windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this device.
    pub device: Option<DeviceId>,
    /// Of devices that are in this class now.
    pub class: Option<ClassId>,
    /// That began at or after this time.
    pub since_ms: i64,
}

#[derive(FromRow)]
struct Row {
    device: String,
    class: Option<String>,
    number: i64,
    bundle: String,
    rung: String,
    start_ms: i64,
    duration_ms: i64,
    requests: i64,
    errors: i64,
    histogram: Vec<u8>,
    confusion: Option<String>,
    cpu_us: i64,
    memory_bytes: i64,
    received_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT w.device, d.class, w.number, w.bundle, w.rung, w.start_ms, w.duration_ms, w.requests, w.errors, w.histogram,
                w.confusion, w.cpu_us, w.memory_bytes, w.received_at_ms
            FROM windows w JOIN devices d ON d.id = w.device ",
            $rest
        )
    };
}

impl TryFrom<Row> for WindowRow {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let confusion: Option<Confusion> = row.confusion.map(|c| from_json("windows.confusion", &c)).transpose()?;
        let window = Window {
            number: count("windows.number", row.number)?,
            bundle: parse("windows.bundle", &row.bundle)?,
            rung: row.rung,
            start_ms: row.start_ms,
            duration_ms: count("windows.duration_ms", row.duration_ms)?,
            requests: count("windows.requests", row.requests)?,
            errors: count("windows.errors", row.errors)?,
            latency: LatencyHistogram::decode(&row.histogram)
                .map_err(|source| StoreError::Column { column: "windows.histogram", source })?,
            confusion,
            cpu_us: count("windows.cpu_us", row.cpu_us)?,
            memory_bytes: count("windows.memory_bytes", row.memory_bytes)?,
        };
        Ok(Self {
            device: parse("windows.device", &row.device)?,
            class: parse_some("devices.class", row.class.as_deref())?,
            window,
            received_at_ms: row.received_at_ms,
        })
    }
}

/// Columns that [`insert_all`] writes.
const COLUMNS: usize = 15;
/// Most windows of one statement: its parameters stay far below the limits of both databases.
const ROWS: usize = 128;

/// Stores a window. Answers false when the device's window of that number is stored already.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn insert(session: &mut Session, device: &DeviceId, window: &Window, at_ms: i64) -> Result<bool, StoreError> {
    Ok(insert_all(session, device, std::slice::from_ref(window), at_ms).await? == 1)
}

/// Stores windows of a device, many with one statement. Answers how many were not stored already.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn insert_all(session: &mut Session, device: &DeviceId, windows: &[Window], at_ms: i64) -> Result<u64, StoreError> {
    let mut stored = 0;
    for some in windows.chunks(ROWS) {
        let rows: Vec<String> = (0..some.len())
            .map(|row| {
                let places: Vec<String> = (1..=COLUMNS).map(|column| format!("${}", row * COLUMNS + column)).collect();
                format!("({})", places.join(", "))
            })
            .collect();
        let text = format!(
            "INSERT INTO windows (device, number, bundle, rung, start_ms, duration_ms, requests, errors, histogram, confusion, cpu_us,
                memory_bytes, received_at_ms, labelled, correct)
            VALUES {}
            ON CONFLICT (device, number) DO NOTHING",
            rows.join(", ")
        );
        // Placeholders alone are put together.
        let mut query = sqlx::query(AssertSqlSafe(text));
        for window in some {
            let confusion = window.confusion.as_ref().map(|c| to_json("windows.confusion", c)).transpose()?;
            query = query
                .bind(device.as_str().to_owned())
                .bind(int(window.number))
                .bind(window.bundle.to_string())
                .bind(window.rung.clone())
                .bind(window.start_ms)
                .bind(int(window.duration_ms))
                .bind(int(window.requests))
                .bind(int(window.errors))
                .bind(window.latency.encode())
                .bind(confusion)
                .bind(int(window.cpu_us))
                .bind(int(window.memory_bytes))
                .bind(at_ms)
                .bind(int(window.confusion.as_ref().map_or(0, Confusion::total)))
                .bind(int(window.confusion.as_ref().map_or(0, Confusion::correct)));
        }
        let done = query.execute(session.connection()).await.map_err(StoreError::sql("windows.insert"))?;
        stored += done.rows_affected();
    }
    Ok(stored)
}

/// Takes windows that were not added up yet, the oldest arrivals first, and notes that they are. Whoever takes them must add them up in the
/// same session; nobody else gets them.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn take_unrolled(session: &mut Session, page: Page) -> Result<Vec<WindowRow>, StoreError> {
    if let Some(lock) = session.dialect().lock_rollups() {
        session.connection().execute(sqlx::raw_sql(lock)).await.map_err(StoreError::sql("windows.lock"))?;
    }
    sqlx::query_as::<_, Row>(
        r"UPDATE windows
        SET rolled = 1
        WHERE rolled = 0 AND (device, number) IN (
            SELECT device, number FROM windows WHERE rolled = 0 ORDER BY received_at_ms LIMIT $1)
        RETURNING device, (SELECT d.class FROM devices d WHERE d.id = windows.device) AS class, number, bundle, rung, start_ms, duration_ms,
            requests, errors, histogram, confusion, cpu_us, memory_bytes, received_at_ms",
    )
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("windows.take_unrolled"))?
    .into_iter()
    .map(WindowRow::try_from)
    .collect()
}

/// Whether a window waits to be added up.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn any_unrolled(session: &mut Session) -> Result<bool, StoreError> {
    let row: Option<(i64,)> = sqlx::query_as(r"SELECT number FROM windows WHERE rolled = 0 LIMIT 1")
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("windows.any_unrolled"))?;
    Ok(row.is_some())
}

/// Whether a window that was added up arrived before a time.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn any_before(session: &mut Session, before_ms: i64) -> Result<bool, StoreError> {
    let row: Option<(i64,)> = sqlx::query_as(r"SELECT number FROM windows WHERE rolled = 1 AND received_at_ms < $1 LIMIT 1")
        .bind(before_ms)
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("windows.any_before"))?;
    Ok(row.is_some())
}

/// Forgets windows that were added up and arrived before a time. Answers how many.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn forget(session: &mut Session, before_ms: i64, page: Page) -> Result<u64, StoreError> {
    let done = sqlx::query(
        r"DELETE FROM windows
        WHERE (device, number) IN (SELECT device, number FROM windows WHERE rolled = 1 AND received_at_ms < $1 LIMIT $2)",
    )
    .bind(before_ms)
    .bind(page.limit())
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("windows.forget"))?;
    Ok(done.rows_affected())
}

/// The newest windows, newest last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn list(session: &mut Session, filter: &Filter, page: Page) -> Result<Vec<WindowRow>, StoreError> {
    let mut rows = sqlx::query_as::<_, Row>(select!(
        "WHERE w.start_ms >= $1 AND ($2 = '' OR w.device = $2) AND ($3 = '' OR d.class = $3)
        ORDER BY w.start_ms DESC, w.device DESC, w.number DESC
        LIMIT $4"
    ))
    .bind(filter.since_ms)
    .bind(filter.device.as_ref().map_or("", DeviceId::as_str))
    .bind(filter.class.as_ref().map_or("", ClassId::as_str))
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("windows.list"))?;
    rows.reverse();
    rows.into_iter().map(WindowRow::try_from).collect()
}

/// Windows of one bundle that arrived after a time, newest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn of_bundle(session: &mut Session, bundle: &Digest, after_ms: i64, page: Page) -> Result<Vec<WindowRow>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE w.bundle = $1 AND w.received_at_ms > $2
        ORDER BY w.received_at_ms DESC, w.device, w.number DESC
        LIMIT $3"
    ))
    .bind(bundle.to_string())
    .bind(after_ms)
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("windows.of_bundle"))?
    .into_iter()
    .map(WindowRow::try_from)
    .collect()
}

/// What one device counted on one bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests answered or failed.
    pub requests: u64,
    /// Requests failed.
    pub errors: u64,
    /// Labelled samples.
    pub labelled: u64,
    /// Of these, answered right.
    pub correct: u64,
}

/// What each device of a class counted on a bundle in windows that arrived after a time.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn tally(session: &mut Session, bundle: &Digest, after_ms: i64) -> Result<Vec<Tally>, StoreError> {
    let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(
        r"SELECT CAST(SUM(requests) AS BIGINT), CAST(SUM(errors) AS BIGINT), CAST(SUM(labelled) AS BIGINT), CAST(SUM(correct) AS BIGINT)
        FROM windows
        WHERE bundle = $1 AND received_at_ms > $2
        GROUP BY device",
    )
    .bind(bundle.to_string())
    .bind(after_ms)
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("windows.tally"))?;
    rows.into_iter()
        .map(|(requests, errors, labelled, correct)| {
            Ok(Tally {
                requests: count("windows.requests", requests)?,
                errors: count("windows.errors", errors)?,
                labelled: count("windows.labelled", labelled)?,
                correct: count("windows.correct", correct)?,
            })
        })
        .collect()
}
