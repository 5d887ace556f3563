//! Migrations: numbered texts, applied in order in one transaction under a lock, each recorded with its digest.

use pleach_domain::Digest;
use sqlx::{AssertSqlSafe, Executor};

use crate::column;
use crate::error::StoreError;
use crate::session::Session;

const MIGRATIONS: &[(i64, &str)] = &[
    (1, include_str!("../../../migrations/0001_first.sql")),
    (2, include_str!("../../../migrations/0002_rollouts.sql")),
    (3, include_str!("../../../migrations/0003_telemetry.sql")),
];

/// Applies what is missing. All or nothing: interrupted half-way it leaves the database as it was.
pub(crate) async fn run(session: &mut Session, at_ms: i64) -> Result<(), StoreError> {
    let dialect = session.dialect();
    if let Some(lock) = dialect.lock_migrations() {
        session.connection().execute(sqlx::raw_sql(lock)).await.map_err(StoreError::sql("migrations.lock"))?;
    }
    let table = r"
        CREATE TABLE IF NOT EXISTS migrations (
            version BIGINT PRIMARY KEY,
            sha256 TEXT NOT NULL,
            applied_at_ms BIGINT NOT NULL
        )";
    session.connection().execute(sqlx::raw_sql(table)).await.map_err(StoreError::sql("migrations.table"))?;
    let applied: Vec<(i64, String)> = sqlx::query_as(r"SELECT version, sha256 FROM migrations ORDER BY version")
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("migrations.list"))?;
    let known = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    if let Some((got, _)) = applied.last().filter(|(version, _)| *version > known) {
        return Err(StoreError::DatabaseNewer { got: *got, expected: known });
    }
    for &(version, text) in MIGRATIONS {
        let expected = column::sha256(text.as_bytes());
        match applied.iter().find(|(v, _)| *v == version) {
            Some((_, got)) if *got == expected.to_string() => {}
            Some((_, got)) => return Err(StoreError::MigrationChanged { version, got: got.clone(), expected }),
            None => apply(session, version, text, expected, at_ms).await?,
        }
    }
    Ok(())
}

async fn apply(session: &mut Session, version: i64, text: &str, digest: Digest, at_ms: i64) -> Result<(), StoreError> {
    let schema = session.dialect().schema(text);
    // The text is part of this program.
    session.connection().execute(sqlx::raw_sql(AssertSqlSafe(schema))).await.map_err(StoreError::sql("migrations.apply"))?;
    sqlx::query(r"INSERT INTO migrations (version, sha256, applied_at_ms) VALUES ($1, $2, $3)")
        .bind(version)
        .bind(digest.to_string())
        .bind(at_ms)
        .execute(session.connection())
        .await
        .map_err(StoreError::sql("migrations.record"))?;
    Ok(())
}
