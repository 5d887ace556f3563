//! Roll-ups: windows added up by time, of each device and each class.

use pleach_domain::rollup::{Key, Subject, Sums};
use pleach_domain::state::Span;
use pleach_domain::{ClassId, DeviceId, LatencyHistogram};
use sqlx::FromRow;

use crate::column::{count, int, parse};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// Which roll-ups of one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Whose.
    pub subject: Subject,
    /// Over how long.
    pub span: Span,
    /// That began at or after this time.
    pub since_ms: i64,
    /// That began before this time.
    pub until_ms: i64,
}

#[derive(FromRow)]
struct Row {
    start_ms: i64,
    bundle: String,
    rung: String,
    windows: i64,
    requests: i64,
    errors: i64,
    labelled: i64,
    correct: i64,
    cpu_us: i64,
    max_memory_bytes: i64,
    histogram: Vec<u8>,
}

fn scope(subject: &Subject) -> (&'static str, &str) {
    match subject {
        Subject::Device(id) => ("device", DeviceId::as_str(id)),
        Subject::Class(id) => ("class", ClassId::as_str(id)),
    }
}

impl Row {
    fn parse(self, subject: &Subject, span: Span) -> Result<(Key, Sums), StoreError> {
        let key = Key {
            subject: subject.clone(),
            span,
            start_ms: self.start_ms,
            bundle: parse("rollups.bundle", &self.bundle)?,
            rung: self.rung,
        };
        let sums = Sums {
            windows: count("rollups.windows", self.windows)?,
            requests: count("rollups.requests", self.requests)?,
            errors: count("rollups.errors", self.errors)?,
            labelled: count("rollups.labelled", self.labelled)?,
            correct: count("rollups.correct", self.correct)?,
            cpu_us: count("rollups.cpu_us", self.cpu_us)?,
            max_memory_bytes: count("rollups.max_memory_bytes", self.max_memory_bytes)?,
            latency: LatencyHistogram::decode(&self.histogram)
                .map_err(|source| StoreError::Column { column: "rollups.histogram", source })?,
        };
        Ok((key, sums))
    }
}

/// Adds sums to a roll-up.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn add(session: &mut Session, key: &Key, sums: &Sums) -> Result<(), StoreError> {
    let mut sums = sums.clone();
    if let Some(before) = find(session, key).await? {
        sums.add(&before);
    }
    let (scope, subject) = scope(&key.subject);
    sqlx::query(
        r"INSERT INTO rollups (scope, subject, level, start_ms, bundle, rung, windows, requests, errors, labelled, correct, cpu_us,
            max_memory_bytes, histogram)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
        ON CONFLICT (scope, subject, level, start_ms, bundle, rung) DO UPDATE
        SET windows = excluded.windows, requests = excluded.requests, errors = excluded.errors, labelled = excluded.labelled,
            correct = excluded.correct, cpu_us = excluded.cpu_us, max_memory_bytes = excluded.max_memory_bytes,
            histogram = excluded.histogram",
    )
    .bind(scope)
    .bind(subject)
    .bind(key.span.as_str())
    .bind(key.start_ms)
    .bind(key.bundle.to_string())
    .bind(&key.rung)
    .bind(int(sums.windows))
    .bind(int(sums.requests))
    .bind(int(sums.errors))
    .bind(int(sums.labelled))
    .bind(int(sums.correct))
    .bind(int(sums.cpu_us))
    .bind(int(sums.max_memory_bytes))
    .bind(sums.latency.encode())
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("rollups.add"))?;
    Ok(())
}

async fn find(session: &mut Session, key: &Key) -> Result<Option<Sums>, StoreError> {
    let (scope, subject) = scope(&key.subject);
    let row = sqlx::query_as::<_, Row>(
        r"SELECT start_ms, bundle, rung, windows, requests, errors, labelled, correct, cpu_us, max_memory_bytes, histogram
        FROM rollups
        WHERE scope = $1 AND subject = $2 AND level = $3 AND start_ms = $4 AND bundle = $5 AND rung = $6",
    )
    .bind(scope)
    .bind(subject)
    .bind(key.span.as_str())
    .bind(key.start_ms)
    .bind(key.bundle.to_string())
    .bind(&key.rung)
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("rollups.find"))?;
    row.map(|row| row.parse(&key.subject, key.span).map(|(_, sums)| sums)).transpose()
}

/// The newest roll-ups of a subject, newest last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn list(session: &mut Session, filter: &Filter, page: Page) -> Result<Vec<(Key, Sums)>, StoreError> {
    let (scope, subject) = scope(&filter.subject);
    let mut rows = sqlx::query_as::<_, Row>(
        r"SELECT start_ms, bundle, rung, windows, requests, errors, labelled, correct, cpu_us, max_memory_bytes, histogram
        FROM rollups
        WHERE scope = $1 AND subject = $2 AND level = $3 AND start_ms >= $4 AND start_ms < $5
        ORDER BY start_ms DESC, bundle, rung
        LIMIT $6",
    )
    .bind(scope)
    .bind(subject)
    .bind(filter.span.as_str())
    .bind(filter.since_ms)
    .bind(filter.until_ms)
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("rollups.list"))?;
    rows.reverse();
    rows.into_iter().map(|row| row.parse(&filter.subject, filter.span)).collect()
}

/// Forgets roll-ups of a span that began before a time. Answers how many.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn forget(session: &mut Session, span: Span, before_ms: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(r"DELETE FROM rollups WHERE level = $1 AND start_ms < $2")
        .bind(span.as_str())
        .bind(before_ms)
        .execute(session.connection())
        .await
        .map_err(StoreError::sql("rollups.forget"))?;
    Ok(done.rows_affected())
}
