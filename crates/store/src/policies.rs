//! Policies: what the owner of a model wants, revisioned.

use pleach_domain::id::PolicyName;
use pleach_domain::policy::Policy;
use sqlx::FromRow;

use crate::column::{count, from_json, int, to_json};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// The newest revision of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisedPolicy {
    /// Revision, from 1.
    pub revision: u32,
    /// The policy.
    pub policy: Policy,
    /// Who applied it.
    pub applied_by: String,
    /// When this revision was applied.
    pub created_at_ms: i64,
}

#[derive(FromRow)]
struct Row {
    revision: i64,
    document: String,
    applied_by: String,
    created_at_ms: i64,
}

impl TryFrom<Row> for RevisedPolicy {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            revision: count("policies.revision", row.revision)?,
            policy: from_json("policies.document", &row.document)?,
            applied_by: row.applied_by,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Applies a policy: a new revision when it differs from the newest, else nothing. Answers the revision that holds now.
///
/// # Errors
/// [`StoreError::Sql`], also when another revision came between (see [`StoreError::is_duplicate`]); [`StoreError::Document`].
pub async fn apply(session: &mut Session, policy: &Policy, by: &str, at_ms: i64) -> Result<u32, StoreError> {
    let newest = find(session, &policy.name).await?;
    if let Some(same) = newest.as_ref().filter(|p| p.policy == *policy) {
        return Ok(same.revision);
    }
    let revision = newest.map_or(0, |p| p.revision) + 1;
    sqlx::query(
        r"INSERT INTO policies (name, revision, model, document, applied_by, created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(policy.name.as_str())
    .bind(int(revision))
    .bind(policy.model.as_str())
    .bind(to_json("policies.document", policy)?)
    .bind(by)
    .bind(at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("policies.apply"))?;
    Ok(revision)
}

/// The newest revision of a policy.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn find(session: &mut Session, name: &PolicyName) -> Result<Option<RevisedPolicy>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT revision, document, applied_by, created_at_ms
        FROM policies
        WHERE name = $1
        ORDER BY revision DESC
        LIMIT 1",
    )
    .bind(name.as_str())
    .fetch_optional(session.connection())
    .await
    .map_err(StoreError::sql("policies.find"))?
    .map(RevisedPolicy::try_from)
    .transpose()
}

/// The newest revision of every policy, by name.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Document`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<RevisedPolicy>, StoreError> {
    sqlx::query_as::<_, Row>(
        r"SELECT p.revision, p.document, p.applied_by, p.created_at_ms
        FROM policies p
        WHERE p.revision = (SELECT MAX(q.revision) FROM policies q WHERE q.name = p.name)
        ORDER BY p.name
        LIMIT $1",
    )
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("policies.list"))?
    .into_iter()
    .map(RevisedPolicy::try_from)
    .collect()
}
