//! Devices: identity, classes, order of reports.

use pleach_domain::profile::HardwareProfile;
use pleach_domain::state::DeviceState;
use pleach_store::devices::{self, Certificate};
use pleach_store::{Page, classes};

use crate::fixture::{Fixture, class, class_id, device, digest};

on_both!(
    identity_keys_and_ids_are_unique,
    a_device_is_classified_once,
    reports_are_accepted_once_and_in_order,
    a_revoked_device_gets_nothing_more,
    a_suspended_device_waits_for_a_person,
    sequences_only_grow,
    a_session_that_is_dropped_leaves_nothing,
);

async fn identity_keys_and_ids_are_unique(f: Fixture) {
    f.class_of(1).await;
    let same_key = devices::NewDevice { id: "other".parse().unwrap(), ..device(0) };
    let same_id = devices::NewDevice { identity_key: [50; 32], ..device(0) };
    for refused in [same_key, same_id] {
        assert!(devices::insert(&mut f.write().await, &refused, 2).await.unwrap_err().is_duplicate());
    }
    let found = devices::find_by_identity(&mut f.read().await, &[0; 32]).await.unwrap().unwrap();
    assert_eq!(found.enrolled, device(0));
    assert_eq!(devices::find_by_identity(&mut f.read().await, &[9; 32]).await.unwrap(), None);
}

async fn a_device_is_classified_once(f: Fixture) {
    f.class_of(1).await;
    let mut session = f.write().await;
    devices::insert(&mut session, &device(1), 1).await.unwrap();
    assert!(devices::unclassified(&mut session, Page::default()).await.unwrap().is_empty(), "it has no profile yet");
    let profile = HardwareProfile { architecture: "x86_64".into(), cores: 2, inference_threads: 1, ..HardwareProfile::default() };
    devices::set_profile(&mut session, &device(1).id, &profile, 2).await.unwrap();
    let waiting = devices::unclassified(&mut session, Page::default()).await.unwrap();
    assert_eq!(waiting.iter().map(|d| d.profile.as_ref()).collect::<Vec<_>>(), [Some(&profile)]);
    classes::insert(&mut session, &class("other"), 2).await.unwrap();
    assert!(devices::classify(&mut session, &device(1).id, &class_id(), "why", 3).await.unwrap());
    assert!(!devices::classify(&mut session, &device(1).id, &"other".parse().unwrap(), "no", 4).await.unwrap());
    let found = devices::find(&mut session, &device(1).id).await.unwrap().unwrap();
    assert_eq!((found.class, found.class_reason.as_deref()), (Some(class_id()), Some("why")));
    let counts: Vec<_> = classes::list(&mut session, Page::default()).await.unwrap().into_iter().map(|c| (c.class.id, c.devices)).collect();
    assert_eq!(counts, [(class_id(), 2), ("other".parse().unwrap(), 0)]);
}

async fn reports_are_accepted_once_and_in_order(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    for (sequence, accepted) in [(1, true), (1, false), (3, true), (2, false), (4, true)] {
        assert_eq!(devices::accept_report(&mut session, id, sequence, 5).await.unwrap(), accepted, "{sequence}");
    }
    assert_eq!(devices::find(&mut session, id).await.unwrap().unwrap().report_sequence, 4);
}

async fn a_suspended_device_waits_for_a_person(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    assert!(!devices::approve(&mut session, id, 5).await.unwrap(), "it is active");
    assert!(devices::suspend(&mut session, id, 6).await.unwrap());
    assert!(!devices::suspend(&mut session, id, 7).await.unwrap());
    assert_eq!(devices::next_assignment(&mut session, id).await.unwrap(), None);
    assert!(devices::approve(&mut session, id, 8).await.unwrap());
    assert_eq!(devices::state(&mut session, id).await.unwrap(), Some(DeviceState::Active));
    devices::revoke(&mut session, id, 9).await.unwrap();
    assert!(!devices::approve(&mut session, id, 10).await.unwrap(), "revoked is for ever");
}

async fn a_revoked_device_gets_nothing_more(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    assert_eq!(devices::state(&mut session, id).await.unwrap(), Some(DeviceState::Active));
    assert!(devices::revoke(&mut session, id, 5).await.unwrap());
    assert!(!devices::revoke(&mut session, id, 6).await.unwrap());
    assert_eq!(devices::state(&mut session, id).await.unwrap(), Some(DeviceState::Revoked));
    assert_eq!(devices::next_assignment(&mut session, id).await.unwrap(), None);
    assert!(!devices::accept_report(&mut session, id, 1, 7).await.unwrap());
    let certificate = Certificate { serial: "02".into(), fingerprint: digest(9), expires_at_ms: 9 };
    assert!(!devices::set_certificate(&mut session, id, &certificate, 8).await.unwrap());
    assert!(devices::of_class(&mut session, &class_id(), Page::default()).await.unwrap().is_empty());
}

async fn sequences_only_grow(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    for expected in 1..=3 {
        assert_eq!(devices::next_assignment(&mut session, id).await.unwrap(), Some(expected));
    }
}

async fn a_session_that_is_dropped_leaves_nothing(f: Fixture) {
    f.class_of(1).await;
    let mut session = f.write().await;
    devices::insert(&mut session, &device(1), 1).await.unwrap();
    drop(session);
    assert_eq!(devices::find(&mut f.write().await, &device(1).id).await.unwrap(), None);
    assert_eq!(devices::list(&mut f.read().await, Page::of(1)).await.unwrap().len(), 1);
}
