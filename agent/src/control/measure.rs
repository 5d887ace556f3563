//! Measuring: the standard kernels for the profile, and the models that the controller wants timed.

use std::sync::Arc;
use std::time::Duration;

use pleach_domain::profile::{HardwareProfile, MeasuredKernel};
use pleach_proto::convert;
use pleach_proto::fleet::{Measurement, MeasurementSet, MeasurementTask};
use prost::Message;
use tokio::sync::watch;

use super::failure::Failure;
use super::{Client, Device, download};
use crate::profile::{self, Measured};
use crate::supervisor::{RuntimeHandle, SealedMemory};

/// Largest measurement set that is fetched, in bytes: it is held in memory.
const MAX_SET_BYTES: u64 = 512 << 20;
/// Longest wall time on one model, in milliseconds.
const MAX_BUDGET_MS: u32 = 60_000;

/// What came of measuring.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The device's profile.
    Profile(Box<HardwareProfile>),
    /// A task's timings, or why there are none.
    Task(Measurement),
    /// Nothing to report now; to be tried again.
    Later(String),
}

/// Reads the machine; the cheap part of a profile.
pub(super) fn machine(device: &Device) -> Result<HardwareProfile, Failure> {
    let read = profile::read(device.state.root(), device.config.inference_threads(), Measured::default());
    read.map_err(|e| Failure::new("profile", e.to_string()))
}

/// Reads the machine and times the standard kernels.
pub(super) async fn profile(device: Arc<Device>, runtime: RuntimeHandle) -> Outcome {
    let work = async {
        let budget = Duration::from_millis(device.config.profile_budget_ms.into());
        let kernels = runtime.profile(budget).await.map_err(|e| Failure::of_runtime(&e))?;
        let onnxruntime_version = runtime.stats().await.map_err(|e| Failure::of_runtime(&e))?.onnxruntime_version;
        let measured = Measured { onnxruntime_version, kernels };
        profile::read(device.state.root(), device.config.inference_threads(), measured).map_err(|e| Failure::new("profile", e.to_string()))
    };
    match work.await {
        Ok(profile) => Outcome::Profile(Box::new(profile)),
        Err(failure) => Outcome::Later(format!("the profile could not be measured: {}: {}", failure.check, failure.detail)),
    }
}

/// Does one task. The runtime may end meanwhile; then the task is done again later. Everything else ends it.
pub(super) async fn task(client: watch::Receiver<Client>, runtime: RuntimeHandle, task: MeasurementTask) -> Outcome {
    let task_id = task.id.clone();
    match timings(client, runtime, task).await {
        Ok(kernels) => {
            let timings = kernels.iter().map(Into::into).collect();
            Outcome::Task(Measurement { task_id, timings, error: String::new() })
        }
        Err(failure) if matches!(failure.check.as_str(), "crash" | "interrupted") => {
            Outcome::Later(format!("measurement {task_id}: {}: {}", failure.check, failure.detail))
        }
        Err(failure) => {
            Outcome::Task(Measurement { task_id, timings: Vec::new(), error: format!("{}: {}", failure.check, failure.detail) })
        }
    }
}

async fn timings(client: watch::Receiver<Client>, runtime: RuntimeHandle, task: MeasurementTask) -> Result<Vec<MeasuredKernel>, Failure> {
    let digest = convert::digest("measurement.digest", &task.digest).map_err(|e| Failure::new("message", crate::error::chain(&e)))?;
    if task.length > MAX_SET_BYTES {
        return Err(Failure::new("length", format!("the set has {} bytes, at most {MAX_SET_BYTES} are measured", task.length)));
    }
    let bytes = download::blob(client, digest, task.length).await?;
    let set = MeasurementSet::decode(bytes.as_slice()).map_err(|e| Failure::new("message", format!("the set does not parse: {e}")))?;
    let models = u32::try_from(set.models.len()).unwrap_or(u32::MAX);
    drop(set);
    let memory = SealedMemory::from_writer(|sink| sink.write_all(&bytes).map_err(Failure::from))?;
    drop(bytes);
    let budget = Duration::from_millis(task.budget_ms.min(MAX_BUDGET_MS).into());
    runtime.measure(memory, models, budget).await.map_err(|e| Failure::of_runtime(&e))
}
