//! Heavy work: pruning jobs, and the engine that they share with the atlas.

mod prune;
mod tracker;
pub mod worker;

use std::num::NonZeroUsize;
use std::sync::Arc;

use pleach_domain::Digest;
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_prune::{Analysis, Criterion, Options, Progress, PruneError, TaskKind, analyse};
use pleach_store::models::Model;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Mutex, oneshot};

use crate::controller::Controller;
use crate::error::ControllerError;
use crate::reconcile::ReconcileError;

pub(crate) use tracker::Tracker;

/// Kind of a pruning job.
pub const PRUNE: &str = "prune";
/// Times a job is begun before it is given up.
pub const MAX_ATTEMPTS: u32 = 3;

/// Analyses kept in memory, the latest used last.
const KEPT_ANALYSES: usize = 2;
/// Nice value of the engine's threads: gateway and database go first.
const NICE: i32 = 10;
/// Largest model or dataset file.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// A model ready to be pruned, with its data.
pub struct Analysed {
    /// What the engine knows of the model.
    pub analysis: Analysis,
    /// Calibration samples.
    pub calibration: Dataset,
    /// Validation set, with what its rows should give where that is known.
    pub validation: Dataset,
}

/// The pruning engine of this process: its threads, and what it knows of models.
pub struct Engine {
    pool: ThreadPool,
    /// Held while a model is analysed, so that nobody analyses it twice, neither well nor in vain.
    known: Mutex<Vec<(Key, Known)>>,
}

/// An analysis, or why there is none.
type Known = Result<Arc<Analysed>, String>;
type Key = (Digest, Digest, Digest, Criterion, TaskKind);

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`ControllerError::Config`] when they cannot be started.
    pub fn new(threads: NonZeroUsize) -> Result<Self, ControllerError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .thread_name(|n| format!("engine-{n}"))
            .start_handler(|_| {
                // On Linux "this process" of setpriority is the calling thread.
                if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::debug!(%error, "pruning at normal priority");
                }
            })
            .panic_handler(|_| tracing::error!("a pruning task panicked"))
            .build()
            .map_err(|e| ControllerError::Config(format!("worker_threads: {e}")))?;
        Ok(Self { pool, known: Mutex::default() })
    }

    /// Runs `work` on the engine's threads.
    ///
    /// # Errors
    /// [`ReconcileError::Task`] when it panics.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReconcileError> {
        let (done, result) = oneshot::channel();
        self.pool.spawn(move || {
            // Nobody waits any more when the controller ends.
            let _ = done.send(work());
        });
        result.await.map_err(|_| ReconcileError::Task("the engine panicked".to_owned()))
    }

    /// The analysis of a model; made once, then kept for the next class and budget.
    ///
    /// # Errors
    /// [`ReconcileError::Store`] when a file cannot be read, [`ReconcileError::Unusable`] when the engine refuses the model or its data.
    pub(crate) async fn analysed(
        &self,
        controller: &Controller,
        model: &Model,
        criterion: Criterion,
        progress: Arc<Tracker>,
    ) -> Result<Arc<Analysed>, ReconcileError> {
        let files = &model.content;
        let unknown = || ReconcileError::Unusable(format!("the task of the model is {:?}, which nothing here knows", files.task));
        let task = TaskKind::named(&files.task).ok_or_else(unknown)?;
        let key = (files.onnx, files.calibration, files.validation, criterion, task);
        let mut known = self.known.lock().await;
        if let Some(at) = known.iter().position(|(k, _)| *k == key) {
            let entry = known.remove(at);
            let analysed = entry.1.clone();
            known.push(entry);
            return analysed.map_err(ReconcileError::Unusable);
        }
        let onnx = controller.blobs.get(&files.onnx, MAX_FILE_BYTES).await?;
        let calibration = controller.blobs.get(&files.calibration, MAX_FILE_BYTES).await?;
        let validation = controller.blobs.get(&files.validation, MAX_FILE_BYTES).await?;
        let runtime = controller.runtime.clone();
        let analysed = self
            .run(move || -> Result<Analysed, ReconcileError> {
                let calibration = Dataset::parse_npz(&calibration, &DatasetLimits::default())?;
                let validation = Dataset::parse_npz(&validation, &DatasetLimits::default())?;
                let options = Options { criterion, task: Some(task) };
                let analysis = analyse(&onnx, &calibration, options, &runtime, &*progress as &dyn Progress)?;
                Ok(Analysed { analysis, calibration, validation })
            })
            .await?;
        let analysed = match analysed {
            Err(error) if !error.is_final() || matches!(error, ReconcileError::Prune(PruneError::Cancelled(_))) => return Err(error),
            other => other.map(Arc::new).map_err(|error| error.chain()),
        };
        if known.len() == KEPT_ANALYSES {
            drop(known.remove(0));
        }
        known.push((key, analysed.clone()));
        analysed.map_err(ReconcileError::Unusable)
    }
}
