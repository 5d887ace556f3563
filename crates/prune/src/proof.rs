//! Proofs that need no accuracy data: what a cut may not change, run and compared.
//!
//! Each returns the worst difference between two models' outputs, relative to the largest value of that output. They hold when
//! it is at most [`BAR`]; rounding in another order of summation stays well below.

use pleach_domain::Tensor;
use pleach_domain::runtime::{Optimization, Runtime, RuntimeError};
use pleach_onnx::{Limits, Model, OnnxError, Shapes};
use thiserror::Error;

use crate::coupling::{Coupling, Keep};
use crate::surgery::{self, SurgeryError};

/// Largest relative difference at which a proof holds.
pub const BAR: f64 = 1e-5;

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
pub fn permutation(runtime: &dyn Runtime, model: &Model, coupling: &Coupling, inputs: &Inputs<'_>, seed: u64) -> Result<f64, ProofError> {
    let mut permuted = model.clone();
    let mut random = SplitMix(seed);
    for group in &coupling.groups {
        let order = random.shuffle_within(&group.parts());
        permuted = surgery::permute(&permuted, coupling, group.id, &order)?;
    }
    difference(&run(runtime, model, inputs, Optimization::All)?, &run(runtime, &permuted, inputs, Optimization::All)?)
}

/// Compares the cut graph with the dense one whose consumers read zeros in place of what was cut.
///
/// # Errors
/// [`ProofError`] when a model cannot be cut or run.
pub fn mask(
    runtime: &dyn Runtime,
    model: &Model,
    coupling: &Coupling,
    shapes: &Shapes,
    keep: &Keep,
    inputs: &Inputs<'_>,
) -> Result<f64, ProofError> {
    let masked = surgery::mask(model, coupling, keep)?;
    let pruned = surgery::prune(model, coupling, shapes, keep)?;
    difference(&run(runtime, &masked, inputs, Optimization::All)?, &run(runtime, &pruned, inputs, Optimization::All)?)
}

/// Compares the runtime's optimised graph with the graph as written.
///
/// # Errors
/// [`ProofError`] when the model cannot be run.
pub fn optimization(runtime: &dyn Runtime, model: &Model, inputs: &Inputs<'_>) -> Result<f64, ProofError> {
    difference(&run(runtime, model, inputs, Optimization::Disabled)?, &run(runtime, model, inputs, Optimization::All)?)
}

/// Compares two models, e.g. before and after folding.
///
/// # Errors
/// [`ProofError`] when a model cannot be run.
pub fn equality(runtime: &dyn Runtime, left: &Model, right: &Model, inputs: &Inputs<'_>) -> Result<f64, ProofError> {
    difference(&run(runtime, left, inputs, Optimization::All)?, &run(runtime, right, inputs, Optimization::All)?)
}

fn run(runtime: &dyn Runtime, model: &Model, inputs: &Inputs<'_>, optimization: Optimization) -> Result<Vec<Tensor>, ProofError> {
    let mut loaded = runtime.load(&model.encode(), optimization).map_err(ProofError::Runtime)?;
    loaded.run(inputs).map_err(ProofError::Runtime)
}

/// The worst difference of two lists of outputs, relative to the largest value of each output; infinite where one is not finite
/// and the other is. Outputs that are no floats must be equal.
fn difference(left: &[Tensor], right: &[Tensor]) -> Result<f64, ProofError> {
    let mut worst = if left.len() == right.len() { 0.0 } else { f64::INFINITY };
    for (index, (a, b)) in left.iter().zip(right).enumerate() {
        if a.shape() != b.shape() || a.element_type() != b.element_type() {
            return Err(ProofError::Outputs { index, left: a.shape().to_vec(), right: b.shape().to_vec() });
        }
        let (Some(x), Some(y)) = (a.as_fp32(), b.as_fp32()) else {
            worst = if a == b { worst } else { f64::INFINITY };
            continue;
        };
        let scale = x.iter().map(|v| f64::from(v.abs())).filter(|v| v.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
        for (&p, &q) in x.iter().zip(y) {
            if p.to_bits() == q.to_bits() || p == q {
                continue;
            }
            let gap = (f64::from(p) - f64::from(q)).abs() / scale;
            worst = if gap.is_finite() { worst.max(gap) } else { f64::INFINITY };
        }
    }
    Ok(worst)
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): enough randomness for a shuffle.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A random order in which the units of each part change places (Fisher and Yates).
    fn shuffle_within(&mut self, parts: &[Vec<usize>]) -> Vec<usize> {
        let mut order = vec![0; parts.iter().map(Vec::len).sum()];
        for part in parts {
            let mut shuffled = part.clone();
            for i in (1..shuffled.len()).rev() {
                shuffled.swap(i, self.next() as usize % (i + 1));
            }
            for (&unit, &old) in part.iter().zip(&shuffled) {
                if let Some(slot) = order.get_mut(unit) {
                    *slot = old;
                }
            }
        }
        order
    }
}
