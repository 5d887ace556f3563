//! Connections: the pools, and the transactions in which everything happens.

use std::time::Duration;

use sqlx::any::{Any, AnyPoolOptions};
use sqlx::{AnyConnection, Executor, Pool, Transaction};

use crate::dialect::Dialect;
use crate::error::StoreError;
use crate::migrate;

/// How long a session waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);

/// A database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    readers: Pool<Any>,
    writers: Pool<Any>,
    dialect: Dialect,
}

/// One transaction. Dropped without [`Session::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Session {
    transaction: Transaction<'static, Any>,
    dialect: Dialect,
}

/// Bounds of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    limit: u32,
}

impl Page {
    /// Most rows that any list gives.
    pub const MAX_LIMIT: u32 = 10_000;

    /// At most `limit` rows, never more than [`Page::MAX_LIMIT`].
    pub fn of(limit: u32) -> Self {
        Self { limit: limit.min(Self::MAX_LIMIT) }
    }

    pub(crate) fn limit(self) -> i64 {
        i64::from(self.limit)
    }
}

impl Default for Page {
    /// 1,000 rows.
    fn default() -> Self {
        Self::of(1_000)
    }
}

impl Store {
    /// Opens a database, `sqlite:///path/to/file` (made when absent) or `postgres://…`, with at most `connections` connections,
    /// and brings its schema up to date, under a lock.
    ///
    /// # Errors
    /// [`StoreError::Address`], [`StoreError::Sql`] when it cannot be reached, and the errors of migrations.
    pub async fn open(url: &str, connections: u32, at_ms: i64) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let dialect = Dialect::of(url)?;
        let store = match dialect {
            Dialect::Sqlite => {
                let url = if url.contains('?') { format!("{url}&mode=rwc") } else { format!("{url}?mode=rwc") };
                // SQLite writes one at a time: writers queue here, fairly, instead of polling its lock.
                let writers = connect(&url, 1, dialect).await?;
                Self { readers: connect(&url, connections, dialect).await?, writers, dialect }
            }
            Dialect::Postgres => {
                let pool = connect(url, connections, dialect).await?;
                Self { readers: pool.clone(), writers: pool, dialect }
            }
        };
        let mut session = store.write().await?;
        migrate::run(&mut session, at_ms).await?;
        session.commit().await?;
        Ok(store)
    }

    /// Begins a session that only reads; all of it sees one state.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when no connection comes free in time.
    pub async fn read(&self) -> Result<Session, StoreError> {
        let transaction = self.readers.begin_with(self.dialect.begin_read()).await.map_err(StoreError::sql("read"))?;
        Ok(Session { transaction, dialect: self.dialect })
    }

    /// Begins a session that writes.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when no connection comes free in time.
    pub async fn write(&self) -> Result<Session, StoreError> {
        let transaction = self.writers.begin_with(self.dialect.begin_write()).await.map_err(StoreError::sql("write"))?;
        Ok(Session { transaction, dialect: self.dialect })
    }

    /// Waits for open sessions and closes every connection.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
    }
}

impl Session {
    /// Makes everything that was written in it last.
    ///
    /// # Errors
    /// [`StoreError::Sql`]; nothing of it was kept then.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await.map_err(StoreError::sql("commit"))
    }

    pub(crate) fn connection(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }
}

async fn connect(url: &str, connections: u32, dialect: Dialect) -> Result<Pool<Any>, StoreError> {
    AnyPoolOptions::new()
        .max_connections(connections.max(1))
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                for statement in dialect.on_connect().split("; ") {
                    connection.execute(sqlx::raw_sql(statement)).await?;
                }
                Ok(())
            })
        })
        .connect(url)
        .await
        .map_err(StoreError::sql("connect"))
}
