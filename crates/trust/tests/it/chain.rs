//! The root chain: N to N+1, signed by both, and what a new root makes fall.

use pleach_trust::metadata::Common;
use pleach_trust::{Attack, FleetAuthor, RoleKeys, Root, Signed, TrustError, TrustedSet, sign};

use crate::fleet::{DAY, after, bundle, key, keys, metadata, now, trusting};

fn root(bytes: &[u8]) -> Root {
    Signed::<Root>::parse("root", bytes, 1 << 20).unwrap().content().clone()
}

#[test]
fn rotates_the_root_key_when_old_and_new_sign() {
    let old = keys(10);
    let mut new = old.clone();
    new.root = key(99);
    let mut set = TrustedSet::new(&FleetAuthor::new(&old).root(1, after(DAY)).unwrap(), now()).unwrap();
    let author = FleetAuthor::new(&new);
    let alone = author.root(2, after(DAY)).unwrap();
    assert!(matches!(set.update_root(&alone), Err(TrustError::Threshold { valid: 0, threshold: 1, .. })));
    set.update_root(&author.rotate_root(&old.root, 2, after(DAY)).unwrap()).unwrap();
    set.update_root(&author.root(3, after(DAY)).unwrap()).unwrap();
    assert_eq!(set.root().version(), 3);
}

#[test]
fn refuses_a_root_that_only_the_old_keys_signed() {
    let old = keys(10);
    let mut new = old.clone();
    new.root = key(99);
    let mut set = TrustedSet::new(&FleetAuthor::new(&old).root(1, after(DAY)).unwrap(), now()).unwrap();
    let content = root(&FleetAuthor::new(&new).root(2, after(DAY)).unwrap());
    assert!(matches!(set.update_root(&sign(&content, &[&old.root]).unwrap()), Err(TrustError::Threshold { .. })));
    assert_eq!(set.root().version(), 1);
}

#[test]
fn refuses_roots_out_of_sequence() {
    let keys = keys(10);
    let author = FleetAuthor::new(&keys);
    let mut set = TrustedSet::new(&author.root(5, after(DAY)).unwrap(), now()).unwrap();
    for version in [1, 4, 5, 7, u64::from(u32::MAX), u64::MAX] {
        let error = set.update_root(&author.root(version, after(DAY)).unwrap()).unwrap_err();
        assert_eq!(error, TrustError::RootNotNext { got: version, expected: 6 });
        assert_eq!(error.attack(), (version < 6).then_some(Attack::Rollback));
    }
}

#[test]
fn an_expired_root_passes_the_chain_and_vouches_for_nothing() {
    let keys = keys(10);
    let author = FleetAuthor::new(&keys);
    let mut files = metadata(&keys, 1, &[]);
    let mut set = TrustedSet::new(&author.root(1, after(-DAY)).unwrap(), now()).unwrap();
    let error = set.update_timestamp(&files.timestamp).unwrap_err();
    assert!(matches!(error, TrustError::Expired { role, .. } if role == "root"));
    files.roots = vec![author.root(2, after(-1)).unwrap(), author.root(3, after(DAY)).unwrap()];
    files.apply(&mut set, now()).unwrap();
    assert_eq!(set.root().version(), 3);
}

#[test]
fn a_threshold_counts_distinct_keys() {
    let keys = keys(10);
    let mut content = root(&FleetAuthor::new(&keys).root(1, after(DAY)).unwrap());
    let second = key(50);
    content.keys.insert(second.public_key().key_id().unwrap(), second.public_key());
    let ids = vec![keys.root.public_key().key_id().unwrap(), second.public_key().key_id().unwrap()];
    content.roles.insert("root".into(), RoleKeys::new(ids, 2));
    let one = sign(&content, &[&keys.root]).unwrap();
    assert!(matches!(TrustedSet::new(&one, now()), Err(TrustError::Threshold { valid: 1, threshold: 2, .. })));
    let twice = sign(&content, &[&keys.root, &keys.root]).unwrap();
    assert!(matches!(TrustedSet::new(&twice, now()), Err(TrustError::KeyTable { .. })));
    let stranger = sign(&content, &[&keys.root, &key(51)]).unwrap();
    assert!(matches!(TrustedSet::new(&stranger, now()), Err(TrustError::Threshold { valid: 1, .. })));
    assert!(TrustedSet::new(&sign(&content, &[&keys.root, &second]).unwrap(), now()).is_ok());
}

#[test]
fn one_key_under_two_ids_counts_once() {
    let keys = keys(10);
    let mut content = root(&FleetAuthor::new(&keys).root(1, after(DAY)).unwrap());
    // An unknown field gives the same key another id.
    let mut alias = keys.root.public_key();
    alias.extra.insert("alias".into(), true.into());
    let ids = vec![keys.root.public_key().key_id().unwrap(), alias.key_id().unwrap()];
    content.keys.insert(ids[1].clone(), alias);
    content.roles.insert("root".into(), RoleKeys::new(ids.clone(), 2));
    let file = sign(&content, &[&keys.root]).unwrap();
    let mut envelope: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let mut second = envelope["signatures"][0].clone();
    second["keyid"] = ids[1].as_str().into();
    envelope["signatures"].as_array_mut().unwrap().push(second);
    let file = serde_json::to_vec(&envelope).unwrap();
    assert!(matches!(TrustedSet::new(&file, now()), Err(TrustError::Threshold { valid: 1, threshold: 2, .. })));
}

#[test]
fn a_role_that_names_a_key_twice_or_asks_for_none_is_malformed() {
    let keys = keys(10);
    let content = root(&FleetAuthor::new(&keys).root(1, after(DAY)).unwrap());
    let id = keys.root.public_key().key_id().unwrap();
    for role in [RoleKeys::new(vec![id.clone(), id.clone()], 1), RoleKeys::new(vec![id], 0)] {
        let mut content = content.clone();
        content.roles.insert("root".into(), role);
        assert!(sign(&content, &[&keys.root]).is_err());
    }
    let mut without = content.clone();
    without.roles.remove("snapshot");
    assert!(sign(&without, &[&keys.root]).is_err());
}

#[test]
fn rotating_timestamp_and_snapshot_keys_recovers_from_fast_forward() {
    let old = keys(10);
    let bundles = [bundle("a", "camera", 3)];
    // A thief of the online keys signs the highest version there is.
    let mut set = trusting(&metadata(&old, u64::MAX, &bundles));
    let mut new = old.clone();
    (new.timestamp, new.snapshot) = (key(60), key(61));
    let mut files = metadata(&new, 2, &bundles);
    assert!(files.apply(&mut set, now()).is_err());
    files.roots.push(FleetAuthor::new(&new).root(2, after(DAY)).unwrap());
    files.apply(&mut set, now()).unwrap();
    assert_eq!(set.timestamp().unwrap().version(), 2);
}

#[test]
fn rotating_the_targets_key_makes_old_delegations_fall() {
    let old = keys(10);
    let mut set = trusting(&metadata(&old, 1, &[bundle("a", "camera", 3)]));
    let mut new = old.clone();
    new.targets = key(60);
    set.update_root(&FleetAuthor::new(&new).root(2, after(DAY)).unwrap()).unwrap();
    assert!(set.targets("targets").is_none() && set.targets("release").is_none());
    assert!(set.snapshot().is_some());
}

#[test]
fn a_new_delegation_makes_metadata_of_the_old_release_key_fall() {
    let old = keys(10);
    let mut set = trusting(&metadata(&old, 1, &[]));
    let mut new = old.clone();
    new.release = key(60);
    let files = metadata(&new, 2, &[]);
    set.update_timestamp(&files.timestamp).unwrap();
    set.update_snapshot(&files.snapshot).unwrap();
    set.update_targets(&files.targets).unwrap();
    assert!(set.targets("release").is_none());
    set.update_delegated("release", "targets", &files.release).unwrap();
}

#[test]
fn unknown_fields_are_kept_and_signed() {
    let keys = keys(10);
    let mut content = root(&FleetAuthor::new(&keys).root(1, after(DAY)).unwrap());
    content.extra.insert("x-note".into(), serde_json::json!({ "a": [1, 2] }));
    content.roles.get_mut("root").unwrap().extra.insert("x-role".into(), "y".into());
    let file = sign(&content, &[&keys.root]).unwrap();
    let set = TrustedSet::new(&file, now()).unwrap();
    assert_eq!(set.root().content(), &content);
    let altered = String::from_utf8(file).unwrap().replace("x-note", "x-nota");
    assert!(matches!(TrustedSet::new(altered.as_bytes(), now()), Err(TrustError::Threshold { .. })));
}

#[test]
fn refuses_another_type_specification_or_version_zero() {
    let keys = keys(10);
    let content = root(&FleetAuthor::new(&keys).root(1, after(DAY)).unwrap());
    let with = |change: fn(&mut Common)| {
        let mut content = content.clone();
        change(&mut content.common);
        sign(&content, &[&keys.root])
    };
    assert!(with(|_| ()).is_ok() && with(|c| c.spec_version = "1.9.0".into()).is_ok());
    assert!(with(|c| c.kind = "targets".into()).is_err());
    assert!(with(|c| c.spec_version = "2.0.0".into()).is_err());
    assert!(with(|c| c.spec_version = "1x".into()).is_err());
    assert!(with(|c| c.version = 0).is_err());
}
