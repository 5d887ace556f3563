//! Enrolment tokens: counted, expiring, stored as hashes.

use std::collections::BTreeMap;

use pleach_domain::Digest;
use pleach_domain::id::TokenId;
use sqlx::FromRow;

use crate::column::{count, from_json, int, parse, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// An enrolment token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Public half.
    pub id: TokenId,
    /// SHA-256 of the secret half.
    pub secret_sha256: Digest,
    /// Labels that devices enrolled with it get.
    pub labels: Labels,
    /// Uses left.
    pub uses_left: u32,
    /// When it expires.
    pub expires_at_ms: i64,
    /// When it was made.
    pub created_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    id: String,
    secret_sha256: String,
    labels: String,
    uses_left: i64,
    expires_at_ms: i64,
    created_at_ms: i64,
}

impl TryFrom<Row> for Token {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("enrolment_tokens.id", &row.id)?,
            secret_sha256: parse("enrolment_tokens.secret_sha256", &row.secret_sha256)?,
            labels: from_json("enrolment_tokens.labels", &row.labels)?,
            uses_left: count("enrolment_tokens.uses_left", row.uses_left)?,
            expires_at_ms: row.expires_at_ms,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Makes a token.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn insert(session: &mut Session, token: &Token) -> Result<(), StoreError> {
    sqlx::query(
        r"INSERT INTO enrolment_tokens (id, secret_sha256, labels, uses_left, expires_at_ms, created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(token.id.as_str())
    .bind(token.secret_sha256.to_string())
    .bind(to_json("enrolment_tokens.labels", &token.labels)?)
    .bind(int(token.uses_left))
    .bind(token.expires_at_ms)
    .bind(token.created_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("tokens.insert"))?;
    Ok(())
}

/// A token by its public half; the caller compares the secret in constant time.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn find(session: &mut Session, id: &TokenId) -> Result<Option<Token>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT id, secret_sha256, labels, uses_left, expires_at_ms, created_at_ms
        FROM enrolment_tokens
        WHERE id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("tokens.find"))?
    .map(Token::try_from)
    .transpose()
}

/// Takes one use. Answers whether there was one left and the token had not expired.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn take_use(session: &mut Session, id: &TokenId, at_ms: i64) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE enrolment_tokens
        SET uses_left = uses_left - 1
        WHERE id = $1 AND uses_left > 0 AND expires_at_ms > $2",
    )
    .bind(id.as_str())
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("tokens.take_use"))?;
    Ok(done.rows_affected() == 1)
}

/// Takes every use that is left. Answers whether there were any.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn revoke(session: &mut Session, id: &TokenId) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE enrolment_tokens
        SET uses_left = 0
        WHERE id = $1 AND uses_left > 0",
    )
    .bind(id.as_str())
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("tokens.revoke"))?;
    Ok(done.rows_affected() == 1)
}

/// Every token, oldest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`], [`StoreError::Document`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Token>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT id, secret_sha256, labels, uses_left, expires_at_ms, created_at_ms
        FROM enrolment_tokens
        ORDER BY created_at_ms, id
        LIMIT $1",
    )
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("tokens.list"))?
    .into_iter()
    .map(Token::try_from)
    .collect()
}
