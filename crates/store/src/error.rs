//! What can go wrong between Pleach and its database or blobs.

use pleach_domain::{Digest, DomainError};
use thiserror::Error;

/// A failed step of the store. Not found is no error: see the `Option`s.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A database address that is neither SQLite's nor PostgreSQL's.
    #[error("database address begins with {got:?}: expected sqlite:// or postgres://")]
    Address {
        /// What it begins with; the rest may hold a password.
        got: String,
    },
    /// A statement failed.
    #[error("database refused {doing}")]
    Sql {
        /// Which statement, e.g. `devices.find`.
        doing: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A row that this version cannot read: written by a newer one, or altered.
    #[error("column {column} cannot be read")]
    Column {
        /// Table and column.
        column: &'static str,
        /// Why.
        #[source]
        source: DomainError,
    },
    /// A JSON document that this version cannot read or write.
    #[error("document {column} cannot be read or written")]
    Document {
        /// Table and column.
        column: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The database was migrated by another text than this version's.
    #[error("migration {version} was applied with digest {got}: this version has {expected}")]
    MigrationChanged {
        /// Number of the migration.
        version: i64,
        /// Digest in the database.
        got: String,
        /// Digest in this version.
        expected: Digest,
    },
    /// The database is newer than this version.
    #[error("database is at migration {got}: this version knows {expected}")]
    DatabaseNewer {
        /// Newest applied.
        got: i64,
        /// Newest known.
        expected: i64,
    },
    /// The audit log does not hash together.
    #[error("audit entry {sequence} was altered: it hashes to {got}, the log says {expected}")]
    AuditBroken {
        /// First entry that does not fit.
        sequence: u64,
        /// Its computed hash.
        got: Digest,
        /// The hash in the log.
        expected: String,
    },
    /// A blob whose content has another digest than it was announced with.
    #[error("blob has digest {got}: expected {expected}")]
    BlobDigest {
        /// Computed.
        got: Digest,
        /// Announced.
        expected: Digest,
    },
    /// A blob that is too large.
    #[error("blob has more than {limit} bytes")]
    BlobSize {
        /// Most bytes allowed.
        limit: u64,
    },
    /// The source of a blob broke off.
    #[error("blob was not received completely")]
    BlobSource(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A blob that a row names, but that is not there.
    #[error("blob {0} is missing")]
    BlobMissing(Digest),
    /// The blob store failed.
    #[error("blob store failed at {doing}")]
    Blob {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: object_store::Error,
    },
}

impl StoreError {
    pub(crate) fn sql(doing: &'static str) -> impl Fn(sqlx::Error) -> Self + Clone {
        move |source| Self::Sql { doing, source }
    }

    pub(crate) fn blob(doing: &'static str) -> impl Fn(object_store::Error) -> Self + Clone {
        move |source| Self::Blob { doing, source }
    }

    /// Whether a statement failed because such a row is there already.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Sql { source: sqlx::Error::Database(e), .. } if e.is_unique_violation())
    }
}
