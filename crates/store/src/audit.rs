//! The audit log: append-only and hash-chained.

use pleach_domain::Digest;
use sqlx::{Executor, FromRow};

use crate::column::{count, int, parse, sha256, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Who, e.g. `token:admin`, `controller`.
    pub actor: &'a str,
    /// What, e.g. `policy.apply`.
    pub action: &'a str,
    /// On what.
    pub subject: &'a str,
    /// Digest of it before, where it was there.
    pub before: Option<Digest>,
    /// Digest of it afterwards, where it is there.
    pub after: Option<Digest>,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Position, from 1.
    pub sequence: u64,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// On what.
    pub subject: String,
    /// Digest before.
    pub before: Option<String>,
    /// Digest afterwards.
    pub after: Option<String>,
    /// When.
    pub at_ms: i64,
    /// SHA-256 over the hash of the entry before and everything above.
    pub hash: Digest,
}

#[derive(FromRow)]
struct Row {
    sequence: i64,
    actor: String,
    action: String,
    subject: String,
    before_digest: Option<String>,
    after_digest: Option<String>,
    at_ms: i64,
    hash: String,
}

impl TryFrom<Row> for AuditRow {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            sequence: count("audit.sequence", row.sequence)?,
            hash: parse("audit.hash", &row.hash)?,
            actor: row.actor,
            action: row.action,
            subject: row.subject,
            before: row.before_digest,
            after: row.after_digest,
            at_ms: row.at_ms,
        })
    }
}

/// Appends an entry. Belongs in the session of the change that it tells of, as its last statement.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn append(session: &mut Session, entry: &Entry<'_>, at_ms: i64) -> Result<(), StoreError> {
    if let Some(lock) = session.dialect().lock_audit() {
        session.connection().execute(sqlx::raw_sql(lock)).await.map_err(StoreError::sql("audit.lock"))?;
    }
    let last: Option<(i64, String)> = sqlx::query_as(r"SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("audit.last"))?;
    let (sequence, previous) = last.map_or((1, String::new()), |(sequence, hash)| (sequence + 1, hash));
    let (before, after) = (entry.before.map(|d| d.to_string()), entry.after.map(|d| d.to_string()));
    let mut row = Row {
        sequence,
        actor: entry.actor.to_owned(),
        action: entry.action.to_owned(),
        subject: entry.subject.to_owned(),
        before_digest: before,
        after_digest: after,
        at_ms,
        hash: String::new(),
    };
    row.hash = chained(&previous, &row)?.to_string();
    sqlx::query(
        r"INSERT INTO audit (sequence, actor, action, subject, before_digest, after_digest, at_ms, hash)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(row.sequence)
    .bind(row.actor)
    .bind(row.action)
    .bind(row.subject)
    .bind(row.before_digest)
    .bind(row.after_digest)
    .bind(row.at_ms)
    .bind(row.hash)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("audit.append"))?;
    Ok(())
}

/// The hash of an entry: over a JSON array, so that no two entries are written alike.
fn chained(previous: &str, row: &Row) -> Result<Digest, StoreError> {
    let fields = (previous, row.sequence, &row.actor, &row.action, &row.subject, &row.before_digest, &row.after_digest, row.at_ms);
    Ok(sha256(to_json("audit.hash", &fields)?.as_bytes()))
}

/// Entries after `after`, oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn list(session: &mut Session, after: u64, page: Page) -> Result<Vec<AuditRow>, StoreError> {
    rows(session, int(after), page.limit()).await?.into_iter().map(AuditRow::try_from).collect()
}

async fn rows(session: &mut Session, after: i64, limit: i64) -> Result<Vec<Row>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT sequence, actor, action, subject, before_digest, after_digest, at_ms, hash
        FROM audit
        WHERE sequence > $1
        ORDER BY sequence
        LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("audit.list"))
}

/// Checks the whole chain and answers how many entries it has. Reads every entry.
///
/// # Errors
/// [`StoreError::AuditBroken`] for the first entry that was altered, left out or moved; [`StoreError::Sql`].
pub async fn verify(session: &mut Session) -> Result<u64, StoreError> {
    let (mut previous, mut sequence) = (String::new(), 0i64);
    loop {
        let batch = rows(session, sequence, i64::from(Page::MAX_LIMIT)).await?;
        if batch.is_empty() {
            return count("audit.sequence", sequence);
        }
        for row in batch {
            let got = chained(&previous, &row)?;
            if got.to_string() != row.hash || row.sequence != sequence + 1 {
                return Err(StoreError::AuditBroken { sequence: count("audit.sequence", row.sequence)?, got, expected: row.hash });
            }
            (previous, sequence) = (row.hash, row.sequence);
        }
    }
}
