//! From an analysed model to a variant: choose widths for a device class and budget, reconstruct, judge, deliver or refuse.

use std::collections::BTreeMap;

use pleach_domain::DomainError;
use pleach_domain::dataset::Dataset;
use pleach_domain::runtime::Runtime;
use pleach_onnx::Model;

use crate::analysis::{Analysis, Held, Watch, check_data};
use crate::atlas::{Atlas, widths_of};
use crate::error::PruneError;
use crate::evaluate::{Judgement, Labelled, judge};
use crate::levels::Plan;
use crate::progress::{Progress, Silent, Stage, step};
use crate::reconstruct::{Effort, reconstruct};
use crate::report::{Feasible, FrontPoint, GroupWidth, Outcome, Report, Shortfall, Target};
use crate::run::Inputs;
use crate::solve::{Budget, Choice, Emphasis, Problem};

/// Calibration rows and rounds by which candidates are compared.
const TRIAL: Effort = Effort { rows: 400, rounds: 0 };
/// Rounds of the delivered variant, on all rows.
const ROUNDS: usize = 2;
/// Diverse ways to spend a budget; the uniform one joins them.
const EMPHASES: [Emphasis; 4] = [
    Emphasis { power: 1.0, floor: 0.0 },
    Emphasis { power: 0.5, floor: 0.0 },
    Emphasis { power: 1.0, floor: 0.36 },
    Emphasis { power: 0.5, floor: 0.3 },
];
/// Shares of the dense latency at which the front is reported.
const FRONT: [f64; 10] = [0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// What all steps of one run share.
struct Run<'a> {
    analysis: &'a Analysis,
    inputs: Inputs<'a>,
    held: Held<'a>,
    problem: &'a Problem,
    runtime: &'a dyn Runtime,
    progress: &'a dyn Progress,
}

/// Makes the most accurate variant that keeps to `target` on the class of `atlas`.
///
/// `calibration` is the data that was analysed; `validation` must be labelled. The dense model, folded, is delivered as it is
/// where it already meets the target; nothing slower than that is ever delivered.
///
/// # Errors
/// As [`crate::analyse`], and [`PruneError::Atlas`] for an atlas of another model or batch, [`PruneError::Target`] for a target
/// out of range.
pub fn prune(
    analysis: &Analysis,
    atlas: &Atlas,
    target: &Target,
    calibration: &Dataset,
    validation: &Dataset,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Outcome, PruneError> {
    check(analysis, atlas, target, calibration, validation, runtime)?;
    let mut watch = Watch(BTreeMap::new());
    let labelled = Labelled::new(validation)?;
    let problem = watch.time(Stage::Solve, || atlas.problem(analysis))?;
    let inputs = calibration.inputs().iter().map(|(n, t)| (n.as_str(), t)).collect();
    let run = Run { analysis, inputs, held: Held::new(analysis, calibration), problem: &problem, runtime, progress };
    let budget = Budget { time: target.latency_us, size: target.max_size_bytes.map_or(f64::INFINITY, |b| b as f64) };
    let (choice, shortfall) = watch.time(Stage::Solve, || run.choose(budget))?;
    let (model, divergence) = watch.time(Stage::Reconstruct, || run.build(&choice))?;
    step(progress, Stage::Evaluate, 0, 1)?;
    let judgement = watch.time(Stage::Evaluate, || judge(analysis, &model, &labelled, target.batch, runtime))?;
    let report = run.report(target, &choice, divergence, &judgement, watch.0);
    Ok(decide(&model, target, shortfall, report))
}

fn check(
    analysis: &Analysis,
    atlas: &Atlas,
    target: &Target,
    calibration: &Dataset,
    validation: &Dataset,
    runtime: &dyn Runtime,
) -> Result<(), PruneError> {
    let wrong = |field: &str, got: String, expected: &str| {
        Err(PruneError::Target(DomainError::Field { field: field.to_owned(), got, expected: expected.to_owned() }))
    };
    if !(target.latency_us.is_finite() && target.latency_us > 0.0) {
        return wrong("latency_us", target.latency_us.to_string(), "a positive number of microseconds");
    }
    if let Some(floor) = target.min_accuracy.filter(|f| !(0.0..=1.0).contains(f)) {
        return wrong("min_accuracy", floor.to_string(), "0 to 1");
    }
    if target.batch != atlas.batch() {
        return Err(PruneError::Atlas(format!("measured at batch {}: expected {}", atlas.batch(), target.batch)));
    }
    if calibration.rows() != analysis.statistics.rows {
        let reason = format!("{} rows: expected the {} that were analysed", calibration.rows(), analysis.statistics.rows);
        return Err(PruneError::Data { role: "calibration", source: DomainError::Dataset { array: String::new(), reason } });
    }
    check_data("calibration", &analysis.original, calibration, runtime)?;
    check_data("validation", &analysis.original, validation, runtime)
}

impl Run<'_> {
    /// The widths to build, and what they miss when nothing keeps to the budget.
    fn choose(&self, budget: Budget) -> Result<(Choice, Option<Shortfall>), PruneError> {
        let problem = self.problem;
        step(self.progress, Stage::Solve, 0, EMPHASES.len() + 1)?;
        if problem.fits(&problem.dense(), budget) {
            return Ok((problem.dense(), None));
        }
        let mut candidates: Vec<Choice> =
            EMPHASES.iter().filter_map(|&e| problem.solve(budget, e)).chain(problem.uniform(budget)).collect();
        let mut seen = Vec::new();
        candidates.retain(|c| {
            !seen.contains(c) && {
                seen.push(c.clone());
                true
            }
        });
        match candidates.as_slice() {
            [] => {}
            [only] => return Ok((only.clone(), None)),
            _ => return Ok((self.best(candidates)?, None)),
        }
        let (fastest, smallest) = (problem.least(&problem.time), problem.least(&problem.size));
        let fastest_us = problem.cost(&problem.time, &fastest);
        if fastest_us > budget.time {
            return Ok((fastest, Some(Shortfall::Latency { budget_us: budget.time, fastest_us })));
        }
        let smallest_bytes = problem.cost(&problem.size, &smallest).max(0.0) as u64;
        let budget_bytes = if budget.size.is_finite() { budget.size as u64 } else { u64::MAX };
        Ok((smallest, Some(Shortfall::Size { budget_bytes, smallest_bytes })))
    }

    /// The candidate of least real divergence, each reconstructed on some of the rows.
    fn best(&self, candidates: Vec<Choice>) -> Result<Choice, PruneError> {
        let mut best: Option<(f64, Choice)> = None;
        let all = candidates.len();
        for (done, choice) in candidates.into_iter().enumerate() {
            step(self.progress, Stage::Solve, done, all)?;
            let divergence = self.held.divergence(&self.reconstructed(&choice, TRIAL, &Silent)?, self.runtime, Stage::Solve)?;
            tracing::debug!(divergence, widths = ?widths_of(self.problem, &choice), "candidate");
            if best.as_ref().is_none_or(|(least, _)| divergence < *least) {
                best = Some((divergence, choice));
            }
        }
        best.map(|(_, choice)| choice).ok_or_else(|| PruneError::Numerics("no candidate".to_owned()))
    }

    fn reconstructed(&self, choice: &Choice, effort: Effort, progress: &dyn Progress) -> Result<Model, PruneError> {
        let Analysis { network, statistics, .. } = self.analysis;
        let plan = Plan { keep: self.analysis.keep(&widths_of(self.problem, choice)), ..Plan::default() };
        reconstruct(network, statistics, &self.inputs, &plan, effort, self.runtime, progress)
    }

    /// The variant of a choice, and its divergence from the dense model.
    fn build(&self, choice: &Choice) -> Result<(Model, f64), PruneError> {
        let effort = Effort { rows: self.analysis.statistics.fit_rows, rounds: ROUNDS };
        let model = self.reconstructed(choice, effort, self.progress)?;
        let divergence = self.held.divergence(&model, self.runtime, Stage::Reconstruct)?;
        Ok((model, divergence))
    }

    fn report(&self, target: &Target, choice: &Choice, divergence: f64, judgement: &Judgement, seconds: BTreeMap<Stage, f64>) -> Report {
        let problem = self.problem;
        let time = |choice: &Choice| problem.cost(&problem.time, choice);
        let groups = self.analysis.groups().zip(widths_of(problem, choice));
        Report {
            criterion: self.analysis.criterion,
            batch: target.batch,
            dense: judgement.dense,
            pruned: judgement.pruned,
            accuracy_lost_upper: judgement.lost.upper,
            agreement: judgement.agreement,
            divergence,
            predicted_latency_us: time(choice),
            predicted_dense_latency_us: time(&problem.dense()),
            widths: groups.map(|((group, of), kept)| GroupWidth { group: group.to_owned(), kept, of }).collect(),
            frozen: self.analysis.frozen(),
            front: front(problem),
            seconds,
        }
    }
}

/// What other budgets would give, by the losses of single groups.
fn front(problem: &Problem) -> Vec<FrontPoint> {
    let dense_us = problem.cost(&problem.time, &problem.dense());
    let mut points: Vec<FrontPoint> = Vec::new();
    for share in FRONT {
        let budget = Budget { time: share * dense_us * (1.0 + 1e-9), size: f64::INFINITY };
        let Some(choice) = problem.solve(budget, Emphasis { power: 1.0, floor: 0.0 }) else { continue };
        let point = FrontPoint { latency_us: problem.cost(&problem.time, &choice), divergence: problem.loss(&choice) };
        if points.last().is_none_or(|last| point.divergence < last.divergence && point.latency_us > last.latency_us) {
            points.push(point);
        }
    }
    points
}

fn decide(model: &Model, target: &Target, shortfall: Option<Shortfall>, report: Report) -> Outcome {
    let reached =
        Feasible { latency_us: report.predicted_latency_us, accuracy: report.pruned.accuracy, size_bytes: report.pruned.size_bytes };
    let size = target.max_size_bytes.filter(|&b| reached.size_bytes > b);
    let size = size.map(|budget_bytes| Shortfall::Size { budget_bytes, smallest_bytes: reached.size_bytes });
    let accuracy = target.min_accuracy.filter(|&floor| reached.accuracy < floor);
    let accuracy = accuracy.map(|floor| Shortfall::Accuracy { floor, reached: reached.accuracy });
    match shortfall.or(size).or(accuracy) {
        Some(shortfall) => Outcome::Rejected { shortfall, nearest: reached, report: Box::new(report) },
        None => Outcome::Made { model: model.encode(), report: Box::new(report) },
    }
}
