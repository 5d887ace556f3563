//! Owns the ledger and the runtime half, and moves the device from one proven bundle to the next.
//!
//! At start the proven bundle serves before anything else. A new assignment is verified, delivered, loaded beside it, put on
//! probation, and proven; whatever fails, the proven bundle goes on or comes back, and an event says which check it was.
//! The decisions are in [`super::attempt`].

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use pleach_domain::Digest;
use pleach_domain::window::Window;
use pleach_proto::fleet::Event;
use pleach_proto::fleet::event::State;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::attempt::{self, Resume};
use super::door::Asking;
use super::failure::Failure;
use super::measure::Outcome;
use super::report::Reports;
use super::slot::Slot;
use super::trust::Trust;
use super::{Client, Desired, Device, Known, bundle};
use crate::backoff::{Backoff, random};
use crate::error::{AgentError, chain};
use crate::files;
use crate::keys::DeviceKeys;
use crate::ledger::{Assigned, Attempt, Ended, Ledger, LedgerFile, Step};
use crate::service::Service;
use crate::spool::Draft;
use crate::supervisor::{Exit, RuntimeHandle, RuntimeStats, Standing, SupervisorError};

mod assignment;
mod command;
mod telemetry;

/// How often a bundle on probation is looked at.
const PROBATION_LOOK: Duration = Duration::from_millis(200);
/// How often the conditions of activation, heat and memory are looked at.
const CONDITIONS_LOOK: Duration = Duration::from_secs(2);
const DEFAULT_WINDOW: Duration = Duration::from_secs(10);
/// A runtime that lived this long is healthy: the next restart is quick again.
const HEALTHY: Duration = Duration::from_secs(60);
/// Quick ends of the runtime in a row after which the proven bundle is reported as failed. It is started again all the same.
const CRASH_LOOP: u32 = 3;
/// Time for last words at the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where the current attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Delivering,
    /// Whole on disk, waiting for the runtime.
    Staged,
    Loading,
    Probation {
        since: Instant,
    },
}

/// A runtime that came up, and why the proven bundle does not serve in it, if so.
type Up = (RuntimeHandle, Option<Failure>);

pub(super) struct Engine {
    device: Arc<Device>,
    keys: Arc<DeviceKeys>,
    ledger_file: LedgerFile,
    ledger: Ledger,
    trust: Result<Trust, AgentError>,
    reports: Reports,
    client: watch::Receiver<Client>,
    desired: watch::Receiver<Desired>,
    asked: mpsc::Receiver<Asking>,
    phase: Phase,
    /// The download or the load of the current phase.
    work: Slot<Result<(), Failure>>,
    runtime: Option<RuntimeHandle>,
    exited: Option<watch::Receiver<Option<Exit>>>,
    starting: Slot<Result<Up, Failure>>,
    restarts: Backoff,
    started: Instant,
    /// Quick ends of the runtime in a row.
    crashes: u32,
    stats: Slot<Result<RuntimeStats, SupervisorError>>,
    windows: Slot<Result<Vec<Window>, SupervisorError>>,
    window: Duration,
    next_window: Instant,
    measuring: Slot<Outcome>,
    /// What the machine looked like when it was last compared with the reported profile.
    machine_checked: bool,
    /// What activation waits for, so that it is logged once.
    held: Option<String>,
    service: Service,
    /// Whether the runtime was told that the device is hot or short of memory.
    pressed: bool,
    /// The deployment that was refused last, so that it is refused once.
    refused: Option<Digest>,
    /// Sequence of the failure that was told since this start.
    told: Option<u64>,
}

/// What comes to the engine from elsewhere.
pub(super) struct Inbox {
    pub(super) client: watch::Receiver<Client>,
    pub(super) desired: watch::Receiver<Desired>,
    /// From a person on the device.
    pub(super) asked: mpsc::Receiver<Asking>,
}

impl Engine {
    pub(super) fn new(
        device: Arc<Device>,
        keys: Arc<DeviceKeys>,
        ledger_file: LedgerFile,
        ledger: Ledger,
        reports: Reports,
        inbox: Inbox,
    ) -> Self {
        let Inbox { client, desired, asked } = inbox;
        let trust = Trust::load(&device.state, device.clock.now_ms());
        let now = Instant::now();
        Self {
            trust,
            reports,
            client,
            desired,
            asked,
            phase: Phase::Idle,
            work: Slot::empty(),
            runtime: None,
            exited: None,
            starting: Slot::empty(),
            restarts: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            started: now,
            crashes: 0,
            stats: Slot::empty(),
            windows: Slot::empty(),
            window: DEFAULT_WINDOW,
            next_window: now + DEFAULT_WINDOW,
            measuring: Slot::empty(),
            machine_checked: false,
            held: None,
            service: Service::default(),
            pressed: false,
            refused: None,
            told: None,
            device,
            keys,
            ledger_file,
            ledger,
        }
    }

    /// Works until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        self.start(Duration::ZERO);
        self.wake_up().await;
        let mut look = interval(PROBATION_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut signs = Service::sign_interval().map(interval);
        let mut conditions = interval(CONDITIONS_LOOK);
        conditions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let on_probation = matches!(self.phase, Phase::Probation { .. });
            tokio::select! {
                () = stop.cancelled() => break,
                up = self.starting.done() => self.runtime_up(up).await,
                exit = ended(&mut self.exited) => self.runtime_down(&exit).await,
                done = self.work.done() => self.work_done(done).await,
                Ok(()) = self.desired.changed() => self.desired_changed().await,
                Ok(()) = self.client.changed() => {
                    self.machine_checked = false;
                    self.measure();
                }
                Some((ask, reply)) = self.asked.recv() => {
                    let said = self.asked(ask).await;
                    // The one who asked may have gone.
                    let _ = reply.send(said);
                }
                () = sign(&mut signs) => self.service.alive(),
                _ = conditions.tick() => self.look_at_conditions().await,
                _ = look.tick(), if on_probation && self.stats.is_empty() => self.ask_stats(),
                stats = self.stats.done() => self.look(stats).await,
                () = sleep_until(self.next_window) => self.ask_windows(),
                windows = self.windows.done() => self.windows_done(windows).await,
                outcome = self.measuring.done() => self.measured(outcome).await,
            }
        }
        self.service.stopping();
        self.farewell().await;
    }

    // ---- start and end ----

    /// Goes over what an earlier start left behind.
    async fn wake_up(&mut self) {
        self.publish_known();
        self.sweep();
        // What an interrupted installation left; most often nothing.
        let _ = fs::remove_dir_all(self.device.state.offline());
        if let Some(proven) = self.ledger.proven.clone() {
            // The event may have been lost with the power; it changes nothing where it was not.
            self.tell(&proven, State::Proven, None).await;
        }
        let Some(mut left) = self.ledger.attempt.clone() else { return };
        let staged = self.device.state.bundle(&left.assigned.digest).exists();
        let resume = attempt::resume(&mut left, staged);
        tracing::info!(bundle = %left.assigned.digest, step = ?left.step, boots = left.boots, ?resume, "going on with an attempt");
        let boots = left.boots;
        self.ledger.attempt = Some(left);
        self.save_or_log();
        match resume {
            Resume::GiveUp => {
                let words = format!("the agent was started {boots} times with this bundle on probation");
                self.fail(Failure::new("interrupted", words)).await;
            }
            Resume::Deliver => self.deliver(),
            Resume::Load => self.phase = Phase::Staged,
        }
    }

    async fn farewell(&mut self) {
        self.work.clear();
        self.measuring.clear();
        if let Some(attempt) = self.ledger.attempt.as_mut().filter(|a| a.step == Step::Probation) {
            // Stopped on purpose: not the bundle's doing.
            (attempt.step, attempt.boots) = (Step::Staged, 0);
        }
        self.save_or_log();
        let Some(runtime) = self.runtime.take() else { return };
        if let Ok(Ok(windows)) = timeout(FAREWELL, runtime.collect_windows()).await {
            self.windows_done(Ok(windows)).await;
        }
        let mut exited = runtime.exited();
        self.stats.clear();
        self.windows.clear();
        drop(runtime);
        let _ = timeout(FAREWELL, exited.wait_for(Option::is_some)).await;
    }

    /// Removes files of bundles that nothing refers to any more.
    fn sweep(&self) {
        let kept: Vec<String> = self.referred().map(|a| a.digest.to_string()).collect();
        let Ok(entries) = fs::read_dir(self.device.state.bundles()) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            if !kept.iter().any(|k| k == stem) {
                log_failed(files::remove(&path));
            }
        }
    }

    fn referred(&self) -> impl Iterator<Item = &Assigned> {
        self.ledger.proven.iter().chain(&self.ledger.previous).chain(self.ledger.attempt.as_ref().map(|a| &a.assigned))
    }

    // ---- the runtime half ----

    fn start(&mut self, after: Duration) {
        let (device, keys, proven) = (Arc::clone(&self.device), Arc::clone(&self.keys), self.ledger.proven.clone());
        self.starting.put(async move {
            sleep(after).await;
            let options = device.runtime_options(proven.is_some()).map_err(|e| Failure::of_agent(&e))?;
            let runtime = RuntimeHandle::spawn(&options).await.map_err(|e| Failure::of_runtime(&e))?;
            let Some(proven) = proven else { return Ok((runtime, None)) };
            let digest = proven.digest;
            let loaded = bundle::load(device, keys, runtime.clone(), proven).await;
            let serving = match loaded {
                Ok(()) => runtime.activate(digest, Standing::Proven).await.map_err(|e| Failure::of_runtime(&e)),
                Err(failure) => Err(failure),
            };
            Ok((runtime, serving.err()))
        });
    }

    async fn runtime_up(&mut self, up: Result<Up, Failure>) {
        let (runtime, failure) = match up {
            Ok(up) => up,
            Err(failure) => {
                let wait = self.restarts.next(random());
                tracing::error!(
                    check = failure.check,
                    detail = failure.detail,
                    wait_ms = wait.as_millis() as u64,
                    "the runtime does not start"
                );
                return self.start(wait);
            }
        };
        tracing::info!(pid = runtime.pid(), "runtime started");
        self.exited = Some(runtime.exited());
        self.runtime = Some(runtime);
        self.started = Instant::now();
        match failure {
            Some(failure) => self.proven_does_not_serve(failure).await,
            None => self.note_recovery().await,
        }
        self.pressed = false;
        let proven = self.ledger.proven.as_ref();
        self.service.ready(&proven.map_or("serves nothing yet".to_owned(), |p| format!("serves {} version {}", p.model, p.model_version)));
        if self.phase == Phase::Staged {
            self.load().await;
        }
        self.measure();
    }

    async fn runtime_down(&mut self, exit: &Exit) {
        self.exited = None;
        self.runtime = None;
        self.stats.clear();
        self.windows.clear();
        if self.started.elapsed() > HEALTHY {
            self.restarts.reset();
            self.crashes = 0;
        }
        let wait = self.restarts.next(random());
        tracing::error!(exit = exit.detail, wait_ms = wait.as_millis() as u64, "the runtime ended; starting it again");
        if matches!(self.phase, Phase::Loading | Phase::Probation { .. }) {
            self.fail(Failure::new("crash", format!("the runtime ended: {}", exit.detail))).await;
        } else {
            self.note_crash(&Failure::new("crash", format!("the runtime ended: {}", exit.detail))).await;
        }
        self.start(wait);
    }

    /// The controller learns of a proven bundle that keeps ending the runtime.
    async fn note_crash(&mut self, failure: &Failure) {
        self.crashes = self.crashes.saturating_add(1);
        if let (CRASH_LOOP, Some(proven)) = (self.crashes, self.ledger.proven.clone()) {
            self.tell(&proven, State::Failed, Some(failure)).await;
        }
    }

    /// And when it serves again.
    async fn note_recovery(&mut self) {
        if let (true, Some(proven)) = (self.crashes >= CRASH_LOOP, self.ledger.proven.clone()) {
            self.crashes = 0;
            self.tell(&proven, State::Proven, None).await;
        }
    }

    /// The bundle that was proven before cannot be brought back. Damaged bytes are fetched again; anything else is a failure.
    async fn proven_does_not_serve(&mut self, failure: Failure) {
        let Some(proven) = self.ledger.proven.clone() else { return };
        tracing::error!(bundle = %proven.digest, check = failure.check, detail = failure.detail, "the proven bundle does not serve");
        match failure.check.as_str() {
            // Not the bytes' fault: another runtime may bring it up.
            "crash" | "hang" | "runtime" | "memory" => {
                if let Some(runtime) = &self.runtime {
                    runtime.kill();
                }
                return;
            }
            "decrypt" | "storage" | "chunk-hash" => {
                log_failed(files::remove(&self.device.state.bundle(&proven.digest)));
                self.ledger.proven = None;
                if self.ledger.attempt.is_none() {
                    self.ledger.attempt = Some(Attempt { assigned: proven, step: Step::Delivering, boots: 0 });
                    self.deliver();
                }
            }
            _ => {
                self.ledger.proven = None;
                self.ledger.ended = Some(Ended { sequence: proven.sequence, check: failure.check.clone() });
                self.tell(&proven, State::Failed, Some(&failure)).await;
            }
        }
        self.save_or_log();
        self.publish_known();
    }

    // ---- memory and words ----

    async fn set_step(&mut self, step: Step) -> Option<Assigned> {
        let attempt = self.ledger.attempt.as_mut()?;
        attempt.step = step;
        let assigned = attempt.assigned.clone();
        match self.save() {
            Ok(()) => Some(assigned),
            Err(failure) => {
                self.fail(failure).await;
                None
            }
        }
    }

    fn save(&mut self) -> Result<(), Failure> {
        self.ledger.time_floor_ms = self.ledger.time_floor_ms.max(self.device.clock.floor_ms());
        self.ledger_file.save(&self.ledger).map_err(|error| {
            tracing::error!(error = chain(&error), "the ledger could not be written");
            Failure::of_agent(&error)
        })
    }

    fn save_or_log(&mut self) {
        // Logged already; what is in memory holds, and the next save writes it.
        let _ = self.save();
    }

    fn publish_known(&self) {
        let known = &self.device.known;
        Known::set(&known.proven_sequence, self.ledger.proven.as_ref().map_or(0, |p| p.sequence));
        Known::set(&known.root_version, self.trust.as_ref().map_or(0, Trust::root_version));
    }

    async fn tell(&mut self, assigned: &Assigned, state: State, failure: Option<&Failure>) {
        let event = self.event(assigned.sequence, assigned.digest.as_bytes().to_vec(), state, failure);
        self.reports.push(Draft { events: vec![event], ..Draft::default() }).await;
    }

    fn event(&self, assignment_sequence: u64, bundle_digest: Vec<u8>, state: State, failure: Option<&Failure>) -> Event {
        Event {
            assignment_sequence,
            bundle_digest,
            state: state.into(),
            check: failure.map(|f| f.check.clone()).unwrap_or_default(),
            detail: failure.map(|f| f.detail.chars().take(500).collect()).unwrap_or_default(),
            at_ms: self.device.clock.now_ms(),
        }
    }
}

/// Waits for the next sign of life, for ever where the service manager wants none.
async fn sign(signs: &mut Option<Interval>) {
    match signs {
        Some(signs) => drop(signs.tick().await),
        None => std::future::pending().await,
    }
}

async fn ended(exited: &mut Option<watch::Receiver<Option<Exit>>>) -> Exit {
    let Some(receiver) = exited else { return std::future::pending().await };
    match receiver.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone().unwrap_or_else(unknown),
        Err(_) => unknown(),
    }
}

fn unknown() -> Exit {
    Exit { detail: "unknown".to_owned() }
}

fn log_runtime(result: Result<(), SupervisorError>) {
    if let Err(error) = result {
        tracing::warn!(error = chain(&error), "the runtime did not follow");
    }
}

fn log_failed(result: Result<(), AgentError>) {
    if let Err(error) = result {
        tracing::warn!(error = chain(&error), "a file could not be removed");
    }
}
