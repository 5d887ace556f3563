//! Free speed: the same function in fewer, faster nodes.
//!
//! Exporters write attention, normalisation and activations as dozens of small nodes. ONNX Runtime fuses some of them, some
//! of the time (normalisation only with a static sequence length); here they are found by structure, checked by numbers and
//! written as the fused nodes of the `com.microsoft` operator set, batch and sequence as free as they were.
//!
//! The engine analyses and cuts the folded graph, in which every channel is still visible; rewriting comes last, so that what
//! is timed and delivered is rewritten. [`choose`] measures which rewritings pay on a machine; the engine itself applies all. Results differ by rounding only
//! ([`crate::proof::BAR`] of the largest output); the kernels of the runtime's fused operators approximate nothing.

mod attention;
mod cone;
pub(crate) mod dead;
mod gelu;
mod mask;
mod norm;

use std::time::Duration;

use pleach_domain::runtime::{Runtime, RuntimeError, TimedModel};
use pleach_onnx::proto::{AttributeProto, NodeProto};
use pleach_onnx::{Model, OnnxError, Shapes};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::coupling::{CouplingError, measure_shapes};
use crate::proof::{self, Inputs as Examples, ProofError};

/// The operator set of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";
/// Share of a model's time that a rewriting must save to be worth it: less is within the noise of timing.
const WORTH: f64 = 0.005;

/// A kind of rewriting; see the modules for what each does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rewrite {
    /// Self-attention as one node, its projections merged.
    Attention,
    /// GELU in any spelling as one node, with the bias before it.
    Activation,
    /// Normalisation as one node, with the sum before it.
    Normalization,
}

impl Rewrite {
    /// All kinds, in the order in which they are applied.
    pub const ALL: [Self; 3] = [Self::Attention, Self::Activation, Self::Normalization];
}

/// Why a model could not be rewritten.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SimplifyError {
    /// The rewritten graph is not valid.
    #[error("rewriting the graph")]
    Graph(#[from] OnnxError),
    /// The model's shapes could not be measured.
    #[error("measuring shapes for rewriting")]
    Shapes(#[from] CouplingError),
    /// The results could not be compared.
    #[error("comparing the rewritten graph")]
    Proof(#[from] ProofError),
    /// Timing failed.
    #[error("timing rewritten graphs")]
    Runtime(#[source] RuntimeError),
}

/// What must be known of a folded model to rewrite it and every narrowed form of it: what its attention masks do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewriter {
    masks: attention::Masks,
}

impl Rewriter {
    /// Finds out about a model by running parts of it; `examples` are a few rows for every input.
    pub fn find(model: &Model, shapes: &Shapes, examples: &Examples<'_>, runtime: &dyn Runtime) -> Self {
        Self { masks: attention::masks(model, shapes, examples, runtime) }
    }

    /// Rewrites a model as `kinds` say and removes what nothing reads any more. Pure.
    ///
    /// # Errors
    /// What validation finds in the rewritten graph.
    pub fn apply(&self, model: &Model, shapes: &Shapes, kinds: &[Rewrite]) -> Result<Model, OnnxError> {
        let mut current = model.clone();
        // Outputs keep their names, so the shapes of the first model serve to the last.
        for kind in Rewrite::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
            current = match kind {
                Rewrite::Attention => attention::fuse(&current, shapes, &self.masks)?,
                Rewrite::Activation => gelu::fuse(&current)?,
                Rewrite::Normalization => norm::fuse(&current, shapes)?,
            };
        }
        dead::sweep(&current)
    }
}

/// Rewrites a model as `kinds` say. `examples` are a few rows for every input of the model. A rewriting that would move an output by
/// more than [`proof::BAR`] is left out.
///
/// # Errors
/// [`SimplifyError`] when the runtime does not run the model.
pub fn rewrite(model: &Model, kinds: &[Rewrite], examples: &Examples<'_>, runtime: &dyn Runtime) -> Result<Model, SimplifyError> {
    let (shapes, rewriter) = known(model, examples, runtime)?;
    let (mut taken, mut current) = (Vec::new(), model.clone());
    for kind in Rewrite::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
        taken.push(kind);
        let next = rewriter.apply(model, &shapes, &taken)?;
        if proof::equality(runtime, model, &next, examples)? <= proof::BAR {
            current = next;
        } else {
            taken.pop();
        }
    }
    Ok(current)
}

/// The rewritings that make a model faster on the machine of `runtime`, each timed side by side with what was there before for
/// about `budget` of wall time.
///
/// # Errors
/// As [`rewrite`], and [`SimplifyError::Runtime`].
pub fn choose(model: &Model, examples: &Examples<'_>, runtime: &dyn Runtime, budget: Duration) -> Result<Vec<Rewrite>, SimplifyError> {
    let (shapes, rewriter) = known(model, examples, runtime)?;
    let inputs: Vec<_> = examples.iter().map(|(n, t)| ((*n).to_owned(), (*t).clone())).collect();
    let timed = |model: &Model| TimedModel { model: model.encode(), inputs: inputs.clone() };
    let (mut chosen, mut current) = (Vec::new(), model.clone());
    for kind in Rewrite::ALL {
        let next = rewriter.apply(model, &shapes, &[chosen.clone(), vec![kind]].concat())?;
        if next.nodes().count() == current.nodes().count() || proof::equality(runtime, model, &next, examples)? > proof::BAR {
            continue;
        }
        let times = runtime.time(&[timed(&current), timed(&next)], budget).map_err(SimplifyError::Runtime)?;
        let faster = matches!(times.as_slice(), [before, after] if after.min_us < (1.0 - WORTH) * before.min_us);
        tracing::debug!(?kind, faster, ?times, "rewriting timed");
        if faster {
            chosen.push(kind);
            current = next;
        }
    }
    Ok(chosen)
}

fn known(model: &Model, examples: &Examples<'_>, runtime: &dyn Runtime) -> Result<(Shapes, Rewriter), SimplifyError> {
    let lengths = examples.iter().map(|(n, t)| ((*n).to_owned(), t.shape().get(1..).unwrap_or_default().to_vec()));
    let shapes = measure_shapes(model, runtime, &lengths.collect())?;
    let rewriter = Rewriter::find(model, &shapes, examples, runtime);
    Ok((shapes, rewriter))
}

/// A tensor before a bias is added, and the bias: a constant of one axis.
fn biased<'a>(model: &'a Model, tensor: &str) -> Option<(&'a str, &'a str)> {
    let add = model.producer(tensor).filter(|n| n.is("Add"))?;
    let (a, b) = (add.input(0)?, add.input(1)?);
    let bias =
        |name: &str| model.constant_dims(name).is_some_and(|d| d.len() == 1 && d.iter().all(|&l| l > 1)) && model.floats(name).is_some();
    let (x, bias) = match (bias(a), bias(b)) {
        (true, false) => (b, a),
        (false, true) => (a, b),
        _ => return None,
    };
    model.constant_dims(x).is_none().then_some((x, bias))
}

/// A node of ONNX Runtime's own operator set, named by its output.
fn contrib(op: &str, inputs: Vec<String>, outputs: Vec<String>, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        domain: Some(MICROSOFT.to_owned()),
        name: outputs.first().cloned(),
        input: inputs,
        output: outputs,
        attribute: attributes,
        ..NodeProto::default()
    }
}
