//! API tokens of people and their tools, stored as hashes.

use pleach_domain::Digest;
use pleach_domain::id::ApiTokenId;
use pleach_domain::role::Role;
use sqlx::FromRow;

use crate::column::parse;
use crate::error::StoreError;
use crate::session::{Page, Session};

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiToken {
    /// Name of the token, for the audit log.
    pub id: ApiTokenId,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at_ms: i64,
    /// From when on it is refused; never, when absent.
    pub expires_at_ms: Option<i64>,
}

#[derive(FromRow)]
struct Row {
    id: String,
    role: String,
    created_at_ms: i64,
    expires_at_ms: Option<i64>,
}

impl TryFrom<Row> for ApiToken {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let Row { id, role, created_at_ms, expires_at_ms } = row;
        Ok(Self { id: parse("api_tokens.id", &id)?, role: parse("api_tokens.role", &role)?, created_at_ms, expires_at_ms })
    }
}

/// Makes a token; false when its name is taken.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn insert(session: &mut Session, token: &ApiToken, secret_sha256: &Digest) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO api_tokens (id, secret_sha256, role, created_at_ms, expires_at_ms)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (id) DO NOTHING",
    )
    .bind(token.id.as_str())
    .bind(secret_sha256.to_string())
    .bind(token.role.as_str())
    .bind(token.created_at_ms)
    .bind(token.expires_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("api_tokens.insert"))?;
    Ok(done.rows_affected() == 1)
}

/// The token whose secret has this SHA-256, unless it has expired.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn authenticate(session: &mut Session, secret_sha256: &Digest, at_ms: i64) -> Result<Option<ApiToken>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        r"SELECT id, role, created_at_ms, expires_at_ms
        FROM api_tokens
        WHERE secret_sha256 = $1 AND (expires_at_ms IS NULL OR expires_at_ms > $2)",
    )
    .bind(secret_sha256.to_string())
    .bind(at_ms)
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("api_tokens.authenticate"))?;
    row.map(ApiToken::try_from).transpose()
}

/// Every token, by name.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<ApiToken>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(r"SELECT id, role, created_at_ms, expires_at_ms FROM api_tokens ORDER BY id LIMIT $1")
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("api_tokens.list"))?;
    rows.into_iter().map(ApiToken::try_from).collect()
}

/// Forgets a token, so that it is refused from now on; false when there is none of that name.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn remove(session: &mut Session, id: &ApiTokenId) -> Result<bool, StoreError> {
    let done = sqlx::query(r"DELETE FROM api_tokens WHERE id = $1")
        .bind(id.as_str())
        .execute(session.connection())
        .await
        .map_err(StoreError::sql("api_tokens.remove"))?;
    Ok(done.rows_affected() == 1)
}

/// Whether there is any token yet.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn any(session: &mut Session) -> Result<bool, StoreError> {
    let (tokens,): (i64,) = sqlx::query_as(r"SELECT COUNT(*) FROM api_tokens")
        .fetch_one(session.connection())
        .await
        .map_err(StoreError::sql("api_tokens.any"))?;
    Ok(tokens > 0)
}
