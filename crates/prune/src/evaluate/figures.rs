//! From answers and labels to figures, and from two models' figures to what was lost.

use pleach_domain::DomainError;
use pleach_domain::dataset::{Dataset, LABELS, Targets};
use pleach_domain::metrics::{Confusion, DetectionTally, EntityCounts, Lost, bootstrap_deviation, follows_bio};

use super::answers::{Answers, labels_of};
use crate::report::Quality;
use crate::task::{Task, TaskKind};

/// Samples of rows that a deviation is estimated from: its own deviation is then 5 %.
const DRAWS: usize = 200;
const SEED: u64 = 1;
/// Score from which a detection of the dense model stands for an object where there are no labels.
const SURE: f32 = 0.3;

/// Two models compared.
pub(super) struct Verdict {
    pub(super) dense: Quality,
    pub(super) pruned: Quality,
    pub(super) lost: Lost,
    pub(super) agreement: f64,
}

/// Compares the answers of a dense model and a variant.
///
/// # Errors
/// [`DomainError::Dataset`] for labels that the model has no class for.
pub(super) fn compare(task: &Task, data: &Dataset, dense: &Answers, pruned: &Answers) -> Result<Verdict, DomainError> {
    let agreement = agreement(task, dense, pruned);
    let labelled = match data.targets() {
        Some(Targets::Labels { classes, .. }) => classes.iter().any(|&l| l >= 0),
        Some(Targets::Objects(of)) => of.iter().any(|o| !o.is_empty()),
        None => false,
    };
    match (labelled, task.kind()) {
        (true, TaskKind::Classification | TaskKind::Tagging) => tags(task, data, dense, pruned, agreement.share),
        (true, TaskKind::LanguageModel) => Ok(tokens(data, dense, pruned, agreement.share)),
        (true, TaskKind::Detection) => objects(task, data, dense, pruned, agreement.share),
        (true, TaskKind::Values) | (false, _) => Ok(Verdict {
            dense: Quality::Agreement { agreement: 1.0 },
            pruned: Quality::Agreement { agreement: agreement.share },
            lost: agreement.lost,
            agreement: agreement.share,
        }),
    }
}

struct Agreement {
    share: f64,
    lost: Lost,
}

/// How often two models say the same, over positions that hold something.
fn agreement(task: &Task, dense: &Answers, pruned: &Answers) -> Agreement {
    let rows = dense.rows.min(pruned.rows);
    match task.kind() {
        TaskKind::Classification | TaskKind::Tagging | TaskKind::LanguageModel => {
            let positions = task.layout().0.max(1);
            let counted = |at: usize| positions == 1 || dense.emphasis.of(at / positions, [positions, 1], at % positions) > 0.0;
            let pairs = dense.picks.iter().zip(&pruned.picks).enumerate().filter(|(at, _)| counted(*at));
            let (differ, all) = pairs.fold((0, 0), |(d, n), (_, (a, b))| (d + u64::from(a != b), n + 1));
            Agreement { share: 1.0 - differ as f64 / f64::max(all as f64, 1.0), lost: Lost::disagreement(differ, all) }
        }
        TaskKind::Detection => {
            let mut tally = DetectionTally::new(task.layout().1);
            for (sure, found) in dense.detections.iter().zip(&pruned.detections) {
                let of = |d: &pleach_domain::metrics::Detection| pleach_domain::dataset::Object { class: d.class, corners: d.corners };
                tally.add(found, &sure.iter().filter(|d| d.score >= SURE).map(of).collect::<Vec<_>>());
            }
            let share = tally.figures().map50;
            let deviation = bootstrap_deviation(rows, DRAWS, SEED, |weights| tally.weighted(weights).map50);
            Agreement { share, lost: Lost::estimated(1.0 - share, deviation) }
        }
        TaskKind::Values => {
            let row =
                |r: usize| task.divergence(&dense.values.part(r, r + 1), &pruned.values.part(r, r + 1), &dense.emphasis.part(r, r + 1));
            let share = (1.0 - task.divergence(&dense.values, &pruned.values, &dense.emphasis)).max(0.0);
            let each: Vec<f64> = (0..rows).map(row).collect();
            let mean = |weights: &[u32]| each.iter().zip(weights).map(|(d, &w)| d * f64::from(w)).sum::<f64>() / rows.max(1) as f64;
            Agreement { share, lost: Lost::estimated(1.0 - share, bootstrap_deviation(rows, DRAWS, SEED, mean)) }
        }
    }
}

/// Labelled positions of one row, as (position, class).
fn labelled(data: &Dataset, row: usize, classes: usize) -> Result<Vec<(usize, usize)>, DomainError> {
    let known = labels_of(data, row).iter().enumerate().filter(|(_, l)| **l >= 0);
    let checked = known.map(|(at, &label)| match usize::try_from(label) {
        Ok(class) if class < classes => Ok((at, class)),
        Ok(_) | Err(_) => {
            let reason = format!("label {label} in row {row}: expected below {classes}, the classes of the model");
            Err(DomainError::Dataset { array: LABELS.to_owned(), reason })
        }
    });
    checked.collect()
}

fn tags(task: &Task, data: &Dataset, dense: &Answers, pruned: &Answers, agreement: f64) -> Result<Verdict, DomainError> {
    let (positions, classes) = task.layout();
    // One score alone tells two classes apart.
    let classes = classes.max(2);
    let rows = dense.rows.min(pruned.rows);
    let mut known = Vec::with_capacity(rows);
    for row in 0..rows {
        known.push(labelled(data, row, classes)?);
    }
    let said = |answers: &Answers, row: usize, at: usize| answers.picks.get(row * positions + at).map_or(0, |&p| p as usize);
    let right = |answers: &Answers, row: usize| known[row].iter().filter(|&&(at, class)| said(answers, row, at) == class).count() as f64;
    let confusion = |answers: &Answers| -> Result<Confusion, DomainError> {
        let mut confusion = Confusion::new(classes)?;
        for (row, known) in known.iter().enumerate() {
            known.iter().try_for_each(|&(at, class)| confusion.record(class, said(answers, row, at)))?;
        }
        Ok(confusion)
    };
    let (before, after) = (confusion(dense)?, confusion(pruned)?);
    let bio =
        task.kind() == TaskKind::Tagging && known.iter().all(|row| follows_bio(classes, &row.iter().map(|k| k.1).collect::<Vec<_>>()));
    if bio {
        let of = |answers: &Answers| -> Vec<EntityCounts> {
            let one = |(row, known): (usize, &Vec<(usize, usize)>)| {
                let (labels, found): (Vec<usize>, Vec<usize>) = known.iter().map(|&(at, class)| (class, said(answers, row, at))).unzip();
                EntityCounts::of(&labels, &found)
            };
            known.iter().enumerate().map(one).collect()
        };
        let (dense_entities, pruned_entities) = (of(dense), of(pruned));
        let f1 = |each: &[EntityCounts], weights: &[u32]| total(each, weights).f1();
        let lost = |weights: &[u32]| f1(&dense_entities, weights) - f1(&pruned_entities, weights);
        let lost = Lost::estimated(lost(&vec![1; rows]), bootstrap_deviation(rows, DRAWS, SEED, lost));
        let quality = |confusion: &Confusion, each: &[EntityCounts]| {
            let all = total(each, &vec![1; rows]);
            Quality::EntityF1 {
                accuracy: confusion.accuracy(),
                recall: all.recall(),
                precision: all.precision(),
                f1: all.f1(),
                f1_macro: confusion.macro_f1(),
                classes: confusion.classes_figures(),
            }
        };
        return Ok(Verdict { dense: quality(&before, &dense_entities), pruned: quality(&after, &pruned_entities), lost, agreement });
    }
    let lost = if positions == 1 {
        let (mut lost, mut gained, mut trials) = (0, 0, 0);
        for row in (0..rows).filter(|&r| !known[r].is_empty()) {
            let (was, is) = (right(dense, row) > 0.0, right(pruned, row) > 0.0);
            (lost, gained, trials) = (lost + u64::from(was && !is), gained + u64::from(!was && is), trials + 1);
        }
        Lost::paired(lost, gained, trials)
    } else {
        // Positions of a row are no independent trials: rows are drawn.
        let each: Vec<(f64, f64)> = (0..rows).map(|r| (right(dense, r) - right(pruned, r), known[r].len() as f64)).collect();
        let share = |weights: &[u32]| {
            let (sum, n) = each.iter().zip(weights).fold((0.0, 0.0), |(s, n), ((d, l), &w)| (s + f64::from(w) * d, n + f64::from(w) * l));
            sum / f64::max(n, 1.0)
        };
        Lost::estimated(share(&vec![1; rows]), bootstrap_deviation(rows, DRAWS, SEED, share))
    };
    let quality = |c: &Confusion| Quality::Accuracy {
        accuracy: c.accuracy(),
        recall: c.macro_recall(),
        f1: c.macro_f1(),
        f1_micro: c.micro_f1(),
        classes: c.classes_figures(),
    };
    Ok(Verdict { dense: quality(&before), pruned: quality(&after), lost, agreement })
}

fn total(each: &[EntityCounts], weights: &[u32]) -> EntityCounts {
    let mut sum = EntityCounts::default();
    each.iter().zip(weights).for_each(|(counts, &weight)| sum.add(*counts, u64::from(weight)));
    sum
}

fn tokens(data: &Dataset, dense: &Answers, pruned: &Answers, agreement: f64) -> Verdict {
    let rows = dense.rows.min(pruned.rows);
    let perplexity = |answers: &Answers, weights: &[u32]| {
        let weighted = answers.surprise.iter().zip(weights).map(|((s, n), &w)| (s * f64::from(w), f64::from(*n) * f64::from(w)));
        let (sum, n) = weighted.fold((0.0, 0.0), |(a, b), (s, n)| (a + s, b + n));
        (sum / f64::max(n, 1.0)).exp()
    };
    let accuracy = |answers: &Answers| {
        let positions = answers.picks.len() / answers.rows.max(1);
        let pairs = (0..rows).flat_map(|row| labels_of(data, row).iter().zip(answers.picks.iter().skip(row * positions)));
        let (right, all) =
            pairs.filter(|(l, _)| **l >= 0).fold((0.0, 0.0), |(r, n), (&l, &p)| (r + f64::from(u8::from(l == i64::from(p))), n + 1.0));
        right / f64::max(all, 1.0)
    };
    let rise = |weights: &[u32]| perplexity(pruned, weights) - perplexity(dense, weights);
    let even = vec![1; rows];
    let quality = |answers: &Answers| Quality::Perplexity { perplexity: perplexity(answers, &even), accuracy: accuracy(answers) };
    let lost = Lost::estimated(rise(&even), bootstrap_deviation(rows, DRAWS, SEED, rise));
    Verdict { dense: quality(dense), pruned: quality(pruned), lost, agreement }
}

fn objects(task: &Task, data: &Dataset, dense: &Answers, pruned: &Answers, agreement: f64) -> Result<Verdict, DomainError> {
    let Some(Targets::Objects(real)) = data.targets() else {
        return Err(DomainError::Dataset { array: LABELS.to_owned(), reason: "labels: expected `boxes` and `index`".to_owned() });
    };
    let tally = |answers: &Answers| {
        let mut tally = DetectionTally::new(task.layout().1);
        answers.detections.iter().zip(real).for_each(|(found, real)| tally.add(found, real));
        tally
    };
    let (mut before, mut after) = (tally(dense), tally(pruned));
    let quality = |tally: &mut DetectionTally| {
        let figures = tally.figures();
        let known: Vec<f64> = figures.recalls.iter().flatten().copied().collect();
        let recall = known.iter().sum::<f64>() / known.len().max(1) as f64;
        Quality::MeanPrecision { map50: figures.map50, map50_95: figures.map50_95, recall, class_recall: figures.recalls }
    };
    let (dense_quality, pruned_quality) = (quality(&mut before), quality(&mut after));
    let rows = before.rows().min(after.rows());
    let deviation = bootstrap_deviation(rows, DRAWS, SEED, |weights| before.weighted(weights).map50 - after.weighted(weights).map50);
    let lost = Lost::estimated(dense_quality.headline() - pruned_quality.headline(), deviation);
    Ok(Verdict { dense: dense_quality, pruned: pruned_quality, lost, agreement })
}
