//! From an analysed model to a variant: choose widths for a device class and budget, reconstruct, judge, deliver or refuse.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use pleach_domain::DomainError;
use pleach_domain::dataset::Dataset;
use pleach_domain::runtime::{Runtime, Timing};
use pleach_onnx::Model;
use rayon::prelude::*;

use crate::analysis::{Analysis, Held, Watch, check_data, few_rows};
use crate::atlas::Atlas;
use crate::error::PruneError;
use crate::evaluate::{Examiner, Judgement};
use crate::levels::{Level, Place, Site};
use crate::magnitude;
use crate::network::model_error;
use crate::progress::{Progress, Stage, Within, step};
use crate::proof;
use crate::reconstruct::{Effort, abreast, reconstruct, skeleton};
use crate::report::{Feasible, FrontPoint, Goal, GroupWidth, LayerRank, Outcome, Report, Shortfall, Target};
use crate::run::{Inputs, threads};
use crate::solve::{Budget, Choice, Emphasis, Problem};
use crate::verify::{AIM, Built, Measured, Search};
use crate::warnings::warnings;

/// Calibration rows by which candidates are compared.
const TRIAL_ROWS: usize = 400;
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
/// Candidates that are solved side by side. What is found must not depend on the number of threads, so this does not.
const ABREAST: usize = 2;
/// Candidates that are timed side by side, those of least divergence.
const FINALISTS: usize = 4;
/// Share of the goal up to which a cut network is believed to keep it once it is solved and timed again.
const SURE: f64 = 0.993;
/// Variants that are solved on all rows at most, when the first turns out slower than its twin was.
const BUILDS: usize = 3;
/// Shares of the dense latency at which the front is reported.
const FRONT: [f64; 10] = [0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// What all steps of one run share.
struct Run<'a> {
    analysis: &'a Analysis,
    inputs: Inputs<'a>,
    held: Held<'a>,
    problem: &'a Problem,
    sites: &'a [Site],
    /// Whether the device runs the rewritten form faster.
    rewrite: bool,
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
    let rewrite = atlas.rewrites(analysis)?;
    let run = Run { analysis, inputs, held, problem: &problem, sites: &sites, rewrite, runtime, progress };
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
    /// The variant to deliver, and what it misses.
    fn search(&self, target: &Target, examiner: &Examiner<'_>, watch: &mut Watch) -> Result<(Built, Option<Shortfall>), PruneError> {
        let problem = self.problem;
        let size = target.max_size_bytes.map_or(f64::INFINITY, |b| b as f64);
        if target.goal.is_none() && target.max_memory_bytes.is_none() {
            let budget = Budget { time: target.latency_us, size };
            let ranked = watch.time(Stage::Solve, || self.ranked(budget))?;
            let (choice, shortfall) = match ranked.into_iter().next() {
                Some(choice) => (choice, None),
                None => self.nearest(budget),
            };
            return Ok((self.variant(choice, target, examiner, 1.0, watch)?, shortfall));
        }
        let dense = problem.dense();
        let [whole] = self.measured(std::slice::from_ref(&dense), target, examiner)?.try_into().map_err(|_| few_timings())?;
        if whole.ratio(target) <= 1.0 && problem.fits(&dense, Budget { time: f64::INFINITY, size }) {
            return Ok((self.variant(dense, target, examiner, 1.0, watch)?, None));
        }
        let Some(mut time) = watch.time(Stage::Solve, || self.aim(&whole, target, size, examiner))? else {
            let (choice, missed_size) = self.nearest(Budget { time: 0.0, size });
            let built = self.variant(choice, target, examiner, 1.0, watch)?;
            let shortfall = (built.measured.ratio(target) > 1.0).then(|| missed(target, &built));
            return Ok((built, shortfall.or(missed_size.filter(|s| matches!(s, Shortfall::Size { .. })))));
        };
        let mut best: Option<Built> = None;
        for round in 1..=BUILDS {
            let budget = Budget { time: time * (1.0 + 1e-9), size };
            let Some((choice, found)) = watch.time(Stage::Solve, || self.finalist(budget, target, examiner))? else { break };
            let (ratio, predicted) = (found.ratio(target), problem.cost(&problem.time, &choice));
            if ratio > SURE && round < BUILDS {
                time = predicted.min(time) * AIM / ratio;
                continue;
            }
            let built = self.variant(choice, target, examiner, found.latency[1].p50_us / predicted, watch)?;
            let ratio = built.measured.ratio(target);
            time = predicted.min(time) * AIM / ratio;
            if best.as_ref().is_none_or(|b| ratio < b.measured.ratio(target)) {
                best = Some(built);
            }
            if ratio <= 1.0 {
                break;
            }
        }
        let built = match best {
            Some(built) => built,
            None => self.variant(self.nearest(Budget { time: 0.0, size }).0, target, examiner, 1.0, watch)?,
        };
        let shortfall = (built.measured.ratio(target) > 1.0).then(|| missed(target, &built));
        Ok((built, shortfall))
    }

    /// The longest predicted time at which networks keep the goal here, by networks that are cut and not solved; `whole` is what the
    /// dense one takes. `None` where not even the narrowest keeps it.
    fn aim(&self, whole: &Measured, target: &Target, size: f64, examiner: &Examiner<'_>) -> Result<Option<f64>, PruneError> {
        let problem = self.problem;
        let (mut search, mut time) = Search::new(problem.cost(&problem.time, &problem.dense()), whole.ratio(target));
        let mut held = None;
        loop {
            step(self.progress, Stage::Solve, 0, 1)?;
            let fits = problem.solve(Budget { time, size }, EMPHASES[0]);
            let choice = fits.clone().unwrap_or_else(|| self.nearest(Budget { time: 0.0, size }).0);
            let [found] = self.measured(std::slice::from_ref(&choice), target, examiner)?.try_into().map_err(|_| few_timings())?;
            let (predicted, ratio) = (problem.cost(&problem.time, &choice), found.ratio(target));
            let next = search.next(predicted, ratio);
            if search.held() == Some(predicted) && ratio <= 1.0 {
                // What was offered is the budget, not what was taken of it.
                held = Some(if fits.is_some() { time.max(predicted) } else { predicted });
            }
            match next.filter(|_| fits.is_some()) {
                Some(next) => time = next,
                None => return Ok(held),
            }
        }
    }

    /// Of the candidates that a budget has, the one of least divergence that surely keeps the goal here when all are cut and timed side
    /// by side, else the one that comes nearest; and what it takes. `None` when nothing fits.
    fn finalist(&self, budget: Budget, target: &Target, examiner: &Examiner<'_>) -> Result<Option<(Choice, Measured)>, PruneError> {
        let mut ranked = self.ranked(budget)?;
        ranked.truncate(FINALISTS);
        let found = self.measured(&ranked, target, examiner)?;
        let ratios: Vec<f64> = found.iter().map(|m| m.ratio(target)).collect();
        tracing::debug!(?ratios, "finalists");
        let nearest = || (0..ratios.len()).min_by(|&a, &b| ratios[a].total_cmp(&ratios[b]));
        let at = ratios.iter().position(|&r| r <= SURE).or_else(nearest);
        Ok(at.map(|i| (ranked.swap_remove(i), found[i])))
    }

    /// What networks that are cut and not solved take, timed side by side.
    fn measured(&self, choices: &[Choice], target: &Target, examiner: &Examiner<'_>) -> Result<Vec<Measured>, PruneError> {
        let cut = |choice: &Choice| {
            let plan = self.analysis.plan(self.sites, choice);
            self.analysis.rewritten(&skeleton(&self.analysis.network, &plan)?, &plan)
        };
        let models = choices.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
        let timings = examiner.times(models.iter().map(Model::encode).collect(), target.batch, self.runtime)?;
        let [dense, others @ ..] = timings.as_slice() else { return Err(few_timings()) };
        let measured = |(model, &timing): (&Model, &Timing)| {
            let memory_bytes = examiner.memory_bytes(model, target.batch, self.runtime)?;
            Ok(Measured { latency: [*dense, timing], memory_bytes })
        };
        models.iter().zip(others).map(measured).collect()
    }

    /// The candidates that keep to a budget, of least divergence first; none when nothing does.
    fn ranked(&self, budget: Budget) -> Result<Vec<Choice>, PruneError> {
        let problem = self.problem;
        step(self.progress, Stage::Solve, 0, EMPHASES.len() + 1)?;
        if problem.fits(&problem.dense(), budget) {
            return Ok(vec![problem.dense()]);
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
        let all = candidates.len() + NEIGHBOURS;
        let mut tried: Vec<(f64, Choice)> = Vec::new();
        for some in candidates.chunks(ABREAST) {
            self.try_out(some, &mut tried, all)?;
        }
        for _ in 0..NEIGHBOURS / ABREAST {
            let Some((least, now)) = tried.iter().min_by(|a, b| a.0.total_cmp(&b.0)).cloned() else { break };
            let mut next: Vec<Choice> = Vec::new();
            for _ in 0..ABREAST {
                let new = |c: &Choice| tried.iter().all(|(_, t)| t != c) && !next.contains(c);
                next.extend(problem.neighbour(&now, budget, new));
            }
            self.try_out(&next, &mut tried, all)?;
            // The likeliest came first.
            if tried.iter().rev().take(next.len()).all(|(found, _)| *found >= least) {
                break;
            }
        }
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(tried.into_iter().map(|(_, choice)| choice).collect())
    }

    /// The choice nearest to a budget that nothing keeps, and what it misses.
    fn nearest(&self, budget: Budget) -> (Choice, Option<Shortfall>) {
        let problem = self.problem;
        // A network of constants is fast, and no point that anyone would want.
        let narrowest = self.sites.iter().map(|s| s.levels.iter().position(|&l| l != Level::Flat).unwrap_or(0)).collect();
        let (fastest, smallest) = (problem.least(&problem.time, &narrowest), problem.least(&problem.size, &narrowest));
        let smallest_bytes = problem.cost(&problem.size, &smallest).max(0.0) as u64;
        let fastest_us = problem.cost(&problem.time, &fastest);
        if fastest_us > budget.time && problem.cost(&problem.size, &smallest) <= budget.size {
            return (fastest, Some(Shortfall::Latency { budget_us: budget.time, fastest_us }));
        }
        let budget_bytes = if budget.size.is_finite() { budget.size as u64 } else { u64::MAX };
        (smallest, Some(Shortfall::Size { budget_bytes, smallest_bytes }))
    }

    /// Solves candidates on some rows, side by side where memory allows, and says how far each is from the dense model.
    fn try_out(&self, choices: &[Choice], tried: &mut Vec<(f64, Choice)>, all: usize) -> Result<(), PruneError> {
        let abreast = abreast(&self.analysis.network, TRIAL_ROWS).min(choices.len()).min(threads());
        let effort = Effort { rows: TRIAL_ROWS, rounds: 0, copies: threads() / abreast.max(1) };
        let divergence = |choice: &Choice| {
            let solved = self.reconstructed(choice, effort, &Within(self.progress))?;
            let fewer = self.analysis.rewritten(&solved, &self.analysis.plan(self.sites, choice))?;
            self.held.divergence(&fewer, self.runtime, Stage::Solve, effort.copies)
        };
        for some in choices.chunks(abreast.max(1)) {
            step(self.progress, Stage::Solve, tried.len(), all)?;
            let found = some.par_iter().map(divergence).collect::<Result<Vec<_>, _>>()?;
            for (divergence, choice) in found.into_iter().zip(some) {
                tracing::debug!(divergence, ?choice, "candidate");
                tried.push((divergence, choice.clone()));
            }
        }
        Ok(())
    }

    fn reconstructed(&self, choice: &Choice, effort: Effort, progress: &dyn Progress) -> Result<Model, PruneError> {
        let Analysis { network, statistics, .. } = self.analysis;
        let plan = self.analysis.plan(self.sites, choice);
        reconstruct(network, statistics, &self.inputs, &plan, effort, self.runtime, progress)
    }

    /// The variant of a choice, solved on all rows and timed; `slower` is what is known to be measured over what is predicted.
    fn variant(
        &self,
        choice: Choice,
        target: &Target,
        examiner: &Examiner<'_>,
        slower: f64,
        watch: &mut Watch,
    ) -> Result<Built, PruneError> {
        let effort = Effort { rows: self.analysis.statistics.fit_rows, rounds: ROUNDS, copies: threads() };
        let mut model = watch.time(Stage::Reconstruct, || self.reconstructed(&choice, effort, self.progress))?;
        if let Some(threshold) = target.zero_below {
            model = magnitude::zero_below(&model, threshold).map_err(model_error)?;
        }
        let divergence = watch.time(Stage::Reconstruct, || self.held.divergence(&model, self.runtime, Stage::Reconstruct, threads()))?;
        let (model, latency) = watch.time(Stage::Evaluate, || self.faster(model, &choice, target, examiner))?;
        let memory_bytes = examiner.memory_bytes(&model, target.batch, self.runtime)?;
        let predicted_us = slower * self.problem.cost(&self.problem.time, &choice);
        let built = Built { choice, model, divergence, predicted_us, measured: Measured { latency, memory_bytes } };
        tracing::debug!(predicted_us, divergence, p50_us = latency[1].p50_us, speedup = built.measured.speedup(), "variant");
        Ok(built)
    }

    /// A variant in fewer, faster nodes, or as it is where that would change what it computes or is slower: here where there is a goal,
    /// on the device where there is none. With its latency and that of the model as uploaded.
    fn faster(&self, model: Model, choice: &Choice, target: &Target, examiner: &Examiner<'_>) -> Result<(Model, [Timing; 2]), PruneError> {
        let rewritten = self.analysis.rewritten(&model, &self.analysis.plan(self.sites, choice))?;
        let mut forms = vec![model];
        if rewritten.nodes().count() != forms[0].nodes().count() {
            let rows = few_rows(&rewritten, &self.inputs);
            let rows: Vec<_> = rows.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let gap = proof::equality(self.runtime, &forms[0], &rewritten, &rows).map_err(model_error)?;
            if matches!(gap.partial_cmp(&proof::BAR), Some(Ordering::Less | Ordering::Equal)) {
                forms.push(rewritten);
            }
        }
        if target.goal.is_none() && forms.len() > 1 {
            forms = vec![forms.swap_remove(usize::from(self.rewrite))];
        }
        let timings = examiner.times(forms.iter().map(Model::encode).collect(), target.batch, self.runtime)?;
        let [dense, others @ ..] = timings.as_slice() else { return Err(few_timings()) };
        let fastest = forms.into_iter().zip(others).min_by(|a, b| a.1.min_us.total_cmp(&b.1.min_us));
        fastest.map(|(model, timing)| (model, [*dense, *timing])).ok_or_else(few_timings)
    }

    fn report(&self, target: &Target, built: &Built, judgement: Judgement, seconds: BTreeMap<Stage, f64>, warnings: Vec<String>) -> Report {
        let problem = self.problem;
        let chosen = || self.sites.iter().zip(&built.choice).map(|(site, &level)| (site, site.levels[level]));
        let groups = self.analysis.groups().zip(chosen().map(|(site, level)| site.left(level)));
        let layers = &self.analysis.network.layers;
        let factored = chosen().filter_map(|(site, level)| match (site.place, level) {
            (Place::Layer(layer), Level::Rank(rank)) => {
                let layer = layers[layer].output.clone();
                Some(LayerRank { layer, rank: rank.channels, split: rank.split, of: site.size })
            }
            (Place::Layer(_) | Place::Group(_), _) => None,
        });
        Report {
            criterion: self.analysis.criterion,
            task: self.analysis.task.kind(),
            batch: target.batch,
            dense: judgement.dense,
            pruned: judgement.pruned,
            speedup_p50: built.measured.speedup(),
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

fn few_timings() -> PruneError {
    PruneError::Atlas("fewer timings than models".to_owned())
}

/// What a variant misses that misses its goal or its memory.
fn missed(target: &Target, built: &Built) -> Shortfall {
    let Measured { latency: [dense, pruned], memory_bytes } = built.measured;
    match (target.max_memory_bytes.filter(|&most| memory_bytes > most), target.goal) {
        (Some(budget_bytes), _) => Shortfall::Memory { budget_bytes, reached_bytes: memory_bytes },
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
