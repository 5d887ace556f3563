//! Why metadata, an assignment or a signature was refused, and which attack that smells of.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::key::KeyId;
use crate::time::UtcTime;

/// The attacks of the Uptane standard (section 4.2) that a refusal can point at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attack {
    /// Old but once valid metadata is served so that updates are not seen.
    Freeze,
    /// Older content is served as if it were newer.
    Rollback,
    /// More data is served than the metadata can have, to fill disk or memory.
    EndlessData,
    /// Pieces that never belonged together are served together.
    MixAndMatch,
    /// Content that no trusted signer vouched for.
    ArbitrarySoftware,
    /// Content that is meant for another device or class.
    WrongDevice,
    /// Only a part of what belongs together was served.
    PartialBundle,
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Freeze => "freeze",
            Self::Rollback => "rollback",
            Self::EndlessData => "endless data",
            Self::MixAndMatch => "mix and match",
            Self::ArbitrarySoftware => "arbitrary software",
            Self::WrongDevice => "wrong device",
            Self::PartialBundle => "partial bundle",
        })
    }
}

/// A refusal. `role` is the TUF role whose metadata was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrustError {
    /// Metadata longer than its role may be.
    #[error("{role} metadata has more than {limit_bytes} bytes")]
    TooLong {
        /// Role.
        role: String,
        /// Most bytes allowed.
        limit_bytes: usize,
    },
    /// Metadata that is not bounded, unambiguous JSON of its role.
    #[error("{role} metadata is malformed: {reason}")]
    Malformed {
        /// Role.
        role: String,
        /// What is wrong, with expected and got.
        reason: String,
    },
    /// Fewer distinct keys signed than the threshold asks for.
    #[error("{role} metadata has valid signatures of {valid} distinct keys, its threshold is {threshold}")]
    Threshold {
        /// Role.
        role: String,
        /// Distinct keys with a valid signature.
        valid: u32,
        /// Keys needed.
        threshold: u32,
    },
    /// A key id that a role names but nobody defines, or that is defined twice.
    #[error("{role} metadata is malformed: key {key} {problem}")]
    KeyTable {
        /// Role whose metadata holds the table.
        role: String,
        /// Key id.
        key: KeyId,
        /// What is wrong.
        problem: &'static str,
    },
    /// A root that is not the next one.
    #[error("root metadata has version {got}, the next one is {expected}")]
    RootNotNext {
        /// Version that came.
        got: u64,
        /// Version after the trusted one.
        expected: u64,
    },
    /// Metadata older than what was trusted before.
    #[error("{role} metadata has version {got}, version {trusted} was trusted before")]
    VersionRollback {
        /// Role.
        role: String,
        /// Version that came.
        got: u64,
        /// Version trusted before.
        trusted: u64,
    },
    /// A file that was listed before and is no longer.
    #[error("snapshot metadata no longer lists {file}")]
    MetaRemoved {
        /// File that is missing.
        file: String,
    },
    /// Metadata whose version is not the one its parent vouches for.
    #[error("{role} metadata has version {got}, its parent vouches for {expected}")]
    VersionMismatch {
        /// Role.
        role: String,
        /// Version that came.
        got: u64,
        /// Version in the parent.
        expected: u64,
    },
    /// Bytes whose length or hash is not what their parent vouches for.
    #[error("{what}: {property} is {got}, expected {expected}")]
    Content {
        /// Metadata file or target.
        what: String,
        /// `length`, or the hash algorithm.
        property: String,
        /// What came.
        got: String,
        /// What was signed.
        expected: String,
    },
    /// Metadata past its expiry.
    #[error("{role} metadata expired at {expired}, it is {now}")]
    Expired {
        /// Role.
        role: String,
        /// When it expired.
        expired: UtcTime,
        /// The time of the check.
        now: UtcTime,
    },
    /// A step before the metadata it rests on.
    #[error("{role} metadata is needed first")]
    Missing {
        /// Role that has not been loaded.
        role: String,
    },
    /// A role that nobody delegates to.
    #[error("{delegator} metadata does not delegate to role {role}")]
    NotDelegated {
        /// Role asked for.
        role: String,
        /// Role that should delegate.
        delegator: String,
    },
    /// A target outside the paths its signer was given.
    #[error("role {role} was not given the path {path}")]
    PathNotDelegated {
        /// Role.
        role: String,
        /// Target path.
        path: String,
    },
    /// An assignment that names another device.
    #[error("assignment names device {got}, this is {expected}")]
    WrongDevice {
        /// Device in the signed assignment.
        got: String,
        /// This device.
        expected: String,
    },
    /// An assignment of a bundle that was made for another class.
    #[error("bundle {bundle} was made for class {got}, this device is of class {expected}")]
    WrongClass {
        /// Bundle digest.
        bundle: String,
        /// Class of the bundle.
        got: String,
        /// Class of this device.
        expected: String,
    },
    /// A signed assignment that does not name exactly one bundle.
    #[error("assignment names {got} bundles, expected exactly one")]
    AssignmentCount {
        /// Targets in the assignment.
        got: usize,
    },
    /// An assigned bundle that the release signer does not list (any more).
    #[error("bundle {bundle} is assigned but not released")]
    NotReleased {
        /// Bundle digest.
        bundle: String,
    },
    /// The two signers say different things of one bundle.
    #[error("release and director disagree on {field} of bundle {bundle}: {release} against {director}")]
    Disagreement {
        /// Bundle digest.
        bundle: String,
        /// Field they disagree on.
        field: &'static str,
        /// What the release signer says.
        release: String,
        /// What the director says.
        director: String,
    },
    /// An assignment older than the accepted one, or another bundle under the same sequence.
    #[error("assignment has sequence {got}, expected {expected}")]
    SequenceRollback {
        /// Sequence that came.
        got: u64,
        /// What would be accepted.
        expected: String,
    },
    /// A bundle below the security floor of its model.
    #[error("bundle {bundle} has model version {got}, the security floor of {model} is {floor}")]
    BelowSecurityFloor {
        /// Bundle digest.
        bundle: String,
        /// Model.
        model: String,
        /// Version of the bundle's model.
        got: u64,
        /// Lowest version allowed.
        floor: u64,
    },
    /// A payload signature that does not verify.
    #[error("signature over {context} does not verify")]
    PayloadSignature {
        /// What the payload was signed as.
        context: String,
    },
    /// Key material that cannot be read.
    #[error("{what} is not valid: {reason}")]
    Key {
        /// What was parsed.
        what: &'static str,
        /// What is wrong; never the material itself.
        reason: &'static str,
    },
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Randomness,
}

impl TrustError {
    /// The attack that this refusal smells of, when it is not merely a mistake.
    pub fn attack(&self) -> Option<Attack> {
        Some(match self {
            Self::TooLong { .. } => Attack::EndlessData,
            Self::Threshold { .. } | Self::PayloadSignature { .. } => Attack::ArbitrarySoftware,
            Self::NotDelegated { .. } | Self::PathNotDelegated { .. } | Self::NotReleased { .. } => Attack::ArbitrarySoftware,
            Self::RootNotNext { got, expected } if got < expected => Attack::Rollback,
            Self::VersionRollback { .. } | Self::SequenceRollback { .. } | Self::BelowSecurityFloor { .. } => Attack::Rollback,
            Self::MetaRemoved { .. } => Attack::Rollback,
            Self::VersionMismatch { .. } | Self::Content { .. } | Self::Disagreement { .. } => Attack::MixAndMatch,
            Self::Expired { .. } => Attack::Freeze,
            Self::WrongDevice { .. } | Self::WrongClass { .. } => Attack::WrongDevice,
            Self::AssignmentCount { .. } => Attack::PartialBundle,
            Self::Malformed { .. } | Self::KeyTable { .. } | Self::RootNotNext { .. } | Self::Missing { .. } => return None,
            Self::Key { .. } | Self::Randomness => return None,
        })
    }

    pub(crate) fn malformed(role: &str, reason: impl fmt::Display) -> Self {
        Self::Malformed { role: role.to_owned(), reason: reason.to_string() }
    }
}

/// Why a repository could not say whether it has a file, or broke off in it.
pub type FetchError = Box<dyn std::error::Error + Send + Sync>;

/// Why a client could not refresh, find or download.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// What came, or what was kept, was refused.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The repository lacks a file that its metadata promises.
    #[error("the repository has no {file}")]
    NotThere {
        /// Its name.
        file: String,
    },
    /// The repository could not be reached, or broke off.
    #[error("fetching {file}")]
    Fetch {
        /// What was asked for.
        file: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The cache cannot be read or written.
    #[error("cached metadata {}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was downloaded cannot be written.
    #[error("writing the target {path}")]
    Sink {
        /// The target.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A target path that would leave the place targets lie in.
    #[error("target path {path:?} is no relative path")]
    TargetPath {
        /// The path.
        path: String,
    },
    /// The search for a target went through too many roles.
    #[error("the search for {path} went through {limit} roles")]
    TooManyRoles {
        /// The target.
        path: String,
        /// Most roles that are searched.
        limit: usize,
    },
}

impl ClientError {
    /// The attack that this smells of; see [`TrustError::attack`]. A repository that withholds what it promised freezes its clients.
    pub fn attack(&self) -> Option<Attack> {
        match self {
            Self::Trust(error) => error.attack(),
            Self::NotThere { .. } => Some(Attack::Freeze),
            Self::TargetPath { .. } => Some(Attack::ArbitrarySoftware),
            Self::TooManyRoles { .. } => Some(Attack::EndlessData),
            Self::Fetch { .. } | Self::Cache { .. } | Self::Sink { .. } => None,
        }
    }

    pub(crate) fn cache(path: &Path, source: io::Error) -> Self {
        Self::Cache { path: path.to_owned(), source }
    }

    pub(crate) fn fetch(file: &str, source: FetchError) -> Self {
        Self::Fetch { file: file.to_owned(), source }
    }
}
