//! Detections against objects: non-maximum suppression, and mean average precision.
//!
//! Source: Lin et al. 2014, the evaluation of COCO: greedy matching at each threshold of overlap by falling score, precision made
//! monotone and read at 101 recalls, mean over the classes that have objects.

use serde::{Deserialize, Serialize};

use crate::dataset::Object;

/// Scores below this are no detections.
const FAINT: f32 = 0.01;
/// Overlap above which the fainter of two detections of one class is suppressed.
const SUPPRESS: f32 = 0.6;
/// Most candidates of one class in one image, the best: the work grows with their square.
const MOST_CANDIDATES: usize = 1_000;
/// Most detections of one image.
const MOST: usize = 100;
/// Thresholds of overlap: 0.5, 0.55, ..., 0.95.
const THRESHOLDS: usize = 10;
/// Recalls at which precision is read: 0, 0.01, ..., 1.
const RECALLS: usize = 101;

/// One detected object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Its class.
    pub class: usize,
    /// Its score, 0..=1.
    pub score: f32,
    /// Left, top, right and bottom, in pixels.
    pub corners: [f32; 4],
}

fn threshold(step: usize) -> f64 {
    0.5 + 0.05 * step as f64
}

fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let side = |low: f32, high: f32| (high - low).max(0.0);
    let area = |[x1, y1, x2, y2]: [f32; 4]| (x2 - x1) * (y2 - y1);
    let shared = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
    shared / (area(a) + area(b) - shared).max(1e-9)
}

/// Drops what is faint or overlaps a better detection of its class, and keeps the best hundred of the image, best first.
pub fn suppress(mut candidates: Vec<Detection>) -> Vec<Detection> {
    candidates.retain(|d| d.score >= FAINT);
    candidates.sort_by(|a, b| a.class.cmp(&b.class).then(b.score.total_cmp(&a.score)));
    let mut kept: Vec<Detection> = Vec::new();
    for of_class in candidates.chunk_by(|a, b| a.class == b.class) {
        let first = kept.len();
        for &candidate in of_class.iter().take(MOST_CANDIDATES) {
            let better = kept.get(first..).unwrap_or_default();
            // Most that are dropped overlap one of the best.
            if better.iter().all(|k| overlap(k.corners, candidate.corners) <= SUPPRESS) {
                kept.push(candidate);
            }
        }
    }
    kept.sort_by(|a, b| b.score.total_cmp(&a.score));
    kept.truncate(MOST);
    kept
}

/// A detection and the thresholds, a bit each, at which it found an object.
#[derive(Clone, Copy, Debug)]
struct Match {
    score: f32,
    row: usize,
    found: u16,
}

/// The detections of many images, matched; every figure follows from it, also with rows counted several times.
#[derive(Clone, Debug)]
pub struct DetectionTally {
    /// For each class its detections.
    matches: Vec<Vec<Match>>,
    /// For each class the rows of its objects.
    objects: Vec<Vec<usize>>,
    rows: usize,
    sorted: bool,
}

/// Mean average precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanPrecision {
    /// At an overlap of 0.5, 0..=1.
    pub map50: f64,
    /// Mean over overlaps from 0.5 to 0.95.
    pub map50_95: f64,
    /// Average precision of each class at an overlap of 0.5; none for classes without objects.
    pub classes: Vec<Option<f64>>,
    /// Share of each class's objects that some detection found at an overlap of 0.5; none for classes without objects.
    pub recalls: Vec<Option<f64>>,
}

impl DetectionTally {
    /// No images yet.
    pub fn new(classes: usize) -> Self {
        Self { matches: vec![Vec::new(); classes], objects: vec![Vec::new(); classes], rows: 0, sorted: true }
    }

    /// Images so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds an image: its detections as [`suppress`] gives them, best first, and its objects. Classes out of range are not counted.
    pub fn add(&mut self, detections: &[Detection], objects: &[Object]) {
        for (class, (matches, rows)) in self.matches.iter_mut().zip(&mut self.objects).enumerate() {
            let real: Vec<[f32; 4]> = objects.iter().filter(|o| o.class == class).map(|o| o.corners).collect();
            rows.extend(std::iter::repeat_n(self.rows, real.len()));
            let mut free = vec![vec![true; real.len()]; THRESHOLDS];
            for detection in detections.iter().filter(|d| d.class == class) {
                let overlaps: Vec<f64> = real.iter().map(|&o| f64::from(overlap(detection.corners, o))).collect();
                let mut found = 0;
                for (step, free) in free.iter_mut().enumerate() {
                    let left = overlaps.iter().enumerate().filter(|(i, _)| free[*i]);
                    let best = left
                        .fold(None, |best: Option<(usize, f64)>, (i, &o)| if best.is_none_or(|b| o > b.1) { Some((i, o)) } else { best });
                    if let Some((i, _)) = best.filter(|b| b.1 >= threshold(step)) {
                        free[i] = false;
                        found |= 1 << step;
                    }
                }
                matches.push(Match { score: detection.score, row: self.rows, found });
            }
        }
        self.rows += 1;
        self.sorted = false;
    }

    /// The figures, each row counted once.
    pub fn figures(&mut self) -> MeanPrecision {
        self.weighted(&vec![1; self.rows])
    }

    /// The figures when row `i` counts `weights[i]` times.
    pub fn weighted(&mut self, weights: &[u32]) -> MeanPrecision {
        if !self.sorted {
            self.matches.iter_mut().for_each(|m| m.sort_by(|a, b| b.score.total_cmp(&a.score)));
            self.sorted = true;
        }
        let weight = |row: usize| weights.get(row).copied().map_or(0.0, f64::from);
        let class = |(matches, rows): (&Vec<Match>, &Vec<usize>)| -> Option<([f64; THRESHOLDS], f64)> {
            let objects: f64 = rows.iter().map(|&r| weight(r)).sum();
            if objects == 0.0 {
                return None;
            }
            let weighted: Vec<(f64, u16)> = matches.iter().map(|m| (weight(m.row), m.found)).filter(|(w, _)| *w > 0.0).collect();
            let found: f64 = weighted.iter().filter(|(_, f)| f & 1 == 1).map(|(w, _)| w).sum();
            Some((std::array::from_fn(|step| average_precision(&weighted, step, objects)), found / objects))
        };
        let all: Vec<Option<([f64; THRESHOLDS], f64)>> = self.matches.iter().zip(&self.objects).map(class).collect();
        MeanPrecision {
            map50: super::mean(all.iter().flatten().map(|(p, _)| p[0])),
            map50_95: super::mean(all.iter().flatten().map(|(p, _)| p.iter().sum::<f64>() / THRESHOLDS as f64)),
            classes: all.iter().map(|c| c.map(|(p, _)| p[0])).collect(),
            recalls: all.iter().map(|c| c.map(|(_, recall)| recall)).collect(),
        }
    }
}

/// Average precision of one class at one threshold; matches are (weight, thresholds found), by falling score.
fn average_precision(matches: &[(f64, u16)], step: usize, objects: f64) -> f64 {
    let (mut right, mut all) = (0.0, 0.0);
    let mut curve: Vec<(f64, f64)> = Vec::with_capacity(matches.len());
    for &(weight, found) in matches {
        all += weight;
        if found >> step & 1 == 1 {
            right += weight;
        }
        curve.push((right / objects, right / all));
    }
    let mut best = 0.0f64;
    for (_, precision) in curve.iter_mut().rev() {
        best = best.max(*precision);
        *precision = best;
    }
    let read = |recall: f64| curve.get(curve.partition_point(|(r, _)| *r < recall)).map_or(0.0, |(_, p)| *p);
    (0..RECALLS).map(|i| read(i as f64 / (RECALLS - 1) as f64)).sum::<f64>() / RECALLS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(class: usize, score: f32, x: f32) -> Detection {
        Detection { class, score, corners: [x, 0.0, x + 10.0, 10.0] }
    }

    fn real(class: usize, x: f32) -> Object {
        Object { class, corners: [x, 0.0, x + 10.0, 10.0] }
    }

    #[test]
    fn the_better_of_two_overlapping_detections_stays() {
        // overlap of boxes 2 apart: 8 / 12; 3 apart: 7 / 13
        let kept = suppress(vec![seen(0, 0.5, 2.0), seen(0, 0.9, 0.0), seen(0, 0.4, 3.0), seen(1, 0.3, 0.0), seen(0, 0.005, 50.0)]);
        assert_eq!(kept, [seen(0, 0.9, 0.0), seen(0, 0.4, 3.0), seen(1, 0.3, 0.0)]);
    }

    #[test]
    fn precision_of_a_worked_example() {
        // Two objects. By score: found, false, found. Recalls up to 0.5 at precision 1, above at 2/3.
        let mut tally = DetectionTally::new(3);
        tally.add(&[seen(0, 0.9, 0.0), seen(0, 0.8, 50.0)], &[real(0, 0.0)]);
        tally.add(&[seen(0, 0.7, 0.0)], &[real(0, 0.0)]);
        let figures = tally.figures();
        let want = (51.0 + 50.0 * 2.0 / 3.0) / 101.0;
        assert!((figures.map50 - want).abs() < 1e-12 && (figures.map50_95 - want).abs() < 1e-12, "{figures:?}");
        assert_eq!(figures.classes[1], None);
        // Without the first image the second is perfect.
        assert!((tally.weighted(&[0, 1]).map50 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_box_that_is_off_counts_below_its_overlap_only() {
        // 2 apart: overlap 0.667, right at 0.5 to 0.65
        let mut tally = DetectionTally::new(1);
        tally.add(&[seen(0, 0.9, 2.0)], &[real(0, 0.0)]);
        let figures = tally.figures();
        assert!((figures.map50 - 1.0).abs() < 1e-12 && (figures.map50_95 - 0.4).abs() < 1e-12, "{figures:?}");
        assert_eq!(figures.recalls, [Some(1.0)]);
    }

    #[test]
    fn an_object_is_found_once() {
        let mut tally = DetectionTally::new(1);
        tally.add(&[seen(0, 0.9, 0.0), seen(0, 0.8, 0.5)], &[real(0, 0.0)]);
        assert!((tally.figures().map50 - 1.0).abs() < 1e-12);
        tally.add(&[], &[real(0, 0.0)]);
        assert!((tally.figures().map50 - 51.0 / 101.0).abs() < 1e-12);
    }
}
