//! The control half at work: it keeps the device on the bundle that the controller wants and both signers vouch for.
//!
//! Three tasks, joined by channels: the [`link`] keeps one stream to the controller and publishes what is desired; the
//! [`engine`] owns ledger and runtime and moves the device there; the [`report`] task owns the spool and empties it. None
//! waits for another: without a controller the engine serves, without a runtime the link reports.

pub mod attempt;
mod bundle;
mod conditions;
mod door;
mod download;
mod engine;
mod failure;
mod link;
mod measure;
mod report;
mod slot;
mod trust;

pub use door::{Answer, Question, knock, reset};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pleach_domain::DeviceId;
use pleach_proto::fleet::DesiredState;
use pleach_proto::fleet::fleet_client::FleetClient;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

use crate::backoff::{Backoff, random};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{AgentError, chain};
use crate::identity::{self, Identity};
use crate::keys::DeviceKeys;
use crate::ledger::LedgerFile;
use crate::listeners::Listeners;
use crate::spool::{Spool, SpoolLimits};
use crate::state::StateDir;
use crate::{boot, supervisor};

/// A connected client of the controller; `None` while there is none.
type Client = Option<FleetClient<Channel>>;
/// The newest desired state; `None` before the first.
type Desired = Option<Arc<DesiredState>>;

/// What every task may read of the device.
#[derive(Debug)]
struct Device {
    id: DeviceId,
    config: Config,
    state: StateDir,
    clock: Clock,
    listeners: Arc<Listeners>,
    known: Known,
}

/// Numbers that the greeting carries; each is written by the one task that knows it.
#[derive(Debug, Default)]
struct Known {
    proven_sequence: AtomicU64,
    root_version: AtomicU64,
    report_sequence: AtomicU64,
}

impl Known {
    fn set(number: &AtomicU64, value: u64) {
        number.store(value, Ordering::Relaxed);
    }
}

/// Runs the agent until `stop` is cancelled.
///
/// # Errors
/// What keeps the agent from working at all: its state folder, its keys, an enrolment that the controller refuses. Everything
/// else is logged, reported and tried again.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), AgentError> {
    config.check_library()?;
    let state = StateDir::open(&config.state_dir)?;
    let listeners = Arc::new(Listeners::open(&config)?);
    tracing::info!(socket = %config.inference_socket.display(), loopback = ?listeners.loopback(), "inference API listens");
    let keys = Arc::new(DeviceKeys::load_or_create(&state)?);
    let ledger_file = LedgerFile::new(state.ledger());
    let ledger = ledger_file.load()?;
    let clock = Clock::new(ledger.time_floor_ms);
    let enrolled = tokio::select! {
        enrolled = enrol(&config, &state, &keys, &clock) => enrolled?,
        () = stop.cancelled() => return Ok(()),
    };
    let id = enrolled.device().clone();
    let limits = SpoolLimits {
        bytes: config.spool_max_bytes,
        reports: config.spool_max_reports as usize,
        age_ms: i64::from(config.spool_max_days) * 86_400_000,
    };
    let spool = Spool::open(state.spool(), id.as_str(), &boot::id(), limits)?;
    let device = Arc::new(Device { id, config, state, clock, listeners, known: Known::default() });
    tracing::info!(device.id = %device.id, version = env!("CARGO_PKG_VERSION"), "agent starts");

    let (client_tx, client) = watch::channel(Client::None);
    let (desired_tx, desired) = watch::channel(Desired::None);
    let (reports, reporter) = report::open(Arc::clone(&device), Arc::clone(&keys), spool, client.clone());
    // The reports of the engine's last words are spooled after it has ended, and the link goes first.
    let (asking, asked) = mpsc::channel(1);
    let inbox = engine::Inbox { client, desired, asked };
    let engine = engine::Engine::new(Arc::clone(&device), Arc::clone(&keys), ledger_file, ledger, reports, inbox);
    let mut tasks = JoinSet::new();
    tasks.spawn(link::run(Arc::clone(&device), keys, enrolled, client_tx, desired_tx, stop.clone()));
    tasks.spawn(door::serve(Arc::clone(&device), asking, stop.clone()));
    tasks.spawn(engine.run(stop));
    tasks.spawn(reporter.run());
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task of the agent failed");
        }
    }
    tracing::info!("agent stopped");
    Ok(())
}

/// Enrols, and keeps trying while the controller is only away.
async fn enrol(config: &Config, state: &StateDir, keys: &DeviceKeys, clock: &Clock) -> Result<Identity, AgentError> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
    loop {
        match identity::load_or_enrol(config, state, keys, clock).await {
            Err(error) if may_pass(&error) => {
                let wait = backoff.next(random());
                tracing::warn!(error = chain(&error), wait_ms = wait.as_millis() as u64, "enrolment failed; trying again");
                tokio::time::sleep(wait).await;
            }
            done => return done,
        }
    }
}

fn may_pass(error: &AgentError) -> bool {
    match error {
        AgentError::Connect { .. } | AgentError::Deadline { .. } => true,
        AgentError::Call { status, .. } => {
            matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Internal | Code::ResourceExhausted | Code::Unknown)
        }
        _ => false,
    }
}

impl Device {
    fn runtime_options(&self, expects_bundle: bool) -> Result<supervisor::RuntimeOptions, AgentError> {
        let executable = std::env::current_exe().map_err(AgentError::file("finding", "/proc/self/exe".as_ref()))?;
        let config = &self.config;
        Ok(supervisor::RuntimeOptions {
            executable,
            listeners: Arc::clone(&self.listeners),
            threads: config.inference_threads(),
            onnxruntime: config.library(),
            device_id: self.id.clone(),
            serving: supervisor::ServingOptions {
                queue: config.queue,
                batch_max_rows: config.batch_max_rows,
                step_down_wait_ms: config.step_down_wait_ms,
                cascade_confidence: config.cascade_confidence,
                audit_share: config.audit_share,
            },
            call_limit: Duration::from_millis(config.call_limit_ms),
            expects_bundle,
            memory_max_bytes: config.runtime_memory_max_bytes,
        })
    }
}
