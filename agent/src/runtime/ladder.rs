//! A loaded bundle: its rungs proved against their known answers, and the one thread that runs the serving rung.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pleach_artifact::{ArtifactError, BundleManifest, NamedTensor, Payload, Rung};
use pleach_domain::runtime::{LoadedModel, Optimization, Runtime, TensorSpec};
use pleach_domain::{Digest, Element, Tensor};
use tokio::sync::{mpsc, oneshot};

use crate::runtime::error::{Failure, ServeError};
use crate::runtime::telemetry::{Source, Telemetry};

/// Calls after the known-answer test that bring caches and allocators to their working state.
const WARM_UP_CALLS: usize = 2;

/// Tensors by name, in the order given.
pub(crate) type Named = Vec<(String, Tensor)>;

/// One request on its way to the model.
struct Job {
    id: String,
    inputs: Named,
    admitted: Instant,
    reply: oneshot::Sender<Result<Vec<Tensor>, ServeError>>,
}

/// A loaded bundle. The thread behind it ends when the last clone is dropped and its queue is empty.
#[derive(Debug)]
pub(crate) struct Ladder {
    /// The bundle.
    pub(crate) digest: Digest,
    /// Name of the model.
    pub(crate) model: String,
    /// Version of the model.
    pub(crate) version: u64,
    /// The rung that serves.
    pub(crate) rung: String,
    /// What the model takes.
    pub(crate) inputs: Vec<TensorSpec>,
    /// What the model gives.
    pub(crate) outputs: Vec<TensorSpec>,
    counters: Arc<Counters>,
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
    /// Parses a payload, loads every rung and tests its known answer. The fullest rung serves.
    pub(crate) fn load(
        runtime: &dyn Runtime,
        digest: Digest,
        payload: &[u8],
        queue: usize,
        telemetry: &Arc<Telemetry>,
    ) -> Result<Self, Failure> {
        let payload = Payload::parse(payload).map_err(|error| {
            let check = if matches!(error, ArtifactError::RungDigest { .. }) { "rung-digest" } else { "payload" };
            Failure::of(check, &error)
        })?;
        let manifest = payload.manifest();
        let mut serving = None;
        for rung in &manifest.rungs {
            serving = Some((rung, prove(runtime, manifest, rung, payload.rung(rung))?));
        }
        let (rung, model) = serving.ok_or_else(|| Failure::new("payload", "the ladder has no rung"))?;
        let (inputs, outputs) = (model.inputs().to_vec(), model.outputs().to_vec());
        let counters = Arc::new(Counters::default());
        let source = Source { bundle: digest, rung: rung.name.clone(), classes: classes(manifest, &outputs) };
        let (jobs, queued) = mpsc::channel(queue.max(1));
        let (counted, recorded) = (Arc::clone(&counters), Arc::clone(telemetry));
        thread::Builder::new()
            .name("inference".to_owned())
            .spawn(move || work(model, queued, &source, &counted, &recorded))
            .map_err(|error| Failure::of("load", &error))?;
        Ok(Self {
            digest,
            model: manifest.model.to_string(),
            version: manifest.version,
            rung: rung.name.clone(),
            inputs,
            outputs,
            counters,
            jobs,
        })
    }

    /// Queues a request and waits for its answer; outputs come in the order of [`Ladder::outputs`].
    pub(crate) async fn infer(&self, id: String, inputs: Named) -> Result<Vec<Tensor>, ServeError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { id, inputs, admitted: Instant::now(), reply };
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ServeError::Overloaded { waiting: self.jobs.max_capacity() },
            mpsc::error::TrySendError::Closed(_) => ServeError::Failed("the model's thread has ended".to_owned()),
        })?;
        answer.await.map_err(|_| ServeError::Failed("the model's thread has ended".to_owned()))?
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

fn work(mut model: Box<dyn LoadedModel>, mut jobs: mpsc::Receiver<Job>, source: &Source, counters: &Counters, telemetry: &Telemetry) {
    while let Some(job) = jobs.blocking_recv() {
        if job.reply.is_closed() {
            continue;
        }
        let started = Instant::now();
        counters.running_since.store(uptime_ms() + 1, Ordering::Relaxed);
        let inputs: Vec<_> = job.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let result = model.run(&inputs);
        counters.running_since.store(0, Ordering::Relaxed);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        // The record is made before the answer leaves, so that feedback on it always finds it.
        let reply = match result {
            Ok(outputs) => {
                telemetry.answered(source, job.id, job.admitted.elapsed(), started.elapsed(), outputs.first());
                Ok(outputs)
            }
            Err(error) => {
                counters.errors.fetch_add(1, Ordering::Relaxed);
                telemetry.failed(source, started.elapsed());
                tracing::warn!(bundle.digest = %source.bundle, error = crate::error::chain(&*error), "inference failed");
                Err(ServeError::Failed(crate::error::chain(&*error)))
            }
        };
        let _ = job.reply.send(reply);
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
