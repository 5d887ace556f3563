//! Proofs that need no accuracy data: what a cut may not change, run and compared.
//!
//! | proof | claim |
//! | --- | --- |
//! | identity | with nothing cut, the bytes are those that were read |
//! | optimisation | the runtime's optimised graph computes what the graph as written computes |
//! | permutation | the units of every group are interchangeable |
//! | mask | the cut graph computes what the dense one computes when the readers of what was cut read zeros |
//! | folding | [`crate::fold`] changed nothing |
//!
//! Each returns the worst difference between two models' outputs, relative to the largest value of that output, or to 1 where a
//! Sigmoid makes it. Of a model that chooses, such as a detector with TopK or NonMaxSuppression, [`prove`] and [`measure`] compare what is chosen
//! from. [`prove`] runs those that concern cutting on every group, at three widths, and is what every pruning job does before anything is delivered.

mod compare;
mod observe;

use pleach_domain::Tensor;
use pleach_domain::random::SplitMix;
use pleach_domain::runtime::{Optimization, Runtime, RuntimeError};
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::{Limits, Model, OnnxError, Shapes};
use thiserror::Error;

use crate::coupling::{Coupling, Group, GroupId, Keep};
use crate::error::PruneError;
use crate::progress::{Progress, Stage, step};
use crate::surgery::{self, SurgeryError};
use compare::{difference, least_scales};

/// Largest relative difference at which a proof holds in single precision: rounding in another order of summation stays well
/// below, a wrong channel far above.
pub const BAR: f64 = 1e-5;
/// Roundings of one value that may come out differently where values are stored in half precision or bfloat16.
const ROUNDINGS: f64 = 10.0;
/// How many times a graph's own rounding still counts as rounding.
const NOISE: f64 = 4.0;
/// Shares of every group, in percent, at which cuts are proved.
pub const WIDTHS: [usize; 3] = [25, 50, 75];

/// Why a proof could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The cut itself failed.
    #[error("cutting the graph for a proof")]
    Surgery(#[from] SurgeryError),
    /// The model could not be read again.
    #[error("reading the model again for a proof")]
    Graph(#[from] OnnxError),
    /// A model did not run.
    #[error("running a model for a proof")]
    Runtime(#[source] RuntimeError),
    /// The outputs differ in number, type or shape.
    #[error("output {index} has another type or shape: {left:?} and {right:?}")]
    Outputs {
        /// Which output.
        index: usize,
        /// Shape of the one.
        left: Vec<usize>,
        /// Shape of the other.
        right: Vec<usize>,
    },
}

/// Inputs to run a proof on, by name.
pub type Inputs<'a> = [(&'a str, &'a Tensor)];

/// A model and all that proofs about it need.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Runs the models.
    pub runtime: &'a dyn Runtime,
    /// The model to be cut.
    pub model: &'a Model,
    /// Its groups.
    pub coupling: &'a Coupling,
    /// Its shapes.
    pub shapes: &'a Shapes,
    /// What it is run on.
    pub inputs: &'a Inputs<'a>,
}

/// The worst relative differences that [`prove`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Findings {
    /// Optimised and plain runtime.
    pub optimization: f64,
    /// Every group permuted.
    pub permutation: f64,
    /// Every group cut to each of [`WIDTHS`] percent.
    pub mask: [f64; 3],
    /// The largest of them at which the proofs hold: [`bar`], but of a quantised model at least four times `optimization`. There a value
    /// that rounds to the next step moves everything behind it, and how far is seen where the runtime alone changes the order of sums.
    pub bar: f64,
}

/// Largest relative difference at which a proof holds for a model: [`BAR`] in single and double precision.
///
/// Where values are stored in a narrower format, two sums that differ in their last single-precision bit may round to neighbours,
/// which are 2^-10 of the value apart in half precision and 2^-7 in bfloat16. Such steps add up on the way to an output like a
/// random walk over its layers: ten half steps are allowed. In a quantised tensor a step is up to 2/255 of its largest value, and
/// one is allowed. A wrong channel moves an output by about its own size.
pub fn bar(model: &Model) -> f64 {
    let stored = model.constants().filter_map(|name| model.constant_type(name));
    let cast = model.nodes().filter(|n| n.is("Cast")).filter_map(|n| i32::try_from(n.int("to")?).ok());
    let types: Vec<i32> = stored.chain(cast).chain(model.inputs().into_iter().map(|i| i.element_type)).collect();
    let narrow = [
        (types.contains(&DataType::Float16.into()), ROUNDINGS * 2f64.powi(-11)),
        (types.contains(&DataType::Bfloat16.into()), ROUNDINGS * 2f64.powi(-8)),
        (is_quantized(model), 2.0 / 255.0),
    ];
    narrow.into_iter().filter(|(there, _)| *there).fold(BAR, |bar, (_, own)| bar.max(own))
}

fn is_quantized(model: &Model) -> bool {
    model.nodes().any(|n| matches!(n.op_type(), "QuantizeLinear" | "DynamicQuantizeLinear"))
}

/// Proves on the given inputs that every group may be cut: the runtime's optimisations, a permutation of all groups and random
/// cuts of all groups to [`WIDTHS`] percent leave the outputs what they are, up to [`Findings::bar`].
///
/// `progress` hears of [`Stage::Prove`] and may cancel. Deterministic in `seed`. Cost: nine models loaded and run once.
///
/// # Errors
/// [`PruneError::Proof`] when a proof does not hold, with the group whose cut shows it; [`PruneError::Model`] when a model cannot
/// be cut or run, [`PruneError::Cancelled`].
pub fn prove(subject: &Subject<'_>, seed: u64, progress: &dyn Progress) -> Result<Findings, PruneError> {
    let observed = observe::before_choices(subject.model, subject.coupling).map_err(|error| PruneError::Model(Box::new(error)))?;
    let subject = &Subject { model: observed.as_ref().unwrap_or(subject.model), ..*subject };
    let findings = measure(subject, seed, progress)?;
    let bar = findings.bar;
    hold("optimisation", findings.optimization, bar, || None)?;
    hold("permutation", findings.permutation, bar, || {
        culprit(subject, bar, |group| permuted(subject.model, subject.coupling, &[group], seed))
    })?;
    for (percent, gap) in WIDTHS.into_iter().zip(findings.mask) {
        hold("mask", gap, bar, || {
            let keep = random_keep(subject.coupling, percent, seed);
            subject.coupling.groups.iter().find_map(|group| {
                let alone = keep.iter().filter(|(id, _)| **id == group.id).map(|(id, kept)| (*id, kept.clone())).collect();
                let gap = mask(subject, &alone).unwrap_or(f64::INFINITY);
                (!within(gap, bar)).then(|| group.name.clone())
            })
        })?;
    }
    Ok(findings)
}

/// Runs the proofs of [`prove`] and tells the differences, whatever they are.
///
/// # Errors
/// [`PruneError::Model`] when a model cannot be cut or run, [`PruneError::Cancelled`].
pub fn measure(subject: &Subject<'_>, seed: u64, progress: &dyn Progress) -> Result<Findings, PruneError> {
    let failed = |error: ProofError| PruneError::Model(Box::new(error));
    let observed = observe::before_choices(subject.model, subject.coupling).map_err(|error| failed(error.into()))?;
    let subject = &Subject { model: observed.as_ref().unwrap_or(subject.model), ..*subject };
    let Subject { runtime, model, coupling, inputs, .. } = *subject;
    let steps = WIDTHS.len() + 2;
    step(progress, Stage::Prove, 0, steps)?;
    let dense = run(runtime, model, inputs, Optimization::All).map_err(failed)?;
    let plain = run(runtime, model, inputs, Optimization::Disabled).map_err(failed)?;
    let scales = least_scales(model);
    let optimization = difference(&plain, &dense, &scales).map_err(failed)?;
    let noise = if is_quantized(model) { NOISE * optimization } else { 0.0 };
    let bar = bar(model).max(noise);
    step(progress, Stage::Prove, 1, steps)?;
    let groups: Vec<&Group> = coupling.groups.iter().collect();
    let reordered = || difference(&dense, &run(runtime, &permuted(model, coupling, &groups, seed)?, inputs, Optimization::All)?, &scales);
    let permutation = reordered().map_err(failed)?;
    let mut cut = [0.0; WIDTHS.len()];
    for (done, (gap, percent)) in cut.iter_mut().zip(WIDTHS).enumerate() {
        step(progress, Stage::Prove, done + 2, steps)?;
        *gap = mask_apart(subject, &random_keep(coupling, percent, seed), bar).map_err(failed)?;
    }
    Ok(Findings { optimization, permutation, mask: cut, bar })
}

/// Whether decoding and encoding gives back the same bytes, and so does a cut that removes nothing.
///
/// # Errors
/// [`ProofError`] when the bytes are no model.
pub fn identity(bytes: &[u8], coupling: &Coupling, shapes: &Shapes) -> Result<bool, ProofError> {
    let model = Model::decode(bytes, &Limits::default())?;
    let all: Keep = coupling.groups.iter().map(|g| (g.id, (0..g.size).collect())).collect();
    let whole = surgery::prune(&model, coupling, shapes, &all)?;
    Ok(model.encode() == bytes && whole.encode() == bytes)
}

/// Permutes the units of every group at random (by `seed`) and compares with the model itself.
///
/// # Errors
/// [`ProofError`] when a model cannot be cut or run.
pub fn permutation(subject: &Subject<'_>, seed: u64) -> Result<f64, ProofError> {
    let Subject { runtime, model, coupling, inputs, .. } = *subject;
    let groups: Vec<&Group> = coupling.groups.iter().collect();
    equality(runtime, model, &permuted(model, coupling, &groups, seed)?, inputs)
}

/// Compares the cut graph with the dense one whose consumers read zeros in place of what was cut.
///
/// # Errors
/// [`ProofError`] when a model cannot be cut or run.
pub fn mask(subject: &Subject<'_>, keep: &Keep) -> Result<f64, ProofError> {
    let Subject { runtime, model, coupling, shapes, inputs } = *subject;
    let masked = surgery::mask(model, coupling, keep)?;
    let masked = run(runtime, &masked, inputs, Optimization::All)?;
    let pruned = surgery::prune(model, coupling, shapes, keep)?;
    difference(&masked, &run(runtime, &pruned, inputs, Optimization::All)?, &least_scales(model))
}

/// As [`mask`], but where rounding alone explains the difference, with the groups in halves, down to single ones.
///
/// Random cuts of a deep network may leave one that blows rounding up: then the very same masked graph differs from itself between
/// the runtime's orders of summation, and all groups at once say nothing. Halves cut less, and prove the same of each group. A wrong
/// channel differs by far more than rounding and is never halved away.
fn mask_apart(subject: &Subject<'_>, keep: &Keep, bar: f64) -> Result<f64, ProofError> {
    let gap = mask(subject, keep)?;
    if within(gap, bar) || keep.len() < 2 {
        return Ok(gap);
    }
    let masked = surgery::mask(subject.model, subject.coupling, keep)?;
    if !within(gap, NOISE * optimization(subject.runtime, &masked, subject.inputs)?) {
        return Ok(gap);
    }
    let mut upper = keep.clone();
    let middle = upper.keys().nth(upper.len() / 2).copied().unwrap_or(GroupId(0));
    let half = upper.split_off(&middle);
    Ok(mask_apart(subject, &upper, bar)?.max(mask_apart(subject, &half, bar)?))
}

/// Compares the runtime's optimised graph with the graph as written.
///
/// # Errors
/// [`ProofError`] when the model cannot be run.
pub fn optimization(runtime: &dyn Runtime, model: &Model, inputs: &Inputs<'_>) -> Result<f64, ProofError> {
    difference(
        &run(runtime, model, inputs, Optimization::Disabled)?,
        &run(runtime, model, inputs, Optimization::All)?,
        &least_scales(model),
    )
}

/// Compares two models, e.g. before and after folding.
///
/// # Errors
/// [`ProofError`] when a model cannot be run.
pub fn equality(runtime: &dyn Runtime, left: &Model, right: &Model, inputs: &Inputs<'_>) -> Result<f64, ProofError> {
    difference(&run(runtime, left, inputs, Optimization::All)?, &run(runtime, right, inputs, Optimization::All)?, &least_scales(left))
}

/// A random cut of every group to about `percent` of its units, at least one.
pub fn random_keep(coupling: &Coupling, percent: usize, seed: u64) -> Keep {
    let mut random = SplitMix(seed);
    let mut kept = |group: &Group| {
        let mut kept = random.shuffled(group.size);
        kept.truncate((group.size * percent / 100).max(1));
        kept.sort_unstable();
        kept
    };
    coupling.groups.iter().map(|group| (group.id, kept(group))).collect()
}

/// Fails unless a difference is within the bar; `culprit` names the group to blame.
pub(crate) fn hold(proof: &'static str, gap: f64, bar: f64, culprit: impl Fn() -> Option<String>) -> Result<(), PruneError> {
    if within(gap, bar) {
        return Ok(());
    }
    let place = culprit().map_or_else(String::new, |group| format!(" when group `{group}` alone is changed"));
    Err(PruneError::Proof {
        proof,
        detail: format!("outputs differ by {gap:.1e} of their largest value{place}: expected at most {bar:.0e}"),
    })
}

/// Not `!(gap > bar)`: a gap that is no number fails, too.
fn within(gap: f64, bar: f64) -> bool {
    gap <= bar
}

/// The first group that differs when it alone is changed.
fn culprit(subject: &Subject<'_>, bar: f64, change: impl Fn(&Group) -> Result<Model, ProofError>) -> Option<String> {
    let Subject { runtime, model, coupling, inputs, .. } = *subject;
    let gap = |group: &Group| change(group).and_then(|changed| equality(runtime, model, &changed, inputs)).unwrap_or(f64::INFINITY);
    coupling.groups.iter().find(|group| !within(gap(group), bar)).map(|group| group.name.clone())
}

fn permuted(model: &Model, coupling: &Coupling, groups: &[&Group], seed: u64) -> Result<Model, ProofError> {
    let mut permuted = model.clone();
    for group in groups {
        let GroupId(number) = group.id;
        let order = SplitMix(seed.wrapping_add(number as u64)).shuffled(group.size);
        permuted = surgery::permute(&permuted, coupling, group.id, &order)?;
    }
    Ok(permuted)
}

fn run(runtime: &dyn Runtime, model: &Model, inputs: &Inputs<'_>, optimization: Optimization) -> Result<Vec<Tensor>, ProofError> {
    let mut loaded = runtime.load(&model.encode(), optimization).map_err(ProofError::Runtime)?;
    loaded.run(inputs).map_err(ProofError::Runtime)
}
