//! How a bundle spreads: what its owner asks for, and what is to be done next. State in, decision out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DomainError;
use crate::gate::{Reading, Risk, Verdict};
use crate::profile::check;
use crate::selector::Selector;
use crate::state::RolloutState;

/// Most waves of one rollout.
pub const MAX_WAVES: usize = 32;
const DAY_MS: i64 = 86_400_000;

/// Whether a second person has to agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approval {
    /// It begins by itself.
    #[default]
    None,
    /// Somebody else than the one who applied the policy must approve it.
    SecondPerson,
}

/// How many devices, from the first on: `5`, or `10%` of those that the rollout is for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Size {
    /// So many.
    Count(u64),
    /// This share, above 0 and at most 1; never less than one device.
    Share(f64),
}

impl Size {
    /// Devices out of `members`.
    pub fn of(self, members: u64) -> u64 {
        match self {
            Self::Count(count) => count.min(members),
            Self::Share(share) => ((members as f64 * share).floor() as u64).clamp(members.min(1), members),
        }
    }
}

impl FromStr for Size {
    type Err = DomainError;
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let share = |s: &str| s.trim().parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 100.0).map(|p| Self::Share(p / 100.0));
        let size = match text.strip_suffix('%') {
            Some(percent) => share(percent),
            None => text.trim().parse().ok().filter(|&n| n > 0).map(Self::Count),
        };
        let got = || text.chars().take(20).collect();
        size.ok_or_else(|| DomainError::Field {
            field: "waves".into(),
            got: got(),
            expected: "a count such as 5 or a share such as 10%".into(),
        })
    }
}

impl TryFrom<String> for Size {
    type Error = DomainError;
    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Share(share) => write!(f, "{}%", (share * 1e8).round() / 1e6),
        }
    }
}

/// The hours of a day in which devices are given something new, UTC; it may go over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    /// First minute of the day, 0 to 1439.
    pub from_minute: u16,
    /// Minute of the day in which it is over, 0 to 1439.
    pub to_minute: u16,
}

impl Maintenance {
    /// Whether it is open at a time in milliseconds since 1970 UTC.
    pub fn is_open(self, at_ms: i64) -> bool {
        let minute = (at_ms.rem_euclid(DAY_MS) / 60_000) as u16;
        let (from, to) = (self.from_minute, self.to_minute);
        if from <= to { (from..to).contains(&minute) } else { minute >= from || minute < to }
    }
}

/// What a canary must not do, against devices that run what ran before. Every limit is the effect that is stopped with the stated power;
/// a quarter of it is tolerated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gates {
    /// Rise of the share of failed requests, absolute, e.g. 0.01.
    pub max_error_rise: Option<f64>,
    /// Rise of the 95th percentile of latency, relative, e.g. 0.2.
    pub max_p95_rise: Option<f64>,
    /// Fall of accuracy on labelled requests, absolute, e.g. 0.02.
    pub max_accuracy_drop: Option<f64>,
    /// Highest probability that a harmless bundle is stopped, over all gates together.
    pub false_alarm: f64,
    /// Highest probability that one harmful gate lets a bundle through.
    pub miss: f64,
}

impl Default for Gates {
    fn default() -> Self {
        Self { max_error_rise: None, max_p95_rise: None, max_accuracy_drop: None, false_alarm: 0.01, miss: 0.01 }
    }
}

impl Gates {
    fn limits(&self) -> [(&'static str, Option<f64>); 3] {
        [("max_error_rise", self.max_error_rise), ("max_p95_rise", self.max_p95_rise), ("max_accuracy_drop", self.max_accuracy_drop)]
    }

    /// The error rates of each gate.
    pub fn risk(&self) -> Risk {
        let gates = self.limits().iter().filter(|(_, limit)| limit.is_some()).count().max(1);
        Risk { false_alarm: self.false_alarm / gates as f64, miss: self.miss }
    }

    fn validate(&self) -> Result<(), DomainError> {
        for (field, limit) in self.limits() {
            let most = if field == "max_p95_rise" { 10.0 } else { 1.0 };
            let expected = format!("above 0, at most {most}");
            let fits = |x: f64| x.is_finite() && x > 0.0 && x <= most;
            check(limit.is_none_or(fits), &format!("rollout.gates.{field}"), format!("{limit:?}"), &expected)?;
        }
        for (field, risk) in [("false_alarm", self.false_alarm), ("miss", self.miss)] {
            check((1e-9..=0.5).contains(&risk), &format!("rollout.gates.{field}"), risk.to_string(), "above 0, at most 0.5")?;
        }
        let any = self.limits().iter().any(|(_, limit)| limit.is_some());
        check(any, "rollout.gates", "empty".into(), "max_error_rise, max_p95_rise or max_accuracy_drop")
    }
}

/// How a bundle proves itself on a device, and how it spreads over devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutRules {
    /// Good inferences that probation asks for.
    pub probation_inferences: u32,
    /// Longest probation in seconds.
    pub probation_seconds: u32,
    /// The devices of a class that it is for.
    #[serde(skip_serializing_if = "Selector::is_everything")]
    pub selector: Selector,
    /// How many devices have it after each wave; the last wave, everybody, is not named. None: everybody at once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Size>,
    /// Least time for which a wave is watched, in seconds.
    #[serde(skip_serializing_if = "is_default")]
    pub soak_seconds: u32,
    /// Share of a wave's devices that must have proved the bundle before the next.
    #[serde(skip_serializing_if = "is_one")]
    pub min_proven_share: f64,
    /// Share of devices given the bundle that may fail or refuse it; more of them halt it. Absent: failures halt nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failed_share: Option<f64>,
    /// Longest time in one wave or state, in seconds; then it is paused, and a pause ends in an abort.
    #[serde(skip_serializing_if = "is_week")]
    pub deadline_seconds: u32,
    /// Most devices that are given it in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_minute: Option<u32>,
    /// The hours in which devices are given it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
    /// Whether a second person has to agree.
    #[serde(skip_serializing_if = "is_default")]
    pub approval: Approval,
    /// What stops it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
}

const WEEK_SECONDS: u32 = 7 * 86_400;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn is_week(value: &u32) -> bool {
    *value == WEEK_SECONDS
}

impl Default for RolloutRules {
    fn default() -> Self {
        Self {
            probation_inferences: 20,
            probation_seconds: 3_600,
            selector: Selector::default(),
            waves: Vec::new(),
            soak_seconds: 0,
            min_proven_share: 1.0,
            max_failed_share: None,
            deadline_seconds: WEEK_SECONDS,
            max_per_minute: None,
            maintenance: None,
            approval: Approval::None,
            gates: None,
        }
    }
}

impl RolloutRules {
    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// [`DomainError::Field`] names the first field that is not.
    pub fn validate(&self) -> Result<(), DomainError> {
        check(self.probation_seconds >= 1, "rollout.probation_seconds", "0".into(), "at least 1")?;
        check(self.waves.len() <= MAX_WAVES, "rollout.waves", self.waves.len().to_string(), "at most 32")?;
        let share = self.min_proven_share;
        check(share.is_finite() && (0.0..=1.0).contains(&share), "rollout.min_proven_share", share.to_string(), "0 to 1")?;
        if let Some(share) = self.max_failed_share {
            check(share.is_finite() && (0.0..1.0).contains(&share), "rollout.max_failed_share", share.to_string(), "0 to below 1")?;
        }
        check(self.deadline_seconds >= 60, "rollout.deadline_seconds", self.deadline_seconds.to_string(), "at least 60")?;
        check(self.max_per_minute != Some(0), "rollout.max_per_minute", "0".into(), "at least 1")?;
        if let Some(hours) = self.maintenance {
            let fits = hours.from_minute < 1_440 && hours.to_minute < 1_440 && hours.from_minute != hours.to_minute;
            check(fits, "rollout.maintenance", format!("{hours:?}"), "two different minutes of a day, 0 to 1439")?;
        }
        self.gates.as_ref().map_or(Ok(()), Gates::validate)
    }

    /// Devices that may have the bundle in a wave, counted from 0.
    pub fn target(&self, wave: usize, members: u64) -> u64 {
        self.waves.get(wave).map_or(members, |size| size.of(members))
    }

    /// Whether a wave is the last one: everybody.
    pub fn is_last(&self, wave: usize) -> bool {
        wave >= self.waves.len()
    }

    fn deadline_ms(&self) -> i64 {
        i64::from(self.deadline_seconds) * 1_000
    }
}

/// How far a rollout is. Devices are active ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Wave, from 0.
    pub wave: usize,
    /// Devices that it is for.
    pub members: u64,
    /// Devices that were given it and have nothing newer.
    pub given: u64,
    /// Of these, devices that proved it by signed evidence.
    pub proven: u64,
    /// Of these, devices that failed or refused it.
    pub failed: u64,
    /// On their way back to what they had before, without having proved or failed that yet.
    pub returning: u64,
    /// Told to go back, and failed to: they run the bundle that is taken back, or one before.
    pub stranded: u64,
    /// Milliseconds since the wave or state began.
    pub elapsed_ms: i64,
}

/// What to do with a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet, and what it waits for.
    Wait(String),
    /// Go on to the next wave.
    Widen,
    /// Change its state, and why.
    Become(RolloutState, String),
}

/// Decides on a rollout that is under way.
pub fn next(rules: &RolloutRules, state: RolloutState, facts: &Facts, readings: &[Reading]) -> Step {
    let late = facts.elapsed_ms >= rules.deadline_ms();
    let after = format!("after {} s", rules.deadline_seconds);
    match state {
        RolloutState::WaitingForApproval if late => Step::Become(RolloutState::Aborted, format!("nobody approved it {after}")),
        RolloutState::WaitingForApproval => Step::Wait("a second person has to approve it".into()),
        RolloutState::Paused if late => Step::Become(RolloutState::Aborted, format!("nobody resumed it {after}")),
        RolloutState::Paused => Step::Wait("it is paused".into()),
        RolloutState::Running => match spreading(rules, facts, readings) {
            Step::Wait(why) if late => Step::Become(RolloutState::Paused, format!("{why} {after}")),
            step => step,
        },
        RolloutState::Halting if facts.given == 0 && facts.returning == 0 && facts.stranded > 0 => {
            Step::Become(RolloutState::Aborted, format!("{} devices failed to go back", facts.stranded))
        }
        RolloutState::Halting if facts.given == 0 && facts.returning == 0 => {
            Step::Become(RolloutState::Reverted, "every device that had something to go back to is back".into())
        }
        RolloutState::Halting if late => {
            let left = facts.given + facts.returning;
            Step::Become(RolloutState::Aborted, format!("{left} devices did not say that they are back {after}"))
        }
        RolloutState::Halting => Step::Wait(format!("{} devices have to go back", facts.given + facts.returning)),
        RolloutState::Draft | RolloutState::Reverted | RolloutState::Completed | RolloutState::Aborted => Step::Wait("it has ended".into()),
    }
}

fn spreading(rules: &RolloutRules, facts: &Facts, readings: &[Reading]) -> Step {
    if let Some(alarm) = readings.iter().find(|r| r.verdict == Verdict::Harmful) {
        return Step::Become(RolloutState::Halting, format!("the gate on {} alarmed: {}", alarm.gate.name(), words(alarm)));
    }
    if rules.max_failed_share.is_some_and(|most| facts.failed as f64 > most * facts.given as f64) {
        return Step::Become(RolloutState::Halting, format!("{} of {} devices failed it", facts.failed, facts.given));
    }
    let target = rules.target(facts.wave, facts.members);
    let needed = (target as f64 * rules.min_proven_share).ceil() as u64;
    if facts.members == 0 {
        return Step::Wait("no device of the class is selected".into());
    }
    if facts.given < target || facts.proven < needed {
        return Step::Wait(format!("{} of {needed} devices have proved it, {} failed", facts.proven, facts.failed));
    }
    if rules.is_last(facts.wave) {
        return Step::Become(RolloutState::Completed, format!("{} of {} devices proved it", facts.proven, facts.members));
    }
    if facts.elapsed_ms < i64::from(rules.soak_seconds) * 1_000 {
        return Step::Wait(format!("the wave is watched for {} s", rules.soak_seconds));
    }
    match readings.iter().find(|r| r.verdict == Verdict::Undecided) {
        Some(open) => Step::Wait(format!("the gate on {} is undecided: {}", open.gate.name(), words(open))),
        None => Step::Widen,
    }
}

fn words(reading: &Reading) -> String {
    let canary = format!("{} of {} at the canary", reading.canary.events, reading.canary.trials);
    let control = reading.control.map_or(String::new(), |c| format!(", {} of {} at the control", c.events, c.trials));
    format!("{canary}{control}; e-values {:.1e} for harm, {:.1e} against", reading.ln_harmful.exp(), reading.ln_harmless.exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Count, Gate};

    fn rules(json: &str) -> RolloutRules {
        let rules: RolloutRules = serde_json::from_str(json).unwrap();
        rules.validate().unwrap();
        rules
    }

    fn reading(verdict: Verdict) -> Reading {
        let canary = Count { events: 3, trials: 9 };
        Reading { gate: Gate::Errors, verdict, canary, control: None, ln_harmful: 9.0, ln_harmless: 0.0, design_effect: 1.0 }
    }

    #[test]
    fn without_rules_everybody_at_once_and_done_when_everybody_proved_it() {
        let rules = RolloutRules::default();
        let running = |given, proven, failed| {
            next(&rules, RolloutState::Running, &Facts { members: 3, given, proven, failed, ..Facts::default() }, &[])
        };
        assert!(matches!(running(3, 2, 1), Step::Wait(why) if why.contains("2 of 3")));
        assert!(matches!(running(3, 3, 0), Step::Become(RolloutState::Completed, _)));
        assert!(matches!(next(&rules, RolloutState::Running, &Facts::default(), &[]), Step::Wait(_)), "nobody is no success");
        assert_eq!(serde_json::to_string(&rules).unwrap(), r#"{"probation_inferences":20,"probation_seconds":3600}"#);
    }

    #[test]
    fn a_wave_waits_for_proof_for_its_time_and_for_its_gates() {
        let rules = rules(r#"{"waves": ["1", "50%"], "soak_seconds": 60, "max_failed_share": 0.1}"#);
        let facts = Facts { members: 10, given: 1, proven: 1, elapsed_ms: 60_000, ..Facts::default() };
        let step = |facts: &Facts, readings: &[Reading]| next(&rules, RolloutState::Running, facts, readings);
        assert_eq!(step(&facts, &[reading(Verdict::Harmless)]), Step::Widen);
        assert!(matches!(step(&Facts { elapsed_ms: 59_999, ..facts }, &[]), Step::Wait(_)));
        assert!(matches!(step(&Facts { proven: 0, ..facts }, &[]), Step::Wait(_)));
        assert!(matches!(step(&facts, &[reading(Verdict::Undecided)]), Step::Wait(_)));
        assert!(matches!(step(&facts, &[reading(Verdict::Harmful)]), Step::Become(RolloutState::Halting, why) if why.contains("errors")));
        assert!(matches!(step(&Facts { proven: 0, failed: 1, ..facts }, &[]), Step::Become(RolloutState::Halting, _)));
        let second = Facts { wave: 1, given: 4, proven: 4, ..facts };
        assert!(matches!(step(&second, &[]), Step::Wait(why) if why.contains("4 of 5")));
    }

    #[test]
    fn no_state_lasts_for_ever() {
        let rules = rules(r#"{"deadline_seconds": 60}"#);
        let late = Facts { members: 2, given: 2, proven: 1, elapsed_ms: 60_000, ..Facts::default() };
        let after = |state| match next(&rules, state, &late, &[]) {
            Step::Become(state, _) => state,
            step => panic!("{state}: {step:?}"),
        };
        assert_eq!(after(RolloutState::WaitingForApproval), RolloutState::Aborted);
        assert_eq!(after(RolloutState::Running), RolloutState::Paused);
        assert_eq!(after(RolloutState::Paused), RolloutState::Aborted);
        assert_eq!(after(RolloutState::Halting), RolloutState::Aborted);
        let back = Facts { members: 2, ..Facts::default() };
        assert!(matches!(next(&rules, RolloutState::Halting, &back, &[]), Step::Become(RolloutState::Reverted, _)));
        let stranded = Facts { stranded: 1, ..back };
        assert!(matches!(next(&rules, RolloutState::Halting, &stranded, &[]), Step::Become(RolloutState::Aborted, _)), "not all are back");
    }

    #[test]
    fn sizes_are_counts_or_shares_and_never_nobody() {
        let of = |text: &str, members| text.parse::<Size>().unwrap().of(members);
        assert_eq!([of("5", 3), of("5", 100), of("1%", 50), of("1%", 0), of("25%", 10), of("100%", 7)], [3, 5, 1, 0, 2, 7]);
        for bad in ["", "0", "-1", "0%", "101%", "x", "1.5", "NaN%"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!("12.5%".parse::<Size>().unwrap().to_string(), "12.5%");
    }

    #[test]
    fn hours_may_go_over_midnight() {
        let hours = Maintenance { from_minute: 23 * 60, to_minute: 60 };
        let open = |hour: i64| hours.is_open(hour * 3_600_000 + 20_000 * DAY_MS);
        assert_eq!([22, 23, 0, 1].map(open), [false, true, true, false]);
        let day = Maintenance { from_minute: 60, to_minute: 120 };
        assert!(day.is_open(3_600_000) && !day.is_open(7_200_000) && !day.is_open(0));
    }

    #[test]
    fn refuses_rules_out_of_range() {
        for bad in [
            r#"{"min_proven_share": 1.1}"#,
            r#"{"max_failed_share": 1}"#,
            r#"{"deadline_seconds": 1}"#,
            r#"{"max_per_minute": 0}"#,
            r#"{"gates": {}}"#,
            r#"{"gates": {"max_error_rise": 0}}"#,
            r#"{"gates": {"max_p95_rise": 0.2, "miss": 0}}"#,
            r#"{"maintenance": {"from_minute": 5, "to_minute": 5}}"#,
        ] {
            assert!(serde_json::from_str::<RolloutRules>(bad).unwrap().validate().is_err(), "{bad}");
        }
    }
}
