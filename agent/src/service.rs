//! What the service manager is told: ready, alive, stopping. Without one nothing happens. Source: sd_notify(3).

use std::time::Duration;

use sd_notify::{NotifyState, notify, watchdog_enabled};

/// A service under a manager, or on its own.
#[derive(Debug, Default)]
pub struct Service {
    ready: bool,
}

impl Service {
    /// Half of the time in which the manager wants a sign of life; `None` when it wants none.
    pub fn sign_interval() -> Option<Duration> {
        watchdog_enabled().map(|limit| limit / 2).filter(|half| !half.is_zero())
    }

    /// Says that the service is up, once, and what it does.
    pub fn ready(&mut self, status: &str) {
        let first = !std::mem::replace(&mut self.ready, true);
        let states: &[NotifyState<'_>] =
            if first { &[NotifyState::Ready, NotifyState::Status(status)] } else { &[NotifyState::Status(status)] };
        tell(states);
    }

    /// A sign of life.
    pub fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// Says that the service ends on purpose.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        tracing::warn!(%error, "the service manager does not listen");
    }
}
