//! Bundles: sealed variants. The ciphertext is a blob, the content key lies here under the controller's key-encryption key.

use pleach_domain::id::VariantId;
use pleach_domain::state::BundleState;
use pleach_domain::{BundleId, ClassId, Digest};
use sqlx::FromRow;

use crate::column::{count, int, parse};
use crate::error::StoreError;
use crate::session::{Page, Session};

/// A bundle.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Identifier.
    pub id: BundleId,
    /// Variant inside.
    pub variant: VariantId,
    /// Class.
    pub class: ClassId,
    /// State.
    pub state: BundleState,
    /// SHA-256 of the ciphertext, and the name of its blob.
    pub digest: Digest,
    /// Length of the ciphertext in bytes.
    pub size_bytes: u64,
    /// Root of the hash tree over its chunks.
    pub tree_root: Digest,
    /// Leaves of that tree, 32 bytes each.
    pub leaves: Vec<u8>,
    /// Name of the cipher suite.
    pub suite: String,
    /// The content key, encrypted.
    pub content_key: Vec<u8>,
    /// When it was sealed.
    pub created_at_ms: i64,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("id", &self.id).field("digest", &self.digest).finish_non_exhaustive()
    }
}

#[derive(FromRow)]
struct Row {
    id: String,
    variant: String,
    class: String,
    state: String,
    digest: String,
    size_bytes: i64,
    tree_root: String,
    leaves: Vec<u8>,
    suite: String,
    content_key: Vec<u8>,
    created_at_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT b.id, b.variant, b.class, b.state, b.digest, b.size_bytes, b.tree_root, b.leaves, b.suite, b.content_key, b.created_at_ms
            FROM bundles b ",
            $rest
        )
    };
}

impl TryFrom<Row> for Bundle {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("bundles.id", &row.id)?,
            variant: parse("bundles.variant", &row.variant)?,
            class: parse("bundles.class", &row.class)?,
            state: parse("bundles.state", &row.state)?,
            digest: parse("bundles.digest", &row.digest)?,
            size_bytes: count("bundles.size_bytes", row.size_bytes)?,
            tree_root: parse("bundles.tree_root", &row.tree_root)?,
            leaves: row.leaves,
            suite: row.suite,
            content_key: row.content_key,
            created_at_ms: row.created_at_ms,
        })
    }
}

/// Stores a bundle. Answers whether its variant had none.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn insert(session: &mut Session, bundle: &Bundle) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"INSERT INTO bundles (id, variant, class, state, digest, size_bytes, tree_root, leaves, suite, content_key, created_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        ON CONFLICT (variant) DO NOTHING",
    )
    .bind(bundle.id.as_str())
    .bind(bundle.variant.as_str())
    .bind(bundle.class.as_str())
    .bind(bundle.state.as_str())
    .bind(bundle.digest.to_string())
    .bind(int(bundle.size_bytes))
    .bind(bundle.tree_root.to_string())
    .bind(&bundle.leaves)
    .bind(&bundle.suite)
    .bind(&bundle.content_key)
    .bind(bundle.created_at_ms)
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("bundles.insert"))?;
    Ok(done.rows_affected() == 1)
}

/// A bundle by its identifier.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn find(session: &mut Session, id: &BundleId) -> Result<Option<Bundle>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE b.id = $1"))
        .bind(id.as_str())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("bundles.find"))?
        .map(Bundle::try_from)
        .transpose()
}

/// A bundle by the digest of its ciphertext.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn find_by_digest(session: &mut Session, digest: &Digest) -> Result<Option<Bundle>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE b.digest = $1"))
        .bind(digest.to_string())
        .fetch_optional(session.connection())
        .await
        .map_err(StoreError::sql("bundles.find_by_digest"))?
        .map(Bundle::try_from)
        .transpose()
}

/// Bundles that may be assigned, newest first.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn sealed(session: &mut Session, page: Page) -> Result<Vec<Bundle>, StoreError> {
    sqlx::query_as::<_, Row>(select!("WHERE b.state = 'sealed' ORDER BY b.created_at_ms DESC, b.id DESC LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("bundles.sealed"))?
        .into_iter()
        .map(Bundle::try_from)
        .collect()
}

/// The newest sealed bundle of each class that has no rollout yet.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn without_rollout(session: &mut Session, page: Page) -> Result<Vec<Bundle>, StoreError> {
    sqlx::query_as::<_, Row>(select!(
        "WHERE b.state = 'sealed'
            AND b.id = (
                SELECT n.id FROM bundles n
                WHERE n.class = b.class AND n.state = 'sealed'
                ORDER BY n.created_at_ms DESC, n.id DESC
                LIMIT 1)
            AND NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.bundle = b.id)
        ORDER BY b.created_at_ms, b.id
        LIMIT $1"
    ))
    .bind(page.limit())
    .fetch_all(session.connection())
    .await
    .map_err(StoreError::sql("bundles.without_rollout"))?
    .into_iter()
    .map(Bundle::try_from)
    .collect()
}

/// Forbids further assignment of a bundle. Answers whether it was allowed.
///
/// # Errors
/// [`StoreError::Sql`].
pub async fn withdraw(session: &mut Session, id: &BundleId) -> Result<bool, StoreError> {
    let done = sqlx::query(
        r"UPDATE bundles
        SET state = 'withdrawn'
        WHERE id = $1 AND state = 'sealed'",
    )
    .bind(id.as_str())
    .execute(session.connection())
    .await
    .map_err(StoreError::sql("bundles.withdraw"))?;
    Ok(done.rows_affected() == 1)
}

/// The newest bundles in whatever state, newest last.
///
/// # Errors
/// [`StoreError::Sql`], [`StoreError::Column`].
pub async fn list(session: &mut Session, page: Page) -> Result<Vec<Bundle>, StoreError> {
    let mut rows = sqlx::query_as::<_, Row>(select!("ORDER BY b.created_at_ms DESC, b.id DESC LIMIT $1"))
        .bind(page.limit())
        .fetch_all(session.connection())
        .await
        .map_err(StoreError::sql("bundles.list"))?;
    rows.reverse();
    rows.into_iter().map(Bundle::try_from).collect()
}
