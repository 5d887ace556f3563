//! Rotation of a fleet's keys: whether published metadata name the keys at hand, the root that hands over to them, and signatures
//! added to a root elsewhere.

use serde_json::{Value, json};

use crate::canonical;
use crate::error::TrustError;
use crate::fleet::FleetAuthor;
use crate::key::SigningKey;
use crate::metadata::{ROOT, RoleKeys, Root, TARGETS, Targets};
use crate::set::{Limits, TrustedSet};
use crate::signed::{Signed, sign};
use crate::time::UtcTime;

impl FleetAuthor<'_> {
    /// The top-level roles to which a published root gives other keys than this author's.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] when it is no root.
    pub fn differing_roles(&self, root: &[u8]) -> Result<Vec<String>, TrustError> {
        let published = Signed::<Root>::parse(ROOT, root, Limits::default().root_bytes)?;
        let published = published.content();
        let ours = self.root_content(1, published.common.expires)?;
        let same = |role: &str, keys: &RoleKeys| {
            let named = published.roles.get(role).is_some_and(|p| (&p.keyids, p.threshold) == (&keys.keyids, keys.threshold));
            named && keys.keyids.iter().all(|id| published.keys.get(id) == ours.keys.get(id))
        };
        Ok(ours.roles.iter().filter(|(role, keys)| !same(role, keys)).map(|(role, _)| role.clone()).collect())
    }

    /// Whether a published targets file delegates to the keys of this author and is signed by its targets key.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] when it is no targets file.
    pub fn is_author_of_targets(&self, targets: &[u8]) -> Result<bool, TrustError> {
        let published = Signed::<Targets>::parse(TARGETS, targets, Limits::default().targets_bytes)?;
        let expires = published.content().common.expires;
        let ours = Signed::<Targets>::parse(TARGETS, &self.targets(published.version(), expires)?, Limits::default().targets_bytes)?;
        let root = self.root_content(1, expires)?;
        let signed = published.verify(TARGETS, &root.keys, root.role(TARGETS)?).is_ok();
        Ok(signed && ours.content().delegations == published.content().delegations)
    }

    /// The root after `trusted`, which names the keys of this author; `previous` is the root key that hands over, when it is another.
    ///
    /// # Errors
    /// [`TrustError::Threshold`] when the keys at hand are not those that `trusted` asks for, as with a root key that is kept elsewhere.
    pub fn next_root(&self, trusted: &[u8], previous: Option<&SigningKey>, expires: UtcTime) -> Result<(u64, Vec<u8>), TrustError> {
        let mut set = TrustedSet::new(trusted, expires)?;
        let version = set.root().version().saturating_add(1);
        let root = match previous {
            Some(previous) => self.rotate_root(previous, version, expires)?,
            None => self.root(version, expires)?,
        };
        set.update_root(&root)?;
        Ok((version, root))
    }
}

/// Checks that `offered` is the root after `trusted`, signed as both ask for; gives its version and expiry.
///
/// # Errors
/// Those of [`TrustedSet::update_root`].
pub fn accept_root(trusted: &[u8], offered: &[u8]) -> Result<(u64, UtcTime), TrustError> {
    let mut set = TrustedSet::new(trusted, UtcTime::from_unix_s(0))?;
    set.update_root(offered)?;
    Ok((set.root().version(), set.root().content().common.expires))
}

/// Adds a key's signature to a root file, for a ceremony in which each key is somewhere else; replaces one that the key made before.
///
/// # Errors
/// [`TrustError::Malformed`] when the file is no root.
pub fn add_signature(root: &[u8], key: &SigningKey) -> Result<Vec<u8>, TrustError> {
    let malformed = |e: serde_json::Error| TrustError::malformed(ROOT, e);
    let content = Signed::<Root>::parse(ROOT, root, Limits::default().root_bytes)?.content().clone();
    let mut envelope = canonical::parse(root).map_err(malformed)?;
    let ours = canonical::parse(&sign(&content, &[key])?).map_err(malformed)?;
    let added = ours.get("signatures").and_then(|s| s.get(0)).cloned().unwrap_or_default();
    let id = added.get("keyid").cloned().unwrap_or_default();
    let kept = envelope.get("signatures").and_then(Value::as_array).into_iter().flatten();
    let kept: Vec<Value> = kept.filter(|signature| signature.get("keyid") != Some(&id)).cloned().chain([added]).collect();
    envelope.as_object_mut().map(|object| object.insert("signatures".into(), json!(kept)));
    serde_json::to_vec(&envelope).map_err(malformed)
}
