//! A small fleet's repository, made anew for each test from fixed seeds.

use pleach_trust::{BundleEntry, BundleFacts, FleetAuthor, FleetKeys, FleetMetadata, Sha256Digest, SigningKey, TrustedSet, UtcTime};

/// Start of every test: 2026-01-01T00:00:00Z.
pub(crate) const NOW: i64 = 1_767_225_600;
pub(crate) const DAY: i64 = 86_400;

pub(crate) fn now() -> UtcTime {
    UtcTime::from_unix_s(NOW)
}

pub(crate) fn after(seconds: i64) -> UtcTime {
    now().plus_s(seconds)
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

pub(crate) fn keys(first: u8) -> FleetKeys {
    let mut seed = first;
    FleetKeys::load(|_| {
        seed += 1;
        Ok::<_, ()>(key(seed))
    })
    .unwrap()
}

pub(crate) fn bundle(name: &str, class: &str, model_version: u64) -> BundleEntry {
    BundleEntry {
        digest: Sha256Digest::of(name.as_bytes()),
        length: 1000,
        facts: BundleFacts {
            tree_root: Sha256Digest::of(b"tree"),
            chunk_count: 1,
            model: "resnet".into(),
            model_version,
            class: class.into(),
            suite: "aes-256-gcm".into(),
            security_floor: 1,
        },
    }
}

/// All fleet files at one version each.
pub(crate) fn metadata(keys: &FleetKeys, version: u64, bundles: &[BundleEntry]) -> FleetMetadata {
    metadata_until(keys, version, bundles, after(DAY))
}

pub(crate) fn metadata_until(keys: &FleetKeys, version: u64, bundles: &[BundleEntry], expires: UtcTime) -> FleetMetadata {
    let author = FleetAuthor::new(keys);
    let snapshot = author.snapshot(version, expires, version, version).unwrap();
    FleetMetadata {
        roots: vec![author.root(1, after(365 * DAY)).unwrap()],
        timestamp: author.timestamp(version, expires, version, &snapshot).unwrap(),
        snapshot,
        targets: author.targets(version, expires).unwrap(),
        release: author.release(version, expires, bundles).unwrap(),
    }
}

pub(crate) fn trusting(files: &FleetMetadata) -> TrustedSet {
    let mut set = TrustedSet::new(&files.roots[0], now()).unwrap();
    files.apply(&mut set, now()).unwrap();
    set
}

/// A set of a fleet at version 1 that has released one bundle for `camera`.
pub(crate) fn fleet() -> (FleetKeys, TrustedSet, BundleEntry) {
    let keys = keys(10);
    let bundle = bundle("a", "camera", 3);
    let set = trusting(&metadata(&keys, 1, std::slice::from_ref(&bundle)));
    (keys, set, bundle)
}
