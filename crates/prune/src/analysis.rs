//! What is found out about a model once, for all devices: its folded graph, its groups, the order in which their channels go,
//! and what each narrowing alone costs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use faer::Mat;
use pleach_domain::dataset::Dataset;
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_onnx::{Limits, Model, Statistics as Cost, statistics as cost_of};
use rayon::prelude::*;

use crate::coupling::{Coupling, Group, GroupId, Keep, measure_shapes};
use crate::criteria::{Criterion, Norm, Reader, kept, leverage_order, norm_order, obs_order, random_order};
use crate::error::PruneError;
use crate::evaluate::Answers;
use crate::flat;
use crate::fold::prepare;
use crate::head_rank;
use crate::levels::{self, Level, Place, Plan, Site};
use crate::linear::{Factor, Rows, add_product, mean_diagonal, principal, rows_of};
use crate::lowrank::{Factors, Split};
use crate::network::{Layer, Network, constants_of, model_error, runtime as failed, weights_of, with_biases};
use crate::progress::{Progress, Stage, step};
use crate::proof;
use crate::quantized;
use crate::reconstruct::with_constants;
use crate::report::FrozenPart;
use crate::run::{Batch, Inputs, Overrides, threads};
use crate::simplify::Rewriter;
use crate::solve::Choice;
use crate::statistics::{LayerStatistics, Statistics, collect};
use crate::surgery;
use crate::task::{Emphasis, Task, TaskKind};

/// Shares of a group's width at which its loss is probed.
const PROBES: [f64; 4] = [0.75, 0.5, 0.25, 0.125];
/// Most calibration rows held out for divergences, and one in how many.
const HELD_ROWS: (usize, usize) = (256, 8);
/// Most bytes of answers to the rows that are held out.
const HELD_BYTES: usize = 256 << 20;
/// Step of the levels that are probed.
const RANK_STEP: usize = 16;
/// Bytes of the models that are probed side by side.
const PROBE_BYTES: usize = 96 << 20;
/// Rows that proofs are run on.
const PROOF_ROWS: usize = 4;
/// Chooses the permutations and cuts that are proved.
const PROOF_SEED: u64 = 1;
/// Largest relative difference of an output by which a change of basis may round.
const ROTATION_BAR: f64 = 1e-4;
/// Ridge of the probes' solves, as a share of the mean diagonal.
const RIDGE: f64 = 1e-3;

/// What a caller may say about an analysis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Rule by which channels are ranked.
    pub criterion: Criterion,
    /// What the model is for; found out when it is not said.
    pub task: Option<TaskKind>,
}

impl From<Criterion> for Options {
    fn from(criterion: Criterion) -> Self {
        Self { criterion, task: None }
    }
}

/// Losses of one layer by rank, each way to split it.
pub(crate) type RankLosses = BTreeMap<Split, Vec<(usize, f64)>>;

/// Everything that does not depend on the device: the folded graph, its groups, statistics, orders of removal and the
/// loss of each group at some widths. Made once per model and criterion, kept in memory, shared between runs.
#[derive(Debug)]
pub struct Analysis {
    pub(crate) network: Network,
    pub(crate) task: Task,
    /// What the network is timed and delivered as.
    pub(crate) rewriter: Rewriter,
    pub(crate) statistics: Statistics,
    pub(crate) criterion: Criterion,
    /// For each group its channels, first to go first.
    pub(crate) orders: Vec<Vec<usize>>,
    /// For each group its loss by width, ascending in width, the dense width with loss 0 last.
    pub(crate) losses: Vec<Vec<(usize, f64)>>,
    /// For each layer that may be factored its loss by rank, each way to split it, ascending.
    pub(crate) rank_losses: BTreeMap<usize, RankLosses>,
    /// For each group in whose place there may be a constant, the loss then.
    pub(crate) flat_losses: BTreeMap<usize, f64>,
    /// The model as uploaded.
    pub(crate) original: Vec<u8>,
    pub(crate) original_cost: Cost,
    pub(crate) seconds: BTreeMap<Stage, f64>,
    /// Answers of the dense model to the validation data seen last, under their fingerprint.
    pub(crate) validated: Mutex<Option<(u64, Arc<Answers>)>>,
}

impl Analysis {
    /// What is never narrowed, and why.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        self.network.coupling.frozen.iter().map(|f| FrozenPart { name: f.name.clone(), reason: f.reason.clone() }).collect()
    }

    /// Name and channels of each coupling group that may be narrowed, in graph order.
    pub fn groups(&self) -> impl Iterator<Item = (&str, usize)> {
        self.network.coupling.groups.iter().map(|g| (g.name.as_str(), g.size))
    }

    /// The first of the calibration rows that nothing was fitted to; 0 when all were.
    pub fn held_from(&self) -> usize {
        self.statistics.rows - self.statistics.answers.rows
    }

    /// What the model is for.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Wall seconds of each stage of the analysis.
    pub fn seconds(&self) -> &BTreeMap<Stage, f64> {
        &self.seconds
    }

    /// The network as planned in fewer, faster nodes.
    ///
    /// # Errors
    /// [`PruneError::Model`] when validation finds something in the rewritten graph.
    pub(crate) fn rewritten(&self, model: &Model, plan: &Plan) -> Result<Model, PruneError> {
        self.rewriter.apply(model, &self.network.shapes_under(&plan.keep)).map_err(model_error)
    }

    /// What a choice at sites makes of the network.
    pub(crate) fn plan(&self, sites: &[Site], choice: &Choice) -> Plan {
        levels::plan(&self.network, sites, &self.orders, choice)
    }

    /// Expected loss of one level alone: log-linear between the probes.
    pub(crate) fn loss(&self, place: Place, level: Level) -> f64 {
        match (place, level) {
            (_, Level::Keep) | (Place::Layer(_), Level::Width(_) | Level::Flat) | (Place::Group(_), Level::Rank(_)) => 0.0,
            (Place::Group(group), Level::Flat) => self.flat_losses.get(&group).copied().unwrap_or(f64::INFINITY),
            (Place::Group(group), Level::Width(left)) => interpolate(self.losses.get(group).map_or(&[], Vec::as_slice), left),
            (Place::Layer(layer), Level::Rank(rank)) => {
                let points = self.rank_losses.get(&layer).and_then(|l| l.get(&rank.split));
                points.map_or(f64::INFINITY, |points| interpolate(points, rank.channels))
            }
        }
    }
}

/// Runs stages and keeps their wall seconds.
pub(crate) struct Watch(pub(crate) BTreeMap<Stage, f64>);

impl Watch {
    pub(crate) fn time<T>(&mut self, stage: Stage, work: impl FnOnce() -> Result<T, PruneError>) -> Result<T, PruneError> {
        let start = Instant::now();
        let done = work()?;
        *self.0.entry(stage).or_default() += start.elapsed().as_secs_f64();
        Ok(done)
    }
}

/// Analyses a model: folds it, finds its coupling groups, proves that they may be cut, and ranks their channels by calibration data.
///
/// Labels in `calibration` are not used. Deterministic, whatever the number of threads.
///
/// # Errors
/// [`PruneError::Model`] for a file that is no usable ONNX model, [`PruneError::Data`] for data that do not fit it,
/// [`PruneError::Proof`] when a cut would not be exact, [`PruneError::Runtime`], [`PruneError::Cancelled`].
pub fn analyse(
    model: &[u8],
    calibration: &Dataset,
    options: impl Into<Options>,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Analysis, PruneError> {
    let Options { criterion, task } = options.into();
    let mut watch = Watch(BTreeMap::new());
    let Ready { dense, network, original_cost } = watch.time(Stage::Load, || ready(model, calibration, runtime, progress))?;
    let task = watch.time(Stage::Load, || Task::find(&network.model, calibration, task, runtime))?;
    watch.time(Stage::Prove, || prove(&dense, &network, calibration, runtime, progress))?;
    let inputs: Inputs<'_> = calibration.inputs().iter().map(|(n, t)| (n.as_str(), t)).collect();
    let (network, sorted) = watch.time(Stage::Statistics, || rotated(network, &task, &inputs, runtime, progress))?;
    let rewriter = watch.time(Stage::Load, || Ok(rewriter(&network, &inputs, runtime)))?;
    let rows = calibration.rows();
    let held = (HELD_BYTES / (4 * task.width().max(1))).clamp(1, HELD_ROWS.0);
    let fit_rows = if rows < 2 { rows } else { rows - (rows / HELD_ROWS.1).clamp(1, held) };
    let statistics = watch.time(Stage::Statistics, || collect(&network, &task, &inputs, fit_rows, runtime, progress))?;
    let orders = watch.time(Stage::Rank, || rank(&network, &statistics, &sorted, criterion, progress))?;
    let mut analysis = Analysis {
        network,
        task,
        rewriter,
        statistics,
        criterion,
        orders,
        losses: Vec::new(),
        rank_losses: BTreeMap::new(),
        flat_losses: BTreeMap::new(),
        original: model.to_vec(),
        original_cost,
        seconds: BTreeMap::new(),
        validated: Mutex::new(None),
    };
    analysis.losses = watch.time(Stage::Probe, || probe(&analysis, calibration, runtime, progress))?;
    analysis.rank_losses = watch.time(Stage::Probe, || probe_ranks(&analysis, calibration, runtime, progress))?;
    analysis.flat_losses = watch.time(Stage::Probe, || probe_constants(&analysis, calibration, runtime, progress))?;
    // Nothing asks for them any more, and they are large.
    analysis.statistics.layers.iter_mut().for_each(LayerStatistics::forget_grams);
    analysis.seconds = watch.0;
    Ok(analysis)
}

/// A model ready to be looked at.
pub(crate) struct Ready {
    pub(crate) dense: Model,
    pub(crate) network: Network,
    pub(crate) original_cost: Cost,
}

/// Decodes and folds a model and finds its groups.
pub(crate) fn ready(bytes: &[u8], calibration: &Dataset, runtime: &dyn Runtime, progress: &dyn Progress) -> Result<Ready, PruneError> {
    step(progress, Stage::Load, 0, 2)?;
    let dense = Model::decode(bytes, &Limits::default()).map_err(model_error)?;
    quantized::refuse(&dense)?;
    check_data("calibration", bytes, calibration, runtime)?;
    let examples = calibration.inputs().iter().map(|(n, t)| (n.clone(), t.shape().get(1..).unwrap_or_default().to_vec())).collect();
    let folded = with_biases(&prepare(&dense, runtime, &examples).map_err(model_error)?).map_err(model_error)?;
    step(progress, Stage::Load, 1, 2)?;
    let shapes = measure_shapes(&folded, runtime, &examples).map_err(model_error)?;
    let coupling = Coupling::find(&folded, &shapes);
    // Folding renames nothing that is multiplied, so the work is that of the folded graph.
    let original_cost = Cost { macs: cost_of(&folded, &shapes, 1).macs, ..cost_of(&dense, &shapes, 1) };
    Ok(Ready { dense, network: Network::new(folded, shapes, coupling), original_cost })
}

/// What rewriting must know of the network.
pub(crate) fn rewriter(network: &Network, inputs: &Inputs<'_>, runtime: &dyn Runtime) -> Rewriter {
    let rows = few_rows(&network.model, inputs);
    let rows: Vec<(&str, &pleach_domain::Tensor)> = rows.iter().map(|(n, t)| (n.as_str(), t)).collect();
    Rewriter::find(&network.model, &network.shapes, &rows, runtime)
}

/// The rows that proofs are run on.
pub(crate) fn few_rows(model: &Model, inputs: &Inputs<'_>) -> Vec<(String, pleach_domain::Tensor)> {
    let rows = Batch::of(model, PROOF_ROWS).rows;
    inputs.iter().map(|(n, t)| ((*n).to_owned(), t.slice_rows(0, rows))).collect()
}

/// Sorts the dims of attention heads by what they are worth, where that changes no output by more than [`ROTATION_BAR`].
fn rotated(
    network: Network,
    task: &Task,
    inputs: &Inputs<'_>,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<(Network, BTreeSet<GroupId>), PruneError> {
    let Network { model, shapes, coupling, .. } = &network;
    let (changed, sorted) = head_rank::rotate(model, shapes, coupling, task, inputs, runtime, progress)?;
    let rows = few_rows(model, inputs);
    let rows: Vec<(&str, &pleach_domain::Tensor)> = rows.iter().map(|(n, t)| (n.as_str(), t)).collect();
    if sorted.is_empty() || proof::equality(runtime, model, &changed, &rows).map_err(model_error)? > ROTATION_BAR {
        return Ok((network, BTreeSet::new()));
    }
    Ok((Network::new(changed, network.shapes, network.coupling), sorted))
}

/// Checks that data fit a model's inputs, and that there are rows enough for a model of fixed batch.
pub(crate) fn check_data(role: &'static str, model: &[u8], data: &Dataset, runtime: &dyn Runtime) -> Result<(), PruneError> {
    let loaded = runtime.load(model, Optimization::All).map_err(failed(Stage::Load))?;
    data.check_against(loaded.inputs()).map_err(|source| PruneError::Data { role, source })
}

/// Proves on a few rows that folding changed nothing, and then all that [`proof::prove`] proves.
fn prove(dense: &Model, network: &Network, data: &Dataset, runtime: &dyn Runtime, progress: &dyn Progress) -> Result<(), PruneError> {
    let Network { model, shapes, coupling, .. } = network;
    let batch = Batch::of(model, PROOF_ROWS);
    let rows: BTreeMap<&str, pleach_domain::Tensor> =
        data.inputs().iter().map(|(n, t)| (n.as_str(), t.slice_rows(0, batch.rows))).collect();
    let inputs: Vec<(&str, &pleach_domain::Tensor)> = rows.iter().map(|(n, t)| (*n, t)).collect();
    let folding = proof::equality(runtime, dense, model, &inputs).map_err(model_error)?;
    proof::hold("folding", folding, proof::bar(dense), || None)?;
    proof::prove(&proof::Subject { runtime, model, coupling, shapes, inputs: &inputs }, PROOF_SEED, progress)?;
    Ok(())
}

/// Orders of removal, for each group.
fn rank(
    network: &Network,
    statistics: &Statistics,
    sorted: &BTreeSet<GroupId>,
    criterion: Criterion,
    progress: &dyn Progress,
) -> Result<Vec<Vec<usize>>, PruneError> {
    let groups = &network.coupling.groups;
    let order = |(i, group): (usize, &Group)| {
        step(progress, Stage::Rank, i, groups.len())?;
        if sorted.contains(&group.id) {
            return Ok((0..group.size).rev().collect());
        }
        match criterion {
            Criterion::L1 => Ok(norm_order(Norm::L1, &producer_weights(network, group))),
            Criterion::L2 => Ok(norm_order(Norm::L2, &producer_weights(network, group))),
            Criterion::Random => Ok(random_order(group.size, i as u64)),
            Criterion::Eigen | Criterion::Obs => {
                let readers = readers(network, statistics, group)?;
                // A group that no solvable layer reads has nothing to be ranked by but its weights.
                if readers.is_empty() {
                    Ok(norm_order(Norm::L2, &producer_weights(network, group)))
                } else if criterion == Criterion::Eigen {
                    leverage_order(group.size, &readers)
                } else {
                    obs_order(group.size, &readers)
                }
            }
        }
    };
    groups.iter().enumerate().map(order).collect()
}

/// Layers that sum over a group's channels and can be solved, with their statistics: one for each of a layer's own groups.
fn solvable<'a>(network: &'a Network, statistics: &'a Statistics, group: &'a Group) -> impl Iterator<Item = Reading<'a>> {
    let layers = network.layers.iter().zip(&statistics.layers);
    let readings = layers.filter_map(|(layer, found)| {
        let consumer = group.consumers.iter().find(|c| c.node == layer.node)?;
        let width = layer.columns();
        let all: Vec<Vec<usize>> = consumer.units.iter().map(|channels| layer.columns_of(channels)).collect();
        Some(found.grams.iter().enumerate().map(move |(own, gram)| {
            let here = |columns: &Vec<usize>| columns.iter().filter(|&&c| c / width == own).map(|c| c % width).collect();
            Reading { layer, own, gram, mean: &found.mean[own * width..(own + 1) * width], columns: all.iter().map(here).collect() }
        }))
    });
    readings.flatten()
}

struct Reading<'a> {
    layer: &'a Layer,
    /// Which of the layer's own groups.
    own: usize,
    gram: &'a Mat<f64>,
    mean: &'a [f64],
    /// For each unit of the group, the columns it feeds.
    columns: Vec<Vec<usize>>,
}

impl Reading<'_> {
    /// The weights of the layer's own group, `[columns, outputs]`.
    fn weights(&self, network: &Network) -> Result<Mat<f64>, PruneError> {
        let (weights, _) = network.weights(self.layer)?;
        let outputs = self.layer.outputs / self.layer.groups();
        Ok(Mat::from_fn(weights.nrows(), outputs, |c, o| weights[(c, self.own * outputs + o)]))
    }
}

fn readers<'a>(network: &'a Network, statistics: &'a Statistics, group: &'a Group) -> Result<Vec<Reader<'a>>, PruneError> {
    let reader = |r: Reading<'a>| Ok(Reader { gram: r.gram, weights: r.weights(network)?, columns: r.columns });
    solvable(network, statistics, group).map(reader).collect()
}

/// For each unit, the weights that make it.
fn producer_weights(network: &Network, group: &Group) -> Vec<Vec<f32>> {
    let mut all = vec![Vec::new(); group.size];
    for producer in &group.producers {
        let Some((dims, values)) = network.model.floats(&producer.weight) else { continue };
        let inner: usize = dims.iter().skip(producer.axis + 1).product();
        let length = dims.get(producer.axis).copied().unwrap_or(1);
        for (unit, found) in all.iter_mut().enumerate() {
            for &index in producer.units.of(unit) {
                let blocks = values.chunks(length * inner.max(1));
                found.extend(blocks.flat_map(|b| b.get(index * inner..(index + 1) * inner).unwrap_or_default()));
            }
        }
    }
    all
}

/// The loss of each group at some widths: divergence on held rows when it alone is cut and its readers are solved.
fn probe(
    analysis: &Analysis,
    data: &Dataset,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<Vec<Vec<(usize, f64)>>, PruneError> {
    let groups = &analysis.network.coupling.groups;
    let held = Held::new(analysis, data);
    let jobs: Vec<(usize, usize)> =
        (groups.iter().enumerate()).flat_map(|(i, g)| probe_widths(&analysis.network, g).into_iter().map(move |w| (i, w))).collect();
    let mut losses: Vec<Vec<(usize, f64)>> = groups.iter().map(|g| vec![(g.size, 0.0)]).collect();
    let abreast = (PROBE_BYTES / (analysis.original.len() + 1)).clamp(1, threads());
    let loss = |&(group, width): &(usize, usize)| -> Result<f64, PruneError> {
        let plan = Plan { keep: [(groups[group].id, kept(&analysis.orders[group], width))].into(), ..Plan::default() };
        let model = analysis.rewritten(&narrowed(analysis, group, width)?, &plan)?;
        Ok(held.divergence(&model, runtime, Stage::Probe, threads() / abreast)?.max(0.0))
    };
    for (done, part) in jobs.chunks(abreast).enumerate() {
        step(progress, Stage::Probe, done * abreast, jobs.len())?;
        let found = part.par_iter().map(loss).collect::<Result<Vec<_>, _>>()?;
        part.iter().zip(found).for_each(|(&(group, width), loss)| losses[group].push((width, loss)));
    }
    losses.iter_mut().for_each(|l| monotone(l));
    Ok(losses)
}

/// The loss of each layer at some ranks, each way to split it: divergence on held rows when it alone is factored.
fn probe_ranks(
    analysis: &Analysis,
    data: &Dataset,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<BTreeMap<usize, RankLosses>, PruneError> {
    let Analysis { network, statistics, .. } = analysis;
    let held = Held::new(analysis, data);
    let sites = levels::sites(network, RANK_STEP);
    let mut losses = BTreeMap::new();
    for (done, site) in sites.iter().enumerate() {
        step(progress, Stage::Probe, done, sites.len())?;
        let Place::Layer(index) = site.place else { continue };
        let (layer, found) = (&network.layers[index], &statistics.layers[index]);
        let [gram] = found.grams.as_slice() else { continue };
        let (weights, bias) = network.weights(layer)?;
        let mut all = RankLosses::new();
        for &level in &site.levels {
            let Level::Rank(rank) = level else { continue };
            let product = Factors::of(&weights, gram, rank, layer.kernel())?.product();
            let moved = |o: usize| (0..weights.nrows()).map(|c| found.mean[c] * (weights[(c, o)] - product[(c, o)])).sum::<f64>();
            let bias: Vec<f64> = bias.iter().enumerate().map(|(o, b)| b + moved(o)).collect();
            let model = with_constants(&network.model, &constants_of(&network.model, layer, &product, &bias))?;
            let points = all.entry(rank.split).or_insert_with(|| {
                let [height, width] = layer.kernel();
                let full = match rank.split {
                    Split::Pointwise => layer.outputs,
                    Split::Separable => (layer.inputs * height).min(layer.outputs * width),
                };
                vec![(full, 0.0)]
            });
            points.push((rank.channels, held.divergence(&model, runtime, Stage::Probe, threads())?.max(0.0)));
        }
        all.values_mut().for_each(|points| monotone(points));
        losses.insert(index, all);
    }
    Ok(losses)
}

/// The loss of each group in whose place there may be a constant: divergence on held rows when its readers put out their mean.
fn probe_constants(
    analysis: &Analysis,
    data: &Dataset,
    runtime: &dyn Runtime,
    progress: &dyn Progress,
) -> Result<BTreeMap<usize, f64>, PruneError> {
    let Analysis { network, statistics, .. } = analysis;
    let held = Held::new(analysis, data);
    let groups = &network.coupling.groups;
    let mut losses = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        step(progress, Stage::Probe, index, groups.len())?;
        let Some(readers) = flat::readers(network, group) else { continue };
        let mut constants = Overrides::new();
        for reader in readers {
            let (layer, found) = (&network.layers[reader], &statistics.layers[reader]);
            let (weights, bias) = network.weights(layer)?;
            let mean = |o: usize| bias[o] + found.mean.iter().enumerate().map(|(c, m)| m * weights[(c, o)]).sum::<f64>();
            let bias: Vec<f64> = (0..weights.ncols()).map(mean).collect();
            constants.extend(constants_of(&network.model, layer, &Mat::zeros(weights.nrows(), weights.ncols()), &bias));
        }
        let model = with_constants(&network.model, &constants)?;
        losses.insert(index, held.divergence(&model, runtime, Stage::Probe, threads())?.max(0.0));
    }
    Ok(losses)
}

fn probe_widths(network: &Network, group: &Group) -> Vec<usize> {
    let size = group.size;
    let mut widths: Vec<usize> = PROBES.iter().map(|share| ((share * size as f64).round() as usize).max(1)).filter(|&w| w < size).collect();
    // Losses grow fast where little is left, too fast to be guessed.
    let (least, narrowest) = (levels::least_width(network, group, RANK_STEP), widths.last().copied().unwrap_or(size));
    if 2 * least <= narrowest {
        widths.push(least);
    }
    widths.dedup();
    widths
}

/// Sorts by width and lets no narrower width lose less than a wider one.
fn monotone(losses: &mut [(usize, f64)]) {
    losses.sort_unstable_by_key(|&(width, _)| width);
    let mut least = 0.0f64;
    for (_, loss) in losses.iter_mut().rev() {
        least = least.max(*loss);
        *loss = least;
    }
}

/// One group cut to a width, its readers solved on the dense statistics.
fn narrowed(analysis: &Analysis, group: usize, width: usize) -> Result<Model, PruneError> {
    let Analysis { network, statistics, orders, .. } = analysis;
    let found = &network.coupling.groups[group];
    let units = kept(&orders[group], width);
    let keep: Keep = [(found.id, units.clone())].into();
    let cut = surgery::prune(&network.model, &network.coupling, &network.shapes, &keep).map_err(model_error)?;
    let solve = |reading: Reading<'_>| -> Result<_, PruneError> {
        let Reading { layer, mean, columns, .. } = &reading;
        if layer.groups() > 1 {
            return Ok(Overrides::new()); // sliced only
        }
        let free = layer.bias.is_some();
        let about_zero = (!free).then(|| Mat::from_fn(mean.len(), mean.len(), |i, j| reading.gram[(i, j)] + mean[i] * mean[j]));
        let gram = about_zero.as_ref().unwrap_or(reading.gram);
        let mut gone: Vec<usize> =
            (0..columns.len()).filter(|u| units.binary_search(u).is_err()).flat_map(|u| columns[u].clone()).collect();
        gone.sort_unstable();
        let stay: Vec<usize> = (0..gram.nrows()).filter(|c| gone.binary_search(c).is_err()).collect();
        let (weights, bias) = network.weights(layer)?;
        let ridge = RIDGE * mean_diagonal(gram) + f64::MIN_POSITIVE.sqrt();
        let across = Mat::from_fn(stay.len(), gram.nrows(), |i, j| gram[(stay[i], j)]);
        let mut solved = rows_of(&weights, &stay) * faer::Scale(ridge);
        add_product(&mut solved, 1.0, &across, &weights);
        Factor::new(principal(gram, &stay), ridge)?.solve(&mut solved);
        let moved = |o: usize| {
            let before: f64 = (0..weights.nrows()).map(|c| mean[c] * weights[(c, o)]).sum();
            before - stay.iter().enumerate().map(|(i, &c)| mean[c] * solved[(i, o)]).sum::<f64>()
        };
        // A layer that both reads and makes the group loses outputs, too.
        let outputs = network.outputs_staying(layer, &keep);
        let moved: Vec<f64> = outputs.iter().map(|&o| bias[o] + moved(o)).collect();
        let solved = Mat::from_fn(solved.nrows(), outputs.len(), |c, o| solved[(c, outputs[o])]);
        let (expected, _) = weights_of(&cut, layer)?;
        if (expected.nrows(), expected.ncols()) != (solved.nrows(), solved.ncols()) {
            return Ok(Overrides::new());
        }
        Ok(constants_of(&cut, layer, &solved, &moved))
    };
    let readings: Vec<Reading<'_>> = solvable(network, statistics, found).collect();
    let solved = readings.into_par_iter().map(solve).collect::<Result<Vec<_>, _>>()?;
    let constants: Overrides = solved.into_iter().flatten().collect();
    with_constants(&cut, &constants)
}

/// The calibration rows that nothing is fitted to (all, when there is but one).
pub(crate) struct Held<'a> {
    task: &'a Task,
    inputs: BTreeMap<&'a str, pleach_domain::Tensor>,
    teacher: &'a Rows,
    emphasis: Emphasis,
}

impl<'a> Held<'a> {
    pub(crate) fn new(analysis: &'a Analysis, data: &'a Dataset) -> Self {
        let Statistics { rows, answers, emphasis, .. } = &analysis.statistics;
        let start = rows - answers.rows;
        let inputs = data.inputs().iter().map(|(n, t)| (n.as_str(), t.slice_rows(start, *rows))).collect();
        Self { task: &analysis.task, inputs, teacher: answers, emphasis: emphasis.part(start, *rows) }
    }

    /// Divergence of a model from the dense one on these rows.
    pub(crate) fn divergence(&self, model: &Model, runtime: &dyn Runtime, stage: Stage, copies: usize) -> Result<f64, PruneError> {
        let inputs = self.inputs.iter().map(|(n, t)| (*n, t)).collect();
        let student = self.task.all_answers(model, &inputs, runtime, stage, copies)?;
        Ok(self.task.divergence(self.teacher, &student, &self.emphasis))
    }
}

fn interpolate(points: &[(usize, f64)], width: usize) -> f64 {
    const TINY: f64 = 1e-7;
    let above = points.iter().position(|p| p.0 >= width);
    let (low, high) = match above {
        Some(i) if points[i].0 == width => return points[i].1,
        Some(0) => (points.first(), points.get(1)),
        Some(i) => (points.get(i - 1), points.get(i)),
        None => return points.last().map_or(0.0, |p| p.1),
    };
    let (Some(&(w0, l0)), Some(&(w1, l1))) = (low, high) else { return points.first().map_or(0.0, |p| p.1) };
    let at = (width as f64 - w0 as f64) / (w1 as f64 - w0 as f64);
    let (l0, l1) = ((l0 + TINY).ln(), (l1 + TINY).ln());
    ((l0 + at * (l1 - l0)).exp() - TINY).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_log_linear_between_probes_and_grow_below_them() {
        let points = [(16, 1e-2), (32, 1e-3), (64, 0.0)];
        assert!((interpolate(&points, 32) - 1e-3).abs() < 1e-12);
        assert!((interpolate(&points, 24) - 10f64.powf(-2.5)).abs() < 1e-5);
        assert!(interpolate(&points, 8) > 1e-2);
        assert!(interpolate(&points, 48) > 0.0 && interpolate(&points, 48) < 1e-3);
        assert!(interpolate(&points, 64).abs() < 1e-12);
    }

    #[test]
    fn losses_do_not_rise_with_width() {
        let mut losses = vec![(8, 0.0), (1, 0.5), (2, 0.1), (4, 0.2)];
        monotone(&mut losses);
        assert_eq!(losses, [(1, 0.5), (2, 0.2), (4, 0.2), (8, 0.0)]);
    }
}
