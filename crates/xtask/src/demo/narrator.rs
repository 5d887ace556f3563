//! Tells on stderr what is happening: a line for each step done, a spinner for the one under way.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, the step under way is told at most this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Where progress goes.
pub(super) struct Narrator {
    begun: Instant,
    spinner: ProgressBar,
    told: Instant,
}

impl Narrator {
    /// Starts the clock.
    pub(super) fn start() -> Self {
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("        {spinner} {msg}") {
            spinner.set_style(style);
        }
        Self { begun: Instant::now(), spinner, told: Instant::now() }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A step that is done.
    pub(super) fn say(&self, text: &str) {
        let line = format!("{:6.1}s {text}", self.begun.elapsed().as_secs_f64());
        self.spinner.suspend(|| eprintln!("{line}"));
    }

    /// The step under way.
    pub(super) fn progress(&mut self, text: &str) {
        self.spinner.set_message(text.to_owned());
        self.spinner.tick();
        if self.spinner.is_hidden() && self.told.elapsed() > PLAIN_INTERVAL {
            self.told = Instant::now();
            eprintln!("        . {text}");
        }
    }

    /// Nothing is under way.
    pub(super) fn quiet(&self) {
        self.spinner.finish_and_clear();
    }
}
