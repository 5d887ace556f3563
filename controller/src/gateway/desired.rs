//! The desired state of one device, put together from rows.

use pleach_domain::DeviceId;
use pleach_domain::policy::AdaptationRules;
use pleach_proto::fleet::{Deployment, DesiredState, MeasurementTask};
use pleach_store::desired::{self, Assigned};
use pleach_store::measurements::Task;
use pleach_store::{Session, StoreError, trust};

/// Length of the encapsulated key at the head of a wrap.
const ENCAPSULATED_BYTES: usize = 32;

/// What should be true of a device that trusts roots up to `root_version`. Generation and time are the stream's to set.
pub(crate) async fn build(session: &mut Session, device: &DeviceId, root_version: u64) -> Result<DesiredState, StoreError> {
    let desired = desired::of_device(session, device).await?;
    let policy = desired.deployment.as_ref().and_then(|d| d.policy.as_ref());
    let window_seconds = policy.map_or(AdaptationRules::default().window_seconds, |p| p.policy.adaptation.window_seconds);
    let deployment = match desired.deployment {
        Some(assigned) => Some(deployment(session, assigned, root_version).await?),
        None => None,
    };
    Ok(DesiredState {
        generation: 0,
        deployment,
        measurements: desired.measurements.into_iter().map(task).collect(),
        window_ms: window_seconds.saturating_mul(1_000),
        server_time_ms: 0,
    })
}

async fn deployment(session: &mut Session, assigned: Assigned, root_version: u64) -> Result<Deployment, StoreError> {
    let rollout = assigned.policy.map(|p| p.policy.rollout).unwrap_or_default();
    let (key, ciphertext) = assigned.wrap.split_at(ENCAPSULATED_BYTES.min(assigned.wrap.len()));
    let roots = trust::after(session, "root", root_version).await?;
    Ok(Deployment {
        root_chain: roots.into_iter().map(|root| root.bytes).collect(),
        targets: newest(session, "targets").await?,
        release: newest(session, "release").await?,
        assignment: assigned.metadata,
        wrap_encapsulated_key: key.to_vec(),
        wrap_ciphertext: ciphertext.to_vec(),
        probation_inferences: rollout.probation_inferences,
        probation_ms: rollout.probation_seconds.saturating_mul(1_000),
        timestamp: newest(session, "timestamp").await?,
        snapshot: newest(session, "snapshot").await?,
    })
}

/// The newest file of a role; empty where there is none, which the device refuses in words.
async fn newest(session: &mut Session, role: &str) -> Result<Vec<u8>, StoreError> {
    Ok(trust::newest(session, role).await?.map(|m| m.bytes).unwrap_or_default())
}

fn task(task: Task) -> MeasurementTask {
    MeasurementTask { id: task.id, digest: task.blob.as_bytes().to_vec(), length: task.length, budget_ms: task.budget_ms }
}
