//! Targets metadata and its delegations (specification 1.0.x, section 4.5).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Common, KeyTable, Metadata, ROOT, RoleKeys, SNAPSHOT, TARGETS, TIMESTAMP};
use crate::error::TrustError;
use crate::hash::{Hashes, Sha256Digest};
use crate::key::KeyId;

/// A targets file: signed files, and who else may sign for which paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// What every role has.
    #[serde(flatten)]
    pub common: Common,
    /// Files by path.
    pub targets: BTreeMap<String, TargetFile>,
    /// Roles this one delegates to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A signed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFile {
    /// Length in bytes.
    pub length: u64,
    /// Hashes by algorithm.
    pub hashes: Hashes,
    /// What the signer says beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Value>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Roles that a targets role delegates to: a list, or bins by hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delegations {
    /// Keys of the delegated roles.
    pub keys: KeyTable,
    /// The roles, by priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<DelegatedRole>>,
    /// Bins by hash (TAP 15), instead of `roles`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succinct_roles: Option<SuccinctRoles>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One delegated role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// Its name.
    pub name: String,
    /// Its keys and threshold.
    #[serde(flatten)]
    pub keys: DelegatedKeys,
    /// Whether the search for one of its paths ends with it.
    pub terminating: bool,
    /// Path patterns; `*` and `?` do not cross a `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Prefixes of the hexadecimal SHA-256 of the path, instead of `paths`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash_prefixes: Option<Vec<String>>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Keys and threshold inside a [`DelegatedRole`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DelegatedKeys {
    /// Ids of the keys, each once.
    pub keyids: Vec<KeyId>,
    /// Distinct keys that must sign.
    pub threshold: u32,
}

/// Delegation to 2^`bit_length` roles by the first bits of the path's SHA-256 (TAP 15).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuccinctRoles {
    /// Keys and threshold of every bin.
    #[serde(flatten)]
    pub keys: DelegatedKeys,
    /// 1 to 32.
    pub bit_length: u32,
    /// Bins are named `prefix-<hex>`.
    pub name_prefix: String,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl DelegatedKeys {
    fn role_keys(&self) -> RoleKeys {
        RoleKeys::new(self.keyids.clone(), self.threshold)
    }
}

impl DelegatedRole {
    /// Whether the role was given `path`.
    pub fn covers(&self, path: &str) -> bool {
        let by_pattern = self.paths.iter().flatten().any(|pattern| glob(pattern, path));
        let hash = || Sha256Digest::of(path.as_bytes()).to_string();
        by_pattern || self.path_hash_prefixes.iter().flatten().any(|prefix| hash().starts_with(prefix.as_str()))
    }

    fn validate(&self) -> Result<(), TrustError> {
        let wrong = |reason: &str| Err(TrustError::malformed(TARGETS, format!("delegated role {:?}: {reason}", self.name)));
        if self.name.is_empty() || [ROOT, SNAPSHOT, TARGETS, TIMESTAMP].contains(&self.name.as_str()) {
            return wrong("its name is not allowed");
        }
        if self.paths.is_some() == self.path_hash_prefixes.is_some() {
            return wrong("expected either paths or path_hash_prefixes");
        }
        self.keys.role_keys().validate(TARGETS)
    }
}

impl SuccinctRoles {
    fn suffix_digits(&self) -> usize {
        self.bit_length.div_ceil(4) as usize
    }

    /// The bin that `path` falls in.
    pub fn bin(&self, path: &str) -> String {
        let [a, b, c, d, ..] = *Sha256Digest::of(path.as_bytes()).as_bytes();
        let bits = u32::from_be_bytes([a, b, c, d]).checked_shr(32 - self.bit_length).unwrap_or(0);
        format!("{}-{bits:0width$x}", self.name_prefix, width = self.suffix_digits())
    }

    fn has(&self, role: &str) -> bool {
        let suffix = role.strip_prefix(&self.name_prefix).and_then(|rest| rest.strip_prefix('-'));
        let lower_hex = |s: &&str| s.len() == self.suffix_digits() && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = suffix.filter(lower_hex).and_then(|s| u64::from_str_radix(s, 16).ok());
        number.is_some_and(|n| n < 1 << self.bit_length)
    }

    fn validate(&self) -> Result<(), TrustError> {
        if !(1..=32).contains(&self.bit_length) {
            return Err(TrustError::malformed(TARGETS, format!("bit_length is {}, expected 1 to 32", self.bit_length)));
        }
        self.keys.role_keys().validate(TARGETS)
    }
}

impl Delegations {
    /// Keys and threshold of a role this file delegates to.
    pub fn role_keys(&self, name: &str) -> Option<RoleKeys> {
        let listed = self.roles.iter().flatten().find(|role| role.name == name).map(|role| role.keys.role_keys());
        listed.or_else(|| self.succinct_roles.iter().find(|bins| bins.has(name)).map(|bins| bins.keys.role_keys()))
    }

    /// Whether the role `name` was given `path`.
    pub fn covers(&self, name: &str, path: &str) -> bool {
        let listed = self.roles.iter().flatten().any(|role| role.name == name && role.covers(path));
        listed || self.succinct_roles.iter().any(|bins| bins.bin(path) == name)
    }

    /// The roles that were given `path`, by priority, and whether each ends the search.
    pub fn roles_for(&self, path: &str) -> Vec<(String, bool)> {
        if let Some(bins) = &self.succinct_roles {
            return vec![(bins.bin(path), true)];
        }
        self.roles.iter().flatten().filter(|role| role.covers(path)).map(|r| (r.name.clone(), r.terminating)).collect()
    }

    fn validate(&self) -> Result<(), TrustError> {
        if self.roles.is_some() == self.succinct_roles.is_some() {
            return Err(TrustError::malformed(TARGETS, "expected either roles or succinct_roles"));
        }
        let mut seen = BTreeSet::new();
        for role in self.roles.iter().flatten() {
            role.validate()?;
            if !seen.insert(role.name.as_str()) {
                return Err(TrustError::malformed(TARGETS, format!("role {:?} is delegated to twice", role.name)));
            }
        }
        self.succinct_roles.iter().try_for_each(SuccinctRoles::validate)
    }
}

impl Metadata for Targets {
    const KIND: &'static str = TARGETS;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate_role(&self) -> Result<(), TrustError> {
        if let Some((path, _)) = self.targets.iter().find(|(_, file)| file.hashes.is_empty()) {
            return Err(TrustError::malformed(TARGETS, format!("target {path:?} has no hash")));
        }
        self.delegations.iter().try_for_each(Delegations::validate)
    }
}

/// Matches a path against a pattern, component by component (specification 1.0.x, section 4.5, PATHPATTERN).
pub(crate) fn glob(pattern: &str, path: &str) -> bool {
    let (patterns, parts) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == parts.clone().count() && patterns.zip(parts).all(|(pattern, part)| component(pattern, part))
}

/// `*` is any run of characters, `?` any one; linear in the product of the lengths.
fn component(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // reach[i]: the pattern so far matches the first i characters.
    let mut reach = vec![false; text.len() + 1];
    reach.iter_mut().take(1).for_each(|r| *r = true);
    for wanted in pattern.chars() {
        let before = reach;
        let mut star = false;
        reach = (0..=text.len())
            .map(|i| {
                let at = before.get(i).copied().unwrap_or(false);
                let behind = i.checked_sub(1).and_then(|j| Some((before.get(j).copied()?, text.get(j).copied()?)));
                star |= at;
                match wanted {
                    '*' => star,
                    '?' => behind.is_some_and(|(matched, _)| matched),
                    literal => behind.is_some_and(|(matched, c)| matched && c == literal),
                }
            })
            .collect();
    }
    reach.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_component_by_component() {
        for (pattern, path) in
            [("*", "a"), ("a/*", "a/b"), ("*/*", "a/b"), ("a?c", "abc"), ("a*c*e", "abcde"), ("", ""), ("**", "x"), ("é?", "éü")]
        {
            assert!(glob(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in
            [("*", "a/b"), ("a/*", "a/b/c"), ("a?c", "ac"), ("a", "A"), ("*b", "ba"), ("?", ""), ("a/*", "a"), ("[a]", "a")]
        {
            assert!(!glob(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn hostile_patterns_cost_no_more_than_their_product() {
        assert!(!glob(&"*a".repeat(500), &"a".repeat(400)));
    }

    #[test]
    fn hash_prefixes_and_bins_split_paths_by_their_sha256() {
        let hash = Sha256Digest::of(b"some/path").to_string();
        let role = |prefix: &str| DelegatedRole {
            name: "r".into(),
            keys: DelegatedKeys { keyids: vec![], threshold: 1 },
            terminating: false,
            paths: None,
            path_hash_prefixes: Some(vec![prefix.to_owned()]),
            extra: Map::new(),
        };
        assert!(role(&hash[..2]).covers("some/path") && role("").covers("some/path"));
        assert!(!role(&format!("{}x", &hash[..2])).covers("some/path"));
        let bins = |bit_length| {
            let keys = DelegatedKeys { keyids: vec![], threshold: 1 };
            SuccinctRoles { keys, bit_length, name_prefix: "bin".into(), extra: Map::new() }
        };
        assert_eq!(bins(8).bin("some/path"), format!("bin-{}", &hash[..2]));
        assert_eq!(bins(32).bin("some/path"), format!("bin-{}", &hash[..8]));
        assert!(bins(1).has("bin-1") && !bins(1).has("bin-2") && !bins(8).has("bin-1") && !bins(8).has("bin-+1"));
        assert!(bins(0).validate().is_err() && bins(33).validate().is_err());
    }
}
