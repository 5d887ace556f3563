//! Rollouts over many devices in virtual time, with faults, reproducible from a seed.
//!
//! The decisions are the real ones: what the controller does with a rollout ([`rollout::next`]), what evidence moves an assignment
//! ([`Observed::may_become`]), what an agent does with an assignment, after a restart and on probation ([`attempt`]). Around them stand
//! rows, ledgers and spools that survive crashes, and messages that are lost, repeated and late.
//!
//! Two things must never happen: a success that the device did not have, and a device or rollout that does not come to an end once the faults
//! stop. A seed that found a mistake stays in [`FOUND`].

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use pleach_agent::control::attempt::{self, Course, Resume, Verdict};
use pleach_agent::ledger::{Assigned, Attempt, Ended, Ledger, Step as Stage};
use pleach_domain::Digest;
use pleach_domain::random::SplitMix;
use pleach_domain::rollout::{self, Facts, RolloutRules, Step};
use pleach_domain::state::{Observed, RolloutState};

/// Devices of one simulated fleet.
const DEVICES: usize = 500;
/// Updates that are simulated unless `PLEACH_SIMULATED_UPDATES` asks for more.
const UPDATES: usize = 100_000;
/// Seeds of fleets in which a mistake was found once.
///
/// 5: an agent that lost power between writing down a failure and reporting it never reported it, and its assignment stayed on probation.
/// 94: a rollout was called reverted although a device had failed to go back.
const FOUND: [u64; 2] = [5, 94];
const TICK_MS: i64 = 1_000;
/// Virtual time in which faults happen, and in which everything must have come to an end after them.
const FAULTY_MS: i64 = 300_000;
const END_MS: i64 = 3_000_000;
const OLD: usize = 0;
const NEW: usize = 1;

/// A report as it was spooled: events, each with the sequence of its assignment and its bundle.
type Events = Vec<(u64, usize, Observed)>;

#[derive(Default)]
struct Device {
    ledger: Ledger,
    /// Since when what is being done is being done; nothing survives a crash.
    doing: Option<(Doing, i64)>,
    spool: VecDeque<(u64, Events)>,
    reports: u64,
    /// What was told of a failure since the last start.
    told: Option<u64>,
    off_until_ms: i64,
    /// Every sequence and bundle that was proven here: the truth.
    proven: BTreeSet<(u64, usize)>,
    /// Whether the new bundle fails here on probation.
    breaks: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Doing {
    Delivering,
    Probation,
}

/// What the controller's rows hold of a device.
#[derive(Clone, Default)]
struct Row {
    sequence: u64,
    bundle: usize,
    state: Option<Observed>,
    report_sequence: u64,
    proven_before: Option<usize>,
}

struct World {
    random: SplitMix,
    now_ms: i64,
    devices: Vec<Device>,
    rows: Vec<Row>,
    rules: RolloutRules,
    state: RolloutState,
    wave: usize,
    since_ms: i64,
    /// The controller's clock against the world's; another controller has another.
    skew_ms: i64,
    /// Copies of reports that come late: when, whose, what.
    late: Vec<(i64, usize, u64, Events)>,
}

fn digest(bundle: usize) -> Digest {
    Digest::new([bundle as u8 + 1; 32])
}

fn bundle(digest: Digest) -> usize {
    usize::from(digest.as_bytes()[0]) - 1
}

fn assigned(sequence: u64, bundle: usize) -> Assigned {
    Assigned {
        digest: digest(bundle),
        length_bytes: 1,
        tree_root: digest(bundle),
        sequence,
        model: "m".parse().unwrap(),
        model_version: 1,
        class: "c".parse().unwrap(),
        wrap: vec![0; 80],
        probation_inferences: 20,
        probation_ms: 60_000,
    }
}

impl Device {
    fn tell(&mut self, events: Events) {
        self.reports += 1;
        self.spool.push_back((self.reports, events));
    }

    fn tell_of(&mut self, assigned: &Assigned, state: Observed) {
        self.tell(vec![(assigned.sequence, bundle(assigned.digest), state)]);
    }

    /// The power goes; the ledger and the spool stay.
    fn crash(&mut self, now_ms: i64) {
        (self.doing, self.told) = (None, None);
        if let Some(proven) = self.ledger.proven.clone() {
            self.tell_of(&proven, Observed::Proven);
        }
        let Some(mut left) = self.ledger.attempt.take() else { return };
        let staged = left.step >= Stage::Staged;
        let resume = attempt::resume(&mut left, staged);
        let of = left.assigned.clone();
        self.ledger.attempt = Some(left);
        match resume {
            Resume::Deliver => self.doing = Some((Doing::Delivering, now_ms)),
            Resume::Load => self.load(now_ms),
            Resume::GiveUp => self.fail(&of, true),
        }
    }

    fn consider(&mut self, wanted: &Assigned, now_ms: i64) {
        match attempt::course(&self.ledger, wanted) {
            Course::Stay => {
                let ended = self.ledger.ended.as_ref().map(|e| e.sequence);
                if ended == Some(wanted.sequence) && self.told != ended {
                    self.told = ended;
                    self.tell_of(wanted, Observed::Failed);
                }
            }
            Course::Adopt => {
                (self.ledger.attempt, self.doing) = (None, None);
                self.prove(wanted);
            }
            Course::Begin => {
                self.ledger.attempt = Some(Attempt { assigned: wanted.clone(), step: Stage::Delivering, boots: 0 });
                self.doing = Some((Doing::Delivering, now_ms));
                self.tell_of(wanted, Observed::Delivering);
            }
        }
    }

    fn load(&mut self, now_ms: i64) {
        let Some(attempt) = &mut self.ledger.attempt else { return };
        attempt.step = Stage::Probation;
        self.doing = Some((Doing::Probation, now_ms));
        let of = attempt.assigned.clone();
        self.tell_of(&of, Observed::Probation);
    }

    fn prove(&mut self, of: &Assigned) {
        self.ledger.proven = Some(of.clone());
        self.proven.insert((of.sequence, bundle(of.digest)));
        self.tell_of(of, Observed::Proven);
    }

    /// Writes a failure down and, unless the power goes in between, reports it.
    fn fail(&mut self, of: &Assigned, reports: bool) {
        (self.ledger.attempt, self.doing) = (None, None);
        self.ledger.ended = Some(Ended { sequence: of.sequence, check: "probation-errors".into() });
        if reports {
            self.told = Some(of.sequence);
            self.tell_of(of, Observed::Failed);
        }
    }

    /// One tick of work; `dies` says whether the power goes at its worst moment.
    fn work(&mut self, random: &mut SplitMix, now_ms: i64, dies: bool) {
        let (Some((doing, since_ms)), Some(attempt)) = (self.doing, self.ledger.attempt.clone()) else { return };
        let of = attempt.assigned;
        let elapsed = Duration::from_millis((now_ms - since_ms) as u64);
        match doing {
            Doing::Delivering if random.below(5) > 0 => {}
            Doing::Delivering => {
                if let Some(attempt) = &mut self.ledger.attempt {
                    attempt.step = Stage::Staged;
                }
                self.tell_of(&of, Observed::Staged);
                self.load(now_ms);
            }
            Doing::Probation => {
                let requests = elapsed.as_secs() * random.below(10) as u64;
                let errors = u64::from(self.breaks && bundle(of.digest) == NEW && requests > 0);
                match attempt::judge(&of, requests, errors, elapsed) {
                    Verdict::Wait => {}
                    Verdict::Proven => {
                        (self.ledger.attempt, self.doing) = (None, None);
                        self.prove(&of);
                        if dies {
                            // The report of it was not spooled yet.
                            self.spool.pop_back();
                        }
                    }
                    Verdict::Failed(_) => self.fail(&of, !dies),
                }
            }
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let waves = ["1", "2%", "25%"].map(|w| w.parse().unwrap()).into_iter().skip(random.below(4)).collect();
        // A fifth of the fleets gets a bundle that breaks on every second device.
        let bad = seed % 5 == 4;
        let rules = RolloutRules { waves, max_failed_share: Some(0.3), deadline_seconds: 600, min_proven_share: 0.7, ..Default::default() };
        let devices = (0..DEVICES).map(|_| Device { breaks: random.below(100) < if bad { 60 } else { 4 }, ..Device::default() });
        let mut world = Self {
            devices: devices.collect(),
            rows: vec![Row::default(); DEVICES],
            rules,
            state: RolloutState::Running,
            wave: 0,
            since_ms: 0,
            skew_ms: 0,
            now_ms: 0,
            late: Vec::new(),
            random,
        };
        for (device, row) in world.devices.iter_mut().zip(&mut world.rows) {
            device.prove(&assigned(1, OLD));
            *row = Row { sequence: 1, bundle: OLD, state: Some(Observed::Offered), ..Row::default() };
        }
        world
    }

    fn faulty(&mut self, in_thousand: usize) -> bool {
        self.now_ms < FAULTY_MS && self.random.below(1_000) < in_thousand
    }

    fn tick(&mut self) {
        self.now_ms += TICK_MS;
        if self.faulty(20) {
            // Another controller takes over; its clock is another.
            self.skew_ms = self.random.below(240_000) as i64 - 120_000;
        }
        for n in 0..DEVICES {
            self.device(n);
        }
        for (_, n, sequence, events) in self.late.extract_if(.., |l| l.0 <= self.now_ms).collect::<Vec<_>>() {
            self.store(n, sequence, &events);
        }
        self.steer();
        self.assign();
    }

    fn device(&mut self, n: usize) {
        let (dies, off) = (self.faulty(20), self.faulty(4));
        if off {
            self.devices[n].off_until_ms = self.now_ms + self.random.below(200_000) as i64;
        }
        let device = &mut self.devices[n];
        if self.now_ms < device.off_until_ms {
            return;
        }
        device.work(&mut self.random, self.now_ms, dies);
        if dies {
            self.devices[n].crash(self.now_ms);
        }
        // What comes down is the whole desired state; it may be late, never another.
        if self.rows[n].state.is_some() && !self.faulty(200) {
            let wanted = assigned(self.rows[n].sequence, self.rows[n].bundle);
            self.devices[n].consider(&wanted, self.now_ms);
        }
        if let Some((sequence, events)) = self.devices[n].spool.front().cloned() {
            if self.faulty(200) {
                return;
            }
            if self.faulty(100) {
                let at_ms = self.now_ms + self.random.below(60_000) as i64;
                self.late.push((at_ms, n, sequence, events.clone()));
            }
            self.store(n, sequence, &events);
            if !self.faulty(200) {
                // The acknowledgement came.
                self.devices[n].spool.pop_front();
            }
        }
    }

    /// As the gateway does: each report once, in order, evidence only forwards.
    fn store(&mut self, n: usize, sequence: u64, events: &Events) {
        let row = &mut self.rows[n];
        if sequence <= row.report_sequence {
            return;
        }
        row.report_sequence = sequence;
        for &(of, bundle, state) in events {
            let Some(before) = row.state else { continue };
            if of == row.sequence && bundle == row.bundle && before.may_become(state) {
                row.state = Some(state);
                if state == Observed::Proven {
                    assert!(self.devices[n].proven.contains(&(of, bundle)), "a false success: device {n}, sequence {of}");
                }
            }
        }
    }

    fn facts(&self) -> Facts {
        let new = |row: &&Row| row.bundle == NEW;
        let count = |test: &dyn Fn(&Row) -> bool| self.rows.iter().filter(new).filter(|row| test(row)).count() as u64;
        let failed = |row: &Row| matches!(row.state, Some(Observed::Failed | Observed::Refused));
        let given = count(&|_| true);
        let back = |test: &dyn Fn(&Row) -> bool| self.rows.iter().filter(|r| r.bundle == OLD && r.sequence > 1 && test(r)).count() as u64;
        Facts {
            wave: self.wave,
            members: DEVICES as u64,
            given,
            proven: count(&|row| row.state == Some(Observed::Proven)),
            failed: count(&failed),
            returning: back(&|row| !row.state.is_some_and(Observed::is_final)),
            stranded: back(&failed),
            elapsed_ms: self.now_ms + self.skew_ms - self.since_ms,
        }
    }

    fn steer(&mut self) {
        let facts = self.facts();
        let begun = self.now_ms + self.skew_ms;
        match rollout::next(&self.rules, self.state, &facts, &[]) {
            // A person looks at what paused itself and lets it go on.
            Step::Wait(_) if self.state == RolloutState::Paused => (self.state, self.since_ms) = (RolloutState::Running, begun),
            Step::Wait(_) => {}
            Step::Widen => (self.wave, self.since_ms) = (self.wave + 1, begun),
            Step::Become(state, why) => {
                if state == RolloutState::Completed {
                    let truly = self.devices.iter().filter(|d| d.proven.iter().any(|(_, bundle)| *bundle == NEW)).count() as f64;
                    assert!(truly >= self.rules.min_proven_share * DEVICES as f64, "a false success of the rollout: {why}");
                }
                (self.state, self.since_ms) = (state, begun);
            }
        }
    }

    fn assign(&mut self) {
        let room = match self.state {
            RolloutState::Running => self.rules.target(self.wave, DEVICES as u64) as usize,
            RolloutState::Halting => usize::MAX,
            _ => return,
        };
        for (n, row) in self.rows.iter_mut().enumerate() {
            let to = match self.state {
                RolloutState::Running if n < room && row.bundle == OLD && row.sequence == 1 => NEW,
                RolloutState::Halting if row.bundle == NEW => row.proven_before.unwrap_or(OLD),
                _ => continue,
            };
            if row.state == Some(Observed::Proven) {
                row.proven_before = Some(row.bundle);
            }
            (row.sequence, row.bundle, row.state) = (row.sequence + 1, to, Some(Observed::Offered));
        }
    }

    /// Whether nothing is left to happen.
    fn over(&self) -> bool {
        let ended = matches!(self.state, RolloutState::Completed | RolloutState::Reverted | RolloutState::Aborted);
        ended && self.rows.iter().all(|row| row.state.is_some_and(Observed::is_final)) && self.now_ms > FAULTY_MS
    }

    /// Fails, naming the seed, when anything is not as its device knows it.
    fn check(&self, seed: u64) {
        let open = |row: &Row| row.state.is_none_or(|state| !state.is_final());
        let stuck: Vec<_> = (0..DEVICES).filter(|&n| open(&self.rows[n])).map(|n| (n, self.rows[n].sequence, self.rows[n].state)).collect();
        assert!(stuck.is_empty() && self.over(), "seed {seed}: stuck in {}: {stuck:?}", self.state);
        for (n, (device, row)) in self.devices.iter().zip(&self.rows).enumerate() {
            let serves = device.ledger.proven.as_ref().map(|p| bundle(p.digest));
            match row.state {
                Some(Observed::Proven) => assert_eq!(serves, Some(row.bundle), "seed {seed}, device {n}"),
                _ => assert_ne!(serves, Some(row.bundle), "seed {seed}, device {n}: what failed does not serve"),
            }
        }
        if self.state == RolloutState::Reverted {
            let is_back = |row: &Row| row.bundle == OLD && row.state == Some(Observed::Proven);
            assert!(self.rows.iter().all(is_back), "seed {seed}: not everybody is back");
        }
    }

    /// What became of every device, to compare runs by.
    fn outcome(&self) -> Vec<(u64, usize, Option<Observed>, u64)> {
        self.rows.iter().map(|row| (row.sequence, row.bundle, row.state, row.report_sequence)).collect()
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    while world.now_ms < END_MS && !world.over() {
        world.tick();
    }
    world.check(seed);
    world
}

#[test]
fn no_update_succeeds_falsely_and_no_device_is_stuck_whatever_fails() {
    let updates = std::env::var("PLEACH_SIMULATED_UPDATES").ok().and_then(|n| n.parse().ok()).unwrap_or(UPDATES);
    let fleets = (updates / DEVICES) as u64;
    let mut ends = BTreeSet::new();
    for seed in FOUND.into_iter().chain(0..fleets) {
        ends.insert(run(seed).state);
    }
    assert!(ends.contains(&RolloutState::Completed) && ends.contains(&RolloutState::Reverted), "{ends:?}");
}

#[test]
fn a_seed_gives_the_same_fleet_again() {
    assert_eq!(run(1).outcome(), run(1).outcome());
}
