//! What calibration data say about a dense network: Gram matrices of the layers' inputs, and what each layer should put out.
//!
//! The model runs batch by batch with the activations it needs as extra outputs; of each convolution only a few positions an
//! image are looked at, so memory is one batch and the targets.

use std::collections::BTreeMap;

use faer::Mat;
use pleach_domain::Tensor;
use pleach_domain::runtime::Runtime;
use pleach_onnx::Patch;
use pleach_onnx::builder::{ElementKind, value_info};

use crate::error::PruneError;
use crate::linear::{Rows, gram};
use crate::network::{Kind, Layer, Network, Positions, model_error, patches, points};
use crate::progress::{Progress, Stage, step};
use crate::run::{Batch, Inputs, Runner, floats};

/// Fewest and most output positions of a convolution that are looked at in one image.
const POSITIONS: (usize, usize) = (16, 64);
/// Samples wanted for each column of a layer.
const SAMPLES_PER_COLUMN: usize = 10;
/// Activations of one batch, in bytes.
const BATCH_BYTES: usize = 64 << 20;

/// Statistics of one layer.
#[derive(Debug)]
pub(crate) struct LayerStatistics {
    /// Output positions looked at, for each fitting row.
    pub(crate) positions: Positions,
    /// The sum before the activation at those positions, `[rows * positions, outputs]`.
    pub(crate) targets: Rows,
    /// Mean of each column; empty where no group narrows the input.
    pub(crate) mean: Vec<f64>,
    /// Centred Gram matrix of the columns, divided by the samples; empty where no group narrows the input.
    pub(crate) gram: Mat<f64>,
}

/// Statistics of a dense network.
#[derive(Debug)]
pub(crate) struct Statistics {
    /// Rows that solves are fitted to; those behind them are held out.
    pub(crate) fit_rows: usize,
    /// In the order of the network's layers.
    pub(crate) layers: Vec<LayerStatistics>,
    /// The model's output on every calibration row, `[rows, classes]`.
    pub(crate) scores: Rows,
}

/// The Gram sums of one layer while batches flow.
struct Sums {
    /// Subtracted from every sample, so that sums of squares keep their digits.
    shift: Vec<f64>,
    sum: Vec<f64>,
    squares: Mat<f64>,
    samples: usize,
}

/// Bytes of activations that one row needs when every layer is looked at.
fn row_bytes(network: &Network) -> usize {
    let size = |name: &str| network.shapes.at(name, 1).map_or(0, |s| s.iter().product::<usize>() * 4);
    network.layers.iter().map(|l| size(&l.input) + size(&l.sum)).sum()
}

/// Collects statistics on all rows of `inputs`, the first `fit_rows` of which are fitted to.
pub(crate) fn collect(
    network: &Network,
    inputs: &Inputs<'_>,
    fit_rows: usize,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Statistics, PruneError> {
    let score = score_output(network)?;
    let given: Vec<String> = network.model.inputs().into_iter().map(|i| i.name).collect();
    let mut names: Vec<&str> = network.layers.iter().flat_map(|l| [l.input.as_str(), l.sum.as_str()]).chain([score.as_str()]).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|n| given.iter().all(|g| g != n));
    let mut patch = Patch::new();
    patch.set_outputs(names.iter().map(|n| value_info(n, ElementKind::Float, None)).collect());
    let watched = network.model.apply(&patch).map_err(model_error)?;
    let batch = Batch::of(&network.model, (BATCH_BYTES / row_bytes(network).max(1)).clamp(1, 64));
    let runner = Runner::new(runtime, &watched, batch.rows, Stage::Statistics)?;

    let rows = inputs.values().next().map_or(0, |t| t.rows());
    let mut layers: Vec<Collector> = network.layers.iter().enumerate().map(|(i, l)| Collector::new(network, l, i, fit_rows)).collect();
    let mut scores = Rows::default();
    runner.for_each(inputs, batch.fixed, |start, outputs| {
        step(progress, Stage::Statistics, start, rows)?;
        let found: BTreeMap<&str, &Tensor> = names.iter().copied().zip(&outputs).collect();
        let end = (start + batch.rows).min(rows);
        let given: BTreeMap<&str, Tensor> = inputs.iter().map(|(n, t)| (*n, t.slice_rows(start, end))).collect();
        let find = |name: &str| found.get(name).copied().or_else(|| given.get(name));
        let logits = find(&score).map(floats).transpose()?.unwrap_or_default();
        scores.rows += end - start;
        scores.cols = logits.len() / (end - start).max(1);
        scores.data.extend_from_slice(logits);
        for (collector, layer) in layers.iter_mut().zip(&network.layers) {
            let (Some(input), Some(sum)) = (find(&layer.input), find(&layer.sum)) else { continue };
            collector.add(layer, floats(input)?, floats(sum)?, start, (end - start).min(fit_rows.saturating_sub(start)));
        }
        Ok(())
    })?;
    let layers = layers.into_iter().map(Collector::finish).collect();
    Ok(Statistics { fit_rows: fit_rows.min(scores.rows), layers, scores })
}

/// The one output that a classifier has: `[rows, classes]`.
pub(crate) fn score_output(network: &Network) -> Result<String, PruneError> {
    let outputs = network.model.outputs();
    match outputs.as_slice() {
        [only] if network.shapes.axes(&only.name).is_some_and(|a| a.len() == 2) => Ok(only.name.clone()),
        _ => {
            let got = outputs.iter().map(|o| format!("{} {:?}", o.name, network.shapes.at(&o.name, 1))).collect::<Vec<_>>().join(", ");
            Err(PruneError::Unsupported { expected: "one output of shape [rows, classes]", got: format!("outputs {got}") })
        }
    }
}

struct Collector {
    positions: Positions,
    targets: Rows,
    sums: Option<Sums>,
}

impl Collector {
    fn new(network: &Network, layer: &Layer, index: usize, fit_rows: usize) -> Self {
        let area = layer.positions[0] * layer.positions[1];
        let wanted = (SAMPLES_PER_COLUMN * layer.columns()).div_ceil(fit_rows.max(1)).clamp(POSITIONS.0, POSITIONS.1);
        let positions = Positions::draw(area, wanted, fit_rows, index as u64);
        let narrowed = !network.input_groups(layer).is_empty() && !matches!(layer.kind, Kind::Depthwise(_));
        let (columns, outputs) = (layer.columns(), layer.outputs);
        let sums = narrowed.then(|| Sums { shift: Vec::new(), sum: vec![0.0; columns], squares: Mat::zeros(columns, columns), samples: 0 });
        Self { positions, targets: Rows::new(0, outputs, Vec::new()), sums }
    }

    /// Adds the first `rows` rows of a batch that starts at row `start`.
    fn add(&mut self, layer: &Layer, input: &[f32], sum: &[f32], start: usize, rows: usize) {
        if rows == 0 {
            return;
        }
        let at = self.positions.slice(start, rows);
        let part = |data: &[f32], channels: usize, space: [usize; 2]| data.len().min(rows * channels * space[0] * space[1]);
        let sum = sum.get(..part(sum, layer.outputs, layer.positions)).unwrap_or_default();
        let found = points(layer, sum, layer.outputs, &at);
        self.targets.rows += found.rows;
        self.targets.data.extend(found.data);
        let Some(sums) = &mut self.sums else { return };
        let input = input.get(..part(input, layer.inputs, layer.image)).unwrap_or_default();
        let mut samples = patches(layer, input, layer.inputs, &at);
        if sums.shift.is_empty() {
            sums.shift = samples.means();
        }
        samples.shift(&sums.shift);
        sums.samples += samples.rows;
        sums.sum.iter_mut().zip(samples.means()).for_each(|(s, m)| *s += m * samples.rows as f64);
        sums.squares += gram(&samples);
    }

    fn finish(self) -> LayerStatistics {
        let Some(sums) = self.sums else {
            return LayerStatistics { positions: self.positions, targets: self.targets, mean: Vec::new(), gram: Mat::new() };
        };
        let n = sums.samples.max(1) as f64;
        let off: Vec<f64> = sums.sum.iter().map(|s| s / n).collect();
        let size = off.len();
        let gram = Mat::from_fn(size, size, |i, j| sums.squares[(i, j)] / n - off[i] * off[j]);
        let mean = off.iter().zip(&sums.shift).map(|(o, s)| o + s).collect();
        LayerStatistics { positions: self.positions, targets: self.targets, mean, gram }
    }
}

/// Mean Kullback-Leibler divergence of two classifiers' outputs over rows, in nats. Outputs that are no distributions yet go
/// through a softmax first.
pub(crate) fn divergence(teacher: &Rows, student: &Rows) -> f64 {
    let mut sum = 0.0;
    let rows = teacher.rows.min(student.rows);
    for row in 0..rows {
        let (p, q) = (log_distribution(teacher.row(row)), log_distribution(student.row(row)));
        sum += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }
    sum / rows.max(1) as f64
}

fn log_distribution(scores: &[f32]) -> Vec<f64> {
    let total: f64 = scores.iter().map(|&s| f64::from(s)).sum();
    if scores.len() > 1 && scores.iter().all(|&s| s >= 0.0) && (total - 1.0).abs() < 1e-3 {
        return scores.iter().map(|&s| f64::from(s).max(1e-12).ln()).collect();
    }
    let top = scores.iter().fold(f64::NEG_INFINITY, |a, &s| a.max(f64::from(s)));
    let log_sum = scores.iter().map(|&s| (f64::from(s) - top).exp()).sum::<f64>().ln();
    scores.iter().map(|&s| f64::from(s) - top - log_sum).collect()
}

/// The class of highest score in each row.
pub(crate) fn classes(scores: &Rows) -> Vec<usize> {
    let best = |row: &[f32]| row.iter().enumerate().fold((0, f32::NEG_INFINITY), |b, (i, &s)| if s > b.1 { (i, s) } else { b }).0;
    (0..scores.rows).map(|r| best(scores.row(r))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_equal_outputs_is_zero_and_grows_with_distance() {
        let a = Rows::new(2, 2, vec![2.0, 1.0, 0.5, -2.0]);
        let b = Rows::new(2, 2, vec![1.0, 2.0, 0.5, -2.0]);
        assert!(divergence(&a, &a).abs() < 1e-12);
        // p = (e, 1) / (e + 1): KL = p0 - p1 over one of two rows
        let p = 1f64.exp() / (1.0 + 1f64.exp());
        assert!((divergence(&a, &b) - (2.0 * p - 1.0) / 2.0).abs() < 1e-7);
    }

    #[test]
    fn probabilities_are_not_put_through_a_softmax_again() {
        let p = Rows::new(1, 2, vec![0.9, 0.1]);
        let q = Rows::new(1, 2, vec![0.5, 0.5]);
        let want = 0.9 * (0.9f64 / 0.5).ln() + 0.1 * (0.1f64 / 0.5).ln();
        assert!((divergence(&p, &q) - want).abs() < 1e-6);
        assert_eq!(classes(&p), [0]);
    }
}
