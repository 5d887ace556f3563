//! Reconcilers: each finds by itself the rows that its stage of the journey still lacks, and writes them.
//!
//! They take no input but the clock, are safe to run twice, at once and in several processes: every write is compare-and-set.
//! They are woken by whoever wrote a row and, as a fallback, by an interval. Decisions are made in `pleach-domain` and
//! `pleach-prune`; here they are carried out.
//!
//! classify → measure → plan → prune (a job) → seal → roll out → enlist → assign → (the gateway delivers) → progress → adapt → plan

pub mod adapt;
pub mod assign;
pub mod classify;
pub mod enlist;
pub mod error;
mod gates;
pub(crate) mod ids;
pub mod measure;
pub mod plan;
pub mod progress;
pub mod prune;
pub mod publish;
pub mod rollout;
pub mod rollup;
mod scope;
pub mod seal;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pleach_store::audit;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::controller::{Controller, Shared};
use crate::error::ControllerError;
use crate::job::{Engine, worker};
use crate::random;

pub use error::ReconcileError;

/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who the audit log names for what reconcilers do.
const ACTOR: &str = "controller";

/// What reconcilers work with.
pub struct Context {
    /// The controller.
    pub controller: Shared,
    /// The pruning engine, with what it knows of models.
    pub engine: Engine,
}

/// Whether a reconciler found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything is as it should be.
    Nothing,
    /// Rows were written.
    Something,
}

impl Progress {
    fn of(changed: bool) -> Self {
        if changed { Self::Something } else { Self::Nothing }
    }
}

impl Context {
    /// Prepares the engine.
    ///
    /// # Errors
    /// [`ControllerError::Config`] when its threads cannot be started.
    pub fn new(controller: Shared) -> Result<Self, ControllerError> {
        let engine = Engine::new(controller.config.pruning_threads())?;
        Ok(Self { controller, engine })
    }
}

type Run = Pin<Box<dyn Future<Output = Result<Progress, ReconcileError>> + Send>>;

/// One stage, as the driver knows it.
struct Stage {
    name: &'static str,
    run: fn(Arc<Context>) -> Run,
}

/// Wraps a stage's function for the table.
macro_rules! stage {
    ($name:ident) => {
        Stage { name: stringify!($name), run: |context| Box::pin(async move { $name::run(&context, random::now_ms()).await }) }
    };
}

const STAGES: [Stage; 12] = [
    stage!(publish),
    stage!(classify),
    stage!(measure),
    stage!(plan),
    stage!(prune),
    stage!(seal),
    stage!(rollout),
    stage!(enlist),
    stage!(assign),
    stage!(progress),
    stage!(adapt),
    stage!(rollup),
];

/// Runs every reconciler and the worker until `shutdown`, then waits for them: jobs under way go back into the queue.
///
/// # Errors
/// [`ControllerError::Config`] when the engine's threads cannot be started.
pub async fn serve(controller: Shared, shutdown: CancellationToken) -> Result<(), ControllerError> {
    let context = Arc::new(Context::new(controller)?);
    let mut tasks = JoinSet::new();
    for stage in STAGES {
        tasks.spawn(drive(stage, Arc::clone(&context), shutdown.clone()));
    }
    tasks.spawn(worker::serve(context, shutdown));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a reconciler ended");
        }
    }
    Ok(())
}

async fn drive(stage: Stage, context: Arc<Context>, shutdown: CancellationToken) {
    let mut wake = context.controller.wake.listen();
    let interval = Duration::from_millis(context.controller.config.reconcile_interval_ms);
    let (mut pause, mut failing) = (interval, false);
    while !shutdown.is_cancelled() {
        let begun = Instant::now();
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = (stage.run)(Arc::clone(&context)) => outcome,
        };
        match outcome {
            Ok(Progress::Something) => {
                (pause, failing) = (interval, false);
                context.controller.wake.all();
                context.controller.presence.nudge_all();
            }
            Ok(Progress::Nothing) => {
                (pause, failing) = (interval, false);
                // Every report wakes everybody: looking takes at most a fifth of the time.
                let rest = (begun.elapsed() * 4).min(interval);
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(rest) => {}
                }
                wait(&mut wake, pause, &shutdown).await;
            }
            Err(error) => {
                if !failing {
                    tracing::error!(stage = stage.name, error = error.chain(), "reconciling failed; trying again");
                }
                failing = true;
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Waits for a wake, the interval or the end.
pub(crate) async fn wait(wake: &mut watch::Receiver<u64>, interval: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(interval) => {}
        // A closed channel only means that nobody will wake us; the interval still does.
        Ok(()) = wake.changed() => {}
    }
}

/// An entry of the audit log for what a reconciler did.
pub(crate) fn entry<'a>(action: &'a str, subject: &'a str) -> audit::Entry<'a> {
    audit::Entry { actor: ACTOR, action, subject, before: None, after: None }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl std::ops::Deref for Context {
    type Target = Controller;
    fn deref(&self) -> &Controller {
        &self.controller
    }
}
