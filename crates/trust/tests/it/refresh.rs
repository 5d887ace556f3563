//! Timestamp, snapshot, targets: freshness, consistency and bounds.

use pleach_trust::{Attack, FleetAuthor, FleetMetadata, Limits, Progress, TrustError, TrustedSet};

use crate::fleet::{DAY, after, bundle, fleet, keys, metadata, metadata_until, now, trusting};

#[test]
fn a_second_refresh_with_the_same_files_changes_nothing() {
    let (keys, mut set, bundle) = fleet();
    assert_eq!(metadata(&keys, 1, std::slice::from_ref(&bundle)).apply(&mut set, now()).unwrap(), Progress::Unchanged);
    assert_eq!(metadata(&keys, 2, &[bundle]).apply(&mut set, now()).unwrap(), Progress::Updated);
}

#[test]
fn refuses_older_timestamps_and_snapshots() {
    let keys = keys(10);
    let mut set = trusting(&metadata(&keys, 5, &[]));
    let error = metadata(&keys, 4, &[]).apply(&mut set, now()).unwrap_err();
    assert_eq!(error, TrustError::VersionRollback { role: "timestamp".into(), got: 4, trusted: 5 });
    assert_eq!(error.attack(), Some(Attack::Rollback));
    let author = FleetAuthor::new(&keys);
    let old = author.snapshot(4, after(DAY), 4, 4).unwrap();
    let error = set.update_timestamp(&author.timestamp(6, after(DAY), 4, &old).unwrap()).unwrap_err();
    assert_eq!(error, TrustError::VersionRollback { role: "snapshot".into(), got: 4, trusted: 5 });
}

#[test]
fn a_new_snapshot_may_not_list_older_files_nor_drop_any() {
    let keys = keys(10);
    let mut set = trusting(&metadata(&keys, 5, &[]));
    let author = FleetAuthor::new(&keys);
    let snapshot = author.snapshot(6, after(DAY), 5, 4).unwrap();
    set.update_timestamp(&author.timestamp(6, after(DAY), 6, &snapshot).unwrap()).unwrap();
    let error = set.update_snapshot(&snapshot).unwrap_err();
    assert_eq!(error, TrustError::VersionRollback { role: "release.json".into(), got: 4, trusted: 5 });
    let mut content = set.snapshot().unwrap().content().clone();
    content.common.version = 7;
    content.meta.remove("release.json");
    let snapshot = pleach_trust::sign(&content, &[&keys.snapshot]).unwrap();
    set.update_timestamp(&author.timestamp(7, after(DAY), 7, &snapshot).unwrap()).unwrap();
    assert_eq!(set.update_snapshot(&snapshot).unwrap_err(), TrustError::MetaRemoved { file: "release.json".into() });
}

#[test]
fn a_changed_timestamp_of_the_same_version_is_ignored() {
    let keys = keys(10);
    let mut set = trusting(&metadata(&keys, 1, &[]));
    let changed = metadata_until(&keys, 1, &[], after(9 * DAY)).timestamp;
    assert_eq!(set.update_timestamp(&changed).unwrap(), Progress::Unchanged);
    assert_eq!(set.timestamp().unwrap().content().common.expires, after(DAY));
}

#[test]
fn refuses_each_expired_file() {
    let keys = keys(10);
    let author = FleetAuthor::new(&keys);
    let fresh = metadata(&keys, 1, &[]);
    let stale = metadata_until(&keys, 1, &[], after(0));
    let stale_snapshot = author.timestamp(1, after(DAY), 1, &stale.snapshot).unwrap();
    let cases = [
        ("timestamp", FleetMetadata { timestamp: stale.timestamp, ..fresh.clone() }),
        ("snapshot", FleetMetadata { timestamp: stale_snapshot, snapshot: stale.snapshot, ..fresh.clone() }),
        ("targets", FleetMetadata { targets: stale.targets, ..fresh.clone() }),
        ("release", FleetMetadata { release: stale.release, ..fresh.clone() }),
    ];
    for (expected, files) in cases {
        let mut set = TrustedSet::new(&files.roots[0], now()).unwrap();
        let error = files.apply(&mut set, now()).unwrap_err();
        assert_eq!(error.attack(), Some(Attack::Freeze));
        assert!(matches!(error, TrustError::Expired { role, .. } if role == expected), "{expected}");
    }
}

#[test]
fn an_expired_timestamp_is_remembered_against_older_ones() {
    let keys = keys(10);
    let files = metadata_until(&keys, 5, &[], after(-1));
    let mut set = TrustedSet::new(&files.roots[0], now()).unwrap();
    assert!(matches!(set.update_timestamp(&files.timestamp), Err(TrustError::Expired { .. })));
    assert!(matches!(set.update_snapshot(&files.snapshot), Err(TrustError::Expired { .. })));
    let older = metadata(&keys, 4, &[]);
    assert!(matches!(set.update_timestamp(&older.timestamp), Err(TrustError::VersionRollback { .. })));
    metadata(&keys, 6, &[]).apply(&mut set, now()).unwrap();
}

#[test]
fn a_refused_file_leaves_the_set_as_it_was() {
    let keys = keys(10);
    let mut set = trusting(&metadata(&keys, 2, &[]));
    let stranger = metadata(&crate::fleet::keys(80), 3, &[]);
    assert!(matches!(set.update_timestamp(&stranger.timestamp), Err(TrustError::Threshold { .. })));
    assert_eq!(set.timestamp().unwrap().version(), 2);
    assert!(set.valid_targets("release").is_ok());
}

#[test]
fn refuses_files_that_do_not_belong_together() {
    let keys = keys(10);
    let (old, new) = (metadata(&keys, 1, &[bundle("a", "camera", 1)]), metadata(&keys, 2, &[bundle("b", "camera", 2)]));
    let cases = [
        FleetMetadata { snapshot: old.snapshot.clone(), ..new.clone() },
        FleetMetadata { targets: old.targets.clone(), ..new.clone() },
        FleetMetadata { release: old.release.clone(), ..new.clone() },
    ];
    for files in cases {
        let mut set = TrustedSet::new(&files.roots[0], now()).unwrap();
        assert_eq!(files.apply(&mut set, now()).unwrap_err().attack(), Some(Attack::MixAndMatch));
        assert!(set.valid_targets("release").is_err());
    }
}

#[test]
fn refuses_steps_out_of_order() {
    let keys = keys(10);
    let files = metadata(&keys, 1, &[]);
    let mut set = TrustedSet::new(&files.roots[0], now()).unwrap();
    let missing = |role: &str| TrustError::Missing { role: role.into() };
    assert_eq!(set.update_snapshot(&files.snapshot).unwrap_err(), missing("timestamp"));
    set.update_timestamp(&files.timestamp).unwrap();
    assert_eq!(set.update_targets(&files.targets).unwrap_err(), missing("snapshot"));
    set.update_snapshot(&files.snapshot).unwrap();
    assert_eq!(set.update_delegated("release", "targets", &files.release).unwrap_err(), missing("targets"));
}

#[test]
fn refuses_roles_nobody_lists_or_delegates_to() {
    let (keys, mut set, _) = fleet();
    let release = FleetAuthor::new(&keys).release(1, after(DAY), &[]).unwrap();
    assert!(matches!(set.update_delegated("other", "targets", &release), Err(TrustError::NotDelegated { .. })));
    assert!(matches!(set.verify_unlisted("other", "targets", &release), Err(TrustError::NotDelegated { .. })));
}

#[test]
fn refuses_oversized_files_of_every_role() {
    let keys = keys(10);
    let files = metadata(&keys, 1, &[]);
    let padded = |file: &[u8], limit: usize| [file, &vec![b' '; limit + 1 - file.len()]].concat();
    let limits = Limits::default();
    let mut set = TrustedSet::new(&files.roots[0], now()).unwrap();
    let root = padded(&FleetAuthor::new(&keys).root(2, after(DAY)).unwrap(), limits.root_bytes);
    let too_long = |role: &str, limit_bytes| TrustError::TooLong { role: role.into(), limit_bytes };
    let error = set.update_root(&root).unwrap_err();
    assert_eq!((error.attack(), error), (Some(Attack::EndlessData), too_long("root", 512_000)));
    let timestamp = padded(&files.timestamp, limits.timestamp_bytes);
    assert_eq!(set.update_timestamp(&timestamp).unwrap_err(), too_long("timestamp", 16_384));
    // The same file with one byte less of padding is within bounds.
    set.update_timestamp(&timestamp[..limits.timestamp_bytes]).unwrap();
    let release = padded(&files.release, limits.targets_bytes);
    set.update_snapshot(&files.snapshot).unwrap();
    set.update_targets(&files.targets).unwrap();
    assert_eq!(set.update_delegated("release", "targets", &release).unwrap_err(), too_long("release", 5_000_000));
}

#[test]
fn a_cached_snapshot_guards_the_next_one_and_is_never_final_by_itself() {
    let keys = keys(10);
    let author = FleetAuthor::new(&keys);
    let (old, new) = (metadata(&keys, 5, &[]), metadata(&keys, 6, &[]));
    let mut set = TrustedSet::new(&old.roots[0], now()).unwrap();
    set.update_timestamp(&new.timestamp).unwrap();
    set.restore_snapshot(&old.snapshot).unwrap();
    assert!(matches!(set.meta("release"), Err(TrustError::VersionMismatch { .. })));
    set.update_snapshot(&new.snapshot).unwrap();
    let newer = author.snapshot(7, after(DAY), 7, 7).unwrap();
    assert!(matches!(set.restore_snapshot(&newer), Err(TrustError::VersionMismatch { .. })));
}
