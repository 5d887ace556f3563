//! The decisions about an assignment, apart from their effects: ledger and counters in, what to do out.

use std::time::Duration;

use crate::ledger::{Assigned, Attempt, Ledger, Step};

/// Starts of the agent that may find an attempt on probation.
pub const MAX_BOOTS: u32 = 3;

/// What to do with an assignment that both signers vouch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Nothing: it is proven, being tried, or has failed before.
    Stay,
    /// The bundle that serves was assigned again: only the ledger changes.
    Adopt,
    /// Try it, in place of any other attempt.
    Begin,
}

/// Decides on an assignment.
pub fn course(ledger: &Ledger, assigned: &Assigned) -> Course {
    let same = |sequence: u64| sequence == assigned.sequence;
    let ended = ledger.ended.as_ref().is_some_and(|e| same(e.sequence));
    let tried = ledger.attempt.as_ref().is_some_and(|a| same(a.assigned.sequence));
    let proven = ledger.proven.as_ref();
    if ended || tried || proven.is_some_and(|p| same(p.sequence)) {
        return Course::Stay;
    }
    if proven.is_some_and(|p| p.digest == assigned.digest) { Course::Adopt } else { Course::Begin }
}

/// Where an attempt of an earlier start goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Download what is missing.
    Deliver,
    /// Load it.
    Load,
    /// It took the agent down too often.
    GiveUp,
}

/// Decides on an attempt found at start, counting this start. `staged` says whether the whole bundle is here.
pub fn resume(attempt: &mut Attempt, staged: bool) -> Resume {
    if attempt.step == Step::Probation {
        attempt.boots += 1;
        if attempt.boots >= MAX_BOOTS {
            return Resume::GiveUp;
        }
    }
    if staged { Resume::Load } else { Resume::Deliver }
}

/// What counters say of a bundle on probation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough yet.
    Wait,
    /// Keep it.
    Proven,
    /// Give it up; why, in words.
    Failed(String),
}

/// Judges a bundle on probation. Any failed inference ends it. Without traffic it waits; with too little, its longest time is
/// enough as long as something was inferred.
pub fn judge(assigned: &Assigned, requests: u64, errors: u64, elapsed: Duration) -> Verdict {
    if errors > 0 {
        return Verdict::Failed(format!("{errors} of {requests} inferences failed"));
    }
    let enough = requests >= u64::from(assigned.probation_inferences);
    let over = elapsed >= Duration::from_millis(assigned.probation_ms.into()) && requests > 0;
    if enough || over { Verdict::Proven } else { Verdict::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ended;
    use crate::ledger::tests::assigned;

    fn attempt(step: Step, boots: u32) -> Attempt {
        Attempt { assigned: assigned(4), step, boots }
    }

    #[test]
    fn what_is_known_stays_and_what_is_new_begins() {
        let ledger = Ledger {
            proven: Some(assigned(3)),
            attempt: Some(attempt(Step::Delivering, 0)),
            ended: Some(Ended { sequence: 2, check: "load".into() }),
            ..Ledger::default()
        };
        for known in [2, 3, 4] {
            assert_eq!(course(&ledger, &assigned(known)), Course::Stay);
        }
        assert_eq!(course(&ledger, &assigned(5)), Course::Begin);
        assert_eq!(course(&Ledger::default(), &assigned(1)), Course::Begin);
    }

    #[test]
    fn the_proven_bundle_under_a_new_sequence_is_adopted() {
        let ledger = Ledger { proven: Some(assigned(3)), ..Ledger::default() };
        assert_eq!(course(&ledger, &Assigned { sequence: 9, ..assigned(3) }), Course::Adopt);
    }

    #[test]
    fn only_probation_counts_boots_and_the_third_gives_up() {
        let mut download = attempt(Step::Delivering, 0);
        (0..10).for_each(|_| assert_eq!(resume(&mut download, false), Resume::Deliver));
        assert_eq!(resume(&mut attempt(Step::Staged, 0), true), Resume::Load);
        let mut crashing = attempt(Step::Probation, 0);
        assert_eq!([(); 3].map(|()| resume(&mut crashing, true)), [Resume::Load, Resume::Load, Resume::GiveUp]);
        assert_eq!(resume(&mut attempt(Step::Probation, 0), false), Resume::Deliver);
    }

    #[test]
    fn probation_ends_by_inferences_errors_or_time_with_traffic() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(60));
        let a = assigned(1);
        assert_eq!(judge(&a, 19, 0, short), Verdict::Wait);
        assert_eq!(judge(&a, 20, 0, short), Verdict::Proven);
        assert!(matches!(judge(&a, 20, 1, short), Verdict::Failed(words) if words == "1 of 20 inferences failed"));
        assert_eq!(judge(&a, 0, 0, long), Verdict::Wait);
        assert_eq!(judge(&a, 1, 0, long), Verdict::Proven);
    }
}
