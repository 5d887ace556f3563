//! The trusted set: the client workflow of TUF (specification 1.0.x, section 5) as steps that take bytes.
//!
//! Whatever is in the set was verified against what stands above it in the set. A step that fails leaves the set as it was,
//! with one exception: a timestamp that is genuine but expired is remembered, so that an older one is refused after it.

use std::collections::BTreeMap;

use crate::error::TrustError;
use crate::hash;
use crate::metadata::{MetaFile, Metadata, ROOT, Root, SNAPSHOT, Snapshot, TARGETS, TIMESTAMP, Targets, Timestamp};
use crate::signed::Signed;
use crate::time::UtcTime;

/// Most bytes of each role's metadata, and most steps of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Root.
    pub root_bytes: usize,
    /// Timestamp.
    pub timestamp_bytes: usize,
    /// Snapshot.
    pub snapshot_bytes: usize,
    /// Targets, top-level and delegated.
    pub targets_bytes: usize,
    /// Most new roots that one refresh follows.
    pub roots: usize,
    /// Most targets roles that the search for one target goes through.
    pub roles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { root_bytes: 512_000, timestamp_bytes: 16_384, snapshot_bytes: 2_000_000, targets_bytes: 5_000_000, roots: 1024, roles: 64 }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The metadata is new, and trusted from now on.
    Updated,
    /// The same version was trusted before and stays.
    Unchanged,
}

/// Verified metadata, from a root downwards.
#[derive(Clone, Debug)]
pub struct TrustedSet {
    now: UtcTime,
    limits: Limits,
    root: Signed<Root>,
    timestamp: Option<Signed<Timestamp>>,
    snapshot: Option<Signed<Snapshot>>,
    /// By role; delegated ones with their delegator.
    targets: BTreeMap<String, (String, Signed<Targets>)>,
}

impl TrustedSet {
    /// Begins with a root that is trusted by other means: the one shipped at enrolment, or the newest one kept since.
    /// An expired root may begin a set, for the next one may be waiting; nothing else is trusted under it.
    ///
    /// # Errors
    /// When the root is malformed or not signed by itself.
    pub fn new(root: &[u8], now: UtcTime) -> Result<Self, TrustError> {
        Self::with_limits(root, now, Limits::default())
    }

    /// [`TrustedSet::new`] with other limits.
    ///
    /// # Errors
    /// Those of [`TrustedSet::new`].
    pub fn with_limits(root: &[u8], now: UtcTime, limits: Limits) -> Result<Self, TrustError> {
        let root = Signed::<Root>::parse(ROOT, root, limits.root_bytes)?;
        verify_root(&root, root.content())?;
        Ok(Self { now, limits, root, timestamp: None, snapshot: None, targets: BTreeMap::new() })
    }

    /// Fixes the time for the refresh that begins now (specification, step 5.1).
    pub fn begin_refresh(&mut self, now: UtcTime) {
        self.now = now;
    }

    /// The time every expiry is checked against.
    pub fn now(&self) -> UtcTime {
        self.now
    }

    /// The limits of this set.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The trusted root.
    pub fn root(&self) -> &Signed<Root> {
        &self.root
    }

    /// The trusted timestamp, even when it has expired since.
    pub fn timestamp(&self) -> Option<&Signed<Timestamp>> {
        self.timestamp.as_ref()
    }

    /// The trusted snapshot, even when it has expired or been superseded since.
    pub fn snapshot(&self) -> Option<&Signed<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// The trusted targets metadata of a role, even when it has expired or been superseded since.
    pub fn targets(&self, role: &str) -> Option<&Signed<Targets>> {
        self.targets.get(role).map(|(_, signed)| signed)
    }

    /// Takes the next root (steps 5.3.4 to 5.3.6). What the new root's keys do not vouch for is forgotten, which is also how
    /// a fast-forwarded timestamp or snapshot is recovered from (step 5.3.11).
    ///
    /// # Errors
    /// [`TrustError::Threshold`] unless old and new keys signed it, [`TrustError::RootNotNext`] for any other version.
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<Progress, TrustError> {
        let next = Signed::<Root>::parse(ROOT, bytes, self.limits.root_bytes)?;
        verify_root(&next, self.root.content())?;
        let expected = self.root.version().saturating_add(1);
        if next.version() != expected {
            return Err(TrustError::RootNotNext { got: next.version(), expected });
        }
        verify_root(&next, next.content())?;
        self.root = next;
        self.forget_unvouched();
        Ok(Progress::Updated)
    }

    /// Whether the root may vouch for anything now (step 5.3.10).
    ///
    /// # Errors
    /// [`TrustError::Expired`].
    pub fn check_root_expiry(&self) -> Result<(), TrustError> {
        self.check_expiry(ROOT, self.root.content())
    }

    /// Takes a timestamp (step 5.4).
    ///
    /// # Errors
    /// [`TrustError::Expired`] (also of the root), [`TrustError::VersionRollback`], [`TrustError::Threshold`].
    pub fn update_timestamp(&mut self, bytes: &[u8]) -> Result<Progress, TrustError> {
        self.check_root_expiry()?;
        let next = Signed::<Timestamp>::parse(TIMESTAMP, bytes, self.limits.timestamp_bytes)?;
        self.verify_top(TIMESTAMP, &next)?;
        if let Some(trusted) = &self.timestamp {
            refuse_older(TIMESTAMP, next.version(), trusted.version())?;
            if next.version() == trusted.version() {
                self.check_expiry(TIMESTAMP, trusted.content())?;
                return Ok(Progress::Unchanged);
            }
            refuse_older(SNAPSHOT, next.content().snapshot()?.version, trusted.content().snapshot()?.version)?;
        }
        let expiry = self.check_expiry(TIMESTAMP, next.content());
        self.timestamp = Some(next);
        expiry.map(|()| Progress::Updated)
    }

    /// Takes a snapshot (step 5.5).
    ///
    /// # Errors
    /// [`TrustError::Missing`] without a timestamp, and whatever the snapshot or timestamp fails in.
    pub fn update_snapshot(&mut self, bytes: &[u8]) -> Result<Progress, TrustError> {
        let meta = self.valid_timestamp()?.content().snapshot()?.clone();
        hash::check("snapshot.json", bytes, meta.length, meta.hashes.as_ref())?;
        let next = self.parse_snapshot(bytes)?;
        refuse_other(SNAPSHOT, next.version(), meta.version)?;
        self.check_expiry(SNAPSHOT, next.content())?;
        let progress = progress(self.snapshot.as_ref().map(Signed::version), next.version());
        self.snapshot = Some(next);
        Ok(progress)
    }

    /// Takes a snapshot from the local cache, for the rollback checks of the one that follows: it need not be the newest.
    ///
    /// # Errors
    /// [`TrustError::Missing`] without a timestamp, and whatever the snapshot fails in.
    pub fn restore_snapshot(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let newest = self.timestamp.as_ref().ok_or_else(|| missing(TIMESTAMP))?.content().snapshot()?.version;
        let cached = self.parse_snapshot(bytes)?;
        refuse_newer(SNAPSHOT, cached.version(), newest)?;
        self.snapshot = Some(cached);
        Ok(())
    }

    /// Takes the top-level targets metadata (step 5.6).
    ///
    /// # Errors
    /// [`TrustError::Missing`] without a valid snapshot, and whatever the metadata fails in.
    pub fn update_targets(&mut self, bytes: &[u8]) -> Result<Progress, TrustError> {
        self.update_delegated(TARGETS, ROOT, bytes)
    }

    /// Takes the targets metadata of a role that `delegator` delegates to (step 5.6.7).
    ///
    /// # Errors
    /// [`TrustError::Missing`] without a valid snapshot and delegator, and whatever the metadata fails in.
    pub fn update_delegated(&mut self, role: &str, delegator: &str, bytes: &[u8]) -> Result<Progress, TrustError> {
        let meta = self.meta(role)?;
        let file = format!("{role}.json");
        hash::check(&file, bytes, meta.length, meta.hashes.as_ref())?;
        let next = Signed::<Targets>::parse(role, bytes, self.limits.targets_bytes)?;
        self.verify_targets(role, delegator, &next)?;
        refuse_other(role, next.version(), meta.version)?;
        self.check_expiry(role, next.content())?;
        let progress = progress(self.targets(role).map(Signed::version), next.version());
        self.targets.insert(role.to_owned(), (delegator.to_owned(), next));
        self.forget_undelegated();
        Ok(progress)
    }

    /// What the valid timestamp says of the snapshot's file.
    ///
    /// # Errors
    /// [`TrustError::Missing`] or [`TrustError::Expired`] without a valid timestamp.
    pub fn snapshot_meta(&self) -> Result<MetaFile, TrustError> {
        self.valid_timestamp()?.content().snapshot().cloned()
    }

    /// What the valid snapshot says of a targets role's file.
    ///
    /// # Errors
    /// [`TrustError::Missing`] or [`TrustError::Expired`] without a valid snapshot, [`TrustError::NotDelegated`] when it
    /// lists no such file.
    pub fn meta(&self, role: &str) -> Result<MetaFile, TrustError> {
        let unlisted = || TrustError::NotDelegated { role: role.to_owned(), delegator: SNAPSHOT.into() };
        self.valid_snapshot()?.content().meta.get(&format!("{role}.json")).cloned().ok_or_else(unlisted)
    }

    /// The role against whose keys the metadata of a targets role was verified.
    pub fn delegator(&self, role: &str) -> Option<&str> {
        self.targets.get(role).map(|(delegator, _)| delegator.as_str())
    }

    /// The targets metadata of a role, when everything it rests on is valid now and vouches for this very version.
    ///
    /// # Errors
    /// [`TrustError::Missing`], [`TrustError::Expired`], [`TrustError::VersionMismatch`] or [`TrustError::NotDelegated`].
    pub fn valid_targets(&self, role: &str) -> Result<&Signed<Targets>, TrustError> {
        let mut at = role;
        // A chain of more delegators than there are roles goes in a circle.
        for _ in 0..=self.targets.len() {
            let meta = self.meta(at)?;
            let (delegator, signed) = self.targets.get(at).ok_or_else(|| missing(at))?;
            refuse_other(at, signed.version(), meta.version)?;
            self.check_expiry(at, signed.content())?;
            if delegator == ROOT {
                return self.targets(role).ok_or_else(|| missing(role));
            }
            at = delegator;
        }
        Err(TrustError::NotDelegated { role: role.to_owned(), delegator: at.to_owned() })
    }

    /// Parses targets metadata that `delegator` delegates to but the snapshot does not list: its freshness is its expiry.
    ///
    /// # Errors
    /// Those of [`TrustedSet::update_delegated`], without the snapshot's.
    pub fn verify_unlisted(&self, role: &str, delegator: &str, bytes: &[u8]) -> Result<Signed<Targets>, TrustError> {
        self.valid_targets(delegator)?;
        let signed = Signed::<Targets>::parse(role, bytes, self.limits.targets_bytes)?;
        self.verify_targets(role, delegator, &signed)?;
        self.check_expiry(role, signed.content())?;
        Ok(signed)
    }

    fn valid_timestamp(&self) -> Result<&Signed<Timestamp>, TrustError> {
        self.check_root_expiry()?;
        let timestamp = self.timestamp.as_ref().ok_or_else(|| missing(TIMESTAMP))?;
        self.check_expiry(TIMESTAMP, timestamp.content())?;
        Ok(timestamp)
    }

    fn valid_snapshot(&self) -> Result<&Signed<Snapshot>, TrustError> {
        let expected = self.valid_timestamp()?.content().snapshot()?.version;
        let snapshot = self.snapshot.as_ref().ok_or_else(|| missing(SNAPSHOT))?;
        refuse_other(SNAPSHOT, snapshot.version(), expected)?;
        self.check_expiry(SNAPSHOT, snapshot.content())?;
        Ok(snapshot)
    }

    fn parse_snapshot(&self, bytes: &[u8]) -> Result<Signed<Snapshot>, TrustError> {
        let next = Signed::<Snapshot>::parse(SNAPSHOT, bytes, self.limits.snapshot_bytes)?;
        self.verify_top(SNAPSHOT, &next)?;
        for (file, trusted) in self.snapshot.iter().flat_map(|s| &s.content().meta) {
            let listed = next.content().meta.get(file).ok_or_else(|| TrustError::MetaRemoved { file: file.clone() })?;
            refuse_older(file, listed.version, trusted.version)?;
        }
        Ok(next)
    }

    fn verify_top<T: Metadata>(&self, role: &str, signed: &Signed<T>) -> Result<(), TrustError> {
        let root = self.root.content();
        signed.verify(role, &root.keys, root.role(role)?)
    }

    fn verify_targets(&self, role: &str, delegator: &str, signed: &Signed<Targets>) -> Result<(), TrustError> {
        if delegator == ROOT {
            return self.verify_top(role, signed);
        }
        let parent = self.targets(delegator).ok_or_else(|| missing(delegator))?;
        let delegations = parent.content().delegations.as_ref();
        let keys = delegations.and_then(|d| Some((d, d.role_keys(role)?)));
        let undelegated = || TrustError::NotDelegated { role: role.to_owned(), delegator: delegator.to_owned() };
        let (delegations, allowed) = keys.ok_or_else(undelegated)?;
        signed.verify(role, &delegations.keys, &allowed)
    }

    fn check_expiry<T: Metadata>(&self, role: &str, content: &T) -> Result<(), TrustError> {
        let expired = content.common().expires;
        if self.now < expired { Ok(()) } else { Err(TrustError::Expired { role: role.to_owned(), expired, now: self.now }) }
    }

    fn forget_unvouched(&mut self) {
        self.timestamp = self.timestamp.take().filter(|t| self.verify_top(TIMESTAMP, t).is_ok());
        self.snapshot = self.snapshot.take().filter(|s| self.timestamp.is_some() && self.verify_top(SNAPSHOT, s).is_ok());
        self.forget_undelegated();
    }

    /// Drops delegated metadata whose delegator no longer vouches for it, until nothing more falls.
    fn forget_undelegated(&mut self) {
        loop {
            let fallen = |(role, (delegator, signed)): (&String, &(String, Signed<Targets>))| {
                self.verify_targets(role, delegator, signed).is_err().then(|| role.clone())
            };
            let fallen: Vec<String> = self.targets.iter().filter_map(fallen).collect();
            if fallen.is_empty() {
                return;
            }
            self.targets.retain(|role, _| !fallen.contains(role));
        }
    }
}

fn verify_root(root: &Signed<Root>, by: &Root) -> Result<(), TrustError> {
    root.verify(ROOT, &by.keys, by.role(ROOT)?)
}

fn missing(role: &str) -> TrustError {
    TrustError::Missing { role: role.to_owned() }
}

fn progress(before: Option<u64>, after: u64) -> Progress {
    if before == Some(after) { Progress::Unchanged } else { Progress::Updated }
}

fn refuse_older(role: &str, got: u64, trusted: u64) -> Result<(), TrustError> {
    if got >= trusted { Ok(()) } else { Err(TrustError::VersionRollback { role: role.to_owned(), got, trusted }) }
}

fn refuse_newer(role: &str, got: u64, expected: u64) -> Result<(), TrustError> {
    if got <= expected { Ok(()) } else { Err(TrustError::VersionMismatch { role: role.to_owned(), got, expected }) }
}

fn refuse_other(role: &str, got: u64, expected: u64) -> Result<(), TrustError> {
    if got == expected { Ok(()) } else { Err(TrustError::VersionMismatch { role: role.to_owned(), got, expected }) }
}
