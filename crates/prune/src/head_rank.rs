//! Head dims by rank: a change of basis of each attention head that sorts its dims by what they are worth.
//!
//! Scores are bilinear in queries and keys, and outputs linear in values, so any invertible matrix may be folded into the
//! weights of the one side and its inverse into those of the other ([`Rotation`]). With the basis below the last dims of a head carry
//! least, and removing dims, which is plain surgery, reduces the head's rank with the least error:
//!
//! - Queries and keys: R_q = (QᵀQ)^½ and R_k = cov(K)^½ (softmax ignores what all keys share), R_q R_k = U s Vᵀ; Q becomes
//!   Q R_q⁻¹ U s^½, K becomes K R_q U s^-½ = K R_k⁻¹ V s^½. The first r dims are the best scores of rank r (Eckart and Young, on
//!   whitened factors).
//! - Values: R = cov(C)^½ of the head's context C, R W_o = U s Vᵀ; V becomes V R⁻¹ U, W_o becomes Uᵀ R W_o.
//!
//! Gram matrices come from a first look at the calibration data, padding left out; nothing is changed but the weights.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;
use pleach_domain::Tensor;
use pleach_domain::runtime::Runtime;
use pleach_onnx::builder::{ElementKind, value_info};
use pleach_onnx::{Model, Patch, Shapes};

use crate::coupling::{Block, Coupling, Group, GroupId, Rotation};
use crate::error::PruneError;
use crate::linear::{Rows, add_product, eigen, gram};
use crate::network::model_error;
use crate::progress::{Progress, Stage, step};
use crate::run::{Batch, Inputs, Runner, floats, threads};
use crate::surgery::change_basis;
use crate::task::Task;

/// Calibration rows that are looked at.
const ROWS: usize = 256;
/// Rows the runtime takes at once.
const BATCH_ROWS: usize = 16;
/// Least eigenvalue of a Gram matrix, as a share of its largest: what is below is noise, and its inverse would not fit single precision.
const FLOOR: f64 = 1e-6;

/// Rotates every group that allows it. Returns the changed model and the groups whose units are now sorted, the most worthy first.
///
/// # Errors
/// [`PruneError::Runtime`], [`PruneError::Numerics`], [`PruneError::Cancelled`].
pub(crate) fn rotate(
    model: &Model,
    shapes: &Shapes,
    coupling: &Coupling,
    task: &Task,
    inputs: &Inputs<'_>,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<(Model, BTreeSet<GroupId>), PruneError> {
    let mut sources = BTreeSet::new();
    let groups: Vec<&Group> =
        coupling.groups.iter().filter(|g| sources_of(model, shapes, g).map(|s| sources.extend(s)).is_some()).collect();
    if groups.is_empty() {
        return Ok((model.clone(), BTreeSet::new()));
    }
    let grams = collect(model, task, &sources, inputs, runtime, progress)?;
    let (mut changed, mut sorted) = (model.clone(), BTreeSet::new());
    for group in groups {
        if let Some(next) = rotated(&changed, group, &grams)? {
            changed = next;
            sorted.insert(group.id);
        }
    }
    Ok((changed, sorted))
}

/// The Gram matrix of a tensor's last axis and a column of ones behind it.
type Grams = BTreeMap<String, Mat<f64>>;

/// The tensors whose Gram matrices a group's rotation needs; `None` when it has none, or one that is not seen on last axes.
fn sources_of(model: &Model, shapes: &Shapes, group: &Group) -> Option<Vec<String>> {
    let plain = |tensor: &str| shapes.axes(tensor).is_some_and(|axes| axes.len() >= 2);
    let sources = match &group.rotation {
        Rotation::None => return None,
        Rotation::Bilinear { left, right } => {
            let made = |block: &Block| group.producers.iter().find(|p| p.weight == block.constant && p.axis == 1 && block.axis == 1);
            let weights = left.iter().chain(right).filter(|b| model.constant_dims(&b.constant).is_some_and(|d| d.len() == 2));
            weights.map(|b| Some(model.node(made(b)?.node)?.input(0)?.to_owned())).collect::<Option<Vec<_>>>()?
        }
        Rotation::Linear { read, .. } => {
            let reads = |block: &Block| group.consumers.iter().find(|c| c.weight == block.constant && c.axis == 0 && block.axis == 0);
            let mut inputs: Vec<String> = read.iter().map(|b| Some(reads(b)?.input.clone())).collect::<Option<_>>()?;
            inputs.dedup();
            (inputs.len() == 1).then_some(inputs)?
        }
    };
    (!sources.is_empty() && sources.iter().all(|s| plain(s))).then_some(sources)
}

fn collect(
    model: &Model,
    task: &Task,
    sources: &BTreeSet<String>,
    inputs: &Inputs<'_>,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Grams, PruneError> {
    let mut names: Vec<&str> = sources.iter().map(String::as_str).chain(task.output_names()).collect();
    names.sort_unstable();
    names.dedup();
    let mut patch = Patch::new();
    patch.set_outputs(names.iter().map(|n| value_info(n, ElementKind::Float, None)).collect());
    let watched = model.apply(&patch).map_err(model_error)?;
    let first: BTreeMap<&str, Tensor> = inputs.iter().map(|(n, t)| (*n, t.slice_rows(0, ROWS))).collect();
    let inputs: Inputs<'_> = first.iter().map(|(n, t)| (*n, t)).collect();
    let all = inputs.values().next().map_or(0, |t| t.rows());
    let batch = Batch::of(model, BATCH_ROWS);
    let mut grams = Grams::new();
    Runner::new(runtime, &watched, batch.rows, Stage::Statistics, threads())?.for_each(&inputs, batch.fixed, |start, outputs| {
        step(progress, Stage::Statistics, start, all)?;
        let rows = batch.rows.min(all - start);
        let find = |name: &str| names.iter().position(|n| *n == name).and_then(|i| outputs.get(i));
        let given: BTreeMap<&str, Tensor> = inputs.iter().map(|(n, t)| (*n, t.slice_rows(start, start + rows))).collect();
        let emphasis = task.emphasis(&given.iter().map(|(n, t)| (*n, t)).collect(), &task.answers(rows, find)?);
        for source in sources {
            let Some(tensor) = find(source) else { continue };
            let width = tensor.shape().last().copied().unwrap_or(1);
            let places = floats(tensor)?.len() / (rows * width).max(1);
            let weight = |sample: usize| emphasis.of(sample / places, [places, 1], sample % places);
            let samples = weighted(floats(tensor)?, width, weight);
            let found = gram(samples.view(), None);
            let sum = grams.entry(source.clone()).or_insert_with(|| Mat::zeros(width + 1, width + 1));
            *sum += found;
        }
        Ok(())
    })?;
    Ok(grams)
}

/// Samples with a column of ones behind, each times the root of its weight.
fn weighted(data: &[f32], width: usize, weight: impl Fn(usize) -> f32) -> Rows {
    let (mut out, mut rows) = (Vec::new(), 0);
    for (sample, values) in data.chunks_exact(width.max(1)).enumerate() {
        let root = weight(sample).max(0.0).sqrt();
        if root > 0.0 {
            out.extend(values.iter().map(|v| v * root).chain([root]));
            rows += 1;
        }
    }
    Rows::new(rows, width + 1, out)
}

fn rotated(model: &Model, group: &Group, grams: &Grams) -> Result<Option<Model>, PruneError> {
    let (first, second, pairs) = match &group.rotation {
        Rotation::None => return Ok(None),
        Rotation::Bilinear { left, right } => {
            let heads = heads(left);
            let pairs = (0..heads).map(|head| {
                let (Some(q), Some(k)) = (moments(model, group, left, head, grams), moments(model, group, right, head, grams)) else {
                    return Ok(None);
                };
                bilinear(&q.second, &k.covariance()).map(Some)
            });
            (left, right, pairs.collect::<Result<Option<Vec<_>>, PruneError>>()?)
        }
        Rotation::Linear { made, read } => {
            let pairs = (0..heads(made)).map(|head| {
                let Some((covariance, weights)) = context(model, group, read, head, grams) else { return Ok(None) };
                linear(&covariance, &weights).map(Some)
            });
            (made, read, pairs.collect::<Result<Option<Vec<_>>, PruneError>>()?)
        }
    };
    let Some(pairs) = pairs else { return Ok(None) };
    let list = |m: &Mat<f64>| (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)])).collect::<Vec<f64>>();
    let (there, back): (Vec<_>, Vec<_>) = pairs.iter().map(|p| (list(&p.0), list(&p.1))).unzip();
    let changed = change_basis(model, first, &there).and_then(|m| change_basis(&m, second, &back)).map_err(model_error)?;
    Ok(Some(changed))
}

fn heads(blocks: &[Block]) -> usize {
    blocks.iter().map(|b| b.head + 1).max().unwrap_or(0)
}

/// Sums over samples of a head's units.
struct Moments {
    /// Of products, `[units, units]`.
    second: Mat<f64>,
    /// Of values.
    first: Vec<f64>,
    /// Of weights.
    samples: f64,
}

impl Moments {
    fn covariance(&self) -> Mat<f64> {
        let n = self.second.nrows();
        Mat::from_fn(n, n, |i, j| self.second[(i, j)] - self.first[i] * self.first[j] / self.samples.max(f64::MIN_POSITIVE))
    }
}

/// The moments of what one side's blocks of a head make, by the Gram matrix of what their weights read.
fn moments(model: &Model, group: &Group, blocks: &[Block], head: usize, grams: &Grams) -> Option<Moments> {
    let mut sum: Option<Moments> = None;
    for block in blocks.iter().filter(|b| b.head == head) {
        let Some((dims, values)) = model.floats(&block.constant).filter(|(dims, _)| dims.len() == 2) else { continue };
        let producer = group.producers.iter().find(|p| p.weight == block.constant)?;
        let gram = grams.get(model.node(producer.node)?.input(0)?)?;
        let (inputs, width) = (*dims.first()?, *dims.get(1)?);
        let bias = bias_of(model, blocks, block);
        if gram.nrows() != inputs + 1 || block.indices.iter().any(|&i| i >= width) {
            return None;
        }
        let at = |i: usize, u: usize| if i < inputs { f64::from(values[i * width + block.indices[u]]) } else { bias[u] };
        let weights = Mat::from_fn(inputs + 1, block.indices.len(), at);
        let mut spread = Mat::zeros(inputs + 1, weights.ncols());
        add_product(&mut spread, 1.0, gram, &weights);
        let mut second = Mat::zeros(weights.ncols(), weights.ncols());
        add_product(&mut second, 1.0, &weights.transpose().to_owned(), &spread);
        let first = (0..weights.ncols()).map(|u| spread[(inputs, u)]).collect();
        let found = Moments { second, first, samples: gram[(inputs, inputs)] };
        sum = Some(match sum {
            None => found,
            Some(before) => Moments {
                second: before.second + found.second,
                first: before.first.iter().zip(&found.first).map(|(a, b)| a + b).collect(),
                samples: before.samples + found.samples,
            },
        });
    }
    sum
}

/// The bias at a weight block's units: that of the block of one axis with the same indices and head, or zeros.
fn bias_of(model: &Model, blocks: &[Block], weight: &Block) -> Vec<f64> {
    let of = |block: &Block| {
        let (dims, values) = model.floats(&block.constant)?;
        let same = dims.len() == 1 && block.head == weight.head && block.indices == weight.indices;
        same.then(|| block.indices.iter().map(|&i| values.get(i).map(|&v| f64::from(v))).collect::<Option<Vec<_>>>()).flatten()
    };
    blocks.iter().find_map(of).unwrap_or_else(|| vec![0.0; weight.indices.len()])
}

/// The covariance of a head's context and W Wᵀ of the weights that read it.
fn context(model: &Model, group: &Group, read: &[Block], head: usize, grams: &Grams) -> Option<(Mat<f64>, Mat<f64>)> {
    let mut sum: Option<(Mat<f64>, Mat<f64>)> = None;
    for block in read.iter().filter(|b| b.head == head) {
        let consumer = group.consumers.iter().find(|c| c.weight == block.constant)?;
        let (gram, (dims, values)) = (grams.get(&consumer.input)?, model.floats(&block.constant)?);
        let (&[inputs, outputs], n) = (dims.as_slice(), block.indices.len()) else { return None };
        if gram.nrows() != inputs + 1 {
            return None;
        }
        let samples = gram[(inputs, inputs)].max(f64::MIN_POSITIVE);
        let covariance = Mat::from_fn(n, n, |i, j| {
            let (a, b) = (block.indices[i], block.indices[j]);
            gram[(a, b)] - gram[(a, inputs)] * gram[(b, inputs)] / samples
        });
        let weights = Mat::from_fn(n, outputs, |i, o| f64::from(values[block.indices[i] * outputs + o]));
        let mut square = Mat::zeros(n, n);
        add_product(&mut square, 1.0, &weights, &weights.transpose().to_owned());
        sum = Some(match sum {
            None => (covariance, square),
            // One head, read through several weights: each reads the same context.
            Some((covariance, before)) => (covariance, before + square),
        });
    }
    sum
}

/// The basis of queries, and the transpose of its inverse, that of keys; from QᵀQ and the covariance of K.
fn bilinear(queries: &Mat<f64>, keys: &Mat<f64>) -> Result<(Mat<f64>, Mat<f64>), PruneError> {
    let ((root, inverse), (other, _)) = (roots(queries)?, roots(keys)?);
    let product = times(&root, &other);
    let (squares, basis) = eigen(&times(&product, &product.transpose().to_owned()))?;
    let top = squares.first().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
    // s^½ is the fourth root of the eigenvalue of the square.
    let scales: Vec<f64> = squares.iter().map(|s| s.max(FLOOR * FLOOR * top).sqrt().sqrt()).collect();
    let scaled = |m: &Mat<f64>, power: i32| Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] * scales[j].powi(power));
    Ok((scaled(&times(&inverse, &basis), 1), scaled(&times(&root, &basis), -1)))
}

/// The basis of values, and the transpose of its inverse, that of the weights that read them; from the covariance of the context and W Wᵀ.
fn linear(covariance: &Mat<f64>, weights: &Mat<f64>) -> Result<(Mat<f64>, Mat<f64>), PruneError> {
    let (root, inverse) = roots(covariance)?;
    let (squares, basis) = eigen(&times(&times(&root, weights), &root))?;
    let mean = squares.iter().map(|s| s.max(0.0).sqrt()).sum::<f64>() / squares.len().max(1) as f64;
    let scale = mean.sqrt().max(f64::MIN_POSITIVE.sqrt());
    Ok((times(&inverse, &basis) * faer::Scale(scale), times(&root, &basis) * faer::Scale(1.0 / scale)))
}

/// A symmetric matrix's root and the root's inverse.
fn roots(a: &Mat<f64>) -> Result<(Mat<f64>, Mat<f64>), PruneError> {
    let (values, vectors) = eigen(a)?;
    let floor = (FLOOR * values.first().copied().unwrap_or(0.0)).max(f64::MIN_POSITIVE.sqrt());
    let with = |power: f64| {
        let scaled = Mat::from_fn(a.nrows(), a.nrows(), |i, j| vectors[(i, j)] * values[j].max(floor).powf(power));
        times(&scaled, &vectors.transpose().to_owned())
    };
    Ok((with(0.5), with(-0.5)))
}

fn times(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    let mut product = Mat::zeros(a.nrows(), b.ncols());
    add_product(&mut product, 1.0, a, b);
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::apply;
    use crate::linear::tests::noise;

    /// Samples whose columns have unequal spread.
    fn samples(seed: u64) -> Rows {
        let spread = Mat::from_fn(6, 6, |i, j| ((i * 5 + j * 3 + seed as usize) % 7) as f64 / 3.0 - 0.7 + if i == j { 1.0 } else { 0.0 });
        apply(noise(400, 6, seed).view(), &spread, &[0.3; 6])
    }

    fn covariance(x: &Rows) -> Mat<f64> {
        let mut centred = x.clone();
        centred.shift(&x.view().means(None));
        gram(centred.view(), None)
    }

    fn far(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (0..a.nrows()).flat_map(|i| (0..a.ncols()).map(move |j| (i, j))).fold(0.0, |m: f64, ij| m.max((a[ij] - b[ij]).abs()))
    }

    /// Squared error of scores, keys centred, when only the first `rank` dims of each side stay.
    fn score_error(q: &Rows, k: &Rows, there: &Mat<f64>, back: &Mat<f64>, rank: usize) -> f64 {
        let mut keys = k.clone();
        keys.shift(&k.view().means(None));
        let kept: Vec<usize> = (0..rank).collect();
        let (all_q, all_k) = (apply(q.view(), there, &[0.0; 6]), apply(keys.view(), back, &[0.0; 6]));
        let (few_q, few_k) = (all_q.view().columns(&kept), all_k.view().columns(&kept));
        let dot = |a: &Rows, b: &Rows, i: usize, j: usize| a.row(i).iter().zip(b.row(j)).map(|(x, y)| f64::from(x * y)).sum::<f64>();
        let pairs = (0..400).flat_map(|i| (0..20).map(move |j| (i, j * 19)));
        pairs.map(|(i, j)| (dot(&all_q, &all_k, i, j) - dot(&few_q, &few_k, i, j)).powi(2)).sum()
    }

    #[test]
    fn basis_of_scores_is_exact_and_puts_the_least_last() {
        let (q, k) = (samples(1), samples(2));
        let (there, back) = bilinear(&gram(q.view(), None), &covariance(&k)).unwrap();
        let unit = Mat::from_fn(6, 6, |i, j| f64::from(u8::from(i == j)));
        assert!(far(&times(&there, &back.transpose().to_owned()), &unit) < 1e-9);
        let reduced = score_error(&q, &k, &there, &back, 4);
        let sliced = score_error(&q, &k, &unit, &unit, 4);
        assert!(reduced < 0.3 * sliced, "{reduced} {sliced}");
    }

    #[test]
    fn basis_of_values_is_exact_and_puts_the_least_last() {
        let c = samples(3);
        let w = noise(6, 9, 4);
        let w = Mat::from_fn(6, 9, |i, j| f64::from(w.row(i)[j]));
        let (there, back) = linear(&covariance(&c), &times(&w, &w.transpose().to_owned())).unwrap();
        let rotated = times(&back.transpose().to_owned(), &w);
        assert!(far(&times(&there, &rotated), &w) < 1e-9);
        let mut x = c.clone();
        x.shift(&c.view().means(None));
        let x = apply(x.view(), &there, &[0.0; 6]);
        // What each dim adds to the output falls from the first to the last.
        let energy = |u: usize| {
            x.view().columns(&[u]).data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
                * (0..9).map(|o| rotated[(u, o)].powi(2)).sum::<f64>()
        };
        assert!((1..6).all(|u| energy(u) <= energy(u - 1) * (1.0 + 1e-5)));
    }
}
