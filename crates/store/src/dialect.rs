//! The few differences between SQLite and PostgreSQL.

use crate::error::StoreError;

/// Number under which PostgreSQL locks migrations; any constant that nobody else uses.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(7205759403)";

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    pub(crate) fn of(url: &str) -> Result<Self, StoreError> {
        match url.split_once(':').map_or(url, |(scheme, _)| scheme) {
            "sqlite" => Ok(Self::Sqlite),
            "postgres" | "postgresql" => Ok(Self::Postgres),
            other => Err(StoreError::Address { got: other.chars().take(20).collect() }),
        }
    }

    /// Begins a transaction that reads.
    pub(crate) fn begin_read(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            // Several statements of one session see one state.
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    /// Begins a transaction that writes: SQLite takes its write lock at once, because a later upgrade cannot wait.
    pub(crate) fn begin_write(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    /// What a fresh connection is told. WAL lets readers go on beside the writer; FULL makes every commit last through a power cut.
    pub(crate) fn on_connect(self) -> &'static str {
        match self {
            Self::Sqlite => "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON",
            Self::Postgres => "SET lock_timeout = '10s'; SET statement_timeout = '60s'",
        }
    }

    /// Keeps other migrators out until the transaction ends; SQLite's write lock does so already.
    pub(crate) fn lock_migrations(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some(MIGRATION_LOCK),
        }
    }

    /// Keeps other writers of the audit log out until the transaction ends, so that its chain has no fork.
    pub(crate) fn lock_audit(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("SELECT pg_advisory_xact_lock(7205759404)"),
        }
    }

    /// Keeps others who add windows up out until the transaction ends: a sum is read, then written.
    pub(crate) fn lock_rollups(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("SELECT pg_advisory_xact_lock(7205759405)"),
        }
    }

    /// A schema text as this database spells it.
    pub(crate) fn schema(self, text: &str) -> String {
        match self {
            Self::Sqlite => text.to_owned(),
            Self::Postgres => text.replace(" BLOB", " BYTEA"),
        }
    }
}
