//! What the runtime remembers of its answers: the open window of each bundle, and recent predictions until their labels come.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pleach_domain::metrics::{Confusion, MAX_CLASSES};
use pleach_domain::window::Window;
use pleach_domain::{Digest, LatencyHistogram, Tensor};
use rustix::time::{ClockId, clock_gettime};

use crate::runtime::error::ServeError;
use crate::runtime::metrics::Totals;

/// A label that is not known; ignored, as PyTorch's losses do.
const UNLABELLED: i64 = -100;
/// Requests whose predictions wait for labels.
const MAX_RECENT: usize = 8_192;
/// Rows of all of them together.
const MAX_RECENT_ROWS: usize = 262_144;

/// Where an answer came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) bundle: Digest,
    pub(crate) rung: String,
    /// Classes the model tells apart, where it is a classifier.
    pub(crate) classes: Option<usize>,
}

/// Windows and recent predictions, shared by all ladders of the process.
#[derive(Debug)]
pub(crate) struct Telemetry {
    state: Mutex<State>,
    totals: Totals,
}

#[derive(Debug)]
struct State {
    opened: Instant,
    opened_ms: i64,
    cpu_us: u64,
    open: HashMap<Source, Counts>,
    recent: Recent,
}

#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    errors: u64,
    busy: Duration,
    latency: LatencyHistogram,
    confusion: Option<Confusion>,
}

/// Predictions by request, the oldest forgotten first.
#[derive(Debug, Default)]
struct Recent {
    predictions: HashMap<String, Prediction>,
    order: VecDeque<(String, u64)>,
    rows: usize,
    serial: u64,
}

#[derive(Debug)]
struct Prediction {
    source: Source,
    classes: usize,
    rows: Vec<u16>,
    serial: u64,
}

impl Telemetry {
    pub(crate) fn new() -> Self {
        let state = State {
            opened: Instant::now(),
            opened_ms: now_ms(),
            cpu_us: process_cpu_us(),
            open: HashMap::new(),
            recent: Recent::default(),
        };
        Self { state: Mutex::new(state), totals: Totals::default() }
    }

    /// What has been counted since the start.
    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Counts an answer: `latency` from admission, `busy` in the model; remembers what it predicted.
    pub(crate) fn answered(&self, source: &Source, id: String, latency: Duration, busy: Duration, output: Option<&Tensor>) {
        self.totals.answered(&source.rung, latency);
        let predicted = source.classes.zip(output).and_then(|(classes, output)| Some((classes, predictions(output, classes)?)));
        let mut state = self.state();
        let counts = state.counts(source);
        counts.requests += 1;
        counts.busy += busy;
        counts.latency.record_us(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        if let Some((classes, rows)) = predicted {
            state.recent.remember(id, source, classes, rows);
        }
    }

    /// Counts a request that the model failed.
    pub(crate) fn failed(&self, source: &Source, busy: Duration) {
        self.totals.failed(&source.rung);
        let mut state = self.state();
        let counts = state.counts(source);
        counts.requests += 1;
        counts.errors += 1;
        counts.busy += busy;
    }

    /// Joins true labels with what was predicted; `false` when the request is unknown, too long ago, or labelled already.
    pub(crate) fn label(&self, id: &str, labels: &[i64]) -> Result<bool, ServeError> {
        let mut state = self.state();
        let Some(prediction) = state.recent.predictions.get(id) else { return Ok(false) };
        if labels.len() != prediction.rows.len() {
            let (got, expected) = (labels.len(), prediction.rows.len());
            return Err(ServeError::invalid(format!("{got} labels for request {id:?}: expected {expected}, one a row")));
        }
        let most = prediction.classes;
        let in_range = |label: i64| label == UNLABELLED || usize::try_from(label).is_ok_and(|l| l < most);
        if let Some(label) = labels.iter().find(|&&label| !in_range(label)) {
            return Err(ServeError::invalid(format!("label {label}: expected 0 to {}, or {UNLABELLED} where unknown", most - 1)));
        }
        let Some(prediction) = state.recent.take(id) else { return Ok(false) };
        let counts = state.counts(&prediction.source);
        if counts.confusion.is_none() {
            counts.confusion = Confusion::new(prediction.classes).ok();
        }
        for (&label, &predicted) in labels.iter().zip(&prediction.rows) {
            if let (Ok(label), Some(confusion)) = (usize::try_from(label), counts.confusion.as_mut()) {
                // Both were checked against the number of classes.
                let _ = confusion.record(label, usize::from(predicted));
            }
        }
        Ok(true)
    }

    /// Closes the open windows and begins new ones. Only those that saw a request or a label come out, numbered 0.
    pub(crate) fn collect(&self) -> Vec<Window> {
        let mut state = self.state();
        let (now, now_ms, cpu_us) = (Instant::now(), now_ms(), process_cpu_us());
        let duration_ms = u32::try_from((now - state.opened).as_millis()).unwrap_or(u32::MAX);
        let (start_ms, used_us) = (state.opened_ms, cpu_us.saturating_sub(state.cpu_us));
        (state.opened, state.opened_ms, state.cpu_us) = (now, now_ms, cpu_us);
        let closed = std::mem::take(&mut state.open);
        drop(state);
        let busy: Duration = closed.values().map(|c| c.busy).sum();
        let share = |counts: &Counts| if busy.is_zero() { 0.0 } else { counts.busy.as_secs_f64() / busy.as_secs_f64() };
        let memory_bytes = resident_bytes();
        let window = |(source, counts): (Source, Counts)| Window {
            number: 0,
            bundle: source.bundle,
            cpu_us: (used_us as f64 * share(&counts)) as u64,
            rung: source.rung,
            start_ms,
            duration_ms,
            requests: counts.requests,
            errors: counts.errors,
            latency: counts.latency,
            confusion: counts.confusion,
            memory_bytes,
        };
        closed.into_iter().map(window).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn counts(&mut self, source: &Source) -> &mut Counts {
        self.open.entry(source.clone()).or_default()
    }
}

impl Recent {
    fn remember(&mut self, id: String, source: &Source, classes: usize, rows: Vec<u16>) {
        if rows.len() > MAX_RECENT_ROWS {
            return;
        }
        self.take(&id);
        self.serial += 1;
        self.rows += rows.len();
        self.order.push_back((id.clone(), self.serial));
        self.predictions.insert(id, Prediction { source: source.clone(), classes, rows, serial: self.serial });
        while self.order.len() > MAX_RECENT || self.rows > MAX_RECENT_ROWS {
            let Some((oldest, serial)) = self.order.pop_front() else { break };
            if self.predictions.get(&oldest).is_some_and(|p| p.serial == serial) {
                self.take(&oldest);
            }
        }
    }

    fn take(&mut self, id: &str) -> Option<Prediction> {
        let prediction = self.predictions.remove(id)?;
        self.rows -= prediction.rows.len();
        Some(prediction)
    }
}

/// The class of each row, where the output is scores `[rows, classes]`.
pub(crate) fn predictions(output: &Tensor, classes: usize) -> Option<Vec<u16>> {
    let scores = output.as_fp32()?;
    let &[_, width] = output.shape() else { return None };
    if width != classes || !(1..=MAX_CLASSES).contains(&classes) {
        return None;
    }
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
    Some(scores.chunks_exact(width).map(|row| u16::try_from(best(row)).unwrap_or(u16::MAX)).collect())
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn process_cpu_us() -> u64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(used.tv_sec * 1_000_000 + used.tv_nsec / 1_000).unwrap_or(0)
}

pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: u64 = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0);
    kibibytes * 1024
}
