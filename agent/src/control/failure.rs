//! Why an assignment failed or was refused, in the words that travel to the controller.

use std::io;

use pleach_artifact::ArtifactError;
use pleach_trust::TrustError;

use crate::error::{AgentError, chain};
use crate::supervisor::SupervisorError;

/// A check that failed. The names are part of the protocol: people and gates filter by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) check: String,
    pub(super) detail: String,
}

impl Failure {
    pub(super) fn new(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), detail: detail.into() }
    }

    /// An error of opening a bundle.
    pub(super) fn of_artifact(error: &ArtifactError) -> Self {
        let check = match error {
            ArtifactError::ChunkHash { .. } | ArtifactError::ChunkLength { .. } | ArtifactError::ChunkIndex { .. } => "chunk-hash",
            ArtifactError::LeafCount { .. } | ArtifactError::TreeRoot { .. } | ArtifactError::Length { .. } => "hash-tree",
            ArtifactError::Unwrap | ArtifactError::KeyForm { .. } | ArtifactError::Crypto(_) => "unwrap",
            ArtifactError::Io { .. } => "storage",
            _ => "decrypt",
        };
        Self::new(check, chain(error))
    }

    /// An error of the agent's own files or of a message.
    pub(super) fn of_agent(error: &AgentError) -> Self {
        let check = match error {
            error if error.is_disk_full() => "disk-full",
            AgentError::Artifact(artifact) => return Self::of_artifact(artifact),
            AgentError::File { .. } | AgentError::FileTooLong { .. } => "storage",
            _ => "message",
        };
        Self::new(check, chain(error))
    }

    /// An error of the runtime half.
    pub(super) fn of_runtime(error: &SupervisorError) -> Self {
        match error {
            SupervisorError::Failed { check, detail, .. } => Self::new(check, detail.clone()),
            SupervisorError::Exited { .. } | SupervisorError::Send { .. } => Self::new("crash", chain(error)),
            SupervisorError::Deadline { .. } => Self::new("hang", chain(error)),
            SupervisorError::Spawn(_) | SupervisorError::Reply { .. } => Self::new("runtime", chain(error)),
        }
    }

    /// A refusal of signed metadata.
    pub(super) fn of_trust(error: &TrustError) -> Self {
        let check = match error {
            TrustError::Threshold { role, .. } => return Self::new(&format!("{role}-signature"), chain(error)),
            TrustError::Expired { .. } => "expired",
            TrustError::VersionRollback { .. }
            | TrustError::SequenceRollback { .. }
            | TrustError::RootNotNext { .. }
            | TrustError::MetaRemoved { .. } => "rollback",
            TrustError::BelowSecurityFloor { .. } => "security-floor",
            TrustError::Disagreement { .. }
            | TrustError::NotReleased { .. }
            | TrustError::VersionMismatch { .. }
            | TrustError::Content { .. } => "disagreement",
            TrustError::WrongDevice { .. } => "wrong-device",
            TrustError::WrongClass { .. } => "wrong-class",
            TrustError::NotDelegated { .. } | TrustError::PathNotDelegated { .. } => "delegation",
            _ => "metadata",
        };
        Self::new(check, chain(error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new("memory", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use pleach_trust::UtcTime;

    use super::*;

    #[test]
    fn signatures_are_named_after_their_signer() {
        let check = |role: &str| Failure::of_trust(&TrustError::Threshold { role: role.into(), valid: 0, threshold: 1 }).check;
        assert_eq!((check("release").as_str(), check("director").as_str()), ("release-signature", "director-signature"));
        let time = UtcTime::from_unix_s(0);
        assert_eq!(Failure::of_trust(&TrustError::Expired { role: "director".into(), expired: time, now: time }).check, "expired");
    }

    #[test]
    fn a_full_disk_has_a_word_of_its_own() {
        let full = AgentError::file("writing", "a".as_ref())(io::ErrorKind::StorageFull.into());
        assert_eq!(Failure::of_agent(&full).check, "disk-full");
        let odd = AgentError::file("writing", "a".as_ref())(io::ErrorKind::PermissionDenied.into());
        assert_eq!(Failure::of_agent(&odd).check, "storage");
    }
}
