//! The controller's servers over real TLS on loopback, with a real store on SQLite and a real ONNX Runtime; its reconcilers on
//! SQLite and on PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken expectation is a failed test

/// Runs each function once on SQLite and once on PostgreSQL.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::reconcile::Fleet::open(None).await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let url = tokio::task::spawn_blocking(pleach_tests::postgres::database).await.unwrap();
                super::$name(crate::reconcile::Fleet::open(Some(url)).await).await;
            })+
        }
    };
}

mod delivery;
mod enrolment;
mod fleet;
mod harness;
mod reconcile;
mod reports;
mod rest;
mod spread;
mod uploads;
