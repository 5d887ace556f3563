//! What is loaded and what serves: the shared state behind the inference API and the control channel.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use pleach_domain::profile::MeasuredKernel;
use pleach_domain::runtime::{Runtime, TimedModel};
use pleach_domain::window::Window;
use pleach_domain::{Digest, ElementType, Tensor};
use pleach_inference::{OrtRuntime, measure_kernels};
use pleach_proto::fleet::MeasurementSet;
use prost::Message;
use rustix::fs::{SealFlags, fcntl_get_seals};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::runtime::error::{Failure, ServeError};
use crate::runtime::ladder::{Ladder, Serving};
use crate::runtime::metrics::Now;
use crate::runtime::telemetry::{self, Telemetry};

/// Bundles loaded at the same time: the serving one, the next one, and one on its way out.
const MAX_LADDERS: usize = 4;
/// Largest file that the control half may hand over.
const MAX_MEMORY_BYTES: u64 = 4 << 30;
/// Longest that a request waits for the proven bundle after a start.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const MAX_MEASURED_MODELS: usize = 8_192;
const MAX_INPUT_ELEMENTS: usize = 64 << 20;
/// Nice value of threads that time models: the application and inference go first.
const MEASURING_NICE: i32 = 10;

/// The state of one runtime half.
#[derive(Debug)]
pub(crate) struct Host {
    runtime: OrtRuntime,
    device_id: String,
    serving: Serving,
    telemetry: Arc<Telemetry>,
    ladders: Mutex<BTreeMap<Digest, Arc<Ladder>>>,
    active: RwLock<Option<Active>>,
    /// Whether the control half is about to bring the proven bundle back: requests wait for it.
    expected: watch::Sender<bool>,
    /// One measurement at a time, or they disturb each other.
    measuring: Mutex<()>,
    /// Whether the device is hot or short of memory.
    pressed: Arc<AtomicBool>,
}

/// The bundle that serves.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) ladder: Arc<Ladder>,
    pub(crate) probation: bool,
    /// Counters at activation.
    requests: u64,
    errors: u64,
}

impl Active {
    /// Requests answered or failed since the bundle was activated first.
    pub(crate) fn requests(&self) -> u64 {
        self.ladder.requests().saturating_sub(self.requests)
    }

    /// Requests failed since the bundle was activated first.
    pub(crate) fn errors(&self) -> u64 {
        self.ladder.errors().saturating_sub(self.errors)
    }
}

impl Host {
    /// A host that serves nothing yet.
    pub(crate) fn new(runtime: OrtRuntime, device_id: String, serving: Serving) -> Self {
        Self {
            runtime,
            device_id,
            serving,
            telemetry: Arc::new(Telemetry::new()),
            ladders: Mutex::default(),
            active: RwLock::default(),
            expected: watch::Sender::new(false),
            measuring: Mutex::default(),
            pressed: Arc::default(),
        }
    }

    pub(crate) fn device_id(&self) -> &str {
        &self.device_id
    }

    pub(crate) fn onnxruntime_version(&self) -> String {
        self.runtime.version()
    }

    /// The bundle that serves.
    pub(crate) fn active(&self) -> Option<Active> {
        self.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets requests wait for the bundle that the control half brings next.
    pub(crate) fn expect_bundle(&self) {
        self.expected.send_replace(true);
    }

    /// As [`Host::serving`], after waiting for a bundle that is on its way.
    pub(crate) async fn served(&self, name: &str, version: &str) -> Result<Arc<Ladder>, ServeError> {
        let mut expected = self.expected.subscribe();
        // Too late is as good as not at all: the answer is then that nothing serves.
        let _ = timeout(LONGEST_WAIT, expected.wait_for(|expected| !expected)).await;
        self.serving(name, version)
    }

    /// The bundle that serves, when it is the model and version asked for; an empty version is any.
    pub(crate) fn serving(&self, name: &str, version: &str) -> Result<Arc<Ladder>, ServeError> {
        let ladder = self.active().ok_or(ServeError::NoModel)?.ladder;
        let shortened = |text: &str| text.chars().take(80).collect::<String>();
        if name != ladder.model {
            return Err(ServeError::UnknownModel { name: shortened(name), serving: ladder.model.clone() });
        }
        if !version.is_empty() && version != ladder.version.to_string() {
            let (name, version, serving) = (shortened(name), shortened(version), ladder.version);
            return Err(ServeError::UnknownVersion { name, version, serving });
        }
        Ok(ladder)
    }

    /// Joins labels with an earlier request.
    pub(crate) fn label(&self, request_id: &str, labels: &[i64]) -> Result<bool, ServeError> {
        self.telemetry.label(request_id, labels)
    }

    /// Loads a decrypted bundle out of sealed memory and proves it.
    pub(crate) fn load(&self, digest: Digest, memory: OwnedFd) -> Result<(), Failure> {
        self.load_payload(digest, &read_sealed(memory)?)
    }

    pub(crate) fn load_payload(&self, digest: Digest, payload: &[u8]) -> Result<(), Failure> {
        if self.ladders().contains_key(&digest) {
            return Ok(());
        }
        if self.ladders().len() >= MAX_LADDERS {
            return Err(Failure::new("load", format!("{MAX_LADDERS} bundles are loaded: expected fewer, unload one first")));
        }
        let loaded = Ladder::load(&self.runtime, digest, payload, self.serving, &self.telemetry, &self.pressed);
        let ladder = loaded.inspect_err(|_| {
            self.expected.send_replace(false);
        })?;
        tracing::info!(bundle.digest = %digest, model = ladder.model, version = ladder.version, "bundle loaded and proved");
        self.ladders().insert(digest, Arc::new(ladder));
        Ok(())
    }

    /// Makes a loaded bundle serve. Requests that hold the one before finish on it.
    pub(crate) fn activate(&self, digest: Digest, probation: bool) -> Result<(), Failure> {
        let ladder = self.ladders().get(&digest).cloned();
        let ladder = ladder.ok_or_else(|| Failure::new("activate", format!("bundle {digest} is not loaded")))?;
        let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
        match active.as_mut() {
            Some(current) if current.ladder.digest == digest => current.probation = probation,
            _ => *active = Some(Active { requests: ladder.requests(), errors: ladder.errors(), ladder, probation }),
        }
        drop(active);
        self.expected.send_replace(false);
        tracing::info!(bundle.digest = %digest, probation, "bundle serves");
        Ok(())
    }

    /// Forgets a bundle.
    pub(crate) fn unload(&self, digest: Digest) {
        self.ladders().remove(&digest);
        let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
        if active.as_ref().is_some_and(|a| a.ladder.digest == digest) {
            *active = None;
        }
    }

    /// Whether slimmer rungs should serve because the device is hot or short of memory.
    pub(crate) fn press(&self, pressed: bool) {
        self.pressed.store(pressed, Ordering::Relaxed);
    }

    /// Every loaded bundle, and whether it serves.
    pub(crate) fn loaded(&self) -> Vec<(Arc<Ladder>, bool)> {
        let active = self.active().map(|a| a.ladder.digest);
        self.ladders().values().map(|l| (Arc::clone(l), Some(l.digest) == active)).collect()
    }

    /// Counters for Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let active = self.active().map(|a| a.ladder);
        let now = Now {
            bundle: active.as_ref().map(|l| l.digest.to_string()).unwrap_or_default(),
            model: active.as_ref().map(|l| l.model.as_str()).unwrap_or_default(),
            version: active.as_ref().map_or(0, |l| l.version),
            waiting: active.as_ref().map_or(0, |l| l.waiting()),
            resident_bytes: telemetry::resident_bytes(),
            cpu_us: telemetry::process_cpu_us(),
        };
        self.telemetry.totals().render(&now)
    }

    /// Closes the open windows.
    pub(crate) fn collect(&self) -> Vec<Window> {
        self.telemetry.collect()
    }

    /// Times a measurement set out of sealed memory.
    pub(crate) fn measure(&self, memory: OwnedFd, budget: Duration) -> Result<Vec<MeasuredKernel>, Failure> {
        let set = MeasurementSet::decode(read_sealed(memory)?.as_slice()).map_err(|e| Failure::of("measure", &e))?;
        if set.models.len() > MAX_MEASURED_MODELS {
            return Err(Failure::new("measure", format!("{} models: expected at most {MAX_MEASURED_MODELS}", set.models.len())));
        }
        let mut keys = Vec::with_capacity(set.models.len());
        let mut models = Vec::with_capacity(set.models.len());
        for model in set.models {
            let inputs = model.inputs.iter().map(pseudo_random).collect::<Result<_, _>>()?;
            keys.push(model.key);
            models.push(TimedModel { model: model.onnx, inputs });
        }
        let timings = self.quietly(|| self.runtime.time(&models, budget)).map_err(|e| Failure::of("measure", &*e))?;
        Ok(keys.into_iter().zip(timings).map(|(key, timing)| MeasuredKernel { key, timing }).collect())
    }

    /// Times the standard kernels.
    pub(crate) fn profile(&self, budget: Duration) -> Result<Vec<MeasuredKernel>, Failure> {
        self.quietly(|| measure_kernels(&self.runtime, budget)).map_err(|e| Failure::of("profile", &*e))
    }

    /// How long the longest call that runs now has been running.
    pub(crate) fn longest_call(&self) -> Option<Duration> {
        let active = self.active().map(|a| a.ladder);
        self.ladders().values().chain(active.as_ref()).filter_map(|l| l.running_for()).max()
    }

    /// Runs on the calling thread, which should be made for it, at low priority; sessions created meanwhile inherit it.
    fn quietly<T>(&self, time: impl FnOnce() -> T) -> T {
        let _turn = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        // On Linux "this process" of setpriority is the calling thread.
        if let Err(error) = rustix::process::setpriority_process(None, MEASURING_NICE) {
            tracing::debug!(%error, "measuring at normal priority");
        }
        time()
    }

    fn ladders(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Ladder>>> {
        self.ladders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads sealed memory from its beginning, wherever the sender left its position.
fn read_sealed(memory: OwnedFd) -> Result<Vec<u8>, Failure> {
    let needed = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
    if !fcntl_get_seals(&memory).is_ok_and(|seals| seals.contains(needed)) {
        return Err(Failure::new("seals", "the file that came along is not sealed memory"));
    }
    let file = File::from(memory);
    let read = || -> io::Result<Vec<u8>> {
        let length = file.metadata()?.len();
        let length = usize::try_from(length).ok().filter(|&n| n as u64 <= MAX_MEMORY_BYTES).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    read().map_err(|e| Failure::of("seals", &e))
}

/// An input of the asked shape; floats in -1..1, integers 0 or 1, the same on every device.
fn pseudo_random(input: &pleach_proto::fleet::MeasurementInput) -> Result<(String, Tensor), Failure> {
    let refuse = |words: String| Failure::new("measure", format!("input {:?}: {words}", input.name));
    let kind = ElementType::from_name(&input.datatype).ok_or_else(|| refuse(format!("datatype {:?} is unknown", input.datatype)))?;
    let shape: Vec<usize> = input.shape.iter().map(|&d| d as usize).collect();
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_INPUT_ELEMENTS);
    let count = count.ok_or_else(|| refuse(format!("shape {shape:?} has more than {MAX_INPUT_ELEMENTS} elements")))?;
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let bytes: Vec<u8> = (0..count)
        .flat_map(|_| {
            let value = next();
            let unit = value as f32 / 8_388_608.0 - 1.0;
            let bit = (value >> 10) as u8 & 1;
            match kind {
                ElementType::Fp32 => unit.to_le_bytes().to_vec(),
                ElementType::Fp64 => f64::from(unit).to_le_bytes().to_vec(),
                ElementType::Int64 => i64::from(bit).to_le_bytes().to_vec(),
                ElementType::Int32 => i32::from(bit).to_le_bytes().to_vec(),
                ElementType::Uint8 | ElementType::Bool => vec![bit],
            }
        })
        .collect();
    let tensor = Tensor::from_le_bytes(kind, shape, &bytes).map_err(|e| refuse(e.to_string()))?;
    Ok((input.name.clone(), tensor))
}
