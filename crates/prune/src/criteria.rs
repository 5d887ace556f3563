//! Criteria: which channels of a group go first.

use faer::Mat;
use pleach_domain::random::SplitMix;
use rayon::prelude::*;

use crate::error::PruneError;
use crate::linear::{Factor, add_product, inner, mean_diagonal, principal, rows_of};

pub use pleach_domain::policy::Criterion;

/// Ridge of the Gram matrix, as a share of its mean diagonal.
const RIDGE: f64 = 1e-2;
/// Columns of all consumers together beyond which channels are removed in blocks.
const SINGLE_COLUMNS: usize = 4_096;
/// Steps taken in blocks.
const BLOCK_STEPS: usize = 64;

/// A layer that reads a group: the centred Gram matrix of its input columns `[columns, columns]`, its weights
/// `[columns, outputs]`, and which columns each channel of the group feeds.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) gram: &'a Mat<f64>,
    pub(crate) weights: Mat<f64>,
    pub(crate) columns: Vec<Vec<usize>>,
}

/// Channels by rising norm of their producers' weights, first to go first. `producers` holds, for each channel, its weights.
pub(crate) fn norm_order(criterion: Norm, producers: &[Vec<f32>]) -> Vec<usize> {
    let score = |weights: &Vec<f32>| -> f64 {
        match criterion {
            Norm::L1 => weights.iter().map(|&w| f64::from(w).abs()).sum(),
            Norm::L2 => weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt(),
        }
    };
    rising(&producers.iter().map(score).collect::<Vec<_>>())
}

/// Norms that rank without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    L1,
    L2,
}

/// Channels by rising leverage, first to go first: Σ_j σ_j / (σ_j + λ) U_cj², over the eigenvalues σ and eigenvectors U of the
/// Gram matrix of what is read, which is the diagonal of S (S + λI)⁻¹, weighted by the energy of the weights that read the column;
/// summed over a channel's columns and over all readers, each normalised (ridge leverage scores: Alaoui and Mahoney 2015).
///
/// # Errors
/// [`PruneError::Numerics`] when a Gram matrix holds no finite numbers.
pub(crate) fn leverage_order(channels: usize, readers: &[Reader<'_>]) -> Result<Vec<usize>, PruneError> {
    let mut scores = vec![0.0; channels];
    for reader in readers {
        let ridge = RIDGE * mean_diagonal(reader.gram) + f64::MIN_POSITIVE.sqrt();
        let inverse = Factor::new(reader.gram.clone(), ridge)?.inverse();
        let energy = |c: usize| reader.gram[(c, c)] * (0..reader.weights.ncols()).map(|o| reader.weights[(c, o)].powi(2)).sum::<f64>();
        let all = (0..reader.gram.nrows()).map(energy).sum::<f64>().max(f64::MIN_POSITIVE);
        for (score, columns) in scores.iter_mut().zip(&reader.columns) {
            *score += columns.iter().map(|&c| (1.0 - ridge * inverse[(c, c)]) * energy(c)).sum::<f64>() / all;
        }
    }
    Ok(rising(&scores))
}

/// Channels in an order that has nothing to do with them, the same for the same seed: a control.
pub(crate) fn random_order(channels: usize, seed: u64) -> Vec<usize> {
    SplitMix(seed).shuffled(channels)
}

fn rising(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order
}

/// Channels in the order in which optimal brain surgery removes them, one at a time (in blocks for very wide readers).
///
/// Cost: for each channel removed one update of rank k of every reader's inverse, k columns a channel: O(channels · columns² · k).
///
/// # Errors
/// [`PruneError::Numerics`] when a Gram matrix holds no finite numbers.
pub(crate) fn obs_order(channels: usize, readers: &[Reader<'_>]) -> Result<Vec<usize>, PruneError> {
    let mut surgeons = readers.par_iter().map(Surgeon::new).collect::<Result<Vec<_>, _>>()?;
    let columns: usize = readers.iter().map(|r| r.gram.nrows()).sum();
    let block = if columns <= SINGLE_COLUMNS { 1 } else { channels.div_ceil(BLOCK_STEPS) };
    let (mut left, mut order): (Vec<usize>, _) = ((0..channels).collect(), Vec::with_capacity(channels));
    while left.len() > 1 {
        let costs: Vec<f64> = left.par_iter().map(|&c| surgeons.iter().map(|s| s.cost(c)).sum()).collect();
        let mut ranked: Vec<usize> = (0..left.len()).collect();
        ranked.sort_by(|&a, &b| costs[a].total_cmp(&costs[b]));
        let gone: Vec<usize> = ranked.iter().take(block.min(left.len() - 1)).map(|&i| left[i]).collect();
        surgeons.par_iter_mut().try_for_each(|s| s.remove(&gone))?;
        left.retain(|c| !gone.contains(c));
        order.extend(gone);
    }
    order.extend(left);
    Ok(order)
}

struct Surgeon {
    /// Inverse of the ridged Gram matrix of what is left; unit rows where columns are gone.
    inverse: Mat<f64>,
    /// Weights re-solved for what is left.
    weights: Mat<f64>,
    columns: Vec<Vec<usize>>,
    energy: f64,
}

impl Surgeon {
    fn new(reader: &Reader<'_>) -> Result<Self, PruneError> {
        let ridge = RIDGE * mean_diagonal(reader.gram) + f64::MIN_POSITIVE.sqrt();
        let mut product = Mat::zeros(reader.weights.nrows(), reader.weights.ncols());
        add_product(&mut product, 1.0, reader.gram, &reader.weights);
        let energy = inner(&product, &reader.weights).max(f64::MIN_POSITIVE);
        let inverse = Factor::new(reader.gram.clone(), ridge)?.inverse();
        Ok(Self { inverse, weights: reader.weights.clone(), columns: reader.columns.clone(), energy })
    }

    /// Share of the output's energy that is lost when a channel goes and the rest is re-solved.
    fn cost(&self, channel: usize) -> f64 {
        let columns = &self.columns[channel];
        if columns.is_empty() {
            return 0.0;
        }
        let w = rows_of(&self.weights, columns);
        let Ok(factor) = Factor::new(principal(&self.inverse, columns), 0.0) else {
            return 0.0; // numerically dependent on what is left: costs nothing
        };
        let mut solved = w.clone();
        factor.solve(&mut solved);
        inner(&solved, &w) / self.energy
    }

    fn remove(&mut self, channels: &[usize]) -> Result<(), PruneError> {
        let gone: Vec<usize> = channels.iter().flat_map(|&c| self.columns[c].iter().copied()).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let n = self.inverse.nrows();
        let across = Mat::from_fn(n, gone.len(), |i, j| self.inverse[(i, gone[j])]);
        let pivot = principal(&self.inverse, &gone);
        let tiny = 1e-12 * mean_diagonal(&pivot);
        let factor = Factor::new(pivot, tiny)?;
        let mut step = across.transpose().to_owned();
        factor.solve(&mut step);
        let mut weights = rows_of(&self.weights, &gone);
        factor.solve(&mut weights);
        add_product(&mut self.weights, -1.0, &across, &weights);
        add_product(&mut self.inverse, -1.0, &across, &step);
        for &c in &gone {
            for i in 0..n {
                self.inverse[(i, c)] = 0.0;
                self.inverse[(c, i)] = 0.0;
            }
            self.inverse[(c, c)] = 1.0;
            for j in 0..self.weights.ncols() {
                self.weights[(c, j)] = 0.0;
            }
        }
        Ok(())
    }
}

/// The `kept` channels that an order removes last, ascending.
pub(crate) fn kept(order: &[usize], kept: usize) -> Vec<usize> {
    let mut keep: Vec<usize> = order.iter().rev().take(kept).copied().collect();
    keep.sort_unstable();
    keep
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::gram;
    use crate::linear::tests::noise;

    /// Least loss of the output when `gone` columns are removed and the rest is re-solved, by brute force.
    fn loss(g: &Mat<f64>, w: &Mat<f64>, gone: &[usize]) -> f64 {
        let stay: Vec<usize> = (0..g.nrows()).filter(|c| !gone.contains(c)).collect();
        let ridge = RIDGE * mean_diagonal(g);
        let ridged = Mat::from_fn(g.nrows(), g.nrows(), |i, j| g[(i, j)] + if i == j { ridge } else { 0.0 });
        let mut full = Mat::zeros(g.nrows(), w.ncols());
        add_product(&mut full, 1.0, &ridged, w);
        let mut solved = rows_of(&full, &stay);
        Factor::new(principal(&ridged, &stay), 0.0).unwrap().solve(&mut solved);
        inner(&full, w) - inner(&solved, &rows_of(&full, &stay))
    }

    #[test]
    fn obs_order_equals_brute_force_at_every_step() {
        let (channels, k) = (5, 2);
        let g = gram(noise(60, channels * k, 7).view(), None);
        let w = noise(channels * k, 4, 8);
        let w = Mat::from_fn(channels * k, 4, |i, j| f64::from(w.row(i)[j]));
        let columns: Vec<Vec<usize>> = (0..channels).map(|c| (c * k..(c + 1) * k).collect()).collect();
        let order = obs_order(channels, &[Reader { gram: &g, weights: w.clone(), columns: columns.clone() }]).unwrap();
        let mut gone = Vec::new();
        for step in order.iter().take(channels - 1) {
            let without = |c: usize| loss(&g, &w, &gone.iter().chain(&columns[c]).copied().collect::<Vec<_>>());
            let left = (0..channels).filter(|&c| !gone.contains(&(c * k)));
            let best = left.min_by(|&a, &b| without(a).total_cmp(&without(b))).unwrap();
            assert_eq!(*step, best);
            gone.extend(&columns[*step]);
        }
    }

    #[test]
    fn obs_removes_duplicated_and_dead_channels_first() {
        let mut x = noise(200, 4, 9);
        for row in x.data.chunks_mut(4) {
            row[1] = 0.0;
            row[3] = row[0];
        }
        let (g, w) = (gram(x.view(), None), Mat::from_fn(4, 2, |_, _| 1.0));
        let columns = (0..4).map(|c| vec![c]).collect();
        let order = obs_order(4, &[Reader { gram: &g, weights: w, columns }]).unwrap();
        assert_eq!(order[0], 1);
        assert!(order[1] == 0 || order[1] == 3, "{order:?}");
    }

    #[test]
    fn l1_and_l2_disagree_as_in_the_worked_example() {
        // Σ|w|: 3.0, 3.2, 2.0; √Σw²: 3.0, 1.6, 1.41
        let producers = [vec![3.0, 0.0, 0.0, 0.0], vec![0.8, 0.8, -0.8, 0.8], vec![1.0, -1.0, 0.0, 0.0]];
        assert_eq!(norm_order(Norm::L1, &producers), [2, 0, 1]);
        assert_eq!(norm_order(Norm::L2, &producers), [2, 1, 0]);
        assert_eq!(kept(&[2, 1, 0], 2), [0, 1]);
    }

    #[test]
    fn values_1_and_2_stay_and_a_tenth_goes_below_a_threshold_of_one_half() {
        let producers = [vec![1.0], vec![2.0], vec![0.1]];
        for norm in [Norm::L1, Norm::L2] {
            let above = producers.iter().filter(|w| f32::abs(w[0]) >= 0.5).count();
            assert_eq!(kept(&norm_order(norm, &producers), above), [0, 1]);
        }
    }

    #[test]
    fn leverage_prefers_channels_that_others_cannot_replace() {
        let mut x = noise(400, 4, 9);
        x.data.chunks_mut(4).for_each(|row| row[3] = row[0] + 0.01 * row[1]);
        let (g, w) = (gram(x.view(), None), Mat::from_fn(4, 2, |_, _| 1.0));
        let columns = (0..4).map(|c| vec![c]).collect();
        let order = leverage_order(4, &[Reader { gram: &g, weights: w, columns }]).unwrap();
        assert!([0, 3].contains(&order[0]) && [0, 3].contains(&order[1]), "{order:?}");
    }

    #[test]
    fn random_orders_are_permutations_that_come_again() {
        let order = random_order(50, 3);
        assert_eq!(order, random_order(50, 3));
        assert_ne!(order, random_order(50, 4));
        assert_eq!(rising(&order.iter().map(|&i| i as f64).collect::<Vec<_>>()).len(), 50);
        assert!((0..50).all(|c| order.contains(&c)));
    }

    #[test]
    fn criteria_are_named_in_lower_case() {
        let all = [Criterion::L1, Criterion::L2, Criterion::Eigen, Criterion::Obs, Criterion::Random];
        assert_eq!(serde_json::to_string(&all).unwrap(), r#"["l1","l2","eigen","obs","random"]"#);
    }
}
