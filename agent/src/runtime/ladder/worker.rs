//! The one thread that runs a ladder: takes requests in turn, puts those that wait together into one call where that is asked for,
//! chooses the rung, and checks slim answers against the fullest rung when there is nothing else to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pleach_domain::Tensor;
use pleach_domain::runtime::LoadedModel;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::step::Stepper;
use super::{Counters, Named, uptime_ms};
use crate::runtime::error::ServeError;
use crate::runtime::telemetry::{Source, Telemetry, predictions};

/// One request on its way to the model.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) inputs: Named,
    pub(super) admitted: Instant,
    /// When nobody waits for the answer any more.
    pub(super) deadline: Option<Instant>,
    pub(super) reply: oneshot::Sender<Result<Vec<Tensor>, ServeError>>,
}

/// How a ladder serves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Serving {
    /// Requests that may wait for the model; more are refused at once.
    pub(crate) queue: usize,
    /// Rows of waiting requests that may go into one call; 1: each request alone.
    pub(crate) batch_max_rows: usize,
    /// A slimmer rung serves when requests wait longer than this.
    pub(crate) step_down_wait: Duration,
    /// The slimmest rung answers first, and its answer is kept when it is this sure.
    pub(crate) cascade_confidence: Option<f32>,
    /// Share of answers from slimmer rungs that are checked against the fullest when nothing waits.
    pub(crate) audit_share: f32,
}

impl Default for Serving {
    fn default() -> Self {
        Self { queue: 64, batch_max_rows: 1, step_down_wait: Duration::from_millis(250), cascade_confidence: None, audit_share: 0.01 }
    }
}

/// A rung that runs.
pub(super) struct Running {
    pub(super) source: Source,
    pub(super) model: Box<dyn LoadedModel>,
}

pub(super) struct Worker {
    /// From slim to full; never empty.
    pub(super) rungs: Vec<Running>,
    pub(super) serving: Serving,
    pub(super) counters: Arc<Counters>,
    pub(super) telemetry: Arc<Telemetry>,
    /// The device is hot, or short of memory.
    pub(super) pressed: Arc<AtomicBool>,
}

/// An answer that waits for its check: the inputs, and what was predicted.
struct Audit {
    inputs: Named,
    predicted: Vec<u16>,
}

/// What a call gave, and the place of the rung that gave it.
type Answer = (usize, Result<Vec<Tensor>, String>);

impl Worker {
    /// Works until the ladder is gone and its queue empty.
    pub(super) fn work(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut stepper = Stepper::new(self.rungs.len(), self.serving.step_down_wait);
        let (mut held, mut audit, mut answers) = (None, None, 0.0f32);
        loop {
            let job = match held.take().map_or_else(|| jobs.try_recv(), Ok) {
                Ok(job) => job,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    if let Some(audit) = audit.take() {
                        self.check(&audit);
                        continue;
                    }
                    let Some(job) = jobs.blocking_recv() else { return };
                    job
                }
            };
            let Some(job) = self.wanted(job) else { continue };
            #[cfg(debug_assertions)]
            let Some(job) = self.drilled(job) else { continue };
            let batch = self.gather(job, &mut jobs, &mut held);
            let waited = batch.iter().map(|j| j.admitted.elapsed()).max().unwrap_or_default();
            let place = stepper.place(waited, self.pressed.load(Ordering::Relaxed), Instant::now());
            answers += self.serving.audit_share;
            let sample = answers >= 1.0 && audit.is_none();
            if let Some(taken) = self.serve(batch, place, sample) {
                (audit, answers) = (Some(taken), 0.0);
            }
        }
    }

    /// A request that somebody still waits for.
    fn wanted(&self, job: Job) -> Option<Job> {
        if job.reply.is_closed() || job.deadline.is_some_and(|d| d <= Instant::now()) {
            self.telemetry.totals().expired();
            let _ = job.reply.send(Err(ServeError::Deadline));
            return None;
        }
        Some(job)
    }

    #[cfg(debug_assertions)]
    fn drilled(&self, job: Job) -> Option<Job> {
        self.counters.running_since.store(uptime_ms() + 1, Ordering::Relaxed);
        let outcome = crate::runtime::drill::act(&job.id);
        self.counters.running_since.store(0, Ordering::Relaxed);
        let Some(outcome) = outcome else { return Some(job) };
        let _ = job.reply.send(Err(ServeError::invalid(outcome)));
        None
    }

    /// The request and those behind it that can go into the same call; the first that cannot is held for the next.
    fn gather(&self, first: Job, jobs: &mut mpsc::Receiver<Job>, held: &mut Option<Job>) -> Vec<Job> {
        let mut rows = rows(&first.inputs);
        let mut batch = vec![first];
        while rows < self.serving.batch_max_rows && self.batches() {
            let Some(next) = jobs.try_recv().ok().and_then(|job| self.wanted(job)) else { break };
            let fits = batch.first().is_some_and(|first| alike(&first.inputs, &next.inputs));
            let more = self::rows(&next.inputs);
            if !fits || rows + more > self.serving.batch_max_rows {
                *held = Some(next);
                break;
            }
            rows += more;
            batch.push(next);
        }
        batch
    }

    /// Whether the first axis of everything is free, so that it can be rows of several requests.
    fn batches(&self) -> bool {
        let free = |specs: &[pleach_domain::runtime::TensorSpec]| specs.iter().all(|s| s.shape.first() == Some(&None));
        self.rungs.first().is_some_and(|r| free(r.model.inputs()) && free(r.model.outputs()))
    }

    /// Runs a batch and answers each of its requests; gives what to audit, where that was asked for and makes sense.
    fn serve(&mut self, batch: Vec<Job>, place: usize, sample: bool) -> Option<Audit> {
        if let [_] = batch.as_slice() {
            let job = batch.into_iter().next()?;
            let started = Instant::now();
            let answer = self.run(&job.inputs, place);
            return self.answer(job, answer, started.elapsed(), sample);
        }
        let joined = joined(&batch);
        let started = Instant::now();
        let (place, outputs) = self.run(&joined, place);
        let total = rows(&joined);
        let whole = outputs.as_ref().is_ok_and(|outputs| outputs.iter().all(|o| o.rows() == total));
        self.telemetry.totals().batched(batch.len());
        let busy = started.elapsed() / u32::try_from(batch.len()).unwrap_or(u32::MAX);
        let mut row = 0;
        for job in batch {
            let (from, to) = (row, row + rows(&job.inputs));
            row = to;
            let answer = match &outputs {
                Ok(outputs) if whole => (place, Ok(outputs.iter().map(|o| o.slice_rows(from, to)).collect())),
                // The model's fault or that of one request: each alone, so that only the one fails.
                Ok(_) | Err(_) => self.run(&job.inputs, place),
            };
            self.answer(job, answer, busy, false);
        }
        None
    }

    /// Runs a rung: the one at `place`, or from the slimmest up to it until one is sure.
    fn run(&mut self, inputs: &Named, place: usize) -> Answer {
        let named: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let from = if self.serving.cascade_confidence.is_some() { 0 } else { place };
        self.counters.running_since.store(uptime_ms() + 1, Ordering::Relaxed);
        let mut answer = (place, Err("the ladder has no rung".to_owned()));
        for (at, rung) in self.rungs.iter_mut().enumerate().take(place + 1).skip(from) {
            answer = (at, rung.model.run(&named).map_err(|e| crate::error::chain(&*e)));
            let sure = |threshold: f32| answer.1.as_ref().is_ok_and(|o| confidence(o.first()) >= threshold);
            if self.serving.cascade_confidence.is_some_and(sure) {
                break;
            }
        }
        self.counters.running_since.store(0, Ordering::Relaxed);
        answer
    }

    /// Records and sends an answer. The record is made before the answer leaves, so that feedback on it always finds it.
    fn answer(&self, job: Job, (place, result): Answer, busy: Duration, sample: bool) -> Option<Audit> {
        let source = &self.rungs.get(place)?.source;
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(outputs) => {
                let classes = source.classes.filter(|_| sample && place + 1 < self.rungs.len());
                let predicted = classes.zip(outputs.first()).and_then(|(classes, output)| predictions(output, classes));
                self.telemetry.answered(source, job.id, job.admitted.elapsed(), busy, outputs.first());
                let _ = job.reply.send(Ok(outputs));
                predicted.map(|predicted| Audit { inputs: job.inputs, predicted })
            }
            Err(words) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                self.telemetry.failed(source, busy);
                tracing::warn!(bundle.digest = %source.bundle, error = words, "inference failed");
                let _ = job.reply.send(Err(ServeError::Failed(words)));
                None
            }
        }
    }

    /// Runs the fullest rung on what a slimmer one has answered, and counts how often they agree.
    fn check(&mut self, audit: &Audit) {
        let Some(full) = self.rungs.len().checked_sub(1) else { return };
        let cascade = self.serving.cascade_confidence.take();
        let (_, result) = self.run(&audit.inputs, full);
        self.serving.cascade_confidence = cascade;
        let Some(classes) = self.rungs.get(full).and_then(|r| r.source.classes) else { return };
        if let Some(expected) = result.ok().and_then(|o| predictions(o.first()?, classes)) {
            let agreed = expected.iter().zip(&audit.predicted).filter(|(e, p)| e == p).count();
            self.telemetry.totals().audited(expected.len(), agreed);
        }
    }
}

/// Rows of a request: the first axis of its first input.
fn rows(inputs: &Named) -> usize {
    inputs.first().map_or(1, |(_, tensor)| tensor.rows())
}

/// Whether two requests differ in rows alone, and each has the same number of rows in all of its inputs.
fn alike(a: &Named, b: &Named) -> bool {
    let even = |n: &Named| n.iter().all(|(_, t)| t.rows() == rows(n));
    let same = |((na, ta), (nb, tb)): (&(String, Tensor), &(String, Tensor))| {
        na == nb && ta.element_type() == tb.element_type() && ta.shape().get(1..) == tb.shape().get(1..)
    };
    a.len() == b.len() && even(a) && even(b) && a.iter().zip(b).all(same)
}

/// The rows of several requests one after the other.
fn joined(batch: &[Job]) -> Named {
    let Some(first) = batch.first() else { return Named::new() };
    let join = |(at, (name, tensor)): (usize, &(String, Tensor))| {
        let more: Vec<_> = batch.iter().skip(1).filter_map(|job| job.inputs.get(at).map(|(_, t)| t)).collect();
        (name.clone(), tensor.with_rows(&more))
    };
    first.inputs.iter().enumerate().map(join).collect()
}

/// The smallest of the rows' largest softmax probabilities; 0 where the output is no scores `[rows, classes]`.
fn confidence(output: Option<&Tensor>) -> f32 {
    let Some((scores, &[_, width])) = output.and_then(|o| Some((o.as_fp32()?, o.shape()))) else { return 0.0 };
    if width == 0 {
        return 0.0;
    }
    let of_row = |row: &[f32]| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        1.0 / row.iter().map(|x| (x - most).exp()).sum::<f32>()
    };
    let least = scores.chunks_exact(width).map(of_row).fold(1.0f32, f32::min);
    if least.is_finite() { least } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_is_the_least_sure_row() {
        let scores = Tensor::fp32(vec![2, 2], vec![10.0, -10.0, 0.0, 0.0]).unwrap();
        assert!((confidence(Some(&scores)) - 0.5).abs() < 1e-6);
        assert!(confidence(Some(&scores.slice_rows(0, 1))) > 0.99);
        assert!(confidence(Some(&Tensor::fp32(vec![1, 1], vec![f32::NAN]).unwrap())) <= 1.0);
        assert_eq!(confidence(Some(&Tensor::int64(vec![1, 1], vec![1]).unwrap())), 0.0);
        assert_eq!(confidence(None), 0.0);
    }

    #[test]
    fn requests_that_differ_in_rows_alone_go_together() {
        let named =
            |name: &str, shape: [usize; 2]| vec![(name.to_owned(), Tensor::fp32(shape.to_vec(), vec![0.0; shape[0] * shape[1]]).unwrap())];
        assert!(alike(&named("x", [1, 3]), &named("x", [4, 3])));
        assert!(!alike(&named("x", [1, 3]), &named("x", [1, 4])));
        assert!(!alike(&named("x", [1, 3]), &named("y", [1, 3])));
        let uneven = vec![named("x", [1, 3]).remove(0), named("y", [2, 3]).remove(0)];
        assert!(!alike(&uneven, &uneven));
    }
}
