//! An agent installs only what both signers agree on for it.

use pleach_trust::metadata::{Common, Delegations, Metadata};
use pleach_trust::{
    Accepted, Agreed, Attack, BundleEntry, FleetAuthor, Recipient, Signed, Targets, TrustError, TrustedSet, sign, verify_assignment,
};

use crate::fleet::{DAY, after, bundle, fleet, keys, metadata, metadata_until, trusting};

const CAMERA: Recipient<'static> = Recipient { device: "dev-1", class: Some("camera") };

fn verify(set: &TrustedSet, director: &[u8]) -> Result<Agreed, TrustError> {
    verify_assignment(set, director, CAMERA, None)
}

fn assign(author: &FleetAuthor<'_>, bundle: &BundleEntry, sequence: u64) -> Vec<u8> {
    author.assignment("dev-1", bundle, sequence, after(DAY)).unwrap()
}

#[test]
fn agrees_on_a_released_and_assigned_bundle() {
    let (keys, set, bundle) = fleet();
    let agreed = verify(&set, &assign(&FleetAuthor::new(&keys), &bundle, 7)).unwrap();
    assert_eq!((agreed.bundle, agreed.length, agreed.sequence), (bundle.digest, 1000, 7));
    assert_eq!((agreed.facts, agreed.expires), (bundle.facts, after(DAY)));
}

#[test]
fn refuses_an_assignment_for_another_device() {
    let (keys, set, bundle) = fleet();
    let director = FleetAuthor::new(&keys).assignment("dev-2", &bundle, 1, after(DAY)).unwrap();
    let error = verify(&set, &director).unwrap_err();
    assert_eq!(error, TrustError::WrongDevice { got: "dev-2".into(), expected: "dev-1".into() });
    assert_eq!(error.attack(), Some(Attack::WrongDevice));
}

#[test]
fn refuses_a_bundle_of_another_class() {
    let keys = keys(10);
    let bundle = bundle("a", "gateway", 3);
    let set = trusting(&metadata(&keys, 1, std::slice::from_ref(&bundle)));
    let error = verify(&set, &assign(&FleetAuthor::new(&keys), &bundle, 1)).unwrap_err();
    assert!(matches!(error, TrustError::WrongClass { .. }));
    assert_eq!(error.attack(), Some(Attack::WrongDevice));
}

#[test]
fn refuses_an_assigned_bundle_that_is_not_released() {
    let (keys, set, _) = fleet();
    let error = verify(&set, &assign(&FleetAuthor::new(&keys), &bundle("b", "camera", 3), 1)).unwrap_err();
    assert!(matches!(error, TrustError::NotReleased { .. }));
    assert_eq!(error.attack(), Some(Attack::ArbitrarySoftware));
}

#[test]
fn refuses_a_released_bundle_that_the_release_key_alone_assigns() {
    let (keys, set, bundle) = fleet();
    let mut thief = keys.clone();
    thief.director = keys.release.clone();
    let error = verify(&set, &assign(&FleetAuthor::new(&thief), &bundle, 1)).unwrap_err();
    assert_eq!(error, TrustError::Threshold { role: "director".into(), valid: 0, threshold: 1 });
}

#[test]
fn refuses_every_fact_the_signers_disagree_on() {
    let (keys, set, bundle) = fleet();
    let author = FleetAuthor::new(&keys);
    type Change = fn(&mut BundleEntry);
    let changes: [(&str, Change); 8] = [
        ("length", |b| b.length += 1),
        ("tree_root", |b| b.facts.tree_root = b.digest),
        ("chunk_count", |b| b.facts.chunk_count += 1),
        ("model", |b| b.facts.model.push('x')),
        ("model_version", |b| b.facts.model_version += 1),
        ("class", |b| b.facts.class.push('x')),
        ("suite", |b| b.facts.suite.push('x')),
        ("security_floor", |b| b.facts.security_floor += 1),
    ];
    for (name, change) in changes {
        let mut other = bundle.clone();
        change(&mut other);
        let error = verify(&set, &assign(&author, &other, 1)).unwrap_err();
        assert_eq!(error.attack(), Some(Attack::MixAndMatch));
        assert!(matches!(error, TrustError::Disagreement { field, .. } if field == name), "{name}");
    }
}

#[test]
fn sequence_only_grows_and_repeats_only_for_the_same_bundle() {
    let keys = keys(10);
    let (a, b) = (bundle("a", "camera", 3), bundle("b", "camera", 4));
    let set = trusting(&metadata(&keys, 1, &[a.clone(), b.clone()]));
    let author = FleetAuthor::new(&keys);
    let last = Accepted { sequence: 5, bundle: a.digest };
    let check = |bundle: &BundleEntry, sequence| verify_assignment(&set, &assign(&author, bundle, sequence), CAMERA, Some(&last));
    assert!(check(&a, 5).is_ok() && check(&a, 6).is_ok() && check(&b, 6).is_ok());
    for (bundle, sequence) in [(&a, 4), (&b, 4), (&b, 5)] {
        let error = check(bundle, sequence).unwrap_err();
        assert!(matches!(error, TrustError::SequenceRollback { got, .. } if got == sequence));
        assert_eq!(error.attack(), Some(Attack::Rollback));
    }
}

#[test]
fn an_expired_assignment_is_refused_and_a_renewed_one_accepted() {
    let (keys, mut set, bundle) = fleet();
    let author = FleetAuthor::new(&keys);
    let old = author.assignment("dev-1", &bundle, 1, after(100)).unwrap();
    let last = verify(&set, &old).unwrap().accepted();
    set.begin_refresh(after(100));
    let error = verify_assignment(&set, &old, CAMERA, Some(&last)).unwrap_err();
    assert!(matches!(&error, TrustError::Expired { role, .. } if role == "director"));
    assert_eq!(error.attack(), Some(Attack::Freeze));
    let renewed = author.assignment("dev-1", &bundle, 1, after(200)).unwrap();
    assert!(verify_assignment(&set, &renewed, CAMERA, Some(&last)).is_ok());
}

#[test]
fn nothing_is_agreed_once_any_fleet_file_has_expired() {
    let (keys, mut set, bundle) = fleet();
    let director = FleetAuthor::new(&keys).assignment("dev-1", &bundle, 1, after(1000 * DAY)).unwrap();
    set.begin_refresh(after(DAY));
    let error = verify(&set, &director).unwrap_err();
    assert!(matches!(error, TrustError::Expired { role, .. } if role == "timestamp"));
}

#[test]
fn a_higher_security_floor_retires_older_versions() {
    let keys = keys(10);
    let (old, mut new) = (bundle("a", "camera", 3), bundle("b", "camera", 5));
    new.facts.security_floor = 4;
    let set = trusting(&metadata(&keys, 1, &[old.clone(), new.clone()]));
    let author = FleetAuthor::new(&keys);
    assert!(verify(&set, &assign(&author, &new, 1)).is_ok());
    let error = verify(&set, &assign(&author, &old, 2)).unwrap_err();
    assert!(matches!(error, TrustError::BelowSecurityFloor { got: 3, floor: 4, .. }));
    assert_eq!(error.attack(), Some(Attack::Rollback));
}

#[test]
fn refuses_an_assignment_of_none_or_of_two_bundles() {
    let (keys, set, a) = fleet();
    let author = FleetAuthor::new(&keys);
    let mut content: Targets = parse(&assign(&author, &a, 1));
    let other: Targets = parse(&assign(&author, &bundle("b", "camera", 3), 1));
    content.targets.extend(other.targets);
    let two = verify(&set, &sign(&content, &[&keys.director]).unwrap()).unwrap_err();
    assert_eq!(two, TrustError::AssignmentCount { got: 2 });
    content.targets.clear();
    let none = verify(&set, &sign(&content, &[&keys.director]).unwrap()).unwrap_err();
    assert_eq!(none, TrustError::AssignmentCount { got: 0 });
}

#[test]
fn director_cannot_speak_for_bundles_nor_release_for_assignments() {
    let (keys, set, bundle) = fleet();
    let author = FleetAuthor::new(&keys);
    let release: Targets = parse(&author.release(1, after(DAY), std::slice::from_ref(&bundle)).unwrap());
    let error = verify(&set, &sign(&release, &[&keys.director]).unwrap()).unwrap_err();
    assert!(matches!(error, TrustError::PathNotDelegated { role, .. } if role == "director"));
}

#[test]
fn release_cannot_list_bundles_that_its_delegation_does_not_cover() {
    let keys = keys(10);
    let bundle = bundle("a", "camera", 3);
    let author = FleetAuthor::new(&keys);
    let mut files = metadata(&keys, 1, std::slice::from_ref(&bundle));
    let mut targets: Targets = parse(&files.targets);
    for role in targets.delegations.iter_mut().flat_map(|d: &mut Delegations| d.roles.iter_mut().flatten()) {
        role.paths = role.paths.take().map(|paths| paths.iter().map(|p| p.replace("bundles/", "elsewhere/")).collect());
    }
    files.targets = sign(&targets, &[&keys.targets]).unwrap();
    let error = verify(&trusting(&files), &assign(&author, &bundle, 1)).unwrap_err();
    assert!(matches!(error, TrustError::PathNotDelegated { role, .. } if role == "release"));
}

#[test]
fn a_device_offline_for_a_year_with_a_dead_clock_agrees_again_after_one_refresh() {
    let (keys, mut set, bundle) = fleet();
    let author = FleetAuthor::new(&keys);
    // The clock stands still at the start; the files are of a year later, beneath a root renewed eleven times.
    let mut files = metadata_until(&keys, 400, std::slice::from_ref(&bundle), after(366 * DAY));
    files.roots = (1..=12).map(|v| author.root(v, after(730 * DAY)).unwrap()).collect();
    files.apply(&mut set, after(0)).unwrap();
    let director = author.assignment("dev-1", &bundle, 99, after(366 * DAY)).unwrap();
    let last = Accepted { sequence: 7, bundle: bundle.digest };
    assert!(verify_assignment(&set, &director, CAMERA, Some(&last)).is_ok());
}

#[test]
fn a_device_id_cannot_leave_its_path() {
    let (keys, _, bundle) = fleet();
    for device in ["", "a/b", "../dev-1/x"] {
        assert!(FleetAuthor::new(&keys).assignment(device, &bundle, 1, after(DAY)).is_err(), "{device}");
    }
}

fn parse<T: Metadata + Clone>(bytes: &[u8]) -> T {
    let signed = Signed::<T>::parse(T::KIND, bytes, 1 << 20).unwrap();
    let common: &Common = signed.content().common();
    assert_eq!(common.kind, T::KIND);
    signed.content().clone()
}
