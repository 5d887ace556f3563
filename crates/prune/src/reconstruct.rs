//! Reconstruction: the weights that are left, solved anew so that each layer puts out what the dense network's layer did.
//!
//! Front to back, each layer that reads a narrowed or changed input solves min ‖X̃W + R̃ − T‖² + λ‖W − W_S‖², X̃ and the residual
//! stream R̃ from the network as pruned so far, T the dense sum, W_S the sliced old weights; so errors upstream are repaired
//! downstream. The bias is solved with it and not penalised. Then up to two majorise-minimise rounds through the activation.
//! Every result is judged on held-out samples; what does not lower their error is not taken.
//!
//! Sources: He et al. 2017 ("Channel Pruning"), Dong et al. 2017 (layer-wise surgeon), Zhang et al. 2015 (nonlinear,
//! asymmetric reconstruction).

use faer::Mat;
use pleach_domain::Tensor;
use pleach_domain::runtime::Runtime;
use rayon::prelude::*;

use crate::coupling::Keep;
use crate::error::PruneError;
use crate::linear::{Factor, Rows, apply, cross, gram, mean_diagonal};
use crate::network::{Activation, Kind, Layer, Network, model_error, patches, points, stored, weights_of};
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

/// How much work a reconstruction may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Calibration rows, from the first.
    pub(crate) rows: usize,
    /// Most majorise-minimise rounds.
    pub(crate) rounds: usize,
}

/// Cuts a network to `keep` and solves what is left. Deterministic.
pub(crate) fn reconstruct(
    network: &Network,
    statistics: &Statistics,
    inputs: &Inputs<'_>,
    keep: &Keep,
    effort: Effort,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<pleach_onnx::Model, PruneError> {
    let cut = surgery::prune(&network.model, &network.coupling, &network.shapes, keep).map_err(model_error)?;
    let batch = Batch::of(&cut, BATCH_ROWS);
    let rows = effort.rows.min(statistics.fit_rows);
    let rows = if batch.fixed { rows / batch.rows * batch.rows } else { rows };
    let held = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.slice_rows(0, rows))).collect();
    let mut frontier = Frontier::new(runtime, &cut, held, batch, Stage::Reconstruct);
    let mut changed = false;
    for (index, (layer, dense)) in network.layers.iter().zip(&statistics.layers).enumerate() {
        step(progress, Stage::Reconstruct, index, network.layers.len())?;
        let inputs = network.staying(&layer.input, layer.inputs, keep);
        changed |= inputs.len() < layer.inputs;
        if !changed || rows == 0 {
            continue;
        }
        let wanted: Vec<&str> = [Some(layer.input.as_str()), layer.partner.as_deref()].into_iter().flatten().collect();
        frontier.compute(&wanted)?;
        let sample = Sample::draw(network, layer, dense, keep, &frontier, rows)?;
        let (anchor, bias) = weights_of(&cut, layer)?;
        let solved = solve_layer(layer, &sample, &anchor, &bias, effort.rounds)?;
        let dims = cut.constant_dims(&layer.weight).unwrap_or_default();
        let bias: Vec<f32> = solved.bias.iter().map(|&b| b as f32).collect();
        frontier.overrides.insert(layer.weight.clone(), (dims, stored(layer, &solved.weights)));
        frontier.overrides.insert(layer.bias.clone(), (vec![bias.len()], bias));
        let later = network.layers.iter().skip(index + 1);
        frontier.release(&later.flat_map(|l| [Some(l.input.as_str()), l.partner.as_deref()]).flatten().collect::<Vec<_>>());
    }
    with_constants(&cut, &frontier.overrides)
}

/// A model with constants replaced.
pub(crate) fn with_constants(model: &pleach_onnx::Model, constants: &Overrides) -> Result<pleach_onnx::Model, PruneError> {
    let mut patch = pleach_onnx::Patch::new();
    for (name, (dims, values)) in constants {
        patch.set_floats(model, name, dims, values).map_err(model_error)?;
    }
    model.apply(&patch).map_err(model_error)
}

/// What one layer is solved on.
struct Sample {
    /// Columns `[samples, columns]`; of a depthwise layer those of all channels.
    x: Rows,
    /// The dense sum `[samples, outputs]`.
    targets: Rows,
    /// The other summand in the pruned network, `[samples, outputs]`.
    residual: Option<Rows>,
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
        let at = dense.positions.slice(0, rows);
        let channels = |t: &Tensor| t.shape().get(1).copied().unwrap_or(1);
        let input = frontier.get(&layer.input)?;
        let x = patches(layer, floats(input)?, channels(input), &at);
        let outputs = network.staying(&layer.output, layer.outputs, keep);
        let per_row = if layer.window().is_some() { at.per_image } else { 1 };
        let targets = dense.targets.part(0, rows * per_row);
        let targets = if outputs.len() < layer.outputs { targets.columns(&outputs) } else { targets };
        let residual = match &layer.partner {
            Some(partner) => Some(points(layer, floats(frontier.get(partner)?)?, outputs.len(), &at)),
            None => None,
        };
        let hold = if rows >= HOLD_OUT { rows / HOLD_OUT } else { 0 };
        Ok(Self { x, targets, residual, fitted: (rows - hold) * per_row })
    }
}

/// Solved weights `[columns, outputs]` and bias.
#[derive(Clone, Debug)]
pub(crate) struct Solution {
    pub(crate) weights: Mat<f64>,
    pub(crate) bias: Vec<f64>,
}

fn solve_layer(layer: &Layer, sample: &Sample, anchor: &Mat<f64>, bias: &[f64], rounds: usize) -> Result<Solution, PruneError> {
    let Sample { x, targets, residual, fitted } = sample;
    if !matches!(layer.kind, Kind::Depthwise(_)) {
        return solve(x.clone(), targets, residual.as_ref(), *fitted, Old { weights: anchor, bias }, layer.activation, rounds);
    }
    let one = |channel: usize| -> Result<Solution, PruneError> {
        let taps: Vec<usize> = (channel * layer.taps..(channel + 1) * layer.taps).collect();
        let (x, targets) = (x.columns(&taps), targets.columns(&[channel]));
        let residual = residual.as_ref().map(|r| r.columns(&[channel]));
        let weights = Mat::from_fn(layer.taps, 1, |t, _| anchor[(t, channel)]);
        let old = Old { weights: &weights, bias: bias.get(channel..=channel).unwrap_or_default() };
        solve(x, &targets, residual.as_ref(), *fitted, old, layer.activation, rounds)
    };
    let solved = (0..anchor.ncols()).into_par_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let weights = Mat::from_fn(layer.taps, solved.len(), |t, c| solved[c].weights[(t, 0)]);
    Ok(Solution { weights, bias: solved.iter().map(|s| s.bias[0]).collect() })
}

/// The sliced weights and bias of before.
#[derive(Clone, Copy)]
pub(crate) struct Old<'a> {
    pub(crate) weights: &'a Mat<f64>,
    pub(crate) bias: &'a [f64],
}

/// Solves one layer on samples of which the first `fitted` are fitted to (all of them when that is all there are).
pub(crate) fn solve(
    mut x: Rows,
    targets: &Rows,
    residual: Option<&Rows>,
    fitted: usize,
    old: Old<'_>,
    activation: Activation,
    rounds: usize,
) -> Result<Solution, PruneError> {
    let fitted = fitted.clamp(1, x.rows.max(1)).min(x.rows);
    let mean = x.part(0, fitted).means();
    x.shift(&mean);
    // From here on columns are centred; a bias here is the output at the mean sample.
    let centred = |bias: &[f64], weights: &Mat<f64>, sign: f64| -> Vec<f64> {
        let at_mean = |o: usize| (0..mean.len()).map(|c| mean[c] * weights[(c, o)]).sum::<f64>();
        bias.iter().enumerate().map(|(o, b)| b + sign * at_mean(o)).collect()
    };
    let fit = x.part(0, fitted);
    let (fit_targets, fit_residual) = (targets.part(0, fitted), residual.map(|r| r.part(0, fitted)));
    let held = if fitted < x.rows { fitted } else { 0 };
    let test = (x.part(held, x.rows), targets.part(held, x.rows), residual.map(|r| r.part(held, x.rows)));
    let error = |s: &Solution| error_of(&test.0, &test.1, test.2.as_ref(), s, activation);

    let gram = gram(&fit);
    let scale = mean_diagonal(&gram) + f64::MIN_POSITIVE.sqrt();
    let wanted = minus(&fit_targets, fit_residual.as_ref());
    let mut best = Solution { weights: old.weights.clone(), bias: centred(old.bias, old.weights, 1.0) };
    let mut least = error(&best);
    let few = fitted < FEW_SAMPLES * x.cols;
    let mut chosen: Option<(Factor, f64)> = None;
    for &ridge in if few { &FEW_RIDGES[..] } else { &[RIDGE][..] } {
        let factor = Factor::new(gram.clone(), ridge * scale)?;
        let solution = ridge_solve(&factor, ridge * scale, &fit, wanted.clone(), old.weights);
        let reached = error(&solution);
        if reached < least || chosen.is_none() {
            chosen = Some((factor, ridge * scale));
        }
        if reached < least {
            (least, best) = (reached, solution);
        }
    }
    if let (Some((factor, ridge)), Activation::Clip(low, high)) = (&chosen, activation) {
        let mut current = best.clone();
        for _ in 0..rounds {
            let output = plus(apply(&fit, &current.weights, &current.bias), fit_residual.as_ref());
            let majorised = minus(&majorise(&fit_targets, output, low, high), fit_residual.as_ref());
            current = ridge_solve(factor, *ridge, &fit, majorised, old.weights);
            let reached = error(&current);
            if reached >= least {
                break;
            }
            (least, best) = (reached, current.clone());
        }
    }
    guard(&mut best, old, &wanted);
    let bias = centred(&best.bias, &best.weights, -1.0);
    Ok(Solution { weights: best.weights, bias })
}

/// Least squares on centred columns, ridge toward the old weights, free bias.
fn ridge_solve(factor: &Factor, ridge: f64, x: &Rows, mut wanted: Rows, old: &Mat<f64>) -> Solution {
    let bias = wanted.means();
    wanted.shift(&bias);
    let mut weights = cross(x, &wanted);
    weights += old * faer::Scale(ridge);
    factor.solve(&mut weights);
    Solution { weights, bias }
}

/// Gives outputs whose weights grew beyond belief their old weights back, and the mean they should have.
fn guard(solution: &mut Solution, old: Old<'_>, wanted: &Rows) {
    let norm = |m: &Mat<f64>, o: usize| (0..m.nrows()).map(|c| m[(c, o)].powi(2)).sum::<f64>().sqrt();
    let typical = (0..old.weights.ncols()).map(|o| norm(old.weights, o)).sum::<f64>() / old.weights.ncols().max(1) as f64;
    for (o, mean) in wanted.means().into_iter().enumerate() {
        let grown = norm(&solution.weights, o);
        if !grown.is_finite() || grown > MAX_GAIN * norm(old.weights, o).max(typical) {
            (0..old.weights.nrows()).for_each(|c| solution.weights[(c, o)] = old.weights[(c, o)]);
            solution.bias[o] = mean;
        }
    }
}

/// The target whose squared distance majorises that behind the activation: where the dense value is cut off, any value beyond
/// the bound will do.
fn majorise(targets: &Rows, mut output: Rows, low: f32, high: f32) -> Rows {
    for (z, &t) in output.data.iter_mut().zip(&targets.data) {
        *z = if t <= low {
            z.min(low)
        } else if t >= high {
            z.max(high)
        } else {
            t
        };
    }
    output
}

/// Mean squared error behind the activation.
fn error_of(x: &Rows, targets: &Rows, residual: Option<&Rows>, solution: &Solution, activation: Activation) -> f64 {
    let output = plus(apply(x, &solution.weights, &solution.bias), residual);
    let squares = |(z, t): (&f32, &f32)| f64::from(activation.apply(*z) - activation.apply(*t)).powi(2);
    output.data.iter().zip(&targets.data).map(squares).sum::<f64>() / output.data.len().max(1) as f64
}

fn plus(mut a: Rows, b: Option<&Rows>) -> Rows {
    if let Some(b) = b {
        a.data.iter_mut().zip(&b.data).for_each(|(a, b)| *a += b);
    }
    a
}

fn minus(a: &Rows, b: Option<&Rows>) -> Rows {
    let mut a = a.clone();
    if let Some(b) = b {
        a.data.iter_mut().zip(&b.data).for_each(|(a, b)| *a -= b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::noise;

    const RELU: Activation = Activation::Clip(0.0, f32::INFINITY);

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
        let (targets, residual) = (apply(&x, &w, &b), noise(2_000, 3, 6));
        let sum = plus(targets, Some(&residual));
        let half = Mat::from_fn(12, 3, |i, j| w[(i, j)] / 2.0);
        let old = Old { weights: &half, bias: &[0.0; 3] };
        let s = solve(x, &sum, Some(&residual), 1_800, old, Activation::None, 0).unwrap();
        assert!(far(&s.weights, &w) < 5e-3, "{}", far(&s.weights, &w));
        assert!(s.bias.iter().zip(&b).all(|(a, b)| (a - b).abs() < 0.06), "{:?}", s.bias);
    }

    #[test]
    fn rounds_through_relu_lower_the_held_out_error() {
        let (w, b) = (known(10, 8).0, [-0.3; 8]);
        let x = noise(4_000, 10, 21);
        let targets = apply(&x, &w, &b);
        let half = x.columns(&[0, 1, 2, 3, 4]);
        let anchor = Mat::from_fn(5, 8, |i, j| w[(i, j)]);
        let error = |rounds| {
            let s = solve(half.clone(), &targets, None, 3_500, Old { weights: &anchor, bias: &b }, RELU, rounds).unwrap();
            error_of(&half.part(3_500, 4_000), &targets.part(3_500, 4_000), None, &s, RELU)
        };
        assert!(error(2) < 0.98 * error(0), "{} {}", error(2), error(0));
    }

    #[test]
    fn keeps_old_weights_that_solving_does_not_improve() {
        let (w, b) = known(30, 2);
        let x = noise(24, 30, 2);
        let targets = apply(&x, &w, &b);
        let s = solve(x, &targets, None, 16, Old { weights: &w, bias: &b }, RELU, 2).unwrap();
        assert!(far(&s.weights, &w) < 1e-4);
    }

    #[test]
    fn dead_columns_do_not_blow_up() {
        let (w, b) = known(6, 2);
        let mut x = noise(500, 6, 3);
        x.data.chunks_mut(6).for_each(|row| row[2] = 0.0);
        let targets = apply(&x, &w, &b);
        let s = solve(x, &targets, None, 400, Old { weights: &w, bias: &b }, RELU, 2).unwrap();
        assert!((0..6).all(|i| (0..2).all(|j| s.weights[(i, j)].abs() < 3.0)));
    }

    #[test]
    fn one_sample_is_enough_to_not_fail() {
        let (w, b) = known(6, 2);
        let x = noise(1, 6, 3);
        let targets = apply(&x, &w, &b);
        assert!(solve(x, &targets, None, 1, Old { weights: &w, bias: &b }, RELU, 2).is_ok());
    }
}
