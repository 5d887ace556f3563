//! Gates: whether a canary is harmful or harmless, decided by anytime-valid sequential tests, so that looking after every report
//! costs nothing.
//!
//! Two claims race. *Harmless or nearly so* (the rate rises by at most a quarter of the effect) is given up, and the gate alarms, when
//! its e-process reaches `1 / false_alarm`. *Harmful* (the rate rises by the effect or more) is given up, and the gate opens, when its
//! e-process reaches `1 / miss`. By Ville's inequality a harmless canary is stopped with at most the first probability and a harmful one let
//! through with at most the second, however often and whenever one looks.
//!
//! The e-process of one arm is the Beta(1/2, 1/2) mixture of its likelihoods over the likelihood at a rate (Robbins 1970, "Statistical
//! methods related to the law of the iterated logarithm"); that of a claim about two arms is the least product of both over all rates that
//! the claim allows. It is exact for independent requests. Requests of one device are not: counts are divided by the design effect (Kish
//! 1965), estimated from how devices differ.

use serde::{Deserialize, Serialize};

/// Share of the effect that is tolerated: a rise up to here counts as harmless.
const TOLERATED: f64 = 0.25;
/// Share of requests above the 95th percentile.
const TAIL: f64 = 0.05;

/// Events among trials, of one device or one arm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// What is counted: errors, slow requests, wrong answers.
    pub events: u64,
    /// Out of how many.
    pub trials: u64,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Share of failed requests.
    Errors,
    /// 95th percentile of latency.
    Latency,
    /// Share of wrong answers among labelled ones.
    Accuracy,
}

impl Gate {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Latency => "latency",
            Self::Accuracy => "accuracy",
        }
    }
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The evidence is not enough either way.
    Undecided,
    /// It opens.
    Harmless,
    /// It alarms.
    Harmful,
}

/// A gate's verdict with what it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Which gate.
    pub gate: Gate,
    /// What it says.
    pub verdict: Verdict,
    /// Counts of the canary.
    pub canary: Count,
    /// Counts of the control; absent where a fixed rate stands in for it.
    pub control: Option<Count>,
    /// Natural logarithm of the e-value against "harmless".
    pub ln_harmful: f64,
    /// Natural logarithm of the e-value against "harmful".
    pub ln_harmless: f64,
    /// By how much counts were divided because requests of one device are alike, canary and control the same.
    pub design_effect: f64,
}

/// Stated error rates of one gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Risk {
    /// Highest probability that a harmless canary is stopped, ever.
    pub false_alarm: f64,
    /// Highest probability that a harmful canary is let through, ever.
    pub miss: f64,
}

impl Risk {
    fn verdict(self, ln_harmful: f64, ln_harmless: f64) -> Verdict {
        if ln_harmful >= -self.false_alarm.ln() {
            Verdict::Harmful
        } else if ln_harmless >= -self.miss.ln() {
            Verdict::Harmless
        } else {
            Verdict::Undecided
        }
    }
}

/// What a canary's rate is held against.
#[derive(Clone, Copy, Debug)]
pub enum Against<'a> {
    /// Devices that run what ran before, at the same time.
    Control(&'a [Count]),
    /// A rate between 0 and 1, where nothing ran before.
    Rate(f64),
}

/// Tests whether the canary's rate is higher, with `effect` (absolute) as the rise that must not pass. One count for each device.
pub fn rates(gate: Gate, canary: &[Count], against: Against<'_>, effect: f64, risk: Risk) -> Reading {
    let control = match against {
        Against::Control(control) => control,
        Against::Rate(_) => &[],
    };
    let alike = design_effect(canary).max(design_effect(control));
    let arm = |counts: &[Count]| Arm::of(total(counts), alike);
    let (low, high) = (effect * TOLERATED, effect);
    let (ln_harmful, ln_harmless) = match against {
        Against::Control(control) => (arm(canary).ln_above(&arm(control), low), arm(canary).ln_below(&arm(control), high)),
        Against::Rate(rate) => (arm(canary).ln_above_rate(rate + low), arm(canary).ln_below_rate(rate + high)),
    };
    let control = matches!(against, Against::Control(_)).then(|| total(control));
    Reading {
        gate,
        verdict: risk.verdict(ln_harmful, ln_harmless),
        canary: total(canary),
        control,
        ln_harmful,
        ln_harmless,
        design_effect: alike,
    }
}

/// Latencies above which a canary's requests are counted, for [`percentile`]: where a rise of `effect` (relative) over `p95_us` begins
/// to count, and where it is whole. Microseconds.
pub fn thresholds_us(p95_us: u64, effect: f64) -> (u64, u64) {
    let at = |share: f64| (p95_us as f64 * (1.0 + effect * share)).round() as u64;
    (at(TOLERATED), at(1.0))
}

/// Tests whether the canary's 95th percentile has risen: `over_low` and `over_high` count its requests above each of [`thresholds_us`].
pub fn percentile(over_low: &[Count], over_high: &[Count], risk: Risk) -> Reading {
    let alike = design_effect(over_low).max(design_effect(over_high));
    let ln_harmful = Arm::of(total(over_low), alike).ln_above_rate(TAIL);
    let ln_harmless = Arm::of(total(over_high), alike).ln_below_rate(TAIL);
    let verdict = risk.verdict(ln_harmful, ln_harmless);
    Reading { gate: Gate::Latency, verdict, canary: total(over_low), control: None, ln_harmful, ln_harmless, design_effect: alike }
}

fn total(counts: &[Count]) -> Count {
    let sum = |of: fn(&Count) -> u64| counts.iter().map(of).fold(0, u64::saturating_add);
    Count { events: sum(|c| c.events.min(c.trials)), trials: sum(|c| c.trials) }
}

/// How many times more the devices' rates vary than those of independent requests would: Pearson's chi-square over its degrees of
/// freedom; at least 1.
fn design_effect(counts: &[Count]) -> f64 {
    let all = total(counts);
    let rate = all.events as f64 / all.trials.max(1) as f64;
    let heard: Vec<&Count> = counts.iter().filter(|c| c.trials > 0).collect();
    if heard.len() < 2 || rate <= 0.0 || rate >= 1.0 {
        return 1.0;
    }
    let distance = |c: &Count| {
        let expected = rate * c.trials as f64;
        (c.events.min(c.trials) as f64 - expected).powi(2) / (expected * (1.0 - rate))
    };
    (heard.iter().map(|c| distance(c)).sum::<f64>() / (heard.len() - 1) as f64).max(1.0)
}

/// Events and others of one arm, divided by the design effect.
#[derive(Clone, Copy, Debug)]
struct Arm {
    events: f64,
    others: f64,
    /// Logarithm of the mixture's likelihood.
    ln_mixture: f64,
}

impl Arm {
    fn of(count: Count, design_effect: f64) -> Self {
        let events = count.events as f64 / design_effect;
        let others = (count.trials - count.events) as f64 / design_effect;
        let ln_mixture = ln_beta(events + 0.5, others + 0.5) - ln_beta(0.5, 0.5);
        Self { events, others, ln_mixture }
    }

    fn rate(&self) -> f64 {
        self.events / (self.events + self.others).max(f64::MIN_POSITIVE)
    }

    /// Logarithm of the e-value against one rate.
    fn ln_e(&self, rate: f64) -> f64 {
        let part = |n: f64, p: f64| if n > 0.0 { n * p.max(0.0).ln() } else { 0.0 };
        self.ln_mixture - part(self.events, rate) - part(self.others, 1.0 - rate)
    }

    /// Against "the rate is at most `rate`".
    fn ln_above_rate(&self, rate: f64) -> f64 {
        if self.rate() <= rate { 0.0 } else { self.ln_e(rate).max(0.0) }
    }

    /// Against "the rate is at least `rate`".
    fn ln_below_rate(&self, rate: f64) -> f64 {
        if self.rate() >= rate || self.events + self.others == 0.0 { 0.0 } else { self.ln_e(rate.min(1.0)).max(0.0) }
    }

    /// Against "the rate is at most the other's plus `rise`".
    fn ln_above(&self, other: &Self, rise: f64) -> f64 {
        if self.rate() - other.rate() <= rise { 0.0 } else { self.ln_least(other, rise) }
    }

    /// Against "the rate is at least the other's plus `rise`".
    fn ln_below(&self, other: &Self, rise: f64) -> f64 {
        let silent = self.events + self.others == 0.0 || other.events + other.others == 0.0;
        if silent || self.rate() - other.rate() >= rise { 0.0 } else { self.ln_least(other, rise) }
    }

    /// The least product over pairs of rates that are `rise` apart, by golden section: the sum of negative log likelihoods is convex.
    fn ln_least(&self, other: &Self, rise: f64) -> f64 {
        const SHRINK: f64 = 0.618_033_988_749_894_9;
        let at = |rate: f64| self.ln_e(rate + rise) + other.ln_e(rate);
        let (mut low, mut high) = (1e-12, 1.0 - rise - 1e-12);
        for _ in 0..80 {
            let (a, b) = (high - SHRINK * (high - low), low + SHRINK * (high - low));
            if at(a) < at(b) { high = b } else { low = a }
        }
        at((low + high) / 2.0).max(0.0)
    }
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// Lanczos' approximation (g = 7, nine terms), relative error below 1e-13 for x >= 0.5.
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let sum = TERMS.iter().enumerate().fold(0.999_999_999_999_809_9, |sum, (i, term)| sum + term / (x + i as f64 + 1.0));
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests;
