//! A loaded bundle: its rungs proved against their known answers, and the way to the one thread that runs them.

mod step;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pleach_artifact::{ArtifactError, BundleManifest, NamedTensor, Payload, Rung};
use pleach_domain::runtime::{LoadedModel, Optimization, Runtime, TensorSpec};
use pleach_domain::{Digest, Element, Tensor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::runtime::error::{Failure, ServeError};
use crate::runtime::telemetry::{Source, Telemetry};

pub(crate) use worker::Serving;
use worker::{Job, Running, Worker};

/// Calls after the known-answer test that bring caches and allocators to their working state.
const WARM_UP_CALLS: usize = 2;

/// Tensors by name, in the order given.
pub(crate) type Named = Vec<(String, Tensor)>;

/// A loaded bundle. The thread behind it ends when the last clone is dropped and its queue is empty.
#[derive(Debug)]
pub(crate) struct Ladder {
    /// The bundle.
    pub(crate) digest: Digest,
    /// Name of the model.
    pub(crate) model: String,
    /// Version of the model.
    pub(crate) version: u64,
    /// The fullest rung.
    pub(crate) rung: String,
    /// What the model takes.
    pub(crate) inputs: Vec<TensorSpec>,
    /// What the model gives.
    pub(crate) outputs: Vec<TensorSpec>,
    counters: Arc<Counters>,
    telemetry: Arc<Telemetry>,
    jobs: mpsc::Sender<Job>,
}

/// What a ladder has done since it was loaded.
#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    /// Milliseconds between `base` and the begin of the running call, plus one; 0 when idle.
    running_since: AtomicU64,
}

impl Ladder {
    /// Parses a payload, loads every rung and tests its known answer.
    pub(crate) fn load(
        runtime: &dyn Runtime,
        digest: Digest,
        payload: &[u8],
        serving: Serving,
        telemetry: &Arc<Telemetry>,
        pressed: &Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let payload = Payload::parse(payload).map_err(|error| {
            let check = if matches!(error, ArtifactError::RungDigest { .. }) { "rung-digest" } else { "payload" };
            Failure::of(check, &error)
        })?;
        let manifest = payload.manifest();
        let mut rungs = Vec::with_capacity(manifest.rungs.len());
        for rung in &manifest.rungs {
            let model = prove(runtime, manifest, rung, payload.rung(rung))?;
            let classes = classes(manifest, model.outputs());
            rungs.push(Running { source: Source { bundle: digest, rung: rung.name.clone(), classes }, model });
        }
        let fullest = rungs.last().ok_or_else(|| Failure::new("payload", "the ladder has no rung"))?;
        let (rung, inputs, outputs) = (fullest.source.rung.clone(), fullest.model.inputs().to_vec(), fullest.model.outputs().to_vec());
        let counters = Arc::new(Counters::default());
        let (jobs, queued) = mpsc::channel(serving.queue.max(1));
        let worker =
            Worker { rungs, serving, counters: Arc::clone(&counters), telemetry: Arc::clone(telemetry), pressed: Arc::clone(pressed) };
        let spawned = thread::Builder::new().name("inference".to_owned()).spawn(move || worker.work(queued));
        spawned.map_err(|error| Failure::of("load", &error))?;
        let (model, version) = (manifest.model.to_string(), manifest.version);
        Ok(Self { digest, model, version, rung, inputs, outputs, counters, telemetry: Arc::clone(telemetry), jobs })
    }

    /// Queues a request and waits for its answer, at most `limit`; outputs come in the order of [`Ladder::outputs`].
    pub(crate) async fn infer(&self, id: String, inputs: Named, limit: Option<Duration>) -> Result<Vec<Tensor>, ServeError> {
        let (reply, answer) = oneshot::channel();
        let admitted = Instant::now();
        let deadline = limit.and_then(|limit| admitted.checked_add(limit));
        let job = Job { id, inputs, admitted, deadline, reply };
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                self.telemetry.totals().refused();
                ServeError::Overloaded { waiting: self.jobs.max_capacity() }
            }
            mpsc::error::TrySendError::Closed(_) => ServeError::Failed("the model's thread has ended".to_owned()),
        })?;
        let ended = |_| ServeError::Failed("the model's thread has ended".to_owned());
        match deadline {
            Some(deadline) => timeout_at(deadline.into(), answer).await.map_err(|_| ServeError::Deadline)?.map_err(ended)?,
            None => answer.await.map_err(ended)?,
        }
    }

    /// Requests that wait for the model.
    pub(crate) fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    /// Requests answered or failed.
    pub(crate) fn requests(&self) -> u64 {
        self.counters.requests.load(Ordering::Relaxed)
    }

    /// Requests failed.
    pub(crate) fn errors(&self) -> u64 {
        self.counters.errors.load(Ordering::Relaxed)
    }

    /// How long the call that runs now has been running.
    pub(crate) fn running_for(&self) -> Option<Duration> {
        match self.counters.running_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_millis(uptime_ms().saturating_sub(since - 1))),
        }
    }
}

fn prove(runtime: &dyn Runtime, manifest: &BundleManifest, rung: &Rung, onnx: &[u8]) -> Result<Box<dyn LoadedModel>, Failure> {
    let mut model = runtime.load(onnx, Optimization::All).map_err(|e| Failure::of("load", &*e))?;
    signature("input", &rung.name, &manifest.inputs, model.inputs())?;
    signature("output", &rung.name, &manifest.outputs, model.outputs())?;
    let inputs: Vec<_> = manifest.known_answer_inputs.iter().map(|n| (n.name.as_str(), &n.tensor)).collect();
    let outputs = model.run(&inputs).map_err(|e| Failure::of("known-answer", &*e))?;
    for expected in &rung.known_answer.outputs {
        let place = model.outputs().iter().position(|spec| spec.name == expected.name);
        let got = place.and_then(|i| outputs.get(i));
        let got = got.ok_or_else(|| Failure::new("known-answer", format!("rung {:?} has no output {:?}", rung.name, expected.name)))?;
        compare(rung, expected, got)?;
    }
    for _ in 0..WARM_UP_CALLS {
        model.run(&inputs).map_err(|e| Failure::of("known-answer", &*e))?;
    }
    Ok(model)
}

fn signature(what: &str, rung: &str, expected: &[TensorSpec], got: &[TensorSpec]) -> Result<(), Failure> {
    let alike = |a: &TensorSpec, b: &TensorSpec| a.name == b.name && a.element_type == b.element_type && a.shape.len() == b.shape.len();
    if expected.len() == got.len() && expected.iter().all(|e| got.iter().any(|g| alike(e, g))) {
        return Ok(());
    }
    let show =
        |specs: &[TensorSpec]| specs.iter().map(|s| format!("{} {} of {} axes", s.name, s.element_type, s.shape.len())).collect::<Vec<_>>();
    Err(Failure::new("signature", format!("rung {rung:?} has {what}s {:?}: expected {:?}", show(got), show(expected))))
}

fn compare(rung: &Rung, expected: &NamedTensor, got: &Tensor) -> Result<(), Failure> {
    let fail = |words: String| Err(Failure::new("known-answer", format!("rung {:?}, output {:?}: {words}", rung.name, expected.name)));
    let (want, kind) = (&expected.tensor, expected.tensor.element_type());
    if (got.shape(), got.element_type()) != (want.shape(), kind) {
        return fail(format!("{} {:?}, expected {kind} {:?}", got.element_type(), got.shape(), want.shape()));
    }
    let (atol, rtol) = (f64::from(rung.known_answer.atol), f64::from(rung.known_answer.rtol));
    let near = |got: f64, want: f64| got == want || (got - want).abs() <= atol + rtol * want.abs();
    let (got, want) = (as_f64(got), as_f64(want));
    match got.iter().zip(&want).position(|(&g, &w)| !near(g, w)) {
        Some(at) => {
            let value = |v: &[f64]| v.get(at).copied().unwrap_or(f64::NAN);
            fail(format!("element {at} is {}, expected {} within {atol} + {rtol} of it", value(&got), value(&want)))
        }
        None => Ok(()),
    }
}

fn as_f64(tensor: &Tensor) -> Vec<f64> {
    match tensor.data() {
        Element::Fp32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        Element::Fp64(v) => v.clone(),
        Element::Int64(v) => v.iter().map(|&x| x as f64).collect(),
        Element::Int32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        Element::Uint8(v) | Element::Bool(v) => v.iter().map(|&x| f64::from(x)).collect(),
    }
}

/// Classes the model tells apart: its labels, else the last axis of its first output.
fn classes(manifest: &BundleManifest, outputs: &[TensorSpec]) -> Option<usize> {
    let named = Some(manifest.labels.len()).filter(|&n| n > 0);
    named.or_else(|| outputs.first().and_then(|o| o.shape.last().copied().flatten()))
}

/// Milliseconds of a clock that never goes back, from the first call in this process.
fn uptime_ms() -> u64 {
    static BASE: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(BASE.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}
