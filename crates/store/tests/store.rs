//! The store on both databases: what is compare-and-set, idempotent or counted stays so, whoever races.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on fails

use std::collections::BTreeMap;

use pleach_domain::id::{JobId, TokenId};
use pleach_domain::metrics::Confusion;
use pleach_domain::profile::HardwareProfile;
use pleach_domain::state::JobState;
use pleach_domain::window::Window;
use pleach_domain::{DeviceId, Digest, LatencyHistogram};
use pleach_store::devices::{Certificate, NewDevice};
use pleach_store::jobs::NewJob;
use pleach_store::tokens::Token;
use pleach_store::{Blobs, Page, Session, Store, audit, devices, jobs, tokens, windows};

/// Runs a test on SQLite and on PostgreSQL.
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}", folder.path().join("store.db").display());
                super::$name(super::Store::open(&url, 4, 1).await.unwrap(), &url).await;
            })+
        }
        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let url = tokio::task::spawn_blocking(pleach_tests::postgres::database).await.unwrap();
                super::$name(super::Store::open(&url, 4, 1).await.unwrap(), &url).await;
            })+
        }
    };
}

on_both_databases!(
    migrations_run_once_and_again,
    one_of_two_workers_gets_a_job,
    an_expired_lease_goes_back_and_gives_up_at_last,
    a_token_is_used_as_often_as_it_says,
    windows_and_reports_are_stored_once,
    what_is_not_committed_is_not_there,
    the_audit_chain_shows_what_was_altered,
    a_revoked_device_gets_no_assignment,
);

async fn migrations_run_once_and_again(store: Store, url: &str) {
    let again = Store::open(url, 2, 2).await.unwrap();
    assert!(jobs::list(&mut again.read().await.unwrap(), Page::default()).await.unwrap().is_empty());
    store.close().await;
    again.close().await;
}

fn job(name: &str) -> NewJob {
    let id: JobId = format!("j-{name}").parse().unwrap();
    NewJob { id, kind: "prune".into(), subject: name.into(), payload: "{}".into() }
}

async fn enqueue(store: &Store, name: &str) -> bool {
    let mut session = store.write().await.unwrap();
    let new = jobs::enqueue(&mut session, &job(name), 10).await.unwrap();
    session.commit().await.unwrap();
    new
}

async fn claim(store: &Store, worker: &str, until_ms: i64, at_ms: i64) -> Option<jobs::Lease> {
    let mut session = store.write().await.unwrap();
    let claimed = jobs::claim(&mut session, "prune", worker, until_ms, at_ms).await.unwrap();
    session.commit().await.unwrap();
    claimed.map(|(lease, _)| lease)
}

async fn one_of_two_workers_gets_a_job(store: Store, _url: &str) {
    assert!(enqueue(&store, "a").await);
    assert!(!enqueue(&store, "a").await, "a subject has one job");
    let (left, right) = tokio::join!(claim(&store, "left", 100, 20), claim(&store, "right", 100, 20));
    assert!(left.is_some() != right.is_some(), "{left:?} {right:?}");
    let lease = left.or(right).unwrap();
    let mut session = store.write().await.unwrap();
    assert!(jobs::heartbeat(&mut session, &lease, "rank", 0.5, 200, 30).await.unwrap());
    let stranger = jobs::Lease { worker: "stranger".into(), ..lease.clone() };
    assert!(!jobs::heartbeat(&mut session, &stranger, "rank", 0.6, 900, 31).await.unwrap());
    assert!(!jobs::succeed(&mut session, &stranger, 32).await.unwrap());
    assert!(jobs::succeed(&mut session, &lease, 33).await.unwrap());
    assert!(!jobs::fail(&mut session, &lease, "too late", 34).await.unwrap());
    session.commit().await.unwrap();
    let all = jobs::list(&mut store.read().await.unwrap(), Page::default()).await.unwrap();
    assert_eq!((all.len(), all[0].state), (1, JobState::Succeeded));
}

async fn an_expired_lease_goes_back_and_gives_up_at_last(store: Store, _url: &str) {
    enqueue(&store, "a").await;
    for attempt in 1..=3i64 {
        let at_ms = attempt * 1_000;
        let lease = claim(&store, "crashes", at_ms + 100, at_ms).await.expect("the job is queued again");
        assert_eq!(i64::from(lease.attempt), attempt);
        let mut session = store.write().await.unwrap();
        assert_eq!(jobs::expire_leases(&mut session, 3, at_ms + 50).await.unwrap(), 0, "the lease still holds");
        assert_eq!(jobs::expire_leases(&mut session, 3, at_ms + 200).await.unwrap(), 1);
        assert!(!jobs::succeed(&mut session, &lease, at_ms + 300).await.unwrap(), "a lost lease ends nothing");
        session.commit().await.unwrap();
    }
    let all = jobs::list(&mut store.read().await.unwrap(), Page::default()).await.unwrap();
    assert_eq!(all[0].state, JobState::Failed);
    assert!(claim(&store, "late", 9_999, 9_000).await.is_none());
}

async fn a_token_is_used_as_often_as_it_says(store: Store, _url: &str) {
    let id: TokenId = "t1".parse().unwrap();
    let token = Token {
        id: id.clone(),
        secret_sha256: Digest::new([7; 32]),
        labels: BTreeMap::from([("site".to_owned(), "berlin".to_owned())]),
        uses_left: 2,
        expires_at_ms: 1_000,
        created_at_ms: 1,
    };
    let mut session = store.write().await.unwrap();
    tokens::insert(&mut session, &token).await.unwrap();
    session.commit().await.unwrap();
    let take = async |at_ms| {
        let mut session = store.write().await.unwrap();
        let taken = tokens::take_use(&mut session, &id, at_ms).await.unwrap();
        session.commit().await.unwrap();
        taken
    };
    assert!(!take(1_001).await, "expired");
    let three = tokio::join!(take(10), take(11), take(12));
    assert_eq!([three.0, three.1, three.2].iter().filter(|taken| **taken).count(), 2, "{three:?}");
    let found = tokens::find(&mut store.read().await.unwrap(), &id).await.unwrap().unwrap();
    assert_eq!((found.uses_left, found.labels), (0, token.labels));
}

async fn device(session: &mut Session, name: &str) -> DeviceId {
    let id: DeviceId = name.parse().unwrap();
    let token = Token {
        id: format!("t-{name}").parse().unwrap(),
        secret_sha256: Digest::new([1; 32]),
        labels: BTreeMap::new(),
        uses_left: 1,
        expires_at_ms: 1_000,
        created_at_ms: 1,
    };
    tokens::insert(session, &token).await.unwrap();
    let certificate = Certificate { serial: format!("s-{name}"), fingerprint: Digest::new([2; 32]), expires_at_ms: 1_000 };
    let mut identity_key = [0; 32];
    identity_key[..name.len()].copy_from_slice(name.as_bytes());
    let new = NewDevice {
        id: id.clone(),
        token: token.id,
        labels: BTreeMap::new(),
        identity_key,
        sealing_key: [4; 32],
        certificate,
        boot_id: "boot".into(),
    };
    devices::insert(session, &new, 5).await.unwrap();
    id
}

fn window(number: u64, latency_us: u64) -> Window {
    let mut latency = LatencyHistogram::new();
    latency.record_us(latency_us);
    let mut confusion = Confusion::new(2).unwrap();
    confusion.record(1, 1).unwrap();
    Window {
        number,
        bundle: Digest::new([9; 32]),
        rung: "full".into(),
        start_ms: 100,
        duration_ms: 1_000,
        requests: 1,
        errors: 0,
        latency,
        confusion: Some(confusion),
        cpu_us: 7,
        memory_bytes: 8,
    }
}

async fn windows_and_reports_are_stored_once(store: Store, _url: &str) {
    let mut session = store.write().await.unwrap();
    let id = device(&mut session, "d-1").await;
    assert!(devices::accept_report(&mut session, &id, 1, 20).await.unwrap());
    assert!(!devices::accept_report(&mut session, &id, 1, 21).await.unwrap(), "a repeated report");
    assert!(windows::insert(&mut session, &id, &window(1, 500), 20).await.unwrap());
    assert!(!windows::insert(&mut session, &id, &window(1, 900), 21).await.unwrap(), "a repeated window");
    session.commit().await.unwrap();
    let mut session = store.read().await.unwrap();
    let rows = windows::of_bundle(&mut session, &Digest::new([9; 32]), 0, Page::default()).await.unwrap();
    assert_eq!((rows.len(), &rows[0].window), (1, &window(1, 500)));
    assert!(windows::of_bundle(&mut session, &Digest::new([9; 32]), 20, Page::default()).await.unwrap().is_empty());
}

async fn what_is_not_committed_is_not_there(store: Store, _url: &str) {
    let mut session = store.write().await.unwrap();
    let id = device(&mut session, "d-1").await;
    drop(session);
    assert!(devices::find(&mut store.read().await.unwrap(), &id).await.unwrap().is_none());
}

async fn the_audit_chain_shows_what_was_altered(store: Store, url: &str) {
    for (n, action) in ["policy.apply", "bundle.seal", "device.revoke"].into_iter().enumerate() {
        let mut session = store.write().await.unwrap();
        let entry = audit::Entry { actor: "test", action, subject: "s", before: None, after: Some(Digest::new([n as u8; 32])) };
        audit::append(&mut session, &entry, n as i64).await.unwrap();
        session.commit().await.unwrap();
    }
    assert_eq!(audit::verify(&mut store.read().await.unwrap()).await.unwrap(), 3);
    store.close().await;
    sqlx::any::install_default_drivers();
    let mut direct = <sqlx::AnyConnection as sqlx::Connection>::connect(url).await.unwrap();
    sqlx::query("UPDATE audit SET subject = 'other' WHERE sequence = 2").execute(&mut direct).await.unwrap();
    let store = Store::open(url, 1, 9).await.unwrap();
    assert!(audit::verify(&mut store.read().await.unwrap()).await.is_err());
}

async fn a_revoked_device_gets_no_assignment(store: Store, _url: &str) {
    let mut session = store.write().await.unwrap();
    let id = device(&mut session, "d-1").await;
    devices::set_profile(&mut session, &id, &HardwareProfile::default(), 6).await.unwrap();
    assert_eq!(devices::next_assignment(&mut session, &id).await.unwrap(), Some(1));
    assert_eq!(devices::next_assignment(&mut session, &id).await.unwrap(), Some(2));
    assert!(devices::revoke(&mut session, &id, 7).await.unwrap());
    assert!(!devices::revoke(&mut session, &id, 8).await.unwrap());
    assert_eq!(devices::next_assignment(&mut session, &id).await.unwrap(), None);
    assert!(devices::unclassified(&mut session, Page::default()).await.unwrap().is_empty());
    session.commit().await.unwrap();
}

#[tokio::test]
async fn blobs_answer_to_their_digest_only() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::local(folder.path()).unwrap();
    let digest = blobs.put_bytes("content".into()).await.unwrap();
    assert_eq!(blobs.get(&digest, 100).await.unwrap().as_ref(), b"content");
    assert_eq!(blobs.size(&digest).await.unwrap(), Some(7));
    assert!(blobs.get(&digest, 3).await.is_err(), "larger than the reader bears");
    let other = Digest::new([1; 32]);
    let wrong = futures::stream::iter([Ok::<_, std::io::Error>("content".into())]);
    assert!(blobs.put(&other, 100, wrong).await.is_err());
    assert_eq!(blobs.size(&other).await.unwrap(), None, "nothing half-written");
}
