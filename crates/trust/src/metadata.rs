//! The four TUF roles as they stand in their files (specification 1.0.x, section 4). Unknown fields are kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::TrustError;
use crate::hash::Hashes;
use crate::key::{KeyId, PublicKey};
use crate::time::UtcTime;

mod targets;

pub use targets::{DelegatedKeys, DelegatedRole, Delegations, SuccinctRoles, TargetFile, Targets};

/// The specification version that we write.
pub const SPEC_VERSION: &str = "1.0.34";

/// Name of the root role.
pub const ROOT: &str = "root";
/// Name of the timestamp role.
pub const TIMESTAMP: &str = "timestamp";
/// Name of the snapshot role.
pub const SNAPSHOT: &str = "snapshot";
/// Name of the top-level targets role.
pub const TARGETS: &str = "targets";

/// What every role's metadata begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// `root`, `timestamp`, `snapshot` or `targets`.
    #[serde(rename = "_type")]
    pub kind: String,
    /// Version of the specification, `1.x`.
    pub spec_version: String,
    /// Version of the metadata, from 1.
    pub version: u64,
    /// When it stops being valid.
    pub expires: UtcTime,
}

impl Common {
    pub(crate) fn new<T: Metadata>(version: u64, expires: UtcTime) -> Self {
        Self { kind: T::KIND.into(), spec_version: SPEC_VERSION.into(), version, expires }
    }

    fn validate(&self, kind: &'static str) -> Result<(), String> {
        if self.kind != kind {
            return Err(format!("_type is {:?}, expected {kind:?}", self.kind));
        }
        let mut parts = self.spec_version.split('.');
        let numeric = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if parts.next() != Some("1") || !self.spec_version.split('.').all(numeric) {
            return Err(format!("spec_version is {:?}, expected 1.x", self.spec_version));
        }
        if self.version == 0 { Err("version is 0, expected at least 1".into()) } else { Ok(()) }
    }
}

/// One of the four roles.
pub trait Metadata: Serialize + DeserializeOwned {
    /// The `_type` of the role.
    const KIND: &'static str;

    /// What every role has.
    fn common(&self) -> &Common;

    /// Checks what the types cannot say; the text says expected and got.
    ///
    /// # Errors
    /// The reason for which the metadata is malformed.
    fn validate_role(&self) -> Result<(), TrustError>;

    /// Checks the whole.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] or [`TrustError::KeyTable`].
    fn validate(&self) -> Result<(), TrustError> {
        self.common().validate(Self::KIND).map_err(|reason| TrustError::malformed(Self::KIND, reason))?;
        self.validate_role()
    }
}

/// Which keys may sign for a role, and how many of them must.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Ids of the keys, each once.
    pub keyids: Vec<KeyId>,
    /// Distinct keys that must sign, at least 1.
    pub threshold: u32,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RoleKeys {
    /// Keys and threshold of a role.
    pub fn new(keyids: Vec<KeyId>, threshold: u32) -> Self {
        Self { keyids, threshold, extra: Map::new() }
    }

    pub(crate) fn validate(&self, file: &str) -> Result<(), TrustError> {
        if self.threshold == 0 {
            return Err(TrustError::malformed(file, "a threshold is 0, expected at least 1"));
        }
        let mut seen = BTreeSet::new();
        match self.keyids.iter().find(|id| !seen.insert(*id)) {
            Some(id) => Err(TrustError::KeyTable { role: file.into(), key: id.clone(), problem: "is named twice for one role" }),
            None => Ok(()),
        }
    }
}

/// The keys of a file, by id.
pub type KeyTable = BTreeMap<KeyId, PublicKey>;

/// `root.json`: who may sign what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// What every role has.
    #[serde(flatten)]
    pub common: Common,
    /// Whether files are named after their version or hash.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// Keys of the four top-level roles.
    pub keys: KeyTable,
    /// Keys and threshold of each top-level role.
    pub roles: BTreeMap<String, RoleKeys>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Root {
    /// Keys and threshold of a top-level role.
    ///
    /// # Errors
    /// [`TrustError::NotDelegated`] for any other name.
    pub fn role(&self, role: &str) -> Result<&RoleKeys, TrustError> {
        let missing = || TrustError::NotDelegated { role: role.to_owned(), delegator: ROOT.into() };
        self.roles.get(role).ok_or_else(missing)
    }
}

impl Metadata for Root {
    const KIND: &'static str = ROOT;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate_role(&self) -> Result<(), TrustError> {
        let top = [ROOT, SNAPSHOT, TARGETS, TIMESTAMP];
        if !self.roles.keys().map(String::as_str).eq(top) {
            return Err(TrustError::malformed(ROOT, format!("roles are {:?}, expected {top:?}", self.roles.keys())));
        }
        self.roles.values().try_for_each(|role| role.validate(ROOT))
    }
}

/// What a snapshot or timestamp says of another metadata file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaFile {
    /// Its version.
    pub version: u64,
    /// Its length in bytes, when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Its hashes, when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Hashes>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl MetaFile {
    /// A file of which only the version is said.
    pub fn version(version: u64) -> Self {
        Self { version, length: None, hashes: None, extra: Map::new() }
    }

    fn validate(&self, file: &str, name: &str) -> Result<(), TrustError> {
        if self.version == 0 {
            return Err(TrustError::malformed(file, format!("version of {name} is 0, expected at least 1")));
        }
        match &self.hashes {
            Some(hashes) if hashes.is_empty() => Err(TrustError::malformed(file, format!("hashes of {name} are empty"))),
            Some(_) | None => Ok(()),
        }
    }
}

/// `snapshot.json`: which versions of the targets files belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What every role has.
    #[serde(flatten)]
    pub common: Common,
    /// Targets files by name, e.g. `targets.json`.
    pub meta: BTreeMap<String, MetaFile>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Metadata for Snapshot {
    const KIND: &'static str = SNAPSHOT;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate_role(&self) -> Result<(), TrustError> {
        self.meta.iter().try_for_each(|(name, meta)| meta.validate(SNAPSHOT, name))
    }
}

/// `timestamp.json`: which snapshot is the newest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timestamp {
    /// What every role has.
    #[serde(flatten)]
    pub common: Common,
    /// Exactly one entry, `snapshot.json`.
    pub meta: BTreeMap<String, MetaFile>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Timestamp {
    /// What it says of the snapshot.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] without the entry.
    pub fn snapshot(&self) -> Result<&MetaFile, TrustError> {
        self.meta.get("snapshot.json").ok_or_else(|| TrustError::malformed(TIMESTAMP, "meta has no snapshot.json"))
    }
}

impl Metadata for Timestamp {
    const KIND: &'static str = TIMESTAMP;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate_role(&self) -> Result<(), TrustError> {
        self.snapshot()?.validate(TIMESTAMP, "snapshot.json")
    }
}
