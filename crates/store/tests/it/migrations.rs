//! Migrations: once, under a lock, all or nothing.

use pleach_store::{Store, StoreError};

use crate::fixture::Fixture;

on_both!(
    opening_again_keeps_what_is_there,
    a_migration_that_fails_half_way_leaves_nothing,
    another_text_under_the_same_number_is_refused,
    a_newer_database_is_refused,
);

async fn opening_again_keeps_what_is_there(f: Fixture) {
    f.token("t", 1, 1).await;
    let again = Store::open(&f.url, 1, 2).await.unwrap();
    let mut session = again.read().await.unwrap();
    assert!(pleach_store::tokens::find(&mut session, &"t".parse().unwrap()).await.unwrap().is_some());
}

async fn a_migration_that_fails_half_way_leaves_nothing(f: Fixture) {
    // The record is gone, so it is tried anew: it makes `models` and fails on `policies`, which is there.
    f.raw("DROP TABLE migrations").await;
    f.raw("ALTER TABLE models RENAME TO kept").await;
    assert!(Store::open(&f.url, 1, 2).await.is_err());
    f.raw("ALTER TABLE kept RENAME TO models").await;
    f.raw("CREATE TABLE migrations (version BIGINT)").await;
}

async fn another_text_under_the_same_number_is_refused(f: Fixture) {
    f.raw("UPDATE migrations SET sha256 = 'other' WHERE version = 1").await;
    let refused = Store::open(&f.url, 1, 2).await.unwrap_err();
    assert!(matches!(refused, StoreError::MigrationChanged { version: 1, .. }), "{refused}");
}

async fn a_newer_database_is_refused(f: Fixture) {
    f.raw("INSERT INTO migrations (version, sha256, applied_at_ms) VALUES (9999, 'x', 1)").await;
    let refused = Store::open(&f.url, 1, 2).await.unwrap_err();
    assert!(matches!(refused, StoreError::DatabaseNewer { got: 9999, .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_databases_migrate_once_when_many_open_them() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", folder.path().join("fresh.db").display());
    let postgres = tokio::task::spawn_blocking(pleach_tests::postgres::database).await.unwrap();
    for url in [sqlite, postgres] {
        let openers: Vec<_> = (0..4)
            .map(|n| {
                tokio::spawn({
                    let url = url.clone();
                    async move { Store::open(&url, 1, n).await }
                })
            })
            .collect();
        for opener in openers {
            opener.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn other_databases_are_refused_without_showing_the_address() {
    let refused = Store::open("mysql://root:secret@host/db", 1, 1).await.unwrap_err().to_string();
    assert_eq!(refused, r#"database address begins with "mysql": expected sqlite:// or postgres://"#);
}
