//! The stated error rates, by simulation of a fleet of 10,000 with a canary of 1 %.

use super::*;
use crate::random::SplitMix;

const CANARY: usize = 100;
const CONTROL: usize = 9_900;
const RISK: Risk = Risk { false_alarm: 0.01 / 3.0, miss: 0.01 };
/// Fleets that are simulated for each claim.
const RUNS: u64 = 1_000;
/// Reports of each device until the simulation gives up waiting.
const LOOKS: usize = 200;

fn uniform(random: &mut SplitMix) -> f64 {
    (random.draw() >> 11) as f64 / (1_u64 << 53) as f64
}

fn normal(random: &mut SplitMix) -> f64 {
    let (a, b) = (uniform(random).max(1e-300), uniform(random));
    (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
}

fn binomial(random: &mut SplitMix, trials: u64, rate: f64) -> u64 {
    (0..trials).filter(|_| uniform(random) < rate).count() as u64
}

/// A large binomial, by its normal limit.
fn crowd(random: &mut SplitMix, trials: f64, rate: f64) -> u64 {
    (trials * rate + normal(random) * (trials * rate * (1.0 - rate)).sqrt()).round().clamp(0.0, trials) as u64
}

/// A fleet whose devices have rates of their own; each reports `batch` requests a look. Looked at after every report until decided.
fn race(seed: u64, rate: f64, spread: f64, rise: f64, effect: f64, batch: u64) -> Verdict {
    let random = &mut SplitMix(seed);
    let rates_of: Vec<f64> = (0..CANARY).map(|_| (rate + rise + spread * normal(random)).clamp(0.0, 1.0)).collect();
    let mut canary = vec![Count::default(); CANARY];
    let mut control = vec![Count::default(); 10];
    for _ in 0..LOOKS {
        for (count, rate) in canary.iter_mut().zip(&rates_of) {
            *count = Count { events: count.events + binomial(random, batch, *rate), trials: count.trials + batch };
        }
        // Tens of hundreds of devices, as ten counts: what they have of their own averages out.
        for count in &mut control {
            let trials = batch * (CONTROL / 10) as u64;
            *count = Count { events: count.events + crowd(random, trials as f64, rate), trials: count.trials + trials };
        }
        let reading = rates(Gate::Accuracy, &canary, Against::Control(&control), effect, RISK);
        if reading.verdict != Verdict::Undecided {
            return reading.verdict;
        }
    }
    Verdict::Undecided
}

fn count(verdict: Verdict, race: impl Fn(u64) -> Verdict) -> u64 {
    (0..RUNS).filter(|&seed| race(seed) == verdict).count() as u64
}

#[test]
fn two_points_of_accuracy_are_stopped_at_one_percent_of_the_fleet() {
    for spread in [0.0, 0.01] {
        let stopped = count(Verdict::Harmful, |seed| race(seed, 0.10, spread, 0.02, 0.02, 10));
        assert!(stopped * 100 >= RUNS * 99, "{stopped} of {RUNS} with devices that differ by {spread}");
    }
}

#[test]
fn a_canary_that_is_no_worse_is_let_through() {
    for spread in [0.0, 0.01] {
        let alarms = count(Verdict::Harmful, |seed| race(seed, 0.10, spread, 0.0, 0.02, 10));
        assert!(alarms * 100 <= RUNS, "{alarms} of {RUNS} with devices that differ by {spread}");
    }
    let passed = count(Verdict::Harmless, |seed| race(seed, 0.10, 0.0, 0.0, 0.02, 10));
    assert!(passed * 100 >= RUNS * 99, "{passed} of {RUNS}");
}

/// A canary whose latencies are log-normal and `slower` times the control's; the control's percentile is exact but for 1 %.
fn latencies(seed: u64, slower: f64) -> Verdict {
    let random = &mut SplitMix(seed);
    let sigma = 0.3;
    let p95_us = 10_000.0 * (1.0 + 0.01 * (uniform(random) * 2.0 - 1.0));
    let (low_us, high_us) = thresholds_us(p95_us as u64, 0.2);
    let median_us = slower * 10_000.0 / (1.644_853_6_f64 * sigma).exp();
    let (mut low, mut high) = (vec![Count::default(); CANARY], vec![Count::default(); CANARY]);
    for _ in 0..LOOKS {
        for (low, high) in low.iter_mut().zip(&mut high) {
            for _ in 0..10 {
                let us = median_us * (sigma * normal(random)).exp();
                *low = Count { events: low.events + u64::from(us > low_us as f64), trials: low.trials + 1 };
                *high = Count { events: high.events + u64::from(us > high_us as f64), trials: high.trials + 1 };
            }
        }
        let reading = percentile(&low, &high, RISK);
        if reading.verdict != Verdict::Undecided {
            return reading.verdict;
        }
    }
    Verdict::Undecided
}

#[test]
fn a_p95_that_is_a_fifth_longer_is_stopped_and_the_same_p95_is_not() {
    let stopped = count(Verdict::Harmful, |seed| latencies(seed, 1.2));
    let alarms = count(Verdict::Harmful, |seed| latencies(seed, 1.0));
    assert!(stopped * 100 >= RUNS * 99 && alarms * 100 <= RUNS, "{stopped} stopped, {alarms} alarms of {RUNS}");
}

#[test]
fn nothing_is_decided_without_evidence_and_a_fixed_rate_stands_in_for_a_control() {
    let silent = rates(Gate::Errors, &[], Against::Control(&[]), 0.01, RISK);
    assert_eq!((silent.verdict, silent.ln_harmful, silent.ln_harmless), (Verdict::Undecided, 0.0, 0.0));
    assert_eq!(percentile(&[], &[], RISK).verdict, Verdict::Undecided);
    let only = |events| rates(Gate::Errors, &[Count { events, trials: 5_000 }], Against::Rate(0.0), 0.01, RISK).verdict;
    assert_eq!((only(0), only(200)), (Verdict::Harmless, Verdict::Harmful));
    // A device that claims more errors than requests counts as one that failed them all.
    assert_eq!(rates(Gate::Errors, &[Count { events: 9, trials: 3 }], Against::Rate(0.0), 0.01, RISK).canary.events, 3);
}

#[test]
fn gamma_is_that_of_the_tables() {
    for (x, expected) in [(0.5, 0.572_364_942_924_700_1), (1.0, 0.0), (10.0, 12.801_827_480_081_469), (1e6, 12_815_504.569_147_78)] {
        assert!((ln_gamma(x) - expected).abs() <= 1e-10 * expected.abs().max(1.0), "{x}: {}", ln_gamma(x));
    }
}
