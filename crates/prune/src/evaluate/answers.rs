//! What a model said of a dataset, as far as judging needs it: small, whatever the size of its outputs.

use pleach_domain::dataset::{Dataset, Targets};
use pleach_domain::metrics::{Detection, suppress};
use pleach_domain::runtime::Runtime;
use pleach_onnx::Model;

use crate::error::PruneError;
use crate::linear::Rows;
use crate::progress::Stage;
use crate::run::{Batch, Inputs, threads};
use crate::task::{Emphasis, Task, TaskKind, log_distribution};

/// Most bytes of plain values that are kept; rows behind are not judged.
const VALUE_BYTES: usize = 256 << 20;

/// A model's answers, in the order of the rows.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Rows answered.
    pub(crate) rows: usize,
    /// The best class of each position, row by row.
    pub(crate) picks: Vec<u32>,
    /// Of each row the sum over its labelled positions of -ln p(label), and how many those are.
    pub(crate) surprise: Vec<(f64, u32)>,
    /// Of each row what was detected, best first.
    pub(crate) detections: Vec<Vec<Detection>>,
    /// Plain values.
    pub(crate) values: Rows,
    /// Which positions hold something.
    pub(crate) emphasis: Emphasis,
}

impl Answers {
    /// Has a model answer all rows, batch by batch; a model of fixed batch answers whole batches only.
    pub(crate) fn of(task: &Task, model: &Model, data: &Dataset, runtime: &dyn Runtime) -> Result<Self, PruneError> {
        let mut all = Self { values: Rows::new(0, task.width(), Vec::new()), ..Self::default() };
        let most = if task.kind() == TaskKind::Values { (VALUE_BYTES / (4 * task.width().max(1))).max(1) } else { usize::MAX };
        let rows = data.rows().min(most.max(Batch::of(model, 1).rows));
        let parts: Vec<_> = data.inputs().iter().map(|(n, t)| (n.as_str(), t.slice_rows(0, rows))).collect();
        let inputs: Inputs<'_> = parts.iter().map(|(n, t)| (*n, t)).collect();
        task.for_each_answer(model, &inputs, runtime, Stage::Evaluate, threads(), |start, found| {
            let given: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.slice_rows(start, start + found.rows))).collect();
            if task.kind() != TaskKind::Detection {
                all.emphasis.extend(task.emphasis(&given.iter().map(|(n, t)| (*n, t)).collect(), &found));
            }
            all.add(task, data, start, &found);
            Ok(())
        })?;
        Ok(all)
    }

    fn add(&mut self, task: &Task, data: &Dataset, start: usize, found: &Rows) {
        let classes = task.layout().1.max(1);
        for row in 0..found.rows {
            let answer = found.row(row);
            match task.kind() {
                TaskKind::Classification | TaskKind::Tagging => self.picks.extend(answer.chunks(classes).map(|c| best(c, task.threshold))),
                TaskKind::LanguageModel => {
                    self.picks.extend(answer.chunks(classes).map(|c| best(c, task.threshold)));
                    self.surprise.push(surprise(answer, classes, labels_of(data, start + row)));
                }
                TaskKind::Detection => self.detections.push(detections(task, answer)),
                TaskKind::Values => {
                    self.values.rows += 1;
                    self.values.data.extend_from_slice(answer);
                }
            }
        }
        self.rows += found.rows;
    }
}

/// Labels of one row; none where there are none.
pub(super) fn labels_of(data: &Dataset, row: usize) -> &[i64] {
    match data.targets() {
        Some(Targets::Labels { positions, classes }) => {
            let each = positions.unwrap_or(1);
            classes.get(row * each..(row + 1) * each).unwrap_or_default()
        }
        Some(Targets::Objects(_)) | None => &[],
    }
}

/// The class of highest score, the first of equals; a score that is alone says yes or no.
fn best(scores: &[f32], threshold: f32) -> u32 {
    if let &[only] = scores {
        return u32::from(only > threshold);
    }
    scores.iter().zip(0u32..).fold((0, f32::NEG_INFINITY), |b, (&s, i)| if s > b.1 { (i, s) } else { b }).0
}

fn surprise(answer: &[f32], classes: usize, labels: &[i64]) -> (f64, u32) {
    let of = |(scores, &label): (&[f32], &i64)| -> Option<f64> { log_distribution(scores).get(usize::try_from(label).ok()?).map(|ln| -ln) };
    answer.chunks(classes).zip(labels).filter_map(of).fold((0.0, 0), |(sum, n), s| (sum + s, n + 1))
}

fn detections(task: &Task, answer: &[f32]) -> Vec<Detection> {
    let (anchors, classes) = task.layout();
    let at = |row: usize, anchor: usize| answer.get(row * anchors + anchor).copied().unwrap_or(0.0);
    let of = |anchor: usize| {
        (0..classes).map(move |class| Detection { class, score: at(4 + class, anchor), corners: task.corners(answer, anchor) })
    };
    suppress((0..anchors).flat_map(of).collect())
}
