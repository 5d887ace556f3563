//! The audit log: no entry can be changed, moved or left out unseen.

use pleach_store::audit::{self, Entry};
use pleach_store::{Page, Store, StoreError};

use crate::fixture::{Fixture, digest};

const SUBJECTS: [&str; 3] = ["one", "two", "three"];

on_both!(entries_chain_and_verify, an_altered_entry_is_found, an_entry_left_out_is_found, the_chain_has_no_fork_when_many_write);

async fn append(store: &Store, subject: &str) {
    let mut session = store.write().await.unwrap();
    let entry = Entry { actor: "token:admin", action: "policy.apply", subject, before: None, after: Some(digest(3)) };
    audit::append(&mut session, &entry, 5).await.unwrap();
    session.commit().await.unwrap();
}

async fn entries_chain_and_verify(f: Fixture) {
    assert_eq!(audit::verify(&mut f.read().await).await.unwrap(), 0);
    for subject in SUBJECTS {
        append(&f.store, subject).await;
    }
    assert_eq!(audit::verify(&mut f.read().await).await.unwrap(), 3);
    let listed = audit::list(&mut f.read().await, 1, Page::default()).await.unwrap();
    assert_eq!(listed.iter().map(|e| (e.sequence, e.subject.as_str())).collect::<Vec<_>>(), [(2, "two"), (3, "three")]);
    assert_eq!((listed[0].before.as_deref(), listed[0].after.clone()), (None, Some(digest(3).to_string())));
}

async fn an_altered_entry_is_found(f: Fixture) {
    for subject in SUBJECTS {
        append(&f.store, subject).await;
    }
    f.raw("UPDATE audit SET actor = 'nobody' WHERE sequence = 2").await;
    let broken = audit::verify(&mut f.read().await).await.unwrap_err();
    assert!(matches!(broken, StoreError::AuditBroken { sequence: 2, .. }), "{broken}");
}

async fn an_entry_left_out_is_found(f: Fixture) {
    for subject in SUBJECTS {
        append(&f.store, subject).await;
    }
    f.raw("DELETE FROM audit WHERE sequence = 2").await;
    let broken = audit::verify(&mut f.read().await).await.unwrap_err();
    assert!(matches!(broken, StoreError::AuditBroken { sequence: 3, .. }), "{broken}");
}

async fn the_chain_has_no_fork_when_many_write(f: Fixture) {
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let store = f.store.clone();
            tokio::spawn(async move { append(&store, &format!("writer {n}")).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(audit::verify(&mut f.read().await).await.unwrap(), 8);
}
