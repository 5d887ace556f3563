//! Where a piece of work is, seen from outside it, and the word that it should stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use pleach_prune::{Progress, Stage};
use tokio_util::sync::CancellationToken;

/// Progress of one piece of work.
#[derive(Debug)]
pub(crate) struct Tracker {
    at: Mutex<(Stage, f64)>,
    cancelled: AtomicBool,
    shutdown: CancellationToken,
}

impl Tracker {
    /// Nothing done yet; `shutdown` stops the work as well as [`Tracker::cancel`] does.
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        Self { at: Mutex::new((Stage::Load, 0.0)), cancelled: AtomicBool::new(false), shutdown }
    }

    /// Stage and share of it that is done.
    pub(crate) fn at(&self) -> (Stage, f64) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the work to stop.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Progress for Tracker {
    fn report(&self, stage: Stage, fraction: f64) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = (stage, fraction.clamp(0.0, 1.0));
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.shutdown.is_cancelled()
    }
}
