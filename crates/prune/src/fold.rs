//! Exact simplifications before anything is measured: functions become the nodes they stand for, constants initializers, aliases
//! and vectors that several nodes read copies of their own, and BatchNormalization part of the layer before it.
//!
//! What the engine then sees are layers with a bias. What cannot be folded stays as it is. Folding needs the graph alone; [`prepare`] also
//! measures, and turns numbers that a model computes from shapes into literals.

mod settle;

use std::collections::BTreeSet;

use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::{Limits, Model, Node, OnnxError, Patch};

pub use settle::{prepare, settle};

/// Folds a model. The result computes the same outputs, up to the rounding of one multiplication a weight.
///
/// # Errors
/// What validation finds in the folded graph.
pub fn fold(model: &Model) -> Result<Model, OnnxError> {
    let model = constants_to_initializers(&model.inline(&Limits::default())?)?;
    let model = own_vectors(&remove_identities(&model)?)?;
    fold_normalizations(&model)
}

fn constants_to_initializers(model: &Model) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    for node in model.nodes().filter(|n| n.is("Constant")) {
        let Some(tensor) = node.output(0).and_then(|name| model.constant_tensor(name)) else { continue };
        patch.remove_node(node.id);
        patch.set_constant(tensor);
    }
    model.apply(&patch)
}

/// Gives every alias of a constant a copy of its own, so that layers that share it do not couple, and lets the readers of
/// other identities read their source.
fn remove_identities(model: &Model) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    let mut sources: Vec<(String, String)> = Vec::new();
    for node in model.nodes().filter(is_identity) {
        let (Some(from), Some(to)) = (node.input(0), node.output(0)) else { continue };
        let source = sources.iter().find(|(name, _)| name == from).map_or_else(|| from.to_owned(), |(_, source)| source.clone());
        if model.is_output(to) {
            continue;
        }
        if let Some(mut copy) = model.constant_tensor(&source) {
            copy.name = Some(to.to_owned());
            patch.remove_node(node.id);
            patch.set_constant(copy);
        } else {
            patch.remove_node(node.id);
            patch.rename_uses(to, &source);
        }
        sources.push((to.to_owned(), source));
    }
    model.apply(&patch)
}

/// Gives every reader of a vector of floats one of its own: exporters store equal vectors once, and layers that have nothing but
/// the same bias in common are not coupled by it.
fn own_vectors(model: &Model) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    let mut fresh = 0;
    for name in model.initializers().filter(|name| model.consumers(name).len() > 1 && is_vector(model, name)) {
        let first = model.consumers(name).first().map(|own| own.node);
        for own in model.consumers(name).iter().filter(|own| Some(own.node) != first) {
            let (Some(input), Some(mut copy)) = (own.input, model.constant_tensor(name)) else { continue };
            let own_name = model.free_name(&format!("{name}.own.{fresh}"));
            fresh += 1;
            copy.name = Some(own_name.clone());
            patch.set_input(own.node, input, &own_name);
            patch.set_constant(copy);
        }
    }
    model.apply(&patch)
}

/// Whether a constant holds floats along one axis.
fn is_vector(model: &Model, name: &str) -> bool {
    let floats = [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double].map(i32::from);
    let along_one = |dims: Vec<usize>| dims.iter().filter(|&&length| length != 1).count() == 1;
    model.constant_dims(name).is_some_and(along_one) && model.constant_type(name).is_some_and(|own| floats.contains(&own))
}

fn is_identity(node: &Node<'_>) -> bool {
    let inference = node.input(2).is_none() && node.outputs().count() == 1;
    node.is("Identity") || (node.is("Dropout") && inference)
}

/// Folds each BatchNormalization into the Conv or Gemm that alone feeds it.
fn fold_normalizations(model: &Model) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    let mut stale: BTreeSet<String> = BTreeSet::new();
    for norm in model.nodes().filter(|n| n.is("BatchNormalization")) {
        if let Some(freed) = fold_normalization(model, norm, &mut patch)? {
            stale.extend(freed);
        }
    }
    let folded = model.apply(&patch)?;
    let mut cleanup = Patch::new();
    for name in stale.iter().filter(|name| folded.consumers(name).is_empty() && !folded.is_output(name)) {
        cleanup.remove_initializer(name);
    }
    folded.apply(&cleanup)
}

/// Folds one normalisation: W' = W s and b' = (b - mean) s + beta, with s = scale / sqrt(var + epsilon). Returns the constants it
/// needs no more, or nothing when it cannot be folded.
fn fold_normalization(model: &Model, norm: Node<'_>, patch: &mut Patch) -> Result<Option<Vec<String>>, OnnxError> {
    let Some(plan) = plan(model, norm) else { return Ok(None) };
    let Plan { layer, output, weight, bias, scale, shift } = plan;
    let (weight_name, dims, mut values) = weight;
    let (axis, rows) = (usize::from(layer.is("Gemm") && layer.int("transB").unwrap_or(0) == 0), scale.len());
    let inner: usize = dims.iter().skip(axis + 1).product();
    for (i, value) in values.iter_mut().enumerate() {
        let factor = scale.get(i / inner.max(1) % rows.max(1)).copied().unwrap_or(1.0);
        *value = (f64::from(*value) * factor) as f32;
    }
    let shift: Vec<f32> = shift.into_iter().map(|v| v as f32).collect();
    let new_weight = own_name(model, &weight_name, &format!("{output}.weight"));
    patch.set_floats(model, &new_weight, &dims, &values)?;
    patch.set_floats(model, &bias, &[rows], &shift)?;
    patch.set_input(layer.id, 1, &new_weight);
    patch.set_input(layer.id, 2, &bias);
    if layer.is("Gemm") {
        patch.set_attribute(layer.id, pleach_onnx::builder::attribute("beta", 1.0f32));
    }
    patch.set_output(layer.id, 0, &output);
    patch.remove_node(norm.id);
    let inputs = norm.inputs().skip(1).chain(layer.input(2)).filter(|name| *name != bias);
    Ok(Some(inputs.map(str::to_owned).collect()))
}

struct Plan<'a> {
    layer: Node<'a>,
    /// The normalisation's output, which becomes the layer's.
    output: String,
    weight: (String, Vec<usize>, Vec<f32>),
    /// Name of the bias to be written.
    bias: String,
    scale: Vec<f64>,
    shift: Vec<f64>,
}

fn plan<'a>(model: &'a Model, norm: Node<'a>) -> Option<Plan<'a>> {
    let x = norm.input(0)?;
    let layer = model.producer(x).filter(|n| n.is("Conv") || n.is("Gemm"))?;
    if model.consumers(x).len() != 1 || model.is_output(x) || norm.outputs().count() != 1 || norm.int("training_mode").unwrap_or(0) != 0 {
        return None;
    }
    let weight = model.floats(layer.input(1)?).map(|(dims, values)| (layer.input(1).unwrap_or_default().to_owned(), dims, values))?;
    let list = |index: usize| norm.input(index).and_then(|name| model.floats(name)).map(|(_, values)| values);
    let (gamma, beta, mean, variance) = (list(1)?, list(2)?, list(3)?, list(4)?);
    let rows = gamma.len();
    let beta_factor = if layer.is("Gemm") { f64::from(layer.float("beta").unwrap_or(1.0)) } else { 1.0 };
    let old = match layer.input(2) {
        Some(name) => model.floats(name).map(|(_, values)| values)?,
        None => vec![0.0; rows],
    };
    if [beta.len(), mean.len(), variance.len(), old.len()] != [rows; 4] {
        return None;
    }
    let epsilon = f64::from(norm.float("epsilon").unwrap_or(1e-5));
    let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(&g, &v)| f64::from(g) / (f64::from(v) + epsilon).sqrt()).collect();
    let shift = scale
        .iter()
        .zip(&old)
        .zip(mean.iter().zip(&beta))
        .map(|((s, &b), (&m, &t))| (f64::from(b) * beta_factor - f64::from(m)) * s + f64::from(t));
    let shift: Vec<f64> = shift.collect();
    if !scale.iter().chain(&shift).all(|v| v.is_finite()) {
        return None;
    }
    let bias = match layer.input(2) {
        Some(name) => own_name(model, name, &format!("{}.bias", norm.output(0)?)),
        None => own_name(model, norm.input(2)?, &format!("{}.bias", norm.output(0)?)),
    };
    Some(Plan { layer, output: norm.output(0)?.to_owned(), weight, bias, scale, shift })
}

/// A constant's name when one node alone reads it, else a new one.
fn own_name(model: &Model, name: &str, other: &str) -> String {
    if model.consumers(name).len() == 1 && !model.is_output(name) { name.to_owned() } else { model.free_name(other) }
}
