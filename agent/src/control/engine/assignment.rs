//! The way of one assignment: considered, delivered, loaded, on probation, proven or failed.

use std::sync::Arc;
use std::time::Duration;

use pleach_domain::Digest;
use pleach_proto::fleet::Deployment;
use pleach_proto::fleet::event::State;
use prost::Message;
use tokio::time::Instant;

use super::{DEFAULT_WINDOW, Engine, Phase, log_runtime};
use crate::control::attempt::{self, Course, Verdict};
use crate::control::failure::Failure;
use crate::control::{bundle, download, trust};
use crate::ledger::{Assigned, Attempt, Ended, Step};
use crate::profile;
use crate::spool::Draft;
use crate::supervisor::{RuntimeStats, Standing, SupervisorError};

impl Engine {
    pub(super) async fn desired_changed(&mut self) {
        let Some(desired) = self.desired.borrow_and_update().clone() else { return };
        let window = Duration::from_millis(desired.window_ms.into()).clamp(Duration::from_secs(1), Duration::from_secs(3600));
        self.window = if desired.window_ms == 0 { DEFAULT_WINDOW } else { window };
        self.next_window = self.next_window.min(Instant::now() + self.window);
        // That nothing is assigned is no signed word: what is proven goes on.
        if let Some(deployment) = &desired.deployment {
            self.consider(deployment).await;
        }
        self.measure();
    }

    pub(super) async fn consider(&mut self, deployment: &Deployment) {
        let identity = pleach_artifact::sha256(&deployment.encode_to_vec());
        if self.refused == Some(identity) {
            return;
        }
        let now_ms = self.device.clock.now_ms();
        let agreed = match &mut self.trust {
            Ok(trust) => trust.agree(deployment, self.device.id.as_str(), self.ledger.accepted.as_ref(), now_ms),
            Err(error) => Err(Failure::of_agent(error)),
        };
        self.publish_known();
        let (agreed, assigned) = match agreed {
            Ok(agreed) => agreed,
            Err(failure) => {
                self.refused = Some(identity);
                return self.refuse(deployment, &failure).await;
            }
        };
        self.refused = None;
        self.ledger.accepted = Some(agreed.accepted());
        match attempt::course(&self.ledger, &assigned) {
            Course::Stay => self.tell_failure_again(&assigned).await,
            Course::Adopt => self.adopt(assigned).await,
            Course::Begin => self.begin(assigned).await,
        }
    }

    /// Tells once for each start that an assignment which is still wanted has failed: the power may have gone between writing that down
    /// and reporting it, and the controller would wait for ever.
    async fn tell_failure_again(&mut self, assigned: &Assigned) {
        let Some(ended) = self.ledger.ended.clone() else { return };
        let serves = self.ledger.proven.as_ref().is_some_and(|p| p.sequence == ended.sequence);
        if ended.sequence == assigned.sequence && !serves && self.told != Some(ended.sequence) {
            self.told = Some(ended.sequence);
            self.tell(assigned, State::Failed, Some(&Failure::new(&ended.check, "it failed before the agent was started again"))).await;
        }
    }

    async fn refuse(&mut self, deployment: &Deployment, failure: &Failure) {
        tracing::error!(check = failure.check, detail = failure.detail, "an assignment is refused");
        let (sequence, digest) = trust::claims(&deployment.assignment);
        let event = self.event(sequence, digest, State::Refused, Some(failure));
        self.reports.push(Draft { events: vec![event], ..Draft::default() }).await;
    }

    async fn adopt(&mut self, assigned: Assigned) {
        self.abandon().await;
        match bundle::check_wrap(&self.device, &self.keys, &assigned) {
            Ok(()) => {
                self.ledger.proven = Some(assigned.clone());
                self.save_or_log();
                self.publish_known();
                self.tell(&assigned, State::Proven, None).await;
            }
            Err(failure) => {
                self.ledger.ended = Some(Ended { sequence: assigned.sequence, check: failure.check.clone() });
                self.save_or_log();
                self.tell(&assigned, State::Failed, Some(&failure)).await;
            }
        }
    }

    async fn begin(&mut self, assigned: Assigned) {
        self.abandon().await;
        tracing::info!(bundle = %assigned.digest, sequence = assigned.sequence, "a new assignment");
        self.ledger.attempt = Some(Attempt { assigned: assigned.clone(), step: Step::Delivering, boots: 0 });
        // The way back is worth less than the way on.
        if profile::free_bytes(self.device.state.root()) < assigned.length_bytes.saturating_add(download::RESERVE_BYTES) {
            self.ledger.previous = None;
        }
        self.sweep();
        if let Err(failure) = self.save() {
            return self.fail(failure).await;
        }
        self.tell(&assigned, State::Delivering, None).await;
        // An unusable wrap is known before a byte is downloaded.
        match bundle::check_wrap(&self.device, &self.keys, &assigned) {
            Ok(()) => self.deliver(),
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Gives way to a newer assignment.
    async fn abandon(&mut self) {
        self.work.clear();
        self.stats.clear();
        self.phase = Phase::Idle;
        if let Some(left) = self.ledger.attempt.take() {
            tracing::info!(bundle = %left.assigned.digest, sequence = left.assigned.sequence, "superseded");
            self.fall_back(&left.assigned.digest).await;
        }
    }

    pub(super) fn deliver(&mut self) {
        let Some(attempt) = &self.ledger.attempt else { return };
        self.phase = Phase::Delivering;
        self.work.put(download::bundle(Arc::clone(&self.device), self.client.clone(), attempt.assigned.clone()));
    }

    pub(super) async fn work_done(&mut self, done: Result<(), Failure>) {
        match (self.phase, done) {
            (Phase::Delivering, Ok(())) => self.staged().await,
            (Phase::Loading, Ok(())) => self.loaded().await,
            (_, Err(failure)) => self.fail(failure).await,
            (Phase::Idle | Phase::Staged | Phase::Probation { .. }, Ok(())) => {}
        }
    }

    async fn staged(&mut self) {
        self.phase = Phase::Staged;
        let Some(assigned) = self.set_step(Step::Staged).await else { return };
        self.tell(&assigned, State::Staged, None).await;
        self.load().await;
    }

    pub(super) async fn load(&mut self) {
        let Some(runtime) = self.runtime.clone() else { return };
        if self.must_wait() {
            return;
        }
        // Before anything is run of it: should it take the machine down, the next start knows.
        let Some(assigned) = self.set_step(Step::Probation).await else { return };
        self.phase = Phase::Loading;
        self.work.put(bundle::load(Arc::clone(&self.device), Arc::clone(&self.keys), runtime, assigned));
    }

    async fn loaded(&mut self) {
        let (Some(runtime), Some(attempt)) = (self.runtime.clone(), self.ledger.attempt.clone()) else { return };
        if let Err(error) = runtime.activate(attempt.assigned.digest, Standing::Probation).await {
            return self.fail(Failure::of_runtime(&error)).await;
        }
        self.phase = Phase::Probation { since: Instant::now() };
        self.tell(&attempt.assigned, State::Probation, None).await;
    }

    pub(super) fn ask_stats(&mut self) {
        if let Some(runtime) = self.runtime.clone() {
            self.stats.put(async move { runtime.stats().await });
        }
    }

    pub(super) async fn look(&mut self, stats: Result<RuntimeStats, SupervisorError>) {
        let (Phase::Probation { since }, Some(attempt)) = (self.phase, &self.ledger.attempt) else { return };
        // A runtime that hangs is ended by its watchdog, and that is what fails the attempt.
        let Ok(stats) = stats else { return };
        if stats.bundle != Some(attempt.assigned.digest) {
            return;
        }
        match attempt::judge(&attempt.assigned, stats.requests, stats.errors, since.elapsed()) {
            Verdict::Wait => {}
            Verdict::Proven => self.prove().await,
            Verdict::Failed(words) => self.fail(Failure::new("probation-errors", words)).await,
        }
    }

    async fn prove(&mut self) {
        let Some(attempt) = self.ledger.attempt.take() else { return };
        let old = self.ledger.proven.replace(attempt.assigned.clone());
        if self.save().is_err() {
            // Not proven until it is written: looked at again soon.
            self.ledger.proven = old;
            self.ledger.attempt = Some(attempt);
            return;
        }
        self.phase = Phase::Idle;
        if let Some(old) = old.clone().filter(|old| old.digest != attempt.assigned.digest) {
            self.ledger.previous = Some(old);
            self.save_or_log();
        }
        let proven = attempt.assigned;
        tracing::info!(bundle = %proven.digest, sequence = proven.sequence, "proven");
        self.publish_known();
        self.tell(&proven, State::Proven, None).await;
        if let Some(runtime) = &self.runtime {
            log_runtime(runtime.activate(proven.digest, Standing::Proven).await);
            if let Some(old) = old.filter(|old| old.digest != proven.digest) {
                log_runtime(runtime.unload(old.digest).await);
            }
        }
        self.sweep();
    }

    /// Ends the attempt: the last proven bundle serves, and the controller is told why.
    pub(super) async fn fail(&mut self, failure: Failure) {
        self.phase = Phase::Idle;
        self.work.clear();
        self.stats.clear();
        let Some(attempt) = self.ledger.attempt.take() else { return };
        let assigned = attempt.assigned;
        tracing::error!(bundle = %assigned.digest, check = failure.check, detail = failure.detail, "an assignment failed");
        self.fall_back(&assigned.digest).await;
        self.ledger.ended = Some(Ended { sequence: assigned.sequence, check: failure.check.clone() });
        self.told = Some(assigned.sequence);
        // The bytes go first: they may be what fills the disk.
        self.sweep();
        self.save_or_log();
        self.tell(&assigned, State::Failed, Some(&failure)).await;
    }

    /// Puts the proven bundle back where `other` may serve, and forgets that.
    async fn fall_back(&mut self, other: &Digest) {
        let Some(runtime) = &self.runtime else { return };
        let proven = self.ledger.proven.as_ref().map(|p| p.digest);
        if let Some(proven) = proven {
            log_runtime(runtime.activate(proven, Standing::Proven).await);
        }
        if proven != Some(*other) {
            log_runtime(runtime.unload(*other).await);
        }
    }
}
