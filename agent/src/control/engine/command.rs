//! What a person on the device asks for, and what the device itself asks for: to wait, or to take it easy.

use pleach_proto::fleet::Deployment;
use pleach_proto::fleet::event::State;

use super::{Engine, Phase};
use crate::control::door::{Ask, Said};
use crate::control::failure::Failure;
use crate::control::{bundle, conditions};
use crate::error::chain;
use crate::ledger::{Attempt, Ended, Step};

impl Engine {
    pub(super) async fn asked(&mut self, ask: Ask) -> Said {
        match ask {
            Ask::Rollback => self.roll_back().await.map(|words| (words.to_owned(), None)),
            Ask::Vouch(deployment) => self.vouch(&deployment),
            Ask::Take(deployment) => self.take(&deployment).await,
        }
    }

    /// Gives up what is being tried, or tries the bundle that was proven before; either way the assignment that was left is not
    /// tried again by itself, and the controller learns why.
    async fn roll_back(&mut self) -> Result<&'static str, Failure> {
        let by_hand = Failure::new("rolled-back", "a person on the device asked for it");
        if self.ledger.attempt.is_some() {
            self.fail(by_hand).await;
            return Ok("the assignment that was being tried is given up");
        }
        let (Some(proven), Some(previous)) = (self.ledger.proven.clone(), self.ledger.previous.clone()) else {
            return Err(Failure::new("rollback", "no other bundle was proven on this device"));
        };
        self.ledger.ended = Some(Ended { sequence: proven.sequence, check: by_hand.check.clone() });
        self.ledger.attempt = Some(Attempt { assigned: previous, step: Step::Staged, boots: 0 });
        self.save()?;
        self.tell(&proven, State::Failed, Some(&by_hand)).await;
        self.phase = Phase::Staged;
        self.load().await;
        Ok("the bundle that was proven before is on probation")
    }

    fn vouch(&mut self, deployment: &Deployment) -> Said {
        let now_ms = self.device.clock.now_ms();
        let trust = self.trust.as_mut().map_err(|e| Failure::of_agent(e))?;
        let (agreed, assigned) = trust.agree(deployment, self.device.id.as_str(), self.ledger.accepted.as_ref(), now_ms)?;
        bundle::check_wrap(&self.device, &self.keys, &assigned)?;
        Ok((format!("sequence {}", agreed.sequence), Some(assigned)))
    }

    async fn take(&mut self, deployment: &Deployment) -> Said {
        // Once more: time has passed since it was vouched for.
        let (words, _) = self.vouch(deployment)?;
        self.consider(deployment).await;
        if self.phase == Phase::Delivering {
            // The bundle is here, so a download that waits for a controller is over.
            self.deliver();
        }
        Ok((format!("{words} is taken over"), None))
    }

    pub(super) async fn look_at_conditions(&mut self) {
        if self.phase == Phase::Staged {
            self.load().await;
        }
        let pressed = conditions::pressed(&self.device.config);
        if let Some(runtime) = self.runtime.clone().filter(|_| pressed != self.pressed) {
            match runtime.press(pressed).await {
                Ok(()) => {
                    tracing::info!(pressed, "heat or want of memory has changed");
                    self.pressed = pressed;
                }
                Err(error) => tracing::warn!(error = chain(&error), "the runtime did not follow"),
            }
        }
    }

    /// Whether activation has to wait; said once.
    pub(super) fn must_wait(&mut self) -> bool {
        let held = conditions::hold(&self.device.config, self.device.clock.now_ms());
        if held != self.held {
            if let Some(reason) = &held {
                tracing::info!(reason, "a staged bundle waits for its activation");
            }
            self.held.clone_from(&held);
        }
        held.is_some()
    }
}
