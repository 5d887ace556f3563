//! How far a student's answers are from its teacher's.
//!
//! Classes: the Kullback-Leibler divergence of the distributions, in nats, mean over the positions that count. Detection: the
//! same of every score by itself, and for every anchor 1 - IoU of the boxes in pixels, weighted by the teacher's score; summed over
//! anchors, mean over images (scores alone misjudge boxes). Values: the error's energy as a share of the teacher's variance.

use super::{Emphasis, Task, TaskKind};
use crate::linear::Rows;

/// Scores are held this far from 0 and 1.
const EDGE: f64 = 1e-6;

/// Sums from which a mean divergence comes; rows may be added in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Divergence {
    sum: f64,
    weight: f64,
}

impl Divergence {
    /// The mean; 0 when nothing counts.
    pub(crate) fn mean(self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.weight += other.weight;
    }
}

impl Task {
    /// Mean divergence of a student's answers from its teacher's on the same rows, both `[rows, width]`; `emphasis` is that of these
    /// rows. Never below zero, and 0 when they are the same.
    pub(crate) fn divergence(&self, teacher: &Rows, student: &Rows, emphasis: &Emphasis) -> f64 {
        if self.kind == TaskKind::Values {
            return self.value_divergence(teacher, student, emphasis);
        }
        let mut all = Divergence::default();
        for row in 0..teacher.rows.min(student.rows) {
            all.add(self.row_divergence(teacher.row(row), student.row(row), row, emphasis));
        }
        all.mean()
    }

    /// Divergence on one row, the `row`th of `emphasis`.
    pub(crate) fn row_divergence(&self, teacher: &[f32], student: &[f32], row: usize, emphasis: &Emphasis) -> Divergence {
        let (positions, classes) = self.layout();
        if self.kind == TaskKind::Detection {
            return Divergence { sum: self.detector_divergence(teacher, student), weight: 1.0 };
        }
        let mut found = Divergence::default();
        for (at, (p, q)) in teacher.chunks(classes.max(1)).zip(student.chunks(classes.max(1))).enumerate() {
            let weight = f64::from(if positions > 1 { emphasis.of(row, [positions, 1], at) } else { 1.0 });
            if weight > 0.0 {
                found.add(Divergence { sum: weight * kullback_leibler(p, q, self.threshold), weight });
            }
        }
        found
    }

    fn detector_divergence(&self, teacher: &[f32], student: &[f32]) -> f64 {
        let (anchors, classes) = self.layout();
        let at = |answer: &[f32], row: usize, anchor: usize| answer.get(row * anchors + anchor).copied().unwrap_or(0.0);
        let one = |anchor: usize| {
            let (mut scores, mut best) = (0.0, 0.0f64);
            for row in 4..4 + classes {
                let (p, q) = (f64::from(at(teacher, row, anchor)), f64::from(at(student, row, anchor)));
                scores += bernoulli(p, q);
                best = best.max(p);
            }
            scores + best * (1.0 - overlap(self.corners(teacher, anchor), self.corners(student, anchor)))
        };
        (0..anchors).map(one).sum()
    }

    fn value_divergence(&self, teacher: &Rows, student: &Rows, emphasis: &Emphasis) -> f64 {
        let rows = teacher.rows.min(student.rows);
        let (mut start, mut all) = (0, 0.0);
        for output in &self.outputs {
            let (len, inner) = (output.len(), output.shape.iter().skip(1).product::<usize>().max(1));
            let weight = |row: usize, i: usize| {
                f64::from(if output.shape.len() == 2 { emphasis.of(row, [output.shape[0], 1], i / inner) } else { 1.0 })
            };
            let (mut error, mut sum, mut squares, mut count) = (0.0, 0.0, 0.0, 0.0);
            for row in 0..rows {
                let of = |rows: &'_ Rows| rows.row(row).get(start..start + len).unwrap_or_default().to_vec();
                for (i, (t, s)) in of(teacher).into_iter().zip(of(student)).enumerate() {
                    let (t, s, w) = (f64::from(t), f64::from(s), weight(row, i));
                    error += w * (t - s) * (t - s);
                    sum += w * t;
                    squares += w * t * t;
                    count += w;
                }
            }
            let energy = squares - sum * sum / f64::max(count, f64::MIN_POSITIVE);
            all += error / energy.max(1e-12 * squares.max(f64::MIN_POSITIVE));
            start += len;
        }
        all / self.outputs.len().max(1) as f64
    }
}

/// Divergence of two answers about one position, in nats: of one score as a chance of its own, of several as a distribution.
fn kullback_leibler(teacher: &[f32], student: &[f32], threshold: f32) -> f64 {
    if let (&[p], &[q]) = (teacher, student) {
        let chance = |x: f32| if threshold > 0.0 { f64::from(x) } else { 1.0 / (1.0 + f64::from(-x).exp()) };
        return bernoulli(chance(p), chance(q));
    }
    let (p, q) = (log_distribution(teacher), log_distribution(student));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn bernoulli(p: f64, q: f64) -> f64 {
    let (p, q) = (p.clamp(EDGE, 1.0 - EDGE), q.clamp(EDGE, 1.0 - EDGE));
    p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln()
}

/// Logarithms of a distribution; scores that are none yet go through a softmax.
pub(crate) fn log_distribution(scores: &[f32]) -> Vec<f64> {
    let total: f64 = scores.iter().map(|&s| f64::from(s)).sum();
    if scores.len() > 1 && scores.iter().all(|&s| s >= 0.0) && (total - 1.0).abs() < 1e-3 {
        return scores.iter().map(|&s| f64::from(s).max(1e-12).ln()).collect();
    }
    let top = scores.iter().fold(f64::NEG_INFINITY, |a, &s| a.max(f64::from(s)));
    let log_sum = scores.iter().map(|&s| (f64::from(s) - top).exp()).sum::<f64>().ln();
    scores.iter().map(|&s| f64::from(s) - top - log_sum).collect()
}

/// Intersection over union of two boxes by their corners; 1 for the same box, even without an area.
fn overlap(a: [f32; 4], b: [f32; 4]) -> f64 {
    let side = |low: f32, high: f32| f64::from(high - low).max(0.0);
    let area = |[x1, y1, x2, y2]: [f32; 4]| side(x1, x2) * side(y1, y2);
    let shared = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
    let union = area(a) + area(b) - shared;
    if a == b { 1.0 } else { shared / union.max(f64::MIN_POSITIVE) }
}

#[cfg(test)]
mod tests {
    use super::super::{BoxFormat, Mask, Output};
    use super::*;

    fn task(kind: TaskKind, shape: &[usize]) -> Task {
        let outputs = vec![Output { name: "y".to_owned(), shape: shape.to_vec() }];
        Task { kind, outputs, boxes: BoxFormat::Corners, mask: Mask::None, image: [1.0; 2], threshold: 0.5 }
    }

    fn even(task: &Task, a: &[f32], b: &[f32]) -> f64 {
        let rows = |data: &[f32]| Rows::new(data.len() / task.width(), task.width(), data.to_vec());
        task.divergence(&rows(a), &rows(b), &Emphasis::default())
    }

    #[test]
    fn equal_answers_do_not_diverge_and_distance_counts() {
        let classes = task(TaskKind::Classification, &[2]);
        let (a, b) = ([2.0, 1.0, 0.5, -2.0], [1.0, 2.0, 0.5, -2.0]);
        assert!(even(&classes, &a, &a).abs() < 1e-12);
        // p = (e, 1) / (e + 1): KL = p0 - p1 over one of two rows
        let p = 1f64.exp() / (1.0 + 1f64.exp());
        assert!((even(&classes, &a, &b) - (2.0 * p - 1.0) / 2.0).abs() < 1e-7);
    }

    #[test]
    fn probabilities_are_not_put_through_a_softmax_again() {
        let want = 0.9 * (0.9f64 / 0.5).ln() + 0.1 * (0.1f64 / 0.5).ln();
        assert!((even(&task(TaskKind::Classification, &[2]), &[0.9, 0.1], &[0.5, 0.5]) - want).abs() < 1e-6);
        assert!((even(&task(TaskKind::Classification, &[1]), &[0.9], &[0.5]) - want).abs() < 1e-6);
    }

    #[test]
    fn a_box_that_moved_counts_by_the_score_of_its_anchor() {
        // two anchors, one class: a sure object and background
        let teacher = [0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.8, 0.0];
        let moved = [1.0, 0.0, 0.0, 0.0, 3.0, 2.0, 2.0, 2.0, 0.8, 0.0];
        let found = even(&task(TaskKind::Detection, &[5, 2]), &teacher, &moved);
        assert!((found - 0.8 * (1.0 - 2.0 / 6.0)).abs() < 1e-6, "{found}");
        assert!(even(&task(TaskKind::Detection, &[5, 2]), &teacher, &teacher).abs() < 1e-12);
    }

    #[test]
    fn values_diverge_by_the_share_of_their_variance() {
        let found = even(&task(TaskKind::Values, &[2]), &[0.0, 2.0, 0.0, 2.0], &[0.0, 1.0, 0.0, 2.0]);
        assert!((found - 0.25).abs() < 1e-9, "{found}");
    }
}
