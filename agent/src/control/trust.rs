//! The metadata this device trusts, and what it says of an assignment.
//!
//! Root, timestamp and snapshot are kept on disk as they were signed, so that nothing older is believed after a restart, even
//! when the ledger was lost.

use std::path::PathBuf;

use pleach_domain::Digest;
use pleach_proto::fleet::Deployment;
use pleach_trust::{Accepted, Agreed, FleetMetadata, Progress, Recipient, TrustError, TrustedSet, UtcTime, verify_assignment};

use super::failure::Failure;
use crate::error::AgentError;
use crate::files;
use crate::ledger::Assigned;
use crate::state::StateDir;

const MAX_METADATA_BYTES: u64 = 5_000_000;

/// The trusted set and its files.
#[derive(Debug)]
pub(super) struct Trust {
    set: TrustedSet,
    folder: PathBuf,
}

impl Trust {
    /// Begins with what is on disk; the root was put there at enrolment.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] without a root that signs itself.
    pub(super) fn load(state: &StateDir, now_ms: i64) -> Result<Self, AgentError> {
        let path = state.trusted_root();
        let damaged = |reason: String| AgentError::Damaged { path: path.clone(), reason };
        let root = files::read_bounded(&path, MAX_METADATA_BYTES)?.ok_or_else(|| damaged("it is missing".into()))?;
        let mut set = TrustedSet::new(&root, time(now_ms)).map_err(|e| damaged(e.to_string()))?;
        let folder = path.parent().map(PathBuf::from).unwrap_or_default();
        // An expired or damaged cache protects less; it must not keep the device from newer metadata.
        if let Ok(Some(bytes)) = files::read_bounded(&folder.join("timestamp.json"), MAX_METADATA_BYTES) {
            note("timestamp", set.update_timestamp(&bytes).map(drop));
        }
        if let Ok(Some(bytes)) = files::read_bounded(&folder.join("snapshot.json"), MAX_METADATA_BYTES) {
            note("snapshot", set.restore_snapshot(&bytes));
        }
        Ok(Self { set, folder })
    }

    /// Version of the trusted root.
    pub(super) fn root_version(&self) -> u64 {
        self.set.root().version()
    }

    /// Checks a deployment for this device: every signature, version and expiry, and that both signers agree.
    ///
    /// # Errors
    /// The check that refused it.
    pub(super) fn agree(
        &mut self,
        deployment: &Deployment,
        device: &str,
        last: Option<&Accepted>,
        now_ms: i64,
    ) -> Result<(Agreed, Assigned), Failure> {
        let metadata = FleetMetadata {
            roots: deployment.root_chain.clone(),
            timestamp: deployment.timestamp.clone(),
            snapshot: deployment.snapshot.clone(),
            targets: deployment.targets.clone(),
            release: deployment.release.clone(),
        };
        let root_before = self.root_version();
        let applied = metadata.apply(&mut self.set, time(now_ms));
        self.keep(root_before, applied.as_ref().is_ok_and(|p| *p == Progress::Updated), &metadata).map_err(|e| Failure::of_agent(&e))?;
        applied.map_err(|e| Failure::of_trust(&e))?;
        let recipient = Recipient { device, class: None };
        let agreed = verify_assignment(&self.set, &deployment.assignment, recipient, last).map_err(|e| Failure::of_trust(&e))?;
        let assigned = assigned(&agreed, deployment)?;
        Ok((agreed, assigned))
    }

    fn keep(&self, root_before: u64, updated: bool, metadata: &FleetMetadata) -> Result<(), AgentError> {
        if self.root_version() > root_before {
            files::write_atomic(&self.folder.join("root.json"), self.set.root().bytes())?;
        }
        if updated {
            files::write_atomic(&self.folder.join("timestamp.json"), &metadata.timestamp)?;
            files::write_atomic(&self.folder.join("snapshot.json"), &metadata.snapshot)?;
        }
        Ok(())
    }
}

fn time(now_ms: i64) -> UtcTime {
    UtcTime::from_unix_s(now_ms.div_euclid(1000))
}

fn note(role: &str, result: Result<(), TrustError>) {
    if let Err(error) = result {
        tracing::info!(role, %error, "kept metadata is not valid now");
    }
}

fn assigned(agreed: &Agreed, deployment: &Deployment) -> Result<Assigned, Failure> {
    let facts = &agreed.facts;
    let wrong = |error: pleach_domain::DomainError| Failure::new("metadata", error.to_string());
    Ok(Assigned {
        digest: Digest::new(*agreed.bundle.as_bytes()),
        length_bytes: agreed.length,
        tree_root: Digest::new(*facts.tree_root.as_bytes()),
        sequence: agreed.sequence,
        model: facts.model.parse().map_err(wrong)?,
        model_version: facts.model_version,
        class: facts.class.parse().map_err(wrong)?,
        wrap: [deployment.wrap_encapsulated_key.as_slice(), &deployment.wrap_ciphertext].concat(),
        probation_inferences: deployment.probation_inferences,
        probation_ms: deployment.probation_ms,
    })
}

/// What an assignment that was refused claims to be: its sequence and bundle, unverified, for the report alone.
pub(super) fn claims(assignment: &[u8]) -> (u64, Vec<u8>) {
    let json: serde_json::Value = serde_json::from_slice(assignment).unwrap_or_default();
    let signed = json.get("signed");
    let sequence = signed.and_then(|s| s.get("version")).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let path = signed.and_then(|s| s.get("targets")).and_then(|t| t.as_object()).and_then(|t| t.keys().next());
    let digest = path.and_then(|p| p.rsplit('/').next()).and_then(|d| d.parse::<Digest>().ok());
    (sequence, digest.map_or_else(|| vec![0; 32], |d| d.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests;
