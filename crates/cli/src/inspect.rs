//! What a model is and how much of it can be pruned: read, measured, and on request proved by running it.
//!
//! [`Subject`] is a model with everything found out about it, [`Inspection`] what is told of it, in three forms: JSON (its
//! serialisation), [`text`] and [`html`]. No controller is needed; ONNX Runtime is, to learn shapes and to prove.

mod feed;
pub mod html;
mod report;
pub mod text;

use pleach_domain::Tensor;
use pleach_domain::runtime::Runtime;
use pleach_onnx::{Model, OnnxError, Shapes};
use pleach_prune::coupling::{Coupling, CouplingError, LoadedProbe, PROBE_ROWS};
use pleach_prune::proof::{self, ProofError};
use pleach_prune::surgery::SurgeryError;
use pleach_prune::{PruneError, Silent, fold, surgery};
use thiserror::Error;

use self::feed::{Feed, USUAL};
pub use self::feed::{FeedError, GivenShapes};
pub use self::report::{Axis, FrozenPart, GroupPart, Inspection, Member, OperatorCount, Port, Proof, ReasonShare};

/// Seed of the proofs' permutations and cuts.
const SEED: u64 = 11;

/// Why a model cannot be inspected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The file is no usable model.
    #[error("reading the model")]
    Model(#[source] OnnxError),
    /// Folding made something invalid of it.
    #[error("folding the model")]
    Fold(#[source] OnnxError),
    /// The inputs cannot be made.
    #[error("making inputs")]
    Feed(#[from] FeedError),
    /// The model does not run.
    #[error("measuring shapes{}", if *.chosen { " on inputs of lengths that the model leaves free; give them with --shape INPUT=LENGTHS" } else { "" })]
    Shapes {
        /// Whether lengths were chosen for the user.
        chosen: bool,
        /// The cause.
        #[source]
        source: CouplingError,
    },
    /// A model could not be cut or run for a proof.
    #[error("proving")]
    Prove(#[source] PruneError),
    /// A model could not be compared with what came.
    #[error("comparing with the model as it came")]
    Compare(#[from] ProofError),
    /// The model could not be cut for a proof.
    #[error("cutting for a proof")]
    Surgery(#[from] SurgeryError),
}

/// A model with everything found out about it.
pub struct Subject {
    /// As read.
    pub original: Model,
    /// Folded: what coupling and pruning work on.
    pub model: Model,
    /// Shapes of every tensor of the folded model.
    pub shapes: Shapes,
    /// Its groups, and what is frozen.
    pub coupling: Coupling,
    /// Inputs it was measured on and proofs are run on: the same random numbers each time.
    pub inputs: Vec<(String, Tensor)>,
    /// Rows of these inputs.
    pub batch: usize,
}

impl Subject {
    /// Reads a model's shapes off a run and finds its groups.
    ///
    /// # Errors
    /// [`InspectError`] when it cannot be folded, fed or run.
    pub fn new(original: Model, runtime: &dyn Runtime, given: &GivenShapes) -> Result<Self, InspectError> {
        let folded = fold::fold(&original).map_err(InspectError::Fold)?;
        let (shapes, feed) = measure(&folded, runtime, given)?;
        let (model, shapes) = match settled(&folded, runtime, given, &feed)? {
            Some(model) => measure(&model, runtime, given).map(|(shapes, _)| (model, shapes))?,
            None => (folded, shapes),
        };
        let coupling = Coupling::find(&model, &shapes);
        let inputs = feed.tensors(feed.batch)?;
        Ok(Self { original, model, shapes, coupling, inputs, batch: feed.batch })
    }

    /// Inputs by name, as proofs take them.
    pub fn inputs(&self) -> Vec<(&str, &Tensor)> {
        self.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }

    /// The model cut to about `percent` of every group's width.
    ///
    /// # Errors
    /// [`InspectError::Surgery`] when it cannot be cut.
    pub fn cut(&self, percent: usize) -> Result<Model, InspectError> {
        Ok(surgery::prune(&self.model, &self.coupling, &self.shapes, &proof::random_keep(&self.coupling, percent, SEED))?)
    }

    /// Runs every proof on the model's own random inputs, at [`proof::WIDTHS`] percent of every group.
    ///
    /// # Errors
    /// [`InspectError`] when a model cannot be cut or run; a proof that does not hold is a number, not an error.
    pub fn prove(&self, runtime: &dyn Runtime) -> Result<Proof, InspectError> {
        let inputs = &self.inputs();
        let subject = proof::Subject { runtime, model: &self.model, coupling: &self.coupling, shapes: &self.shapes, inputs };
        let found = proof::measure(&subject, SEED, &Silent).map_err(InspectError::Prove)?;
        Ok(Proof {
            identity: proof::identity(&self.model.encode(), &self.coupling, &self.shapes)?,
            permutation: found.permutation,
            mask: found.mask.into_iter().fold(0.0, f64::max),
            optimization: found.optimization,
            folding: proof::equality(runtime, &self.original, &self.model, inputs)?,
            bar: found.bar,
        })
    }
}

/// The model with literals in place of what it computes from lengths that never move; `None` when it runs at no other lengths than
/// these, so that nothing can be said.
fn settled(folded: &Model, runtime: &dyn Runtime, given: &GivenShapes, feed: &Feed) -> Result<Option<Model>, InspectError> {
    let [small, large] = PROBE_ROWS;
    let first = feed.tensors(if feed.grows() { small } else { feed.batch })?;
    let mut same = vec![first.clone()];
    if feed.grows() {
        same.push(feed.tensors(large)?);
    }
    let twice = |(name, shape): (&String, &Vec<usize>)| (name.clone(), Feed::scaled(folded, name, shape));
    let other_given: GivenShapes = given.iter().map(twice).collect();
    if !feed.chosen && other_given == *given {
        return Ok(fold::settle(folded, runtime, &same).and_then(|model| Ok(fold::fold(&model)?)).ok());
    }
    for &lengths in &USUAL {
        let other = Feed::new(folded, &other_given, lengths)?;
        let tensors = other.tensors(other.batch)?;
        if tensors.iter().zip(&first).all(|((_, a), (_, b))| a.shape().get(1..) == b.shape().get(1..)) {
            continue; // not other lengths
        }
        let feeds: Vec<_> = same.iter().cloned().chain([tensors]).collect();
        if let Ok(model) = fold::settle(folded, runtime, &feeds).and_then(|model| Ok(fold::fold(&model)?)) {
            return Ok(Some(model));
        }
    }
    Ok(None)
}

/// Measures shapes at the first lengths on which the model runs.
fn measure(model: &Model, runtime: &dyn Runtime, given: &GivenShapes) -> Result<(Shapes, Feed), InspectError> {
    let feed = Feed::new(model, given, USUAL[0])?;
    let chosen = feed.chosen;
    let failed = |source| InspectError::Shapes { chosen, source };
    let mut probe = LoadedProbe::new(model, runtime).map_err(failed)?;
    let error = match measure_on(&mut probe, &feed)? {
        Ok(shapes) => return Ok((shapes, feed)),
        Err(error) => error,
    };
    for &lengths in USUAL.iter().skip(1).filter(|_| chosen) {
        let feed = Feed::new(model, given, lengths)?;
        if let Ok(shapes) = measure_on(&mut probe, &feed)? {
            return Ok((shapes, feed));
        }
    }
    Err(failed(error))
}

/// With a batch that moves, else with one that does not.
fn measure_on(probe: &mut LoadedProbe, feed: &Feed) -> Result<Result<Shapes, CouplingError>, FeedError> {
    if feed.grows() {
        let [small, large] = PROBE_ROWS;
        if let Ok(shapes) = probe.measure([&feed.tensors(small)?, &feed.tensors(large)?]) {
            return Ok(Ok(shapes));
        }
    }
    Ok(probe.measure_fixed(&feed.tensors(feed.batch)?))
}
