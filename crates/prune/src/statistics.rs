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
use rayon::prelude::*;

use crate::error::PruneError;
use crate::linear::{Rows, gram};
use crate::network::{Layer, Network, model_error, patches, points};
use crate::positions::Positions;
use crate::progress::{Progress, Stage, step};
use crate::run::{Batch, Inputs, Runner, floats, threads};
use crate::task::{Emphasis, Task};

/// Fewest and most output positions of a convolution that are looked at in one image.
const POSITIONS: (usize, usize) = (16, 64);
/// Fewest positions where many layers share the memory of the targets.
const FEWEST: usize = 4;
/// Targets of all layers together, in bytes.
const TARGET_BYTES: usize = 768 << 20;
/// Samples wanted for each column of a layer.
const SAMPLES_PER_COLUMN: usize = 10;
/// Activations of one batch, in bytes.
const BATCH_BYTES: usize = 64 << 20;

/// Statistics of one layer.
#[derive(Debug)]
pub(crate) struct LayerStatistics {
    /// Output positions looked at, for each fitting row.
    pub(crate) positions: Positions,
    /// The sum before the activation at those positions, `[samples, outputs]`.
    pub(crate) targets: Rows,
    /// Mean of each column, those of all groups side by side; empty where no group narrows the input.
    pub(crate) mean: Vec<f64>,
    /// For each group of the layer the centred Gram matrix of its columns, divided by the samples' weight; empty where no group
    /// narrows the input, and of depthwise layers.
    pub(crate) grams: Vec<Mat<f64>>,
}

impl LayerStatistics {
    /// Frees what only ranking and probing need.
    pub(crate) fn forget_grams(&mut self) {
        (self.mean, self.grams) = (Vec::new(), Vec::new());
    }
}

/// Statistics of a dense network.
#[derive(Debug)]
pub(crate) struct Statistics {
    /// Rows that solves are fitted to; those behind them are held out.
    pub(crate) fit_rows: usize,
    /// In the order of the network's layers.
    pub(crate) layers: Vec<LayerStatistics>,
    /// Calibration rows.
    pub(crate) rows: usize,
    /// Weights of the places in every calibration row.
    pub(crate) emphasis: Emphasis,
    /// The model's answers to the rows that are held out (to all, when there are none), `[rows, width]`.
    pub(crate) answers: Rows,
}

/// The Gram sums of one layer while batches flow.
struct Sums {
    /// Subtracted from every sample, so that sums of squares keep their digits.
    shift: Vec<f64>,
    sum: Vec<f64>,
    squares: Vec<Mat<f64>>,
    weight: f64,
}

/// Bytes of activations that one row needs when every layer is looked at.
fn row_bytes(network: &Network) -> usize {
    let size = |name: &str| network.shapes.at(name, 1).map_or(0, |s| s.iter().product::<usize>() * 4);
    network.layers.iter().map(|l| size(&l.input) + size(&l.sum)).sum()
}

/// Collects statistics on all rows of `inputs`, the first `fit_rows` of which are fitted to.
pub(crate) fn collect(
    network: &Network,
    task: &Task,
    inputs: &Inputs<'_>,
    fit_rows: usize,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Statistics, PruneError> {
    let given: Vec<String> = network.model.inputs().into_iter().map(|i| i.name).collect();
    let mut names: Vec<&str> = network.layers.iter().flat_map(|l| [l.input.as_str(), l.sum.as_str()]).chain(task.output_names()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|n| given.iter().all(|g| g != n));
    let mut patch = Patch::new();
    patch.set_outputs(names.iter().map(|n| value_info(n, ElementKind::Float, None)).collect());
    let watched = network.model.apply(&patch).map_err(model_error)?;
    let batch = Batch::of(&network.model, (BATCH_BYTES / row_bytes(network).max(1)).clamp(1, 64));
    let runner = Runner::new(runtime, &watched, batch.rows, Stage::Statistics, threads())?;

    let rows = inputs.values().next().map_or(0, |t| t.rows());
    let mut layers: Vec<Collector> = network.layers.iter().enumerate().map(|(i, l)| Collector::new(network, l, i, fit_rows)).collect();
    let (mut emphasis, mut answers) = (Emphasis::default(), Rows::new(0, task.width(), Vec::new()));
    let held = if fit_rows < rows { fit_rows } else { 0 };
    let mut seen = 0;
    runner.for_each(inputs, batch.fixed, |start, outputs| {
        step(progress, Stage::Statistics, start, rows)?;
        let found: BTreeMap<&str, &Tensor> = names.iter().copied().zip(&outputs).collect();
        let end = (start + batch.rows).min(rows);
        let given: BTreeMap<&str, Tensor> = inputs.iter().map(|(n, t)| (*n, t.slice_rows(start, end))).collect();
        let find = |name: &str| found.get(name).copied().or_else(|| given.get(name));
        let found = task.answers(end - start, find)?;
        let here = task.emphasis(&given.iter().map(|(n, t)| (*n, t)).collect(), &found);
        let behind = found.part(held.saturating_sub(start).min(found.rows), found.rows);
        answers.rows += behind.rows;
        answers.data.extend(behind.data);
        seen = end;
        for (collector, layer) in layers.iter_mut().zip(&network.layers) {
            let (Some(input), Some(sum)) = (find(&layer.input), find(&layer.sum)) else { continue };
            collector.add(layer, floats(input)?, floats(sum)?, &here, start, (end - start).min(fit_rows.saturating_sub(start)));
        }
        emphasis.extend(here);
        Ok(())
    })?;
    let layers = layers.into_iter().map(Collector::finish).collect();
    Ok(Statistics { fit_rows: fit_rows.min(seen), layers, rows: seen, emphasis, answers })
}

struct Collector {
    /// Positions wanted of each row.
    wanted: usize,
    positions: Positions,
    targets: Rows,
    sums: Option<Sums>,
}

impl Collector {
    fn new(network: &Network, layer: &Layer, index: usize, fit_rows: usize) -> Self {
        let wanted = (SAMPLES_PER_COLUMN * layer.columns()).div_ceil(fit_rows.max(1)).clamp(POSITIONS.0, POSITIONS.1);
        let affordable = TARGET_BYTES / (4 * layer.outputs * network.layers.len() * fit_rows.max(1)).max(1);
        let narrowed = !network.input_groups(layer).is_empty() && !layer.depthwise();
        let columns = layer.columns();
        let sums = narrowed.then(|| Sums {
            shift: Vec::new(),
            sum: vec![0.0; columns * layer.groups()],
            squares: vec![Mat::zeros(columns, columns); layer.groups()],
            weight: 0.0,
        });
        let targets = Rows::new(0, layer.outputs, Vec::new());
        Self { wanted: wanted.min(affordable.max(FEWEST)), positions: Positions::new(index as u64), targets, sums }
    }

    /// Adds the first `rows` rows of a batch that starts at row `start`; `emphasis` is that of the rows from there.
    fn add(&mut self, layer: &Layer, input: &[f32], sum: &[f32], emphasis: &Emphasis, start: usize, rows: usize) {
        for row in 0..rows {
            self.positions.draw(row, layer.positions, self.wanted, emphasis);
        }
        let at = self.positions.part(start, start + rows);
        if at.samples() == 0 {
            return;
        }
        let found = points(layer, sum, layer.outputs, &at);
        self.targets.rows += found.rows;
        self.targets.data.extend(found.data);
        let Some(sums) = &mut self.sums else { return };
        let mut samples = patches(layer, input, layer.inputs, &at);
        let weights = at.weights();
        if sums.shift.is_empty() {
            sums.shift = samples.view().means(weights);
        }
        samples.shift(&sums.shift);
        let weight = weights.map_or(samples.rows as f64, |w| w.iter().map(|&w| f64::from(w)).sum());
        sums.weight += weight;
        sums.sum.iter_mut().zip(samples.view().means(weights)).for_each(|(s, m)| *s += m * weight);
        if let [only] = sums.squares.as_mut_slice() {
            *only += gram(samples.view(), weights);
            return;
        }
        let columns = layer.columns();
        sums.squares.par_iter_mut().enumerate().for_each(|(g, squares)| {
            let own: Vec<usize> = (g * columns..(g + 1) * columns).collect();
            *squares += gram(samples.view().columns(&own).view(), weights);
        });
    }

    fn finish(self) -> LayerStatistics {
        let Self { positions, targets, sums, .. } = self;
        let Some(sums) = sums.filter(|s| s.weight > 0.0) else {
            return LayerStatistics { positions, targets, mean: Vec::new(), grams: Vec::new() };
        };
        let off: Vec<f64> = sums.sum.iter().map(|s| s / sums.weight).collect();
        let centred = |(g, squares): (usize, &Mat<f64>)| {
            let n = squares.nrows();
            Mat::from_fn(n, n, |i, j| squares[(i, j)] / sums.weight - off[g * n + i] * off[g * n + j])
        };
        let grams = sums.squares.iter().enumerate().map(centred).collect();
        LayerStatistics { positions, targets, mean: off.iter().zip(&sums.shift).map(|(o, s)| o + s).collect(), grams }
    }
}
