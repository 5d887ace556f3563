//! What the user sees of a run on stderr, and how it is stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use pleach_prune::{Progress, Stage};

/// Steps of a stage's bar.
const STEPS: u64 = 1_000;

/// A bar for each stage on a terminal, a line for each stage elsewhere; and the word to stop.
#[derive(Debug)]
pub struct Watch {
    bar: ProgressBar,
    stage: Mutex<Option<(Stage, Instant)>>,
    stopped: AtomicBool,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// Nothing under way yet.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{prefix:>11} {bar:32} {percent:>3} %").unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: ProgressBar::new(STEPS).with_style(style), stage: Mutex::new(None), stopped: AtomicBool::new(false) }
    }

    /// Asks the run to stop.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Says something above the bar.
    pub fn note(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Ends the last stage.
    pub fn finish(&self) {
        self.enter(None);
        self.bar.finish_and_clear();
    }

    fn enter(&self, next: Option<Stage>) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if stage.map(|(s, _)| s) == next {
            return;
        }
        if let Some((before, since)) = *stage {
            self.note(&format!("{:>11} {:.1} s", before.name(), since.elapsed().as_secs_f64()));
        }
        *stage = next.map(|s| (s, Instant::now()));
        if let Some(next) = next {
            self.bar.set_prefix(next.name());
        }
    }
}

impl Progress for Watch {
    fn report(&self, stage: Stage, fraction: f64) {
        self.enter(Some(stage));
        self.bar.set_position((fraction.clamp(0.0, 1.0) * STEPS as f64) as u64);
    }

    fn cancelled(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}
