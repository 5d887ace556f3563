//! Reconstruction: the weights that are left, solved anew so that each layer puts out what the dense network's layer did.
//!
//! Front to back, each layer that reads a narrowed or changed input solves min ‖X̃W + R̃ − T‖² + λ‖W − W_S‖², X̃ and the residual
//! stream R̃ from the network as pruned so far, T the dense sum, W_S the sliced old weights; so errors upstream are repaired
//! downstream. The bias is solved with it and not penalised. Then up to two majorise-minimise rounds through the activation.
//! Every result is judged on held-out samples; what does not lower their error is not taken.
//!
//! Sources: He et al. 2017 ("Channel Pruning"), Dong et al. 2017 (layer-wise surgeon), Zhang et al. 2015 (nonlinear,
//! asymmetric reconstruction).

use std::collections::BTreeSet;

use faer::Mat;
use pleach_domain::Tensor;
use pleach_domain::runtime::Runtime;
use pleach_onnx::{Model, OnnxError};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::coupling::Keep;
use crate::dead;
use crate::error::PruneError;
use crate::flat;
use crate::levels::Plan;
use crate::linear::{Factor, Rows, View, apply, cross, gram, mean_diagonal};
use crate::lowrank::{self, Factors, Rank};
use crate::network::{Layer, Network, constants_of, model_error, patches, points, weights_of};
use crate::progress::{Progress, Stage, step};
use crate::run::{Batch, Frontier, Inputs, Overrides, floats};
use crate::statistics::{LayerStatistics, Statistics};
use crate::surgery;

/// Ridge toward the old weights, as a share of the mean diagonal.
const RIDGE: f64 = 1e-3;
/// Ridges tried on held-out samples when a layer has few samples for its columns.
const FEW_RIDGES: [f64; 4] = [1e-3, 1e-2, 1e-1, 1.0];
/// Samples for each column below which ridges are tried.
const FEW_SAMPLES: usize = 8;
/// Largest growth of an output's weights that is believed.
const MAX_GAIN: f64 = 10.0;
/// One image in so many is held out of each solve.
const HOLD_OUT: usize = 16;
/// Rows the runtime takes at once.
const BATCH_ROWS: usize = 64;
/// Activations that are held at a time, in bytes.
const HELD_BYTES: usize = 1 << 30;
/// The matrix of one layer's samples, in bytes.
const SAMPLE_BYTES: usize = 256 << 20;

/// How much work a reconstruction may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Calibration rows, from the first.
    pub(crate) rows: usize,
    /// Most majorise-minimise rounds.
    pub(crate) rounds: usize,
    /// Copies of the network that run side by side.
    pub(crate) copies: usize,
}

/// Cuts a network as planned and solves what is left. Deterministic.
pub(crate) fn reconstruct(
    network: &Network,
    statistics: &Statistics,
    inputs: &Inputs<'_>,
    plan: &Plan,
    effort: Effort,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Model, PruneError> {
    let keep = &plan.keep;
    let cut = surgery::prune(&network.model, &network.coupling, &network.shapes, keep).map_err(model_error)?;
    let batch = Batch::of(&cut, BATCH_ROWS);
    let rows = effort.rows.min(statistics.fit_rows).min(affordable_rows(network));
    let rows = if batch.fixed { rows / batch.rows * batch.rows } else { rows };
    let held = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.slice_rows(0, rows))).collect();
    let mut frontier = Frontier::new(runtime, &cut, held, batch, Stage::Reconstruct, effort.copies);
    let affected = affected(network, plan);
    let dead = flat::dead_layers(network, &plan.flat.iter().copied().collect::<Vec<_>>());
    let mut factored = Vec::new();
    for (index, (layer, dense)) in network.layers.iter().zip(&statistics.layers).enumerate() {
        step(progress, Stage::Reconstruct, index, network.layers.len())?;
        let dead = dead.contains(&index) && !plan.flat.contains(&index);
        if !affected.contains(&index) || dead || rows == 0 {
            continue;
        }
        let wanted: Vec<&str> = [Some(layer.input.as_str()), layer.partner.as_deref()].into_iter().flatten().collect();
        frontier.compute(&wanted)?;
        let sample = Sample::draw(network, layer, dense, keep, &frontier, rows)?;
        let later = network.layers.iter().enumerate().skip(index + 1).filter(|(i, _)| affected.contains(i));
        frontier.release(&later.flat_map(|(_, l)| [Some(l.input.as_str()), l.partner.as_deref()]).flatten().collect::<Vec<_>>());
        let (anchor, bias) = weights_of(&cut, layer)?;
        let old = Old { weights: &anchor, bias: &bias };
        let solved = if plan.flat.contains(&index) {
            sample.constant(&anchor)
        } else {
            solve_layer(layer, sample, layer.groups_in(&cut), old, effort.rounds, plan.ranks.get(&index).copied())?
        };
        frontier.overrides.extend(constants_of(&cut, layer, &solved.weights, &solved.bias));
        factored.extend(solved.factors.map(|f| (index, f)));
    }
    let solved = with_constants(&cut, &frontier.overrides)?;
    finished(&solved, network, plan, &factored).map_err(model_error)
}

/// A network cut as planned, its weights as they were and anything in the place of factors: it takes the time of what
/// [`reconstruct`] makes.
pub(crate) fn skeleton(network: &Network, plan: &Plan) -> Result<Model, PruneError> {
    let cut = surgery::prune(&network.model, &network.coupling, &network.shapes, &plan.keep).map_err(model_error)?;
    let factors = |(&index, &rank): (&usize, &Rank)| {
        let layer = &network.layers[index];
        let (weights, _) = weights_of(&cut, layer)?;
        Ok((index, Factors::leading(&weights, rank, layer.kernel())))
    };
    let factored = plan.ranks.iter().map(factors).collect::<Result<Vec<_>, PruneError>>()?;
    finished(&cut, network, plan, &factored).map_err(model_error)
}

/// Puts factors and constants in the place of layers.
fn finished(solved: &Model, network: &Network, plan: &Plan, factored: &[(usize, Factors)]) -> Result<Model, OnnxError> {
    if factored.is_empty() && plan.flat.is_empty() {
        return Ok(solved.clone());
    }
    let mut patch = pleach_onnx::Patch::new();
    for (index, factors) in factored {
        lowrank::split(solved, &network.layers[*index], factors, &mut patch)?;
    }
    for &index in &plan.flat {
        flat::replace(solved, network, &network.layers[index], &mut patch)?;
    }
    dead::sweep(&solved.apply(&patch)?)
}

/// Rows of which the activations between two layers may be held: at most about three of the largest tensors at a time.
fn affordable_rows(network: &Network) -> usize {
    let size = |name: &str| network.shapes.at(name, 1).map_or(0, |s| s.iter().product::<usize>() * 4);
    let largest = network.layers.iter().map(|l| size(&l.input).max(size(&l.sum))).max().unwrap_or(0);
    (HELD_BYTES / (3 * largest).max(1)).max(1)
}

/// Reconstructions of so many rows whose activations may be held at the same time.
pub(crate) fn abreast(network: &Network, rows: usize) -> usize {
    (affordable_rows(network) / rows.max(1)).max(1)
}

/// Layers, by place, whose input or partner a plan changes, or that it factors.
fn affected(network: &Network, plan: &Plan) -> BTreeSet<usize> {
    let mut tensors: BTreeSet<&str> = BTreeSet::new();
    for (id, kept) in &plan.keep {
        let Some(group) = network.coupling.group(*id).filter(|g| kept.len() < g.size) else { continue };
        tensors.extend(group.tensors.iter().map(|t| t.tensor.as_str()));
    }
    let by_node = |node| network.layers.iter().position(|l| l.node == node);
    let mut layers = BTreeSet::new();
    for node in network.model.nodes() {
        let touched = node.inputs().any(|i| tensors.contains(i));
        if let Some(index) = by_node(node.id) {
            let behind = network.layers[index].partner.as_deref().is_some_and(|p| tensors.contains(p));
            if touched || behind || plan.ranks.contains_key(&index) {
                layers.insert(index);
                tensors.extend(node.outputs());
            }
        } else if touched {
            tensors.extend(node.outputs());
        }
    }
    layers
}

/// A model with constants replaced.
pub(crate) fn with_constants(model: &Model, constants: &Overrides) -> Result<Model, PruneError> {
    let mut patch = pleach_onnx::Patch::new();
    for (name, (dims, values)) in constants {
        patch.set_floats(model, name, dims, values).map_err(model_error)?;
    }
    model.apply(&patch).map_err(model_error)
}

/// What one layer is solved on.
pub(crate) struct Sample {
    /// Columns `[samples, columns]`; of a layer in groups those of all groups side by side.
    x: Rows,
    /// The dense sum `[samples, outputs]`.
    targets: Rows,
    /// The other summand in the pruned network, `[samples, outputs]`.
    residual: Option<Rows>,
    /// What each sample weighs, when not 1.
    weights: Option<Vec<f32>>,
    /// Samples that are fitted to; those behind them are held out.
    fitted: usize,
}

impl Sample {
    fn draw(
        network: &Network,
        layer: &Layer,
        dense: &LayerStatistics,
        keep: &Keep,
        frontier: &Frontier<'_>,
        rows: usize,
    ) -> Result<Self, PruneError> {
        let channels = |t: &Tensor| t.shape().get(layer.axes[0]).copied().unwrap_or(1);
        let input = frontier.get(&layer.input)?;
        let most = SAMPLE_BYTES / (4 * channels(input) * layer.taps).max(1);
        let rows = (1..=rows).rev().find(|&r| dense.positions.samples_of(r) <= most).unwrap_or(1);
        let at = dense.positions.part(0, rows);
        let x = patches(layer, floats(input)?, channels(input), &at);
        let outputs = network.outputs_staying(layer, keep);
        let targets = dense.targets.view_of(0, at.samples());
        let targets = if outputs.len() < layer.outputs { targets.columns(&outputs) } else { targets.to_rows() };
        let residual = match &layer.partner {
            Some(partner) => Some(points(layer, floats(frontier.get(partner)?)?, outputs.len(), &at)),
            None => None,
        };
        let hold = if rows >= HOLD_OUT { rows / HOLD_OUT } else { 0 };
        let fitted = at.samples_of(rows - hold);
        Ok(Self { x, targets, residual, weights: at.weights().map(<[f32]>::to_vec), fitted })
    }

    /// The constant that is nearest to what the layer should put out.
    fn constant(&self, anchor: &Mat<f64>) -> Solution {
        let wanted = self.targets.view().minus(self.residual.as_ref().map(Rows::view));
        let bias = wanted.view().means(self.weights.as_deref());
        Solution { weights: Mat::zeros(anchor.nrows(), anchor.ncols()), bias, factors: None }
    }

    /// One group's share of the columns and outputs.
    fn part(&self, columns: &[usize], outputs: &[usize]) -> Self {
        Self {
            x: self.x.view().columns(columns),
            targets: self.targets.view().columns(outputs),
            residual: self.residual.as_ref().map(|r| r.view().columns(outputs)),
            weights: self.weights.clone(),
            fitted: self.fitted,
        }
    }
}

/// Solved weights `[columns, outputs]` and bias.
#[derive(Clone, Debug)]
pub(crate) struct Solution {
    pub(crate) weights: Mat<f64>,
    pub(crate) bias: Vec<f64>,
    /// The weights as a product, when a rank was asked for.
    pub(crate) factors: Option<Factors>,
}

fn solve_layer(
    layer: &Layer,
    sample: Sample,
    groups: usize,
    old: Old<'_>,
    rounds: usize,
    rank: Option<Rank>,
) -> Result<Solution, PruneError> {
    let bias = if layer.bias.is_some() { Bias::Free } else { Bias::None };
    if groups == 1 {
        return solve(sample, old, bias, layer.activation, rounds, rank.map(|r| (r, layer.kernel())));
    }
    let (columns, outputs) = (sample.x.cols / groups, sample.targets.cols / groups);
    let one = |group: usize| -> Result<Solution, PruneError> {
        let range = |each: usize| (group * each..(group + 1) * each).collect::<Vec<_>>();
        let (own, made) = (range(columns), range(outputs));
        let weights = Mat::from_fn(columns, outputs, |c, o| old.weights[(c, made[o])]);
        let old = Old { weights: &weights, bias: old.bias.get(group * outputs..(group + 1) * outputs).unwrap_or_default() };
        solve(sample.part(&own, &made), old, bias, layer.activation, rounds, None)
    };
    let solved = (0..groups).into_par_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let weights = Mat::from_fn(columns, groups * outputs, |c, o| solved[o / outputs].weights[(c, o % outputs)]);
    Ok(Solution { weights, bias: solved.into_iter().flat_map(|s| s.bias).collect(), factors: None })
}

/// The sliced weights and bias of before.
#[derive(Clone, Copy)]
pub(crate) struct Old<'a> {
    pub(crate) weights: &'a Mat<f64>,
    pub(crate) bias: &'a [f64],
}

/// Whether a layer has a bias to be solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    Free,
    None,
}

/// Solves one layer on samples of which the first `fitted` are fitted to (all of them when that is all there are); with a rank, of its
/// kernel, as two.
pub(crate) fn solve(
    sample: Sample,
    old: Old<'_>,
    bias: Bias,
    activation: Activation,
    rounds: usize,
    rank: Option<(Rank, [usize; 2])>,
) -> Result<Solution, PruneError> {
    let Sample { mut x, targets, residual, weights, fitted } = sample;
    let fitted = fitted.clamp(1, x.rows.max(1)).min(x.rows);
    let weigh = |start: usize, end: usize| weights.as_ref().and_then(|w| w.get(start..end));
    let mean = match bias {
        Bias::Free => x.view_of(0, fitted).means(weigh(0, fitted)),
        Bias::None => vec![0.0; x.cols],
    };
    x.shift(&mean);
    // From here on columns are centred; a bias here is the output at the mean sample.
    let centred = |bias: &[f64], weights: &Mat<f64>, sign: f64| -> Vec<f64> {
        let at_mean = |o: usize| (0..mean.len()).map(|c| mean[c] * weights[(c, o)]).sum::<f64>();
        bias.iter().enumerate().map(|(o, b)| b + sign * at_mean(o)).collect()
    };
    let part = |start: usize, end: usize| Part {
        x: x.view_of(start, end),
        targets: targets.view_of(start, end),
        residual: residual.as_ref().map(|r| r.view_of(start, end)),
        weights: weigh(start, end),
        activation,
    };
    let (fit, test) = (part(0, fitted), part(if fitted < x.rows { fitted } else { 0 }, x.rows));

    let gram = gram(fit.x, fit.weights);
    let scale = mean_diagonal(&gram) + f64::MIN_POSITIVE.sqrt();
    let wanted = fit.targets.minus(fit.residual);
    let mut best = Solution { weights: old.weights.clone(), bias: centred(old.bias, old.weights, 1.0), factors: None };
    let mut least = test.error(&best);
    let few = fitted < FEW_SAMPLES * x.cols;
    let mut chosen: Option<(Factor, f64)> = None;
    for &ridge in if few { &FEW_RIDGES[..] } else { &[RIDGE][..] } {
        let factor = Factor::new(gram.clone(), ridge * scale)?;
        let solution = ridge_solve(&factor, ridge * scale, &fit, wanted.clone(), old.weights, bias);
        let reached = test.error(&solution);
        if reached < least || chosen.is_none() {
            chosen = Some((factor, ridge * scale));
        }
        if reached < least {
            (least, best) = (reached, solution);
        }
    }
    if let Some((factor, ridge)) = chosen.as_ref().filter(|_| activation != Activation::None) {
        let mut current = best.clone();
        for _ in 0..rounds {
            let majorised = fit.majorised(&current);
            current = ridge_solve(factor, *ridge, &fit, majorised, old.weights, bias);
            let reached = test.error(&current);
            if reached >= least {
                break;
            }
            (least, best) = (reached, current.clone());
        }
    }
    let free = (bias == Bias::Free).then(|| wanted.view().means(fit.weights));
    guard(&mut best, old, free.as_deref());
    if let Some((rank, kernel)) = rank {
        let factors = Factors::of(&best.weights, &gram, rank, kernel)?;
        best.weights = factors.product();
        best.factors = Some(factors);
    }
    best.bias = if bias == Bias::Free { centred(&best.bias, &best.weights, -1.0) } else { old.bias.to_vec() };
    Ok(best)
}

/// Samples to fit to or to judge by, their columns centred.
struct Part<'a> {
    x: View<'a>,
    targets: View<'a>,
    residual: Option<View<'a>>,
    weights: Option<&'a [f32]>,
    activation: Activation,
}

impl Part<'_> {
    fn sum(&self, solution: &Solution) -> Rows {
        apply(self.x, &solution.weights, &solution.bias).plus(self.residual)
    }

    /// What the layer alone should put out, so that the error behind the activation falls.
    fn majorised(&self, solution: &Solution) -> Rows {
        let mut sum = self.sum(solution);
        sum.data.par_iter_mut().zip(self.targets.data).for_each(|(z, &t)| *z = self.activation.majorised(t, *z));
        sum.view().minus(self.residual)
    }

    /// Mean squared error behind the activation.
    fn error(&self, solution: &Solution) -> f64 {
        let sum = self.sum(solution);
        let (mut error, mut total) = (0.0, 0.0);
        for (i, (z, t)) in sum.data.chunks(sum.cols.max(1)).zip(self.targets.data.chunks(sum.cols.max(1))).enumerate() {
            let weight = self.weights.and_then(|w| w.get(i)).map_or(1.0, |&w| f64::from(w));
            let square = |(z, t): (&f32, &f32)| f64::from(self.activation.apply(*z) - self.activation.apply(*t)).powi(2);
            error += weight * z.iter().zip(t).map(square).sum::<f64>();
            total += weight * z.len() as f64;
        }
        error / f64::max(total, f64::MIN_POSITIVE)
    }
}

/// Least squares, ridge toward the old weights; the bias is not penalised.
fn ridge_solve(factor: &Factor, ridge: f64, fit: &Part<'_>, mut wanted: Rows, old: &Mat<f64>, bias: Bias) -> Solution {
    let bias = match bias {
        Bias::Free => wanted.view().means(fit.weights),
        Bias::None => vec![0.0; wanted.cols],
    };
    wanted.shift(&bias);
    let mut weights = cross(fit.x, wanted.view(), fit.weights);
    weights += old * faer::Scale(ridge);
    factor.solve(&mut weights);
    Solution { weights, bias, factors: None }
}

/// Gives outputs whose weights grew beyond belief their old weights back, and the mean they should have.
fn guard(solution: &mut Solution, old: Old<'_>, means: Option<&[f64]>) {
    let norm = |m: &Mat<f64>, o: usize| (0..m.nrows()).map(|c| m[(c, o)].powi(2)).sum::<f64>().sqrt();
    let typical = (0..old.weights.ncols()).map(|o| norm(old.weights, o)).sum::<f64>() / old.weights.ncols().max(1) as f64;
    for o in 0..old.weights.ncols() {
        let grown = norm(&solution.weights, o);
        if !grown.is_finite() || grown > MAX_GAIN * norm(old.weights, o).max(typical) {
            (0..old.weights.nrows()).for_each(|c| solution.weights[(c, o)] = old.weights[(c, o)]);
            if let Some(&mean) = means.and_then(|m| m.get(o)) {
                solution.bias[o] = mean;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::noise;

    const RELU: Activation = Activation::Clip(0.0, f32::INFINITY);

    fn sample(x: Rows, targets: Rows, residual: Option<Rows>, fitted: usize) -> Sample {
        Sample { x, targets, residual, weights: None, fitted }
    }

    fn known(columns: usize, outputs: usize) -> (Mat<f64>, Vec<f64>) {
        let w = noise(columns, outputs, 11);
        (Mat::from_fn(columns, outputs, |i, j| f64::from(w.row(i)[j])), (0..outputs).map(|o| o as f64 - 1.0).collect())
    }

    fn far(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (0..a.nrows()).flat_map(|i| (0..a.ncols()).map(move |j| (i, j))).fold(0.0, |m: f64, ij| m.max((a[ij] - b[ij]).abs()))
    }

    #[test]
    fn recovers_the_weights_and_bias_that_made_the_targets() {
        let (w, b) = known(12, 3);
        let mut x = noise(2_000, 12, 5);
        x.shift(&[-3.0; 12]);
        let residual = noise(2_000, 3, 6);
        let sum = apply(x.view(), &w, &b).plus(Some(residual.view()));
        let half = Mat::from_fn(12, 3, |i, j| w[(i, j)] / 2.0);
        let old = Old { weights: &half, bias: &[0.0; 3] };
        let s = solve(sample(x, sum, Some(residual), 1_800), old, Bias::Free, Activation::None, 0, None).unwrap();
        assert!(far(&s.weights, &w) < 5e-3, "{}", far(&s.weights, &w));
        assert!(s.bias.iter().zip(&b).all(|(a, b)| (a - b).abs() < 0.06), "{:?}", s.bias);
    }

    #[test]
    fn rounds_through_relu_lower_the_held_out_error() {
        let (w, b) = (known(10, 8).0, [-0.3; 8]);
        let x = noise(4_000, 10, 21);
        let targets = apply(x.view(), &w, &b);
        let half = x.view().columns(&[0, 1, 2, 3, 4]);
        let anchor = Mat::from_fn(5, 8, |i, j| w[(i, j)]);
        let error = |rounds| {
            let old = Old { weights: &anchor, bias: &b };
            let s = solve(sample(half.clone(), targets.clone(), None, 3_500), old, Bias::Free, RELU, rounds, None).unwrap();
            let (x, targets) = (half.view_of(3_500, 4_000), targets.view_of(3_500, 4_000));
            Part { x, targets, residual: None, weights: None, activation: RELU }.error(&s)
        };
        assert!(error(2) < 0.98 * error(0), "{} {}", error(2), error(0));
    }

    #[test]
    fn keeps_old_weights_that_solving_does_not_improve() {
        let (w, b) = known(30, 2);
        let x = noise(24, 30, 2);
        let targets = apply(x.view(), &w, &b);
        let s = solve(sample(x, targets, None, 16), Old { weights: &w, bias: &b }, Bias::Free, RELU, 2, None).unwrap();
        assert!(far(&s.weights, &w) < 1e-4);
    }

    #[test]
    fn dead_columns_do_not_blow_up() {
        let (w, b) = known(6, 2);
        let mut x = noise(500, 6, 3);
        x.data.chunks_mut(6).for_each(|row| row[2] = 0.0);
        let targets = apply(x.view(), &w, &b);
        let s = solve(sample(x, targets, None, 400), Old { weights: &w, bias: &b }, Bias::Free, RELU, 2, None).unwrap();
        assert!((0..6).all(|i| (0..2).all(|j| s.weights[(i, j)].abs() < 3.0)));
    }

    #[test]
    fn one_sample_is_enough_to_not_fail() {
        let (w, b) = known(6, 2);
        let x = noise(1, 6, 3);
        let targets = apply(x.view(), &w, &b);
        assert!(solve(sample(x, targets, None, 1), Old { weights: &w, bias: &b }, Bias::Free, RELU, 2, None).is_ok());
    }
}
