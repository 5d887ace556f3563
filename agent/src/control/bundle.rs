//! A sealed bundle on its way into the runtime half: unwrap, decrypt into sealed memory, load. The plaintext touches no disk.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use pleach_artifact::{ArtifactError, WrapContext, WrappedKey, open, unwrap};
use tokio::task::spawn_blocking;

use super::Device;
use super::failure::Failure;
use crate::error::AgentError;
use crate::keys::DeviceKeys;
use crate::ledger::Assigned;
use crate::supervisor::{RuntimeHandle, SealedMemory};

/// Opens a bundle and loads it into the runtime, which runs its known-answer test. It does not serve yet.
///
/// # Errors
/// The check that failed: `unwrap`, `decrypt`, `storage`, or one of the runtime's.
pub(super) async fn load(device: Arc<Device>, keys: Arc<DeviceKeys>, runtime: RuntimeHandle, assigned: Assigned) -> Result<(), Failure> {
    let digest = assigned.digest;
    let decrypted = spawn_blocking(move || decrypt(&device, &keys, &assigned)).await;
    let memory = decrypted.map_err(|e| Failure::new("decrypt", e.to_string()))??;
    runtime.load(memory, digest).await.map_err(|e| Failure::of_runtime(&e))
}

/// Whether the wrap opens for this device and assignment.
///
/// # Errors
/// The check `unwrap`.
pub(super) fn check_wrap(device: &Device, keys: &DeviceKeys, assigned: &Assigned) -> Result<(), Failure> {
    content_key(device, keys, assigned).map(drop)
}

fn content_key(device: &Device, keys: &DeviceKeys, assigned: &Assigned) -> Result<pleach_artifact::ContentKey, Failure> {
    let context = WrapContext {
        device: &device.id,
        bundle: &assigned.digest,
        model: &assigned.model,
        model_version: assigned.model_version,
        class: &assigned.class,
        sequence: assigned.sequence,
    };
    let wrapped = WrappedKey::from_slice(&assigned.wrap);
    wrapped.and_then(|w| unwrap(&w, keys.sealing(), &context)).map_err(|e| Failure::of_artifact(&e))
}

fn decrypt(device: &Device, keys: &DeviceKeys, assigned: &Assigned) -> Result<SealedMemory, Failure> {
    let key = content_key(device, keys, assigned)?;
    let path = device.state.bundle(&assigned.digest);
    let mut source = open_file(&path).map_err(|e| Failure::of_agent(&e))?;
    SealedMemory::from_writer(|sink| {
        open(&mut source, assigned.length_bytes, &assigned.digest, key, sink).map_err(|error| match &error {
            // Writing to sealed memory fails for want of memory only.
            ArtifactError::Io { doing, .. } if doing.starts_with("writing") => Failure::new("memory", crate::error::chain(&error)),
            _ => Failure::of_artifact(&error),
        })
    })
}

fn open_file(path: &Path) -> Result<File, AgentError> {
    File::open(path).map_err(AgentError::file("opening", path))
}
