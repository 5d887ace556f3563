//! What both signers agree on for one device: the only thing an agent installs.

use serde::{Deserialize, Serialize};

use crate::error::TrustError;
use crate::fleet::{BundleEntry, BundleFacts, DIRECTOR, RELEASE, parse_assignment_path, release_path};
use crate::hash::Sha256Digest;
use crate::metadata::{Metadata, TARGETS, Targets};
use crate::set::TrustedSet;
use crate::time::UtcTime;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// This device's id.
    pub device: &'a str,
    /// This device's class, once it knows it.
    pub class: Option<&'a str>,
}

/// The assignment a device accepted last; it keeps this over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its sequence.
    pub sequence: u64,
    /// Its bundle.
    pub bundle: Sha256Digest,
}

/// A bundle that release and director both vouch for, for this device, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// SHA-256 of the ciphertext.
    pub bundle: Sha256Digest,
    /// Length of the ciphertext in bytes.
    pub length: u64,
    /// Hash tree, model, class and cipher.
    pub facts: BundleFacts,
    /// Sequence of the assignment.
    pub sequence: u64,
    /// When the assignment stops being valid.
    pub expires: UtcTime,
}

impl Agreed {
    /// What the device is to remember once it has accepted this.
    pub fn accepted(&self) -> Accepted {
        Accepted { sequence: self.sequence, bundle: self.bundle }
    }
}

/// Checks a device's director file against the release file in the trusted set. The set must have been refreshed
/// (see [`crate::FleetMetadata::apply`]); every expiry is checked against its [`TrustedSet::now`].
///
/// The same sequence is accepted again only for the same bundle (the director renews an assignment's expiry that way);
/// another bundle needs a higher one.
///
/// # Errors
/// The check that failed; [`TrustError::attack`] says what it smells of.
pub fn verify_assignment(
    set: &TrustedSet,
    director: &[u8],
    recipient: Recipient<'_>,
    last: Option<&Accepted>,
) -> Result<Agreed, TrustError> {
    let release = set.valid_targets(RELEASE)?.content();
    let signed = set.verify_unlisted(DIRECTOR, TARGETS, director)?;
    let assigned = assigned_bundle(set, signed.content(), recipient.device)?;
    let sequence = signed.version();
    check_sequence(sequence, &assigned.digest, last)?;
    let released = released_bundle(set, release, &assigned.digest)?;
    check_agreement(&released, &assigned)?;
    check_class(&released, recipient.class)?;
    check_floor(release, &released)?;
    let expires = signed.content().common().expires;
    Ok(Agreed { bundle: released.digest, length: released.length, facts: released.facts, sequence, expires })
}

fn assigned_bundle(set: &TrustedSet, director: &Targets, device: &str) -> Result<BundleEntry, TrustError> {
    let mut files = director.targets.iter();
    let (Some((path, file)), None) = (files.next(), files.next()) else {
        return Err(TrustError::AssignmentCount { got: director.targets.len() });
    };
    check_path(set, DIRECTOR, path)?;
    let named = parse_assignment_path(path);
    let (named, digest) = named.ok_or_else(|| TrustError::malformed(DIRECTOR, format!("target path {path:?} is no assignment")))?;
    if named != device {
        return Err(TrustError::WrongDevice { got: named.to_owned(), expected: device.to_owned() });
    }
    BundleEntry::parse(DIRECTOR, digest, file)
}

fn released_bundle(set: &TrustedSet, release: &Targets, digest: &Sha256Digest) -> Result<BundleEntry, TrustError> {
    let path = release_path(digest);
    check_path(set, RELEASE, &path)?;
    let file = release.targets.get(&path).ok_or_else(|| TrustError::NotReleased { bundle: digest.to_string() })?;
    BundleEntry::parse(RELEASE, *digest, file)
}

fn check_path(set: &TrustedSet, role: &str, path: &str) -> Result<(), TrustError> {
    let delegations = set.valid_targets(TARGETS)?.content().delegations.as_ref();
    if delegations.is_some_and(|d| d.covers(role, path)) {
        Ok(())
    } else {
        Err(TrustError::PathNotDelegated { role: role.to_owned(), path: path.to_owned() })
    }
}

fn check_sequence(got: u64, bundle: &Sha256Digest, last: Option<&Accepted>) -> Result<(), TrustError> {
    match last {
        Some(last) if got < last.sequence => Err(TrustError::SequenceRollback { got, expected: format!("at least {}", last.sequence) }),
        Some(last) if got == last.sequence && *bundle != last.bundle => {
            Err(TrustError::SequenceRollback { got, expected: format!("more than {} for another bundle", last.sequence) })
        }
        Some(_) | None => Ok(()),
    }
}

fn check_agreement(release: &BundleEntry, director: &BundleEntry) -> Result<(), TrustError> {
    let (r, d) = (&release.facts, &director.facts);
    let fields = [
        ("length", release.length.to_string(), director.length.to_string()),
        ("tree_root", r.tree_root.to_string(), d.tree_root.to_string()),
        ("chunk_count", r.chunk_count.to_string(), d.chunk_count.to_string()),
        ("model", r.model.clone(), d.model.clone()),
        ("model_version", r.model_version.to_string(), d.model_version.to_string()),
        ("class", r.class.clone(), d.class.clone()),
        ("suite", r.suite.clone(), d.suite.clone()),
        ("security_floor", r.security_floor.to_string(), d.security_floor.to_string()),
    ];
    match fields.into_iter().find(|(_, release, director)| release != director) {
        None => Ok(()),
        Some((field, r, d)) => Err(TrustError::Disagreement { bundle: release.digest.to_string(), field, release: r, director: d }),
    }
}

fn check_class(bundle: &BundleEntry, class: Option<&str>) -> Result<(), TrustError> {
    match class {
        Some(class) if class != bundle.facts.class => {
            Err(TrustError::WrongClass { bundle: bundle.digest.to_string(), got: bundle.facts.class.clone(), expected: class.to_owned() })
        }
        Some(_) | None => Ok(()),
    }
}

/// The floor of a model is the highest that any live bundle of it states, so that a new bundle can retire old versions.
fn check_floor(release: &Targets, bundle: &BundleEntry) -> Result<(), TrustError> {
    let facts = release.targets.values().filter_map(|file| file.custom.as_ref());
    let facts = facts.filter_map(|custom| BundleFacts::deserialize(custom).ok());
    let floor = facts.filter(|f| f.model == bundle.facts.model).map(|f| f.security_floor).max().unwrap_or(0);
    if bundle.facts.model_version >= floor {
        return Ok(());
    }
    Err(TrustError::BelowSecurityFloor {
        bundle: bundle.digest.to_string(),
        model: bundle.facts.model.clone(),
        got: bundle.facts.model_version,
        floor,
    })
}
