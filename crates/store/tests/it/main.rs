//! The store on both databases: every test here runs on SQLite and on a real PostgreSQL that the tests start themselves.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)] // a test that cannot go on fails

/// Runs each function once on SQLite and once on PostgreSQL.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::fixture::Fixture::sqlite().await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::fixture::Fixture::postgres().await).await;
            })+
        }
    };
}

mod audit;
mod blobs;
mod devices;
mod fixture;
mod jobs;
mod migrations;
mod rollouts;
mod telemetry;
mod tokens;
mod work;
