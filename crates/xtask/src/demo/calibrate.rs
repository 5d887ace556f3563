//! How fast this machine is, so that the same objective is as hard everywhere.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::{Runtime, TimedModel};
use pleach_inference::{OrtOptions, OrtRuntime};

/// Images in one request.
pub(super) const BATCH: usize = 16;
/// The objective, in times that the full model takes on one whole processor.
const SLO_RATIO: f64 = 2.5;

/// What the demo demands of its devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// One request to the full model on one whole processor, in microseconds.
    pub dense_us: f64,
    /// The latency objective: p95 of a request, in microseconds.
    pub slo_us: u64,
}

/// Times the full model on one thread and sets the objective.
pub(super) fn measure(fixtures: &Path, library: &Path) -> anyhow::Result<Pace> {
    let model = fs::read(fixtures.join("fm-resnet/model.onnx")).context("cannot read the model")?;
    let data = dataset(fixtures)?;
    let rows = data.slice_rows(0, BATCH).context("the validation data have no rows")?;
    let inputs = rows.inputs().iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    let runtime = OrtRuntime::new(OrtOptions { library: Some(library.to_owned()), threads: NonZeroUsize::MIN })?;
    let timed = runtime.time(&[TimedModel { model, inputs }], Duration::from_millis(600)).map_err(|e| anyhow!(e))?;
    // The fastest call: whatever else the machine does in this moment must not loosen the objective.
    let dense_us = timed.first().context("no timing came back")?.min_us;
    Ok(Pace { dense_us, slo_us: (dense_us * SLO_RATIO / 100.0).round() as u64 * 100 })
}

/// The labelled images that devices are asked about.
pub(super) fn dataset(fixtures: &Path) -> anyhow::Result<Dataset> {
    let bytes = fs::read(fixtures.join("fashion-validation.npz")).context("cannot read the validation data")?;
    Ok(Dataset::parse_npz(&bytes, &DatasetLimits::default())?)
}
