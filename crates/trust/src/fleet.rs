//! The repository layout of a Pleach fleet, and its author.
//!
//! One root. The top-level targets role lists nothing itself; it delegates `bundles/*` to `release` and
//! `assignments/*/*` to `director`. The release file lists every live bundle and is in the snapshot. Each device has a director
//! file of its own, with one target `assignments/<device>/<bundle digest>`, whose version is the assignment's sequence; it is not in
//! the snapshot (a snapshot of every device's file would tell each device of all others), and its expiry bounds a freeze.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::error::TrustError;
use crate::hash::{Sha256Digest, sha256_only};
use crate::key::SigningKey;
use crate::metadata::{
    Common, DelegatedKeys, DelegatedRole, Delegations, KeyTable, MetaFile, ROOT, RoleKeys, Root, SNAPSHOT, Snapshot, TARGETS, TIMESTAMP,
    TargetFile, Targets, Timestamp,
};
use crate::set::{Progress, TrustedSet};
use crate::signed::{Signed, sign};
use crate::time::UtcTime;

/// Name of the role that vouches for bundles.
pub const RELEASE: &str = "release";
/// Name of the role that says which device runs which bundle.
pub const DIRECTOR: &str = "director";

const BUNDLES: &str = "bundles/";
const ASSIGNMENTS: &str = "assignments/";

/// What both signers say of a bundle, beside its length and digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFacts {
    /// Root of the hash tree over the ciphertext chunks.
    pub tree_root: Sha256Digest,
    /// Number of chunks.
    pub chunk_count: u32,
    /// Name of the model.
    pub model: String,
    /// Version of the model.
    pub model_version: u64,
    /// Class the bundle was made for.
    pub class: String,
    /// Cipher suite, e.g. `aes-256-gcm`.
    pub suite: String,
    /// Lowest version of this model that may still be installed, as far as was known when the bundle was made.
    pub security_floor: u64,
}

/// One bundle as it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleEntry {
    /// SHA-256 of the ciphertext: the bundle's identity.
    pub digest: Sha256Digest,
    /// Length of the ciphertext in bytes.
    pub length: u64,
    /// The rest.
    pub facts: BundleFacts,
}

impl BundleEntry {
    pub(crate) fn release_path(&self) -> String {
        release_path(&self.digest)
    }

    fn target(&self) -> Result<TargetFile, TrustError> {
        let custom = serde_json::to_value(&self.facts).map_err(|e| TrustError::malformed(RELEASE, e))?;
        Ok(TargetFile { length: self.length, hashes: sha256_only(&self.digest), custom: Some(custom), extra: Map::new() })
    }

    pub(crate) fn parse(role: &str, digest: Sha256Digest, file: &TargetFile) -> Result<Self, TrustError> {
        if file.hashes != sha256_only(&digest) {
            return Err(TrustError::malformed(role, format!("hashes of {digest} are not exactly that SHA-256")));
        }
        let custom = file.custom.clone().ok_or_else(|| TrustError::malformed(role, format!("bundle {digest} has no custom facts")))?;
        let facts = serde_json::from_value(custom).map_err(|e| TrustError::malformed(role, e))?;
        Ok(Self { digest, length: file.length, facts })
    }
}

/// Target path of a bundle in the release file.
pub fn release_path(bundle: &Sha256Digest) -> String {
    format!("{BUNDLES}{bundle}")
}

/// Target path of an assignment in a device's director file.
pub fn assignment_path(device: &str, bundle: &Sha256Digest) -> String {
    format!("{ASSIGNMENTS}{device}/{bundle}")
}

/// Splits [`assignment_path`].
pub(crate) fn parse_assignment_path(path: &str) -> Option<(&str, Sha256Digest)> {
    let (device, bundle) = path.strip_prefix(ASSIGNMENTS)?.split_once('/')?;
    Some((device, Sha256Digest::from_hex(bundle)?))
}

/// The secret keys of a fleet whose signers all live in one place. A ceremony that keeps some of them elsewhere signs with
/// [`sign`] instead.
#[derive(Clone, Debug)]
pub struct FleetKeys {
    /// Signs the root.
    pub root: SigningKey,
    /// Signs the delegations.
    pub targets: SigningKey,
    /// Signs the snapshot.
    pub snapshot: SigningKey,
    /// Signs the timestamp.
    pub timestamp: SigningKey,
    /// Vouches for bundles.
    pub release: SigningKey,
    /// Assigns bundles to devices.
    pub director: SigningKey,
}

impl FleetKeys {
    /// Makes six fresh keys.
    ///
    /// # Errors
    /// [`TrustError::Randomness`].
    pub fn generate() -> Result<Self, TrustError> {
        let key = SigningKey::generate;
        Ok(Self { root: key()?, targets: key()?, snapshot: key()?, timestamp: key()?, release: key()?, director: key()? })
    }

    /// The keys with their names, e.g. for files.
    pub fn named(&self) -> [(&'static str, &SigningKey); 6] {
        [
            (ROOT, &self.root),
            (TARGETS, &self.targets),
            (SNAPSHOT, &self.snapshot),
            (TIMESTAMP, &self.timestamp),
            (RELEASE, &self.release),
            (DIRECTOR, &self.director),
        ]
    }

    /// Puts the keys together again from [`FleetKeys::named`].
    ///
    /// # Errors
    /// Whatever `load` gives for a name.
    pub fn load<E>(mut load: impl FnMut(&'static str) -> Result<SigningKey, E>) -> Result<Self, E> {
        Ok(Self {
            root: load(ROOT)?,
            targets: load(TARGETS)?,
            snapshot: load(SNAPSHOT)?,
            timestamp: load(TIMESTAMP)?,
            release: load(RELEASE)?,
            director: load(DIRECTOR)?,
        })
    }
}

/// Writes the metadata of a fleet. Versions and expiries are the caller's: they live in its database.
#[derive(Clone, Copy, Debug)]
pub struct FleetAuthor<'a> {
    keys: &'a FleetKeys,
}

impl<'a> FleetAuthor<'a> {
    /// An author with these keys.
    pub fn new(keys: &'a FleetKeys) -> Self {
        Self { keys }
    }

    /// `root.json`. A root that changes the root key must also be signed by the old one: see [`FleetAuthor::rotate_root`].
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for version 0.
    pub fn root(&self, version: u64, expires: UtcTime) -> Result<Vec<u8>, TrustError> {
        sign(&self.root_content(version, expires)?, &[&self.keys.root])
    }

    /// `root.json` of the next version, which hands over from the root key `old`.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for version 0.
    pub fn rotate_root(&self, old: &SigningKey, version: u64, expires: UtcTime) -> Result<Vec<u8>, TrustError> {
        sign(&self.root_content(version, expires)?, &[old, &self.keys.root])
    }

    /// `targets.json`: the two delegations.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for version 0.
    pub fn targets(&self, version: u64, expires: UtcTime) -> Result<Vec<u8>, TrustError> {
        let release = delegated(RELEASE, &self.keys.release, "bundles/*")?;
        let director = delegated(DIRECTOR, &self.keys.director, "assignments/*/*")?;
        let delegations = Delegations {
            keys: table(&[&self.keys.release, &self.keys.director])?,
            roles: Some(vec![release, director]),
            succinct_roles: None,
            extra: Map::new(),
        };
        let content = targets(version, expires, BTreeMap::new(), Some(delegations));
        sign(&content, &[&self.keys.targets])
    }

    /// `release.json`: every live bundle.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for version 0.
    pub fn release(&self, version: u64, expires: UtcTime, bundles: &[BundleEntry]) -> Result<Vec<u8>, TrustError> {
        let files = bundles.iter().map(|b| Ok((b.release_path(), b.target()?))).collect::<Result<_, TrustError>>()?;
        sign(&targets(version, expires, files, None), &[&self.keys.release])
    }

    /// A device's director file: the one bundle it should run. `sequence` is its version.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for sequence 0 or a device id with a `/`.
    pub fn assignment(&self, device: &str, bundle: &BundleEntry, sequence: u64, expires: UtcTime) -> Result<Vec<u8>, TrustError> {
        let path = assignment_path(device, &bundle.digest);
        if device.is_empty() || parse_assignment_path(&path) != Some((device, bundle.digest)) {
            return Err(TrustError::malformed(DIRECTOR, format!("device id {device:?} is no path component")));
        }
        let files = BTreeMap::from([(path, bundle.target()?)]);
        sign(&targets(sequence, expires, files, None), &[&self.keys.director])
    }

    /// `snapshot.json`: the targets and release files that belong together.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for a version 0.
    pub fn snapshot(&self, version: u64, expires: UtcTime, targets_version: u64, release_version: u64) -> Result<Vec<u8>, TrustError> {
        let meta = BTreeMap::from([
            ("targets.json".to_owned(), MetaFile::version(targets_version)),
            ("release.json".to_owned(), MetaFile::version(release_version)),
        ]);
        let content = Snapshot { common: Common::new::<Snapshot>(version, expires), meta, extra: Map::new() };
        sign(&content, &[&self.keys.snapshot])
    }

    /// `timestamp.json`: the snapshot whose file is `snapshot`.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for a version 0.
    pub fn timestamp(&self, version: u64, expires: UtcTime, snapshot_version: u64, snapshot: &[u8]) -> Result<Vec<u8>, TrustError> {
        let meta = MetaFile {
            version: snapshot_version,
            length: Some(snapshot.len() as u64),
            hashes: Some(sha256_only(&Sha256Digest::of(snapshot))),
            extra: Map::new(),
        };
        let meta = BTreeMap::from([("snapshot.json".to_owned(), meta)]);
        let content = Timestamp { common: Common::new::<Timestamp>(version, expires), meta, extra: Map::new() };
        sign(&content, &[&self.keys.timestamp])
    }

    pub(crate) fn root_content(&self, version: u64, expires: UtcTime) -> Result<Root, TrustError> {
        let signers =
            [(ROOT, &self.keys.root), (TARGETS, &self.keys.targets), (SNAPSHOT, &self.keys.snapshot), (TIMESTAMP, &self.keys.timestamp)];
        let role = |(name, key): (&str, &SigningKey)| Ok((name.to_owned(), RoleKeys::new(vec![key.public_key().key_id()?], 1)));
        Ok(Root {
            common: Common::new::<Root>(version, expires),
            consistent_snapshot: true,
            keys: table(&signers.map(|(_, key)| key))?,
            roles: signers.into_iter().map(role).collect::<Result<_, TrustError>>()?,
            extra: Map::new(),
        })
    }
}

/// The files that a device needs beside its own director file, as they travel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetMetadata {
    /// Roots from any version the device has onwards, in order; ones it has already are skipped.
    pub roots: Vec<Vec<u8>>,
    /// `timestamp.json`.
    pub timestamp: Vec<u8>,
    /// `snapshot.json`.
    pub snapshot: Vec<u8>,
    /// `targets.json`.
    pub targets: Vec<u8>,
    /// `release.json`.
    pub release: Vec<u8>,
}

impl FleetMetadata {
    /// Walks a trusted set through all files, top down (specification, sections 5.3 to 5.6).
    ///
    /// # Errors
    /// The first refusal; what was verified before it stays.
    pub fn apply(&self, set: &mut TrustedSet, now: UtcTime) -> Result<Progress, TrustError> {
        set.begin_refresh(now);
        let mut progress = Progress::Unchanged;
        let mut note = |step: Progress| {
            if step == Progress::Updated {
                progress = step;
            }
        };
        for root in &self.roots {
            let version = Signed::<Root>::parse(ROOT, root, set.limits().root_bytes)?.version();
            if version > set.root().version() {
                note(set.update_root(root)?);
            }
        }
        note(set.update_timestamp(&self.timestamp)?);
        note(set.update_snapshot(&self.snapshot)?);
        note(set.update_targets(&self.targets)?);
        note(set.update_delegated(RELEASE, TARGETS, &self.release)?);
        Ok(progress)
    }
}

fn targets(version: u64, expires: UtcTime, files: BTreeMap<String, TargetFile>, delegations: Option<Delegations>) -> Targets {
    Targets { common: Common::new::<Targets>(version, expires), targets: files, delegations, extra: Map::new() }
}

fn table(keys: &[&SigningKey]) -> Result<KeyTable, TrustError> {
    keys.iter().map(|key| Ok((key.public_key().key_id()?, key.public_key()))).collect()
}

fn delegated(name: &str, key: &SigningKey, path: &str) -> Result<DelegatedRole, TrustError> {
    Ok(DelegatedRole {
        name: name.to_owned(),
        keys: DelegatedKeys { keyids: vec![key.public_key().key_id()?], threshold: 1 },
        terminating: true,
        paths: Some(vec![path.to_owned()]),
        path_hash_prefixes: None,
        extra: Map::new(),
    })
}
