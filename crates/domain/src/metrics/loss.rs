//! How much of a figure was lost from one model to another, and how sure that is.

use serde::{Deserialize, Serialize};

use crate::random::SplitMix;

/// Two-sided 95 % quantile of the normal distribution.
const Z95: f64 = 1.959_963_984_540_054;
/// Deviations that [`Lost::bound`] leaves: one-sided 99.95 % (a hundred such bounds hold together with 95 %), times the root of 2,
/// because fresh rows have chance of their own.
const Z_TOGETHER: f64 = 3.290_526_731_491_926 * std::f64::consts::SQRT_2;

/// The 95 % confidence interval of a proportion, 0..=1 for no trials. Source: Wilson 1927, score interval.
pub fn wilson_95(hits: u64, trials: u64) -> (f64, f64) {
    wilson(hits, trials, Z95)
}

fn wilson(hits: u64, trials: u64, z: f64) -> (f64, f64) {
    if trials == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (trials as f64, super::ratio(hits, trials));
    let (z2, center) = (z * z, p + z * z / (2.0 * n));
    let half = z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    (((center - half) / (1.0 + z2 / n)).max(0.0), ((center + half) / (1.0 + z2 / n)).min(1.0))
}

/// What was lost from one model to another on the same rows, in the unit of the figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    /// Lost on these rows; negative when it gained.
    pub estimate: f64,
    /// Lower end of the 95 % confidence interval of what is lost in expectation.
    pub lower: f64,
    /// Its upper end.
    pub upper: f64,
    /// What is lost on as many fresh rows stays below this: a hundred such bounds, of a hundred variants, hold together with 95 %
    /// confidence.
    pub bound: f64,
}

impl Lost {
    /// Accuracy lost, of rows judged right or wrong: `lost` rows only the first model had right, `gained` rows only the second.
    ///
    /// Source: Tango 1998, in Agresti and Min's 2005 form (half a pseudo-row in each of the four cells); no trials give -1..=1.
    pub fn paired(lost: u64, gained: u64, trials: u64) -> Self {
        if trials == 0 {
            return Self { estimate: 0.0, lower: -1.0, upper: 1.0, bound: 1.0 };
        }
        let estimate = (lost as f64 - gained as f64) / trials as f64;
        let (n, b, c) = (trials as f64 + 2.0, lost as f64 + 0.5, gained as f64 + 0.5);
        let center = (b - c) / n;
        let deviation = ((b + c) / n - center * center).max(0.0).sqrt() / n.sqrt();
        let at = |z: f64| (center + z * deviation).clamp(-1.0, 1.0);
        Self { estimate, lower: at(-Z95), upper: at(Z95), bound: at(Z_TOGETHER) }
    }

    /// What was lost of a figure whose deviation over rows drawn anew is known, see [`bootstrap_deviation`].
    pub fn estimated(estimate: f64, deviation: f64) -> Self {
        let at = |z: f64| estimate + z * deviation;
        Self { estimate, lower: at(-Z95), upper: at(Z95), bound: at(Z_TOGETHER) }
    }

    /// Without labels: the share of `trials` answers on which two models disagree, which no accuracy lost exceeds.
    pub fn disagreement(disagreeing: u64, trials: u64) -> Self {
        let (lower, upper) = wilson_95(disagreeing, trials);
        Self { estimate: super::ratio(disagreeing, trials), lower, upper, bound: wilson(disagreeing, trials, Z_TOGETHER).1 }
    }
}

/// Standard deviation of a figure over `draws` samples of `rows` rows, drawn with replacement; `figure` is told how often each row
/// was drawn. The same for the same seed. Source: Efron 1979, the paired bootstrap when the figure is a difference.
pub fn bootstrap_deviation(rows: usize, draws: usize, seed: u64, mut figure: impl FnMut(&[u32]) -> f64) -> f64 {
    let mut random = SplitMix(seed);
    let (mut sum, mut squares, mut known) = (0.0, 0.0, 0.0);
    for _ in 0..draws {
        let mut weights = vec![0u32; rows];
        for _ in 0..rows {
            if let Some(weight) = weights.get_mut(random.below(rows)) {
                *weight += 1;
            }
        }
        let value = figure(&weights);
        if value.is_finite() {
            sum += value;
            squares += value * value;
            known += 1.0;
        }
    }
    if known < 2.0 { 0.0 } else { ((squares - sum * sum / known) / (known - 1.0)).max(0.0).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_interval_matches_published_values() {
        let (low, high) = wilson_95(15, 148); // Newcombe 1998, table I: 0.0624 to 0.1605
        assert!((low - 0.0624).abs() < 1e-4 && (high - 0.1605).abs() < 1e-4, "{low} {high}");
        let (low, high) = wilson_95(0, 20); // 0 to 0.1611
        assert!(low < 1e-12 && (high - 0.1611).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn paired_bound_shrinks_with_rows_and_holds_the_estimate() {
        let (few, many) = (Lost::paired(3, 1, 100), Lost::paired(60, 20, 2_000));
        assert!(few.lower < few.estimate && few.estimate < few.upper && few.upper < few.bound);
        assert!(many.upper - many.lower < few.upper - few.lower);
        assert!(Lost::paired(0, 0, 50).upper > 0.0);
    }

    #[test]
    fn bootstrap_finds_the_deviation_of_a_mean() {
        // 40 of 100 rows are 1: the mean deviates by sqrt(0.4 * 0.6 / 100)
        let figure = |weights: &[u32]| f64::from(weights.iter().take(40).sum::<u32>()) / 100.0;
        let deviation = bootstrap_deviation(100, 2_000, 1, figure);
        assert!((deviation - 0.048_99).abs() < 0.004, "{deviation}");
        assert_eq!(deviation.to_bits(), bootstrap_deviation(100, 2_000, 1, figure).to_bits());
    }

    #[test]
    fn bounds_hold_together_on_fresh_rows() {
        // A hundred prunings that lose 2 % and gain 1 % of the rows: each is bounded on 1,000 rows and judged on 1,000 others.
        let mut random = SplitMix(7);
        let mut draw = || {
            let (mut lost, mut gained) = (0, 0);
            for _ in 0..1_000 {
                match random.below(100) {
                    0 | 1 => lost += 1,
                    2 => gained += 1,
                    _ => {}
                }
            }
            Lost::paired(lost, gained, 1_000)
        };
        let held = (0..100)
            .filter(|_| {
                let bound = draw().bound;
                draw().estimate <= bound
            })
            .count();
        assert_eq!(held, 100);
    }
}
