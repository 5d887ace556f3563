//! API tokens of people, stored as hashes.

use pleach_domain::Digest;

use crate::error::StoreError;
use crate::session::Session;

/// Who a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiToken {
    /// Name of the token, for the audit log.
    pub id: String,
    /// What it may do: `viewer`, `operator` or `admin`.
    pub role: String,
}

/// Makes a token, or gives the token of that name another secret.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn put(
    session: &mut Session,
    token: &ApiToken,
    secret_sha256: &Digest,
    expires_at_ms: Option<i64>,
    at_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        r"INSERT INTO api_tokens (id, secret_sha256, role, created_at_ms, expires_at_ms)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (id) DO UPDATE
        SET secret_sha256 = excluded.secret_sha256, role = excluded.role,
            created_at_ms = excluded.created_at_ms, expires_at_ms = excluded.expires_at_ms",
    )
    .bind(&token.id)
    .bind(secret_sha256.to_string())
    .bind(&token.role)
    .bind(at_ms)
    .bind(expires_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("api_tokens.put"))?;
    Ok(())
}

/// The token whose secret has this SHA-256, unless it has expired.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn authenticate(session: &mut Session, secret_sha256: &Digest, at_ms: i64) -> Result<Option<ApiToken>, StoreError> {
    let row: Option<(String, String)> = sqlx::query_as(
        r"SELECT id, role
        FROM api_tokens
        WHERE secret_sha256 = $1 AND (expires_at_ms IS NULL OR expires_at_ms > $2)",
    )
    .bind(secret_sha256.to_string())
    .bind(at_ms)
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("api_tokens.authenticate"))?;
    Ok(row.map(|(id, role)| ApiToken { id, role }))
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
