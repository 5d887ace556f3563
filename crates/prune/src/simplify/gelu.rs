//! Activations: GELU in any spelling becomes one node, with the bias before it.

use pleach_onnx::builder::attribute;
use pleach_onnx::proto::NodeProto;
use pleach_onnx::{Model, Node, OnnxError, Patch};

use super::cone::{Cone, erf};
use super::{MICROSOFT, biased, contrib};

/// Points at which functions are compared.
const POINTS: [f64; 11] = [-3.7, -2.2, -1.1, -0.6, -0.1, 0.0, 0.2, 0.7, 1.3, 2.4, 3.9];
/// Largest difference at which two functions are one: constants are stored in single precision.
const SAME: f64 = 2e-6;

/// An activation with a kernel of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Activation {
    /// x Φ(x).
    Gelu,
    /// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).
    Fast,
    /// x σ(α x).
    Quick(f64),
}

impl Activation {
    fn at(self, x: f64) -> f64 {
        match self {
            Self::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::Fast => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh()),
            Self::Quick(alpha) => x / (1.0 + (-alpha * x).exp()),
        }
    }
}

/// Fuses every GELU, and the bias before it.
pub(super) fn fuse(model: &Model) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    for node in model.nodes() {
        let Some((activation, source)) = found(model, node) else { continue };
        let Some(output) = node.output(0) else { continue };
        patch.import(MICROSOFT, 1);
        patch.replace_node(node.id, vec![fused(model, activation, &source, output)]);
    }
    model.apply(&patch)
}

/// What the node ends, and its source.
fn found(model: &Model, node: Node<'_>) -> Option<(Activation, String)> {
    if node.is("Gelu") || node.op_type() == "Gelu" && node.domain() == MICROSOFT {
        let activation = if node.string("approximate") == Some("tanh") { Activation::Fast } else { Activation::Gelu };
        let unbiased = node.domain() == MICROSOFT && biased(model, node.input(0)?).is_none();
        return (!unbiased).then_some((activation, node.input(0)?.to_owned()));
    }
    if !node.is("Mul") && !node.is("Div") {
        return None;
    }
    let output = node.output(0)?;
    Cone::behind(model, output).into_iter().find_map(|cone| Some((known(model, &cone, output)?, cone.source)))
}

/// The activation that a cone computes.
fn known(model: &Model, cone: &Cone, output: &str) -> Option<Activation> {
    let candidate = match (cone.has("Erf"), cone.has("Tanh"), cone.has("Sigmoid")) {
        (true, false, false) => Activation::Gelu,
        (false, true, false) => Activation::Fast,
        // At 1 the function is σ(α): read α off.
        (false, false, true) => {
            let one = cone.values(model, output, &[1.0])?.first().copied()?;
            Activation::Quick((one / (1.0 - one)).ln())
        }
        _ => return None,
    };
    let values = cone.values(model, output, &POINTS)?;
    let same = values.len() == POINTS.len() && values.iter().zip(POINTS).all(|(v, x)| (v - candidate.at(x)).abs() < SAME);
    same.then_some(candidate)
}

fn fused(model: &Model, activation: Activation, source: &str, output: &str) -> NodeProto {
    let bias = biased(model, source);
    let inputs = |bias: Option<(&'_ str, &'_ str)>| match bias {
        Some((x, bias)) => vec![x.to_owned(), bias.to_owned()],
        None => vec![source.to_owned()],
    };
    match activation {
        Activation::Gelu if bias.is_some() => contrib("BiasGelu", inputs(bias), vec![output.to_owned()], vec![]),
        Activation::Gelu => contrib("Gelu", inputs(None), vec![output.to_owned()], vec![]),
        Activation::Fast => contrib("FastGelu", inputs(bias), vec![output.to_owned()], vec![]),
        Activation::Quick(alpha) => contrib("QuickGelu", inputs(None), vec![output.to_owned()], vec![attribute("alpha", alpha as f32)]),
    }
}
