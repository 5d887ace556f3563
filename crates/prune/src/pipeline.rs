//! From an analysed model to a variant: choose widths for a device class and budget, reconstruct, judge, deliver or refuse.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use pleach_domain::DomainError;
use pleach_domain::dataset::Dataset;
use pleach_domain::runtime::Runtime;
use pleach_onnx::Model;

use crate::analysis::{Analysis, Held, Watch, check_data, few_rows};
use crate::atlas::Atlas;
use crate::error::PruneError;
use crate::evaluate::{Examiner, Judgement};
use crate::levels::{Level, Place, Site};
use crate::magnitude;
use crate::network::model_error;
use crate::progress::{Progress, Stage, Within, step};
use crate::proof;
use crate::reconstruct::{Effort, reconstruct};
use crate::report::{Feasible, FrontPoint, Goal, GroupWidth, LayerRank, Outcome, Report, Shortfall, Target};
use crate::run::Inputs;
use crate::solve::{Budget, Choice, Emphasis, Problem};
use crate::verify::{Built, Search};
use crate::warnings::warnings;

/// Calibration rows and rounds by which candidates are compared.
const TRIAL: Effort = Effort { rows: 400, rounds: 0 };
/// Rounds of the delivered variant, on all rows.
const ROUNDS: usize = 4;
/// Diverse ways to spend a budget; the uniform one joins them.
const EMPHASES: [Emphasis; 6] = [
    Emphasis { power: 1.0, floor: 0.0 },
    Emphasis { power: 0.5, floor: 0.0 },
    Emphasis { power: 1.0, floor: 0.3 },
    Emphasis { power: 0.5, floor: 0.3 },
    Emphasis { power: 1.0, floor: 0.45 },
    Emphasis { power: 0.5, floor: 0.45 },
];
/// Neighbours of the best of these that are tried.
const NEIGHBOURS: usize = 8;
/// Shares of the dense latency at which the front is reported.
const FRONT: [f64; 10] = [0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// What all steps of one run share.
struct Run<'a> {
    analysis: &'a Analysis,
    inputs: Inputs<'a>,
    held: Held<'a>,
    problem: &'a Problem,
    sites: &'a [Site],
    runtime: &'a dyn Runtime,
    progress: &'a dyn Progress,
}

/// Makes the most accurate variant that keeps to `target` on the class of `atlas`; of a target with a goal, on this machine.
///
/// `calibration` is the data that was analysed; `validation` may have no labels: then variants are judged by their agreement with
/// the dense model. The dense model, folded, is delivered as it is where it already meets the target; nothing slower than that is
/// ever delivered.
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
    let (problem, sites) = watch.time(Stage::Solve, || atlas.problem(analysis))?;
    let inputs = calibration.inputs().iter().map(|(n, t)| (n.as_str(), t)).collect();
    let held = Held::new(analysis, calibration);
    let run = Run { analysis, inputs, held, problem: &problem, sites: &sites, runtime, progress };
    step(progress, Stage::Evaluate, 0, 2)?;
    let examiner = watch.time(Stage::Evaluate, || Examiner::new(analysis, validation, runtime))?;
    let (built, shortfall) = run.search(target, &examiner, &mut watch)?;
    step(progress, Stage::Evaluate, 1, 2)?;
    let judgement = watch.time(Stage::Evaluate, || examiner.judge(&built, target.batch, runtime))?;
    let warnings = warnings(analysis, calibration, validation, target, &judgement);
    let report = run.report(target, &built, judgement, watch.0, warnings);
    Ok(decide(&built.model, target, shortfall, report))
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
    for (field, floor) in [("min_accuracy", target.min_accuracy), ("min_class_recall", target.min_class_recall)] {
        if let Some(floor) = floor.filter(|f| !(0.0..=1.0).contains(f)) {
            return wrong(field, floor.to_string(), "0 to 1");
        }
    }
    let goal = target.goal.map(|goal| match goal {
        Goal::P50Us(x) | Goal::P95Us(x) | Goal::Speedup(x) => x,
    });
    if let Some(got) = goal.filter(|x| !(x.is_finite() && *x > 0.0)) {
        return wrong("goal", got.to_string(), "a positive number");
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
    /// The variant to deliver, and what it misses; with a goal, found by measuring one variant after another, dense first.
    fn search(&self, target: &Target, examiner: &Examiner<'_>, watch: &mut Watch) -> Result<(Built, Option<Shortfall>), PruneError> {
        let problem = self.problem;
        let size = target.max_size_bytes.map_or(f64::INFINITY, |b| b as f64);
        let measured = target.goal.is_some() || target.max_memory_bytes.is_some();
        let mut search = Search::new(target);
        let mut budget = Budget { time: target.latency_us, size };
        let mut choice = (problem.dense(), None);
        if !measured || !problem.fits(&choice.0, Budget { time: f64::MAX, size }) {
            choice = watch.time(Stage::Solve, || self.choose(budget))?;
        }
        loop {
            let (model, divergence) = watch.time(Stage::Reconstruct, || self.build(&choice.0, target, examiner))?;
            let memory_bytes = examiner.memory_bytes(&model, target.batch, self.runtime)?;
            let latency = watch.time(Stage::Evaluate, || examiner.latency(&model, target.batch, self.runtime))?;
            let predicted_us = problem.cost(&problem.time, &choice.0);
            let built = Built { choice: choice.0, model, divergence, predicted_us, latency, memory_bytes };
            if !measured {
                return Ok((built, choice.1));
            }
            let impossible = choice.1;
            match search.next(built) {
                Some(next) if impossible.is_none() => budget.time = next,
                Some(_) | None => break,
            }
            choice = watch.time(Stage::Solve, || self.choose(budget))?;
        }
        let built = search.finish().ok_or_else(|| PruneError::Numerics("no variant".to_owned()))?;
        let shortfall = (built.ratio(target) > 1.0).then(|| missed(target, &built));
        Ok((built, shortfall))
    }

    /// The widths to build, and what they miss when nothing keeps to the budget.
    fn choose(&self, budget: Budget) -> Result<(Choice, Option<Shortfall>), PruneError> {
        let problem = self.problem;
        step(self.progress, Stage::Solve, 0, EMPHASES.len() + 1)?;
        if problem.fits(&problem.dense(), budget) {
            return Ok((problem.dense(), None));
        }
        let narrows: Vec<bool> = self.sites.iter().map(|s| matches!(s.place, Place::Group(_))).collect();
        let mut candidates: Vec<Choice> =
            EMPHASES.iter().filter_map(|&e| problem.solve(budget, e)).chain(problem.uniform(budget, &narrows)).collect();
        let mut seen: Vec<Choice> = Vec::new();
        candidates.retain(|c| {
            !seen.contains(c) && {
                seen.push(c.clone());
                true
            }
        });
        if !candidates.is_empty() {
            return Ok((self.best(candidates, budget)?, None));
        }
        // A network of constants is fast, and no point that anyone would want.
        let narrowest = self.sites.iter().map(|s| s.levels.iter().position(|&l| l != Level::Flat).unwrap_or(0)).collect();
        let (fastest, smallest) = (problem.least(&problem.time, &narrowest), problem.least(&problem.size, &narrowest));
        let fastest_us = problem.cost(&problem.time, &fastest);
        if fastest_us > budget.time {
            return Ok((fastest, Some(Shortfall::Latency { budget_us: budget.time, fastest_us })));
        }
        let smallest_bytes = problem.cost(&problem.size, &smallest).max(0.0) as u64;
        let budget_bytes = if budget.size.is_finite() { budget.size as u64 } else { u64::MAX };
        Ok((smallest, Some(Shortfall::Size { budget_bytes, smallest_bytes })))
    }

    /// The choice of least real divergence, each reconstructed on some of the rows: the best of the candidates, and then of its
    /// neighbours, as long as they are better.
    fn best(&self, candidates: Vec<Choice>, budget: Budget) -> Result<Choice, PruneError> {
        let all = candidates.len() + NEIGHBOURS;
        let mut tried: Vec<(f64, Choice)> = Vec::new();
        for choice in candidates {
            self.try_out(choice, &mut tried, all)?;
        }
        for _ in 0..NEIGHBOURS {
            let Some((_, now)) = tried.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            let Some(next) = self.problem.neighbour(now, budget, |c| tried.iter().all(|(_, t)| t != c)) else { break };
            self.try_out(next, &mut tried, all)?;
        }
        let best = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, choice)| choice).ok_or_else(|| PruneError::Numerics("no candidate".to_owned()))
    }

    fn try_out(&self, choice: Choice, tried: &mut Vec<(f64, Choice)>, all: usize) -> Result<(), PruneError> {
        step(self.progress, Stage::Solve, tried.len(), all)?;
        let divergence = self.held.divergence(&self.reconstructed(&choice, TRIAL, &Within(self.progress))?, self.runtime, Stage::Solve)?;
        tracing::debug!(divergence, ?choice, "candidate");
        tried.push((divergence, choice));
        Ok(())
    }

    fn reconstructed(&self, choice: &Choice, effort: Effort, progress: &dyn Progress) -> Result<Model, PruneError> {
        let Analysis { network, statistics, .. } = self.analysis;
        let plan = self.analysis.plan(self.sites, choice);
        reconstruct(network, statistics, &self.inputs, &plan, effort, self.runtime, progress)
    }

    /// The variant of a choice, and its divergence from the dense model.
    fn build(&self, choice: &Choice, target: &Target, examiner: &Examiner<'_>) -> Result<(Model, f64), PruneError> {
        let effort = Effort { rows: self.analysis.statistics.fit_rows, rounds: ROUNDS };
        let mut model = self.reconstructed(choice, effort, self.progress)?;
        if let Some(threshold) = target.zero_below {
            model = magnitude::zero_below(&model, threshold).map_err(model_error)?;
        }
        let divergence = self.held.divergence(&model, self.runtime, Stage::Reconstruct)?;
        Ok((self.rewritten(model, choice, target, examiner)?, divergence))
    }

    /// A variant in fewer, faster nodes, or as it is where that would change what it computes or, with a goal, is slower here.
    fn rewritten(&self, model: Model, choice: &Choice, target: &Target, examiner: &Examiner<'_>) -> Result<Model, PruneError> {
        let Analysis { network, rewriter, .. } = self.analysis;
        let shapes = network.shapes_under(&self.analysis.plan(self.sites, choice).keep);
        let rewritten = rewriter.apply(&model, &shapes).map_err(model_error)?;
        let rows = few_rows(&model, &self.inputs);
        let rows: Vec<_> = rows.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let gap = proof::equality(self.runtime, &model, &rewritten, &rows).map_err(model_error)?;
        if !matches!(gap.partial_cmp(&proof::BAR), Some(Ordering::Less | Ordering::Equal)) {
            return Ok(model);
        }
        if target.goal.is_some() && rewritten.nodes().count() != model.nodes().count() {
            let [before, after] = examiner.times([model.encode(), rewritten.encode()], target.batch, self.runtime)?;
            return Ok(if after.min_us < before.min_us { rewritten } else { model });
        }
        Ok(rewritten)
    }

    fn report(&self, target: &Target, built: &Built, judgement: Judgement, seconds: BTreeMap<Stage, f64>, warnings: Vec<String>) -> Report {
        let problem = self.problem;
        let chosen = || self.sites.iter().zip(&built.choice).map(|(site, &level)| (site, site.levels[level]));
        let groups = self.analysis.groups().zip(chosen().map(|(site, level)| site.left(level)));
        let layers = &self.analysis.network.layers;
        let factored = chosen().filter_map(|(site, level)| match (site.place, level) {
            (Place::Layer(layer), Level::Rank(rank)) => Some(LayerRank { layer: layers[layer].output.clone(), rank, of: site.size }),
            (Place::Layer(_) | Place::Group(_), _) => None,
        });
        Report {
            criterion: self.analysis.criterion,
            task: self.analysis.task.kind(),
            batch: target.batch,
            dense: judgement.dense,
            pruned: judgement.pruned,
            speedup_p50: built.speedup(),
            lost: judgement.lost,
            accuracy_lost_bound_95: judgement.lost.bound,
            agreement: judgement.agreement,
            divergence: built.divergence,
            predicted_latency_p50_us: built.predicted_us,
            predicted_dense_latency_us: problem.cost(&problem.time, &problem.dense()),
            widths: groups.map(|((group, of), kept)| GroupWidth { group: group.to_owned(), kept, of }).collect(),
            factored: factored.collect(),
            frozen: self.analysis.frozen(),
            front: front(problem),
            seconds,
            warnings,
        }
    }
}

/// What a variant misses that misses its goal or its memory.
fn missed(target: &Target, built: &Built) -> Shortfall {
    let [dense, pruned] = built.latency;
    match (target.max_memory_bytes.filter(|&most| built.memory_bytes > most), target.goal) {
        (Some(budget_bytes), _) => Shortfall::Memory { budget_bytes, reached_bytes: built.memory_bytes },
        (None, Some(Goal::P95Us(budget_us))) => Shortfall::Latency { budget_us, fastest_us: pruned.p95_us },
        (None, Some(Goal::P50Us(budget_us))) => Shortfall::Latency { budget_us, fastest_us: pruned.p50_us },
        (None, Some(Goal::Speedup(factor))) => Shortfall::Latency { budget_us: dense.p50_us / factor, fastest_us: pruned.p50_us },
        (None, None) => Shortfall::Latency { budget_us: target.latency_us, fastest_us: built.predicted_us },
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
    let accuracy = report.pruned.quality.score();
    let reached = Feasible { latency_us: report.predicted_latency_p50_us, accuracy, size_bytes: report.pruned.size_bytes };
    let size = target.max_size_bytes.filter(|&b| reached.size_bytes > b);
    let size = size.map(|budget_bytes| Shortfall::Size { budget_bytes, smallest_bytes: reached.size_bytes });
    let below = target.min_accuracy.filter(|&floor| accuracy < floor).map(|floor| Shortfall::Accuracy { floor, reached: accuracy });
    let recalls = report.pruned.quality.class_recalls();
    let recalls = recalls.into_iter().enumerate().filter_map(|(class, recall)| Some((class, recall?)));
    let worst = recalls.min_by(|a, b| a.1.total_cmp(&b.1)).zip(target.min_class_recall).filter(|((_, recall), floor)| recall < floor);
    let class = worst.map(|((class, reached), floor)| Shortfall::ClassRecall { class, floor, reached });
    match shortfall.or(size).or(below).or(class) {
        Some(shortfall) => Outcome::Rejected { shortfall, nearest: reached, report: Box::new(report) },
        None => Outcome::Made { model: model.encode(), report: Box::new(report) },
    }
}
