//! Rollouts and assignments: who gets what, and what counts as proof.

use std::collections::BTreeMap;

use pleach_domain::rollout::RolloutRules;
use pleach_domain::state::{Observed, RolloutState};
use pleach_domain::{BundleId, DeviceId};
use pleach_store::assignments::{self, Event, NewAssignment};
use pleach_store::rollouts::Rollout;
use pleach_store::{Page, Session, bundles, desired, devices, rollouts};

use crate::fixture::{Fixture, class_id, device, digest};

on_both!(
    the_newest_bundle_of_a_class_begins_one_rollout,
    devices_join_the_newest_rollout_of_their_class,
    only_devices_that_changed_are_considered_again,
    devices_go_back_to_what_they_proved_last,
    evidence_moves_an_assignment_forwards_only,
    a_newer_assignment_supersedes,
    statements_are_renewed_before_they_expire,
    counts_are_of_active_devices,
);

fn running(id: &str, bundle: &BundleId, at_ms: i64) -> Rollout {
    Rollout {
        id: id.parse().unwrap(),
        class: class_id(),
        bundle: bundle.clone(),
        state: RolloutState::Running,
        rules: RolloutRules::default(),
        begun_by: "token:a".into(),
        approved_by: String::new(),
        wave: 0,
        since_ms: at_ms,
        reason: String::new(),
        readings: Vec::new(),
        created_at_ms: at_ms,
    }
}

/// A running rollout that every device of the class is in, by number.
async fn begin(f: &Fixture, id: &str, bundle: &BundleId, at_ms: i64) -> Rollout {
    let mut session = f.write().await;
    let rollout = running(id, bundle, at_ms);
    assert!(rollouts::insert(&mut session, &rollout).await.unwrap());
    rollouts::abort_others(&mut session, &class_id(), &rollout.id, at_ms).await.unwrap();
    for (place, candidate) in
        rollouts::unconsidered(&mut session, &class_id(), &rollout.id, Page::default()).await.unwrap().into_iter().enumerate()
    {
        rollouts::enlist(&mut session, &rollout.id, &candidate.device, place as i64).await.unwrap();
        rollouts::considered(&mut session, &candidate.device, &rollout.id).await.unwrap();
    }
    session.commit().await.unwrap();
    rollout
}

async fn complete(session: &mut Session, rollout: &Rollout, at_ms: i64) {
    let states = (RolloutState::Running, RolloutState::Completed);
    assert!(rollouts::change(session, &rollout.id, states, "done", at_ms).await.unwrap());
}

async fn assign(session: &mut Session, device: &DeviceId, rollout: &str, bundle: &BundleId, at_ms: i64) -> u64 {
    let sequence = devices::next_assignment(session, device).await.unwrap().unwrap();
    let new = NewAssignment {
        device: device.clone(),
        sequence,
        rollout: rollout.parse().unwrap(),
        bundle: bundle.clone(),
        metadata: vec![1, 2, 3],
        wrap: vec![4, 5],
        expires_at_ms: 1_000,
    };
    assignments::insert(session, &new, at_ms).await.unwrap();
    sequence
}

fn event(device: &DeviceId, sequence: u64, state: Observed) -> Event<'_> {
    const FIRST: pleach_domain::Digest = pleach_domain::Digest::new([1; 32]);
    Event { device, sequence, digest: &FIRST, state, failed_check: None, detail: None }
}

async fn the_newest_bundle_of_a_class_begins_one_rollout(f: Fixture) {
    f.class_of(1).await;
    f.policy().await;
    let first = f.sealed(1, 10).await;
    begin(&f, "r1", &first, 11).await;
    assert!(bundles::without_rollout(&mut f.read().await, Page::default()).await.unwrap().is_empty());
    let (_, third) = (f.sealed(2, 20).await, f.sealed(3, 30).await);
    let waiting = bundles::without_rollout(&mut f.read().await, Page::default()).await.unwrap();
    assert_eq!(waiting.iter().map(|b| &b.id).collect::<Vec<_>>(), [&third], "the second is skipped");
    begin(&f, "r3", &third, 31).await;
    let states: Vec<_> = rollouts::list(&mut f.read().await, Page::default()).await.unwrap().into_iter().map(|r| r.state).collect();
    assert_eq!(states, [RolloutState::Aborted, RolloutState::Running]);
    let mut session = f.write().await;
    let r3 = running("r3", &third, 40);
    assert!(!rollouts::insert(&mut session, &r3).await.unwrap());
    assert!(rollouts::widen(&mut session, &r3.id, 0, 40).await.unwrap() && !rollouts::widen(&mut session, &r3.id, 0, 40).await.unwrap());
    complete(&mut session, &r3, 41).await;
    assert!(!rollouts::change(&mut session, &r3.id, (RolloutState::Running, RolloutState::Completed), "", 42).await.unwrap());
    let found = rollouts::find(&mut session, &r3.id).await.unwrap().unwrap();
    assert_eq!((found.wave, found.reason.as_str(), found.since_ms, found.rules), (1, "done", 41, RolloutRules::default()));
    assert!(bundles::withdraw(&mut session, &third).await.unwrap() && !bundles::withdraw(&mut session, &third).await.unwrap());
}

async fn devices_join_the_newest_rollout_of_their_class(f: Fixture) {
    let ids = f.class_of(2).await;
    f.policy().await;
    let bundle = f.sealed(1, 10).await;
    let r1 = begin(&f, "r1", &bundle, 11).await;
    let mut session = f.write().await;
    let missing = assignments::missing(&mut session, &r1, Page::default()).await.unwrap();
    assert_eq!(missing.iter().map(|m| m.device.clone()).collect::<Vec<_>>(), ids);
    assert_eq!((missing[0].sealing_key, missing[0].bundle.clone()), ([100; 32], bundle.clone()));
    assign(&mut session, &ids[0], "r1", &bundle, 12).await;
    devices::revoke(&mut session, &ids[1], 13).await.unwrap();
    assert!(assignments::missing(&mut session, &r1, Page::default()).await.unwrap().is_empty());
    complete(&mut session, &r1, 14).await;
    devices::insert(&mut session, &device(2), 15).await.unwrap();
    devices::classify(&mut session, &device(2).id, &class_id(), "late", 15).await.unwrap();
    let late = rollouts::unconsidered(&mut session, &class_id(), &r1.id, Page::default()).await.unwrap();
    assert_eq!(late.iter().map(|m| m.device.clone()).collect::<Vec<_>>(), [device(2).id], "a completed rollout still takes devices in");
    assert_eq!(rollouts::standing(&mut session).await.unwrap().iter().map(|r| &r.id).collect::<Vec<_>>(), [&r1.id]);
    rollouts::enlist(&mut session, &r1.id, &device(2).id, 7).await.unwrap();
    assert_eq!(assignments::missing(&mut session, &r1, Page::default()).await.unwrap().len(), 1);
    bundles::withdraw(&mut session, &bundle).await.unwrap();
    assert!(assignments::missing(&mut session, &r1, Page::default()).await.unwrap().is_empty(), "a withdrawn bundle goes to nobody");
}

async fn only_devices_that_changed_are_considered_again(f: Fixture) {
    let ids = f.class_of(3).await;
    f.policy().await;
    let r1 = begin(&f, "r1", &f.sealed(1, 10).await, 11).await;
    let mut session = f.write().await;
    assert!(rollouts::unconsidered(&mut session, &class_id(), &r1.id, Page::default()).await.unwrap().is_empty());
    let labels = BTreeMap::from([("site".to_owned(), "bonn".to_owned())]);
    assert!(devices::set_labels(&mut session, &ids[1], &labels, 12).await.unwrap());
    let again = rollouts::unconsidered(&mut session, &class_id(), &r1.id, Page::default()).await.unwrap();
    assert_eq!(again.iter().map(|c| (&c.device, &c.labels)).collect::<Vec<_>>(), [(&ids[1], &labels)]);
    rollouts::dismiss(&mut session, &r1.id, &ids[1]).await.unwrap();
    assert_eq!(rollouts::place(&mut session, &r1.id, &ids[1]).await.unwrap(), None);
    let last = rollouts::place(&mut session, &r1.id, &ids[2]).await.unwrap().unwrap();
    assert_eq!((last.before, last.given), (1, false));
    assign(&mut session, &ids[2], "r1", &r1.bundle, 13).await;
    rollouts::dismiss(&mut session, &r1.id, &ids[2]).await.unwrap();
    assert!(rollouts::place(&mut session, &r1.id, &ids[2]).await.unwrap().unwrap().given, "what was given stays given");
}

async fn devices_go_back_to_what_they_proved_last(f: Fixture) {
    let ids = f.class_of(3).await;
    f.policy().await;
    let (first, second) = (f.sealed(1, 10).await, f.sealed(2, 20).await);
    let r1 = begin(&f, "r1", &first, 11).await;
    let mut session = f.write().await;
    for id in &ids[..2] {
        let sequence = assign(&mut session, id, "r1", &first, 12).await;
        assignments::observe(&mut session, &event(id, sequence, Observed::Proven), 13).await.unwrap();
    }
    complete(&mut session, &r1, 14).await;
    session.commit().await.unwrap();
    let r2 = begin(&f, "r2", &second, 21).await;
    let mut session = f.write().await;
    for id in [&ids[0], &ids[2]] {
        assign(&mut session, id, "r2", &second, 22).await;
    }
    let back = assignments::returnable(&mut session, &r2, None, Page::default()).await.unwrap();
    assert_eq!(back.iter().map(|b| (&b.device, &b.bundle)).collect::<Vec<_>>(), [(&ids[0], &first)], "the third has nothing to go back to");
    let back = assignments::returnable(&mut session, &r2, Some(&first), Page::default()).await.unwrap();
    assert_eq!(back.iter().map(|b| &b.device).collect::<Vec<_>>(), [&ids[0], &ids[2]]);
    let counts = rollouts::counts(&mut session, &r2).await.unwrap();
    assert_eq!((counts.members, counts.given, counts.returning), (3, 2, 0));
    let sequence = assign(&mut session, &ids[0], "r2", &first, 23).await;
    let counts = rollouts::counts(&mut session, &r2).await.unwrap();
    assert_eq!((counts.given, counts.returning), (1, 1));
    assignments::observe(&mut session, &event(&ids[0], sequence, Observed::Proven), 24).await.unwrap();
    let counts = rollouts::counts(&mut session, &r2).await.unwrap();
    assert_eq!((counts.given, counts.proven, counts.returning), (1, 0, 0), "proof of the old bundle is no success of the new one");
}

async fn evidence_moves_an_assignment_forwards_only(f: Fixture) {
    let ids = f.class_of(2).await;
    f.policy().await;
    let bundle = f.sealed(1, 10).await;
    begin(&f, "r1", &bundle, 11).await;
    let mut session = f.write().await;
    let sequence = assign(&mut session, &ids[0], "r1", &bundle, 12).await;
    let steps = [
        (Observed::Delivering, Some(Observed::Offered)),
        (Observed::Delivering, None),
        (Observed::Probation, Some(Observed::Delivering)),
        (Observed::Staged, None),
        (Observed::Proven, Some(Observed::Probation)),
        (Observed::Probation, None),
    ];
    for (state, before) in steps {
        assert_eq!(assignments::observe(&mut session, &event(&ids[0], sequence, state), 20).await.unwrap(), before, "{state}");
    }
    let foreign = Event { digest: &digest(77), ..event(&ids[0], sequence, Observed::Failed) };
    assert_eq!(assignments::observe(&mut session, &foreign, 21).await.unwrap(), None, "another bundle");
    let nobody = event(&ids[1], sequence, Observed::Proven);
    assert_eq!(assignments::observe(&mut session, &nobody, 21).await.unwrap(), None, "another device");
    let failed = Event { failed_check: Some("crash"), detail: Some("twice"), ..event(&ids[0], sequence, Observed::Failed) };
    assert_eq!(assignments::observe(&mut session, &failed, 22).await.unwrap(), Some(Observed::Proven));
    let deployment = &assignments::deployments(&mut session, Page::default()).await.unwrap()[0];
    assert_eq!(
        (deployment.state, deployment.failed_check.as_deref(), deployment.detail.as_deref()),
        (Observed::Failed, Some("crash"), Some("twice"))
    );
    assert_eq!((deployment.assigned_at_ms, deployment.changed_at_ms), (12, 22));
}

async fn a_newer_assignment_supersedes(f: Fixture) {
    let ids = f.class_of(1).await;
    f.policy().await;
    let first = f.sealed(1, 10).await;
    begin(&f, "r1", &first, 11).await;
    let second = f.sealed(2, 20).await;
    begin(&f, "r2", &second, 21).await;
    let mut session = f.write().await;
    let old = assign(&mut session, &ids[0], "r1", &first, 12).await;
    let new = assign(&mut session, &ids[0], "r2", &second, 22).await;
    assert!(new > old);
    assert_eq!(assignments::observe(&mut session, &event(&ids[0], old, Observed::Proven), 23).await.unwrap(), None);
    let deployments = assignments::deployments(&mut session, Page::default()).await.unwrap();
    assert_eq!(deployments.iter().map(|d| (d.sequence, d.state)).collect::<Vec<_>>(), [(new, Observed::Offered)]);
    let wanted = desired::of_device(&mut session, &ids[0]).await.unwrap().deployment.unwrap();
    assert_eq!((wanted.sequence, wanted.digest, wanted.wrap), (new, digest(2), vec![4, 5]));
    assert_eq!(wanted.policy.unwrap().policy.name.as_str(), "p");
}

async fn statements_are_renewed_before_they_expire(f: Fixture) {
    let ids = f.class_of(1).await;
    f.policy().await;
    let bundle = f.sealed(1, 10).await;
    begin(&f, "r1", &bundle, 11).await;
    let mut session = f.write().await;
    let sequence = assign(&mut session, &ids[0], "r1", &bundle, 12).await;
    assert!(assignments::expiring(&mut session, 1_000, Page::default()).await.unwrap().is_empty());
    assert_eq!(assignments::expiring(&mut session, 1_001, Page::default()).await.unwrap().len(), 1);
    assert!(assignments::renew(&mut session, &ids[0], sequence, &[9], 2_000).await.unwrap());
    assert!(!assignments::renew(&mut session, &ids[0], sequence, &[8], 1_500).await.unwrap(), "an older one comes late");
    let wanted = desired::of_device(&mut session, &ids[0]).await.unwrap().deployment.unwrap();
    assert_eq!((wanted.metadata, wanted.sequence), (vec![9], sequence));
}

async fn counts_are_of_active_devices(f: Fixture) {
    let ids = f.class_of(3).await;
    f.policy().await;
    let bundle = f.sealed(1, 10).await;
    begin(&f, "r1", &bundle, 11).await;
    let mut session = f.write().await;
    for (id, state) in ids.iter().zip([Observed::Proven, Observed::Failed, Observed::Proven]) {
        let sequence = assign(&mut session, id, "r1", &bundle, 12).await;
        assignments::observe(&mut session, &event(id, sequence, state), 13).await.unwrap();
    }
    devices::revoke(&mut session, &ids[2], 14).await.unwrap();
    let rollout = rollouts::newest(&mut session, &class_id()).await.unwrap().unwrap();
    let counts = rollouts::counts(&mut session, &rollout).await.unwrap();
    assert_eq!((counts.members, counts.given, counts.proven, counts.failed), (2, 2, 1, 1));
    assert_eq!(rollouts::standing(&mut session).await.unwrap(), [rollout]);
}
