//! This machine as the engine sees it: runs models on one thread each, times them on as many as the user wants.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use pleach_domain::runtime::{LoadedModel, Optimization, Runtime, RuntimeError, TimedModel, Timing};
use pleach_inference::{OrtOptions, OrtRuntime, measure_kernels, width_step};

use super::cache::{self, Cache};
use super::watch::Watch;

/// Wall time spent on each standard kernel.
const KERNEL_BUDGET: Duration = Duration::from_millis(40);

/// ONNX Runtime on this machine.
pub(super) struct Machine {
    /// The engine runs several of these side by side.
    runs: OrtRuntime,
    times: OrtRuntime,
}

impl Machine {
    pub(super) fn new(library: Option<PathBuf>, threads: NonZeroUsize) -> anyhow::Result<Self> {
        let open = |threads| OrtRuntime::new(OrtOptions { library: library.clone(), threads });
        Ok(Self { runs: open(NonZeroUsize::MIN)?, times: open(threads)? })
    }

    /// What measured times depend on besides the model: the runtime and the processor.
    pub(super) fn identity(&self) -> String {
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor.lines().find(|l| l.starts_with("model name")).unwrap_or(std::env::consts::ARCH).to_owned();
        format!("{} {processor}", self.runs.version())
    }

    /// The multiple of channels that this processor favours: from the cache, else measured.
    pub(super) fn width_step(&self, cache: &Cache, watch: &Watch) -> anyhow::Result<usize> {
        let name = cache::name(&["width-step", &self.identity(), &self.times.threads().to_string()]);
        if let Some(step) = cache.get(&name).and_then(|b| String::from_utf8(b).ok()?.parse().ok()).filter(|s| (1..=64).contains(s)) {
            return Ok(step);
        }
        watch.note("timing standard kernels on this machine");
        let kernels =
            measure_kernels(&self.times, KERNEL_BUDGET).map_err(anyhow::Error::from_boxed).context("cannot time standard kernels")?;
        let step = width_step(&kernels);
        cache.put(&name, step.to_string().as_bytes(), watch);
        Ok(step)
    }
}

impl Runtime for Machine {
    fn load(&self, model: &[u8], optimization: Optimization) -> Result<Box<dyn LoadedModel>, RuntimeError> {
        self.runs.load(model, optimization)
    }

    fn time(&self, models: &[TimedModel], budget: Duration) -> Result<Vec<Timing>, RuntimeError> {
        self.times.time(models, budget)
    }
}
