//! Free speed: the same function in fewer, faster nodes.
//!
//! Exporters write attention, normalisation and activations as dozens of small nodes. ONNX Runtime fuses some of them, some
//! of the time (normalisation only with a static sequence length); here they are found by structure, checked by numbers and
//! written as the fused nodes of the `com.microsoft` operator set, batch and sequence as free as they were.
//!
//! The engine analyses and cuts the folded graph, in which every channel is still visible; rewriting comes last, so that what
//! is timed and delivered is rewritten. Results differ by rounding only ([`crate::proof::BAR`] of the largest output); the kernels of the
//! runtime's fused operators approximate nothing.

mod attention;
mod cone;
mod gelu;
mod mask;
mod norm;

use pleach_domain::runtime::Runtime;
use pleach_onnx::proto::{AttributeProto, NodeProto};
use pleach_onnx::{Model, OnnxError, Shapes};

use crate::dead;
use crate::proof::Inputs as Examples;

/// The operator set of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";
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

    /// Rewrites a model and removes what nothing reads any more. Pure.
    ///
    /// # Errors
    /// What validation finds in the rewritten graph.
    pub fn apply(&self, model: &Model, shapes: &Shapes) -> Result<Model, OnnxError> {
        // Outputs keep their names, so the shapes of the first model serve to the last.
        let attention = attention::fuse(model, shapes, &self.masks)?;
        let activations = gelu::fuse(&attention)?;
        dead::sweep(&norm::fuse(&activations, shapes)?)
    }
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
