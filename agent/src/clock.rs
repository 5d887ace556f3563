//! The time as the agent believes it: the system's clock, but never before the floor.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Milliseconds since 1970 UTC, never running back behind a floor that only grows. Clones share the floor.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    floor_ms: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that never shows less than `floor_ms`.
    pub fn new(floor_ms: i64) -> Self {
        Self { floor_ms: Arc::new(AtomicI64::new(floor_ms)) }
    }

    /// The time now, milliseconds since 1970 UTC.
    pub fn now_ms(&self) -> i64 {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(system.as_millis()).unwrap_or(i64::MAX).max(self.floor_ms())
    }

    /// The floor, milliseconds since 1970 UTC.
    pub fn floor_ms(&self) -> i64 {
        self.floor_ms.load(Ordering::Relaxed)
    }

    /// Raises the floor; a smaller value changes nothing.
    pub fn raise_floor(&self, to_ms: i64) {
        self.floor_ms.fetch_max(to_ms, Ordering::Relaxed);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = Duration::from_millis(u64::try_from(self.now_ms()).unwrap_or(0));
        Some(UnixTime::since_unix_epoch(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_only_grows_and_time_stays_above_it() {
        let far = 32_503_680_000_000;
        let clock = Clock::new(far);
        clock.raise_floor(5);
        assert_eq!(clock.now_ms(), far);
    }
}
