//! The client workflow of TUF (specification 1.0.x, section 5) with a repository and a cache: fetch, verify, keep, search.
//!
//! The repository is reached through [`Fetch`], so this module knows no network. Every length is bounded here, whatever the
//! repository says or does. The order of steps, and which file is asked for when, are those of the specification.

use std::io::{Read, Write};

use crate::cache::{Cache, file_name, percent_encode};
use crate::error::{ClientError, FetchError, TrustError};
use crate::hash;
use crate::metadata::{MetaFile, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TargetFile};
use crate::set::{Limits, Progress, TrustedSet};
use crate::time::UtcTime;

/// Reaches the files of a repository.
pub trait Fetch {
    /// Opens a metadata file, e.g. `3.root.json`, whose name needs no further encoding. `None` when there is none.
    ///
    /// # Errors
    /// [`FetchError`] when the repository cannot say.
    fn metadata(&mut self, file: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError>;

    /// Opens a target by its encoded path, e.g. `models/<hash>.a.onnx`. `None` when there is none.
    ///
    /// # Errors
    /// [`FetchError`] when the repository cannot say.
    fn target(&mut self, path: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError>;
}

/// A client of one repository.
#[derive(Debug)]
pub struct Client<F> {
    set: TrustedSet,
    cache: Cache,
    fetch: F,
}

/// Puts the root that is trusted by other means into an empty cache.
///
/// # Errors
/// [`ClientError::Trust`] when it is malformed or not signed by itself, [`ClientError::Cache`].
pub fn begin(cache: &Cache, root: &[u8], now: UtcTime) -> Result<(), ClientError> {
    TrustedSet::new(root, now)?;
    cache.store(ROOT, root)
}

impl<F: Fetch> Client<F> {
    /// Takes up the cache that [`begin`] made. Nothing is fetched.
    ///
    /// # Errors
    /// [`ClientError::Trust`] when the root in the cache is missing, malformed or not signed by itself.
    pub fn open(cache: Cache, fetch: F, now: UtcTime, limits: Limits) -> Result<Self, ClientError> {
        let missing = || TrustError::Missing { role: ROOT.into() };
        let root = cache.load(ROOT, limits.root_bytes)?.ok_or_else(missing)?;
        Ok(Self { set: TrustedSet::with_limits(&root, now, limits)?, cache, fetch })
    }

    /// What is trusted.
    pub fn set(&self) -> &TrustedSet {
        &self.set
    }

    /// Brings the top-level metadata up to date (steps 5.1 to 5.6). `now` is the time of the whole refresh.
    ///
    /// # Errors
    /// The first refusal; what was verified before it is kept.
    pub fn refresh(&mut self, now: UtcTime) -> Result<(), ClientError> {
        self.set.begin_refresh(now);
        self.refresh_root()?;
        self.refresh_timestamp()?;
        self.refresh_snapshot()?;
        self.load_targets(TARGETS, ROOT)
    }

    /// Searches a target through the delegations, depth first and in their order (step 5.6.7).
    ///
    /// # Errors
    /// What the metadata of a role on the way was refused for, [`ClientError::TooManyRoles`].
    pub fn find(&mut self, path: &str) -> Result<Option<TargetFile>, ClientError> {
        let mut visited: Vec<String> = Vec::new();
        let mut waiting = vec![(TARGETS.to_owned(), ROOT.to_owned())];
        while let Some((role, delegator)) = waiting.pop() {
            if visited.contains(&role) {
                continue;
            }
            if visited.len() >= self.set.limits().roles {
                return Err(ClientError::TooManyRoles { path: path.to_owned(), limit: self.set.limits().roles });
            }
            self.load_targets(&role, &delegator)?;
            let content = self.set.valid_targets(&role)?.content();
            if let Some(file) = content.targets.get(path) {
                return Ok(Some(file.clone()));
            }
            let mut children = content.delegations.as_ref().map(|d| d.roles_for(path)).unwrap_or_default();
            if let Some(last) = children.iter().position(|(_, terminating)| *terminating) {
                children.truncate(last + 1);
                waiting.clear();
            }
            waiting.extend(children.into_iter().rev().map(|(child, _)| (child, role.clone())));
            visited.push(role);
        }
        Ok(None)
    }

    /// Downloads a target that [`Client::find`] gave into `sink`, which may be used only after `Ok` (step 5.7).
    ///
    /// # Errors
    /// [`ClientError::TargetPath`], [`ClientError::NotThere`], [`ClientError::Fetch`], or [`ClientError::Trust`] when what
    /// came is not what was signed.
    pub fn download(&mut self, path: &str, file: &TargetFile, sink: &mut dyn Write) -> Result<(), ClientError> {
        let consistent = self.set.root().content().consistent_snapshot;
        let prefix = file.hashes.values().next().filter(|_| consistent).map(String::as_str);
        let location = target_location(path, prefix)?;
        let source = self.fetch.target(&location).map_err(|source| ClientError::fetch(&location, source))?;
        let mut source = source.ok_or_else(|| ClientError::NotThere { file: location.clone() })?;
        hash::copy_checked(path, &mut source, file, sink)
    }

    fn refresh_root(&mut self) -> Result<(), ClientError> {
        for _ in 0..self.set.limits().roots {
            let file = format!("{}.root.json", self.set.root().version().saturating_add(1));
            let Some(bytes) = self.metadata(ROOT, &file, self.set.limits().root_bytes)? else { break };
            self.set.update_root(&bytes)?;
            self.cache.store(ROOT, &bytes)?;
        }
        Ok(self.set.check_root_expiry()?)
    }

    fn refresh_timestamp(&mut self) -> Result<(), ClientError> {
        let limit = self.set.limits().timestamp_bytes;
        if let Some(cached) = self.cache.load(TIMESTAMP, limit)? {
            // One that is refused, as after a rotation of its keys, is as if it were not there.
            let _ = self.set.update_timestamp(&cached);
        }
        let bytes = self.expect(TIMESTAMP, "timestamp.json", limit)?;
        match self.set.update_timestamp(&bytes)? {
            Progress::Updated => self.cache.store(TIMESTAMP, &bytes),
            Progress::Unchanged => Ok(()),
        }
    }

    fn refresh_snapshot(&mut self) -> Result<(), ClientError> {
        let limit = self.set.limits().snapshot_bytes;
        if let Some(cached) = self.cache.load(SNAPSHOT, limit)? {
            if self.set.update_snapshot(&cached).is_ok() {
                return Ok(());
            }
            // An older one still says which versions of the targets files were seen.
            let _ = self.set.restore_snapshot(&cached);
        }
        let meta = self.set.snapshot_meta()?;
        let bytes = self.listed(SNAPSHOT, &meta, limit)?;
        self.set.update_snapshot(&bytes)?;
        self.cache.store(SNAPSHOT, &bytes)
    }

    /// Has the metadata of a targets role in the set, verified against this delegator.
    fn load_targets(&mut self, role: &str, delegator: &str) -> Result<(), ClientError> {
        if self.set.delegator(role) == Some(delegator) && self.set.valid_targets(role).is_ok() {
            return Ok(());
        }
        let limit = self.set.limits().targets_bytes;
        if let Some(cached) = self.cache.load(role, limit)?
            && self.set.update_delegated(role, delegator, &cached).is_ok()
        {
            return Ok(());
        }
        let meta = self.set.meta(role)?;
        let bytes = self.listed(role, &meta, limit)?;
        self.set.update_delegated(role, delegator, &bytes)?;
        self.cache.store(role, &bytes)
    }

    /// Fetches the file that another one lists, under its versioned name in a consistent snapshot.
    fn listed(&mut self, role: &str, meta: &MetaFile, limit: usize) -> Result<Vec<u8>, ClientError> {
        let name = file_name(role);
        let file = match self.set.root().content().consistent_snapshot {
            true => format!("{}.{name}.json", meta.version),
            false => format!("{name}.json"),
        };
        let length = meta.length.and_then(|length| usize::try_from(length).ok()).unwrap_or(limit);
        self.expect(role, &file, length.min(limit))
    }

    fn expect(&mut self, role: &str, file: &str, limit: usize) -> Result<Vec<u8>, ClientError> {
        self.metadata(role, file, limit)?.ok_or_else(|| ClientError::NotThere { file: file.to_owned() })
    }

    fn metadata(&mut self, role: &str, file: &str, limit: usize) -> Result<Option<Vec<u8>>, ClientError> {
        let Some(source) = self.fetch.metadata(file).map_err(|source| ClientError::fetch(file, source))? else { return Ok(None) };
        let mut bytes = Vec::new();
        source.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|error| ClientError::fetch(file, error.into()))?;
        if bytes.len() > limit {
            return Err(TrustError::TooLong { role: role.to_owned(), limit_bytes: limit }.into());
        }
        Ok(Some(bytes))
    }
}

/// Where a target lies below the base URL: its path, its last component behind a hash in a consistent snapshot. The path is a
/// path-relative URL already; what no URL path may hold is encoded, and steps up or out are refused.
fn target_location(path: &str, prefix: Option<&str>) -> Result<String, ClientError> {
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.iter().any(|part| ["", ".", ".."].contains(part)) || path.contains('\\') {
        return Err(ClientError::TargetPath { path: path.to_owned() });
    }
    let last = parts.pop().unwrap_or_default();
    let named = prefix.map(|hash| format!("{hash}.{last}"));
    parts.push(named.as_deref().unwrap_or(last));
    Ok(percent_encode(&parts.join("/"), |byte| b"-._~!$&'()*+,;=:@/%".contains(&byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_lie_below_their_base() {
        assert_eq!(target_location("a/b.txt", Some("00ff")).unwrap(), "a/00ff.b.txt");
        assert_eq!(target_location("b c?#%20é", None).unwrap(), "b%20c%3F%23%20%C3%A9");
        for path in ["", "/a", "a//b", "../a", "a/..", "./a", "a\\..\\b", "a/"] {
            assert!(matches!(target_location(path, None), Err(ClientError::TargetPath { .. })), "{path}");
        }
    }
}
