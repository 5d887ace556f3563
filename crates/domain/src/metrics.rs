//! Quality of models: confusion counts that merge, entities, detections, and how sure a difference between two models is.

mod detection;
mod entities;
mod loss;

use serde::{Deserialize, Serialize};

use crate::error::DomainError;

pub use detection::{Detection, DetectionTally, MeanPrecision, suppress};
pub use entities::{Entity, EntityCounts, entities, follows_bio};
pub use loss::{Lost, bootstrap_deviation, wilson_95};

/// Most classes a confusion matrix may have.
pub const MAX_CLASSES: usize = 1024;

/// Counts by true and predicted class; merging two is exact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Confusion {
    classes: usize,
    /// `[true, predicted]`, row-major.
    counts: Vec<u64>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Parts {
    classes: usize,
    counts: Vec<u64>,
}

impl TryFrom<Parts> for Confusion {
    type Error = DomainError;
    fn try_from(parts: Parts) -> Result<Self, DomainError> {
        Self::from_counts(parts.classes, parts.counts)
    }
}

impl From<Confusion> for Parts {
    fn from(value: Confusion) -> Self {
        Self { classes: value.classes, counts: value.counts }
    }
}

fn field(field: &str, got: impl ToString, expected: String) -> DomainError {
    DomainError::Field { field: field.to_owned(), got: got.to_string(), expected }
}

impl Confusion {
    /// No counts yet.
    ///
    /// # Errors
    /// [`DomainError::Field`] when `classes` is out of 1..=[`MAX_CLASSES`].
    pub fn new(classes: usize) -> Result<Self, DomainError> {
        if !(1..=MAX_CLASSES).contains(&classes) {
            return Err(field("confusion.classes", classes, format!("1 to {MAX_CLASSES}")));
        }
        Ok(Self { classes, counts: vec![0; classes * classes] })
    }

    /// Takes counts `[true, predicted]` from outside, row-major.
    ///
    /// # Errors
    /// [`DomainError::Field`] when `classes` is out of range, or the counts are not `classes` squared or overflow when summed.
    pub fn from_counts(classes: usize, counts: Vec<u64>) -> Result<Self, DomainError> {
        let empty = Self::new(classes)?;
        let total = counts.iter().try_fold(0u64, |a, &n| a.checked_add(n));
        if counts.len() != empty.counts.len() || total.is_none() {
            return Err(field("confusion.counts", counts.len(), format!("{} counts whose sum fits 64 bits", empty.counts.len())));
        }
        Ok(Self { classes, counts })
    }

    /// Counts predictions against labels, pairwise.
    ///
    /// # Errors
    /// [`DomainError::Field`] as [`Confusion::record`].
    pub fn of(classes: usize, labels: &[usize], predicted: &[usize]) -> Result<Self, DomainError> {
        let mut confusion = Self::new(classes)?;
        labels.iter().zip(predicted).try_for_each(|(&l, &p)| confusion.record(l, p))?;
        Ok(confusion)
    }

    /// Counts one prediction.
    ///
    /// # Errors
    /// [`DomainError::Field`] when a class is out of range.
    pub fn record(&mut self, label: usize, predicted: usize) -> Result<(), DomainError> {
        let classes = self.classes;
        let cell = (label < classes && predicted < classes).then(|| label * classes + predicted);
        match cell.and_then(|i| self.counts.get_mut(i)) {
            Some(count) => {
                *count = count.saturating_add(1);
                Ok(())
            }
            None => Err(field("class", format!("{label} (label), {predicted} (predicted)"), format!("below {classes}"))),
        }
    }

    /// Adds the counts of another matrix.
    ///
    /// # Errors
    /// [`DomainError::Field`] when it has another number of classes.
    pub fn merge(&mut self, other: &Self) -> Result<(), DomainError> {
        if other.classes != self.classes {
            return Err(field("confusion.classes", other.classes, self.classes.to_string()));
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a = a.saturating_add(*b));
        Ok(())
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The counts `[true, predicted]`, row-major, `classes` squared of them.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Predictions counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |a, &n| a.saturating_add(n))
    }

    /// Predictions that were right.
    pub fn correct(&self) -> u64 {
        self.counts.iter().step_by(self.classes + 1).fold(0, |a, &n| a.saturating_add(n))
    }

    /// Share of predictions that were right; 0 when empty.
    pub fn accuracy(&self) -> f64 {
        ratio(self.correct(), self.total())
    }

    /// Share of each class's rows that was found; `None` for classes without rows.
    pub fn recalls(&self) -> Vec<Option<f64>> {
        self.tallies().map(|t| (t.actual > 0).then(|| ratio(t.hit, t.actual))).collect()
    }

    /// Mean recall over the classes that have rows; 0 when empty.
    pub fn macro_recall(&self) -> f64 {
        mean(self.recalls().into_iter().flatten())
    }

    /// Mean F1 over the classes that have rows; 0 when empty.
    pub fn macro_f1(&self) -> f64 {
        mean(self.tallies().filter(|t| t.actual > 0).map(|t| 2.0 * t.hit as f64 / (t.actual + t.predicted) as f64))
    }

    /// Recall, precision and F1 of each class.
    pub fn classes_figures(&self) -> Vec<ClassFigures> {
        let figures = |t: Tally| ClassFigures {
            rows: t.actual,
            recall: (t.actual > 0).then(|| ratio(t.hit, t.actual)),
            precision: (t.predicted > 0).then(|| ratio(t.hit, t.predicted)),
            f1: (t.actual > 0).then(|| 2.0 * t.hit as f64 / (t.actual + t.predicted) as f64),
        };
        self.tallies().map(figures).collect()
    }

    /// F1 over all predictions together, which for one class a row is the accuracy.
    pub fn micro_f1(&self) -> f64 {
        self.accuracy()
    }

    fn tallies(&self) -> impl Iterator<Item = Tally> + '_ {
        self.counts.chunks(self.classes).enumerate().map(move |(class, row)| Tally {
            hit: row.get(class).copied().unwrap_or(0),
            actual: row.iter().sum(),
            predicted: self.counts.iter().skip(class).step_by(self.classes).sum(),
        })
    }
}

/// How well one class is told from the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassFigures {
    /// Rows of the class.
    pub rows: u64,
    /// Share of them that was found, 0..=1; none without rows.
    pub recall: Option<f64>,
    /// Share of the predictions of this class that were right, 0..=1; none without predictions.
    pub precision: Option<f64>,
    /// Harmonic mean of the two, 0..=1; none without rows.
    pub f1: Option<f64>,
}

struct Tally {
    hit: u64,
    actual: u64,
    predicted: u64,
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0u32), |(s, n), v| (s + v, n + 1));
    if n == 0 { 0.0 } else { sum / f64::from(n) }
}

/// Share of rows on which two classifiers give the same class; 0 when empty.
pub fn agreement(a: &[usize], b: &[usize]) -> f64 {
    let same = a.iter().zip(b).filter(|(x, y)| x == y).count();
    ratio(same as u64, a.len().min(b.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} != {b}");
    }

    #[test]
    fn figures_of_a_worked_example() {
        // class 0: 3 rows, 2 found; class 1: 2 rows, 2 found; class 2: no rows
        let c = Confusion::of(3, &[0, 0, 0, 1, 1], &[0, 0, 1, 1, 1]).unwrap();
        close(c.accuracy(), 0.8);
        close(c.macro_recall(), (2.0 / 3.0 + 1.0) / 2.0);
        close(c.macro_f1(), (2.0 * 2.0 / 5.0 + 2.0 * 2.0 / 5.0) / 2.0);
        close(c.micro_f1(), 0.8);
        assert_eq!(c.recalls()[2], None);
        let figures = c.classes_figures();
        close(figures[1].precision.unwrap(), 2.0 / 3.0);
        close(figures[1].f1.unwrap(), 0.8);
        assert_eq!((figures[0].rows, figures[2].f1, figures[2].precision), (3, None, None));
    }

    #[test]
    fn merging_equals_counting_everything_in_one() {
        let mut a = Confusion::of(2, &[0, 1], &[0, 0]).unwrap();
        a.merge(&Confusion::of(2, &[1, 1], &[1, 0]).unwrap()).unwrap();
        assert_eq!(a, Confusion::of(2, &[0, 1, 1, 1], &[0, 0, 1, 0]).unwrap());
        assert!(a.merge(&Confusion::new(3).unwrap()).is_err());
    }

    #[test]
    fn refuses_classes_out_of_range() {
        assert!(Confusion::new(0).is_err());
        assert!(Confusion::new(MAX_CLASSES + 1).is_err());
        assert!(Confusion::new(2).unwrap().record(0, 2).is_err());
        assert!(serde_json::from_str::<Confusion>(r#"{"classes":2,"counts":[1,2,3]}"#).is_err());
        assert!(serde_json::from_str::<Confusion>(r#"{"classes":1,"counts":[7]}"#).is_ok());
    }
}
