//! Windows, the hardware profile, and the measurements that the controller asks for.

use std::sync::Arc;

use pleach_domain::window::Window;
use tokio::time::Instant;

use super::Engine;
use crate::control::measure::{self, Outcome};
use crate::error::chain;
use crate::profile::fingerprint;
use crate::spool::Draft;
use crate::supervisor::SupervisorError;

impl Engine {
    pub(super) fn ask_windows(&mut self) {
        self.next_window = Instant::now() + self.window;
        if let Some(runtime) = self.runtime.clone().filter(|_| self.windows.is_empty()) {
            self.windows.put(async move { runtime.collect_windows().await });
        }
        // Limits and processors change under a running agent; one that has not looked is told nothing.
        self.machine_checked = false;
        self.measure();
    }

    pub(super) async fn windows_done(&mut self, windows: Result<Vec<Window>, SupervisorError>) {
        match windows {
            Ok(windows) if windows.is_empty() => {}
            Ok(windows) => {
                let windows = windows.iter().map(Into::into).collect();
                self.reports.push(Draft { windows, ..Draft::default() }).await;
            }
            Err(error) => tracing::warn!(error = chain(&error), "the windows could not be collected"),
        }
    }

    /// Begins the next measurement when none runs: the profile first, then what the controller asks for.
    pub(super) fn measure(&mut self) {
        let Some(runtime) = self.runtime.clone().filter(|_| self.measuring.is_empty()) else { return };
        if !self.machine_checked {
            match measure::machine(&self.device) {
                Ok(machine) if self.ledger.profile != Some(fingerprint(&machine)) => {
                    return self.measuring.put(measure::profile(Arc::clone(&self.device), runtime));
                }
                Ok(_) => self.machine_checked = true,
                Err(failure) => tracing::error!(detail = failure.detail, "the machine cannot be read"),
            }
        }
        let desired = self.desired.borrow().clone();
        let task = desired.as_ref().and_then(|d| d.measurements.iter().find(|t| !self.ledger.measured.contains(&t.id)).cloned());
        if let Some(task) = task {
            tracing::info!(task = task.id, size_bytes = task.length, "measuring");
            self.measuring.put(measure::task(self.client.clone(), runtime, task));
        }
    }

    pub(super) async fn measured(&mut self, outcome: Outcome) {
        let draft = match outcome {
            // Tried again with the next window.
            Outcome::Later(words) => return tracing::warn!(words, "measuring has to wait"),
            Outcome::Profile(profile) => {
                self.ledger.profile = Some(fingerprint(&profile));
                self.machine_checked = true;
                Draft { profile: Some((&*profile).into()), ..Draft::default() }
            }
            Outcome::Task(measurement) => {
                tracing::info!(task = measurement.task_id, timings = measurement.timings.len(), error = measurement.error, "measured");
                self.ledger.remember_measured(measurement.task_id.clone());
                Draft { measurements: vec![measurement], ..Draft::default() }
            }
        };
        // The report first: a crash in between measures twice, which is only slow.
        if self.reports.push(draft).await {
            self.save_or_log();
        }
        self.measure();
    }
}
