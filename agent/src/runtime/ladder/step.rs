//! Which rung serves: the fullest, unless requests wait too long or the device is hot or short of memory. A decision, apart from its
//! effects.

use std::time::{Duration, Instant};

/// Requests in a row that waited too long before a slimmer rung serves.
const LATE_IN_A_ROW: u32 = 4;
/// Time without a late request, nor pressure, before a fuller rung is tried again.
const CALM: Duration = Duration::from_secs(5);

/// Goes down quickly and up slowly, so that the load that the fuller rung could not carry does not bring it back and forth.
#[derive(Clone, Debug)]
pub(super) struct Stepper {
    fullest: usize,
    place: usize,
    longest_wait: Duration,
    late: u32,
    /// Since when all has been well; `None` before the first request.
    calm_since: Option<Instant>,
    was_pressed: bool,
}

impl Stepper {
    /// Begins on the fullest of `rungs` rungs.
    pub(super) fn new(rungs: usize, longest_wait: Duration) -> Self {
        let fullest = rungs.saturating_sub(1);
        Self { fullest, place: fullest, longest_wait, late: 0, calm_since: None, was_pressed: false }
    }

    /// The rung for the next call, counted from the slimmest, given how long its request has waited and whether the device is pressed.
    pub(super) fn place(&mut self, waited: Duration, pressed: bool, now: Instant) -> usize {
        self.late = if waited > self.longest_wait { self.late + 1 } else { 0 };
        // Nearly late is not calm: the fuller rung would be late again.
        let troubled = waited > self.longest_wait / 4 || pressed;
        if troubled || self.calm_since.is_none() {
            self.calm_since = Some(now);
        }
        let begins = pressed && !self.was_pressed;
        self.was_pressed = pressed;
        if self.late >= LATE_IN_A_ROW || begins {
            (self.late, self.place) = (0, self.place.saturating_sub(1));
        } else if self.calm_since.is_some_and(|since| now.duration_since(since) >= CALM) {
            (self.calm_since, self.place) = (Some(now), (self.place + 1).min(self.fullest));
        }
        self.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);
    const LATE: Duration = Duration::from_millis(200);

    #[test]
    fn goes_down_under_load_and_up_after_a_calm_time_one_rung_at_a_time() {
        let (mut stepper, start) = (Stepper::new(3, LIMIT), Instant::now());
        let mut at = |ms: u64, waited, pressed| stepper.place(waited, pressed, start + Duration::from_millis(ms));
        assert_eq!([(); 3].map(|()| at(0, LATE, false)), [2, 2, 2]);
        assert_eq!([(); 8].map(|()| at(1, LATE, false)), [1, 1, 1, 1, 0, 0, 0, 0]);
        assert_eq!([(); 9].map(|()| at(2, LATE, false)), [0; 9]);
        assert_eq!(at(4_900, Duration::ZERO, false), 0);
        assert_eq!(at(5_100, Duration::ZERO, false), 1);
        assert_eq!(at(5_200, Duration::ZERO, false), 1);
        assert_eq!(at(10_200, Duration::ZERO, false), 2);
        assert_eq!(at(20_000, Duration::ZERO, false), 2);
    }

    #[test]
    fn what_is_nearly_late_keeps_the_slim_rung() {
        let (mut stepper, start) = (Stepper::new(2, LIMIT), Instant::now());
        for _ in 0..4 {
            stepper.place(LATE, false, start);
        }
        let nearly = LIMIT / 2;
        for second in 1..20 {
            assert_eq!(stepper.place(nearly, false, start + Duration::from_secs(second)), 0);
        }
    }

    #[test]
    fn pressure_steps_down_once_and_holds_until_it_is_over() {
        let (mut stepper, start) = (Stepper::new(3, LIMIT), Instant::now());
        for second in 0..20 {
            assert_eq!(stepper.place(Duration::ZERO, true, start + Duration::from_secs(second)), 1);
        }
        assert_eq!(stepper.place(Duration::ZERO, false, start + Duration::from_secs(21)), 1);
        assert_eq!(stepper.place(Duration::ZERO, false, start + Duration::from_secs(27)), 2);
    }

    #[test]
    fn one_rung_is_always_the_one() {
        let (mut stepper, start) = (Stepper::new(1, LIMIT), Instant::now());
        for n in 0..20 {
            assert_eq!(stepper.place(LATE, n % 2 == 0, start + Duration::from_secs(n)), 0);
        }
    }
}
