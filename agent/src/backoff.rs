//! Exponential back-off with jitter, so that a fleet does not come back in step after an outage.

use std::time::Duration;

/// Waits that double from `first` to `longest`; each is drawn between half of it and the whole.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Begins at `first` and doubles up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The next wait. `random` is uniform over all its values.
    pub fn next(&mut self, random: u64) -> Duration {
        let whole = self.first.saturating_mul(1u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        jittered(whole, random)
    }

    /// Begins again at the first wait.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A duration between half of `whole` and `whole`.
pub fn jittered(whole: Duration, random: u64) -> Duration {
    let half = whole / 2;
    half + half.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// Randomness for jitter; a machine without any gets none.
pub fn random() -> u64 {
    getrandom::u64().unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_between_half_and_whole_and_double_to_the_bound() {
        for random in [0, 1, u64::MAX / 3, u64::MAX] {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            for n in 0..100u32 {
                let whole = Duration::from_millis(100).saturating_mul(1 << n.min(10)).min(Duration::from_secs(5));
                let wait = backoff.next(random);
                assert!(wait >= whole / 2 && wait <= whole, "{n}: {wait:?} of {whole:?}");
            }
        }
    }

    #[test]
    fn reset_begins_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        (0..9).for_each(|_| _ = backoff.next(0));
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(50));
    }
}
