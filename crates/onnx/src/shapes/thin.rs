//! Layers that read one channel: what a probe runs in place of the model's own.
//!
//! The shape of a layer's output does not depend on how many channels it sums over, but its cost does. So each reads the first channel
//! of its input through a Slice, with a weight of zeros to match that is made where it is needed: a probe neither carries weights nor
//! multiplies by them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{CONSTANT_OF_SHAPE, LARGE_ELEMENTS};
use crate::builder::{attribute, node};
use crate::error::OnnxError;
use crate::model::{Model, Node, NodeId};
use crate::patch::Patch;
use crate::proto::NodeProto;
use crate::proto::tensor_proto::DataType;
use crate::tensor;

/// First ai.onnx version whose Slice takes its bounds as inputs.
const SLICE_BY_INPUTS: i64 = 10;

/// A layer that can do with one channel.
struct Layer {
    /// The input's axis that is summed over.
    input_axis: i64,
    /// Lengths of the weight that is left.
    dims: Vec<i64>,
    kind: DataType,
}

/// Makes the layers of a model thin, and lets zeros take the place of other large weights, but for tensors that are `kept`. What
/// nobody reads then is gone.
pub(super) fn thin(model: &Model, kept: &BTreeSet<String>, patch: &mut Patch) -> Result<(), OnnxError> {
    let version = model.opset("").unwrap_or(0);
    if version < CONSTANT_OF_SHAPE || model.nodes().next().is_none() {
        return Ok(());
    }
    let mut axes: BTreeMap<i64, String> = BTreeMap::new();
    let mut freed: HashMap<&str, usize> = HashMap::new();
    for own in model.nodes().filter(|n| n.output(0).is_none_or(|name| !kept.contains(name))) {
        let Some(layer) = layer(model, own) else { continue };
        let (Some(x), Some(weight)) = (own.input(0), own.input(1)) else { continue };
        let [first, shape, zeros] = ["input", "shape", "weight"].map(|part| model.free_name(&format!("pleach.thin.{}.{part}", own.id.0)));
        let slice = first_channel(model, patch, &mut axes, x, &first, layer.input_axis)?;
        patch.insert_before(own.id, slice);
        patch.set_ints(&shape, &[layer.dims.len()], &layer.dims)?;
        let zero = tensor::encode_floats("", &[1], &[0.0], layer.kind)?;
        patch.insert_before(own.id, node("ConstantOfShape", &shape, &[&shape], &zeros, vec![attribute("value", zero)]));
        patch.set_input(own.id, 0, &first).set_input(own.id, 1, &zeros);
        if own.is("Conv") {
            patch.set_attribute(own.id, attribute("group", 1i64));
        }
        *freed.entry(weight).or_default() += 1;
    }
    freed.retain(|weight, uses| !kept.contains(*weight) && model.consumers(weight).len() == *uses && !model.is_output(weight));
    for weight in freed.keys() {
        match model.producer(weight) {
            Some(made) => {
                patch.remove_node(made.id);
                let alone = |name: &&str| model.consumers(name).len() == 1 && model.producer(name).is_none();
                made.inputs().filter(alone).for_each(|shape| {
                    patch.remove_initializer(shape);
                });
            }
            None => {
                patch.remove_initializer(weight);
            }
        }
    }
    zeros_for_others(model, patch, &|weight| kept.contains(weight) || freed.contains_key(weight))
}

/// The layer that a node is, where its weight is large and sums over several channels.
fn layer(model: &Model, own: Node<'_>) -> Option<Layer> {
    let weight = own.input(1).filter(|_| own.domain().is_empty())?;
    let mut dims = model.constant_dims(weight)?;
    let kind = DataType::try_from(model.constant_type(weight)?).ok()?;
    let floats = matches!(kind, DataType::Float | DataType::Float16 | DataType::Double);
    if !floats || tensor::element_count(&dims)? <= LARGE_ELEMENTS || model.constant_dims(own.input(0)?).is_some() {
        return None;
    }
    let flag = |name| own.int(name).unwrap_or(0) != 0;
    let (input_axis, axis) = match own.op_type() {
        "Conv" => (1, 1),
        "ConvTranspose" if own.int("group").unwrap_or(1) == 1 => (1, 0),
        "Gemm" if !flag("transA") => (1, usize::from(flag("transB"))),
        "MatMul" if dims.len() == 2 => (-1, 0),
        _ => return None,
    };
    let summed = dims.get_mut(axis).filter(|length| **length > 1)?;
    *summed = 1;
    Some(Layer { input_axis, dims: dims.into_iter().map(|d| i64::try_from(d).ok()).collect::<Option<_>>()?, kind })
}

/// A node that takes the first index of an axis.
fn first_channel(
    model: &Model,
    patch: &mut Patch,
    axes: &mut BTreeMap<i64, String>,
    x: &str,
    name: &str,
    axis: i64,
) -> Result<NodeProto, OnnxError> {
    if model.opset("").is_some_and(|version| version < SLICE_BY_INPUTS) {
        let list = |name, value: i64| attribute(name, vec![value]);
        return Ok(node("Slice", name, &[x], name, vec![list("starts", 0), list("ends", 1), list("axes", axis)]));
    }
    let mut literal = |value: i64| -> Result<String, OnnxError> {
        if let Some(known) = axes.get(&value) {
            return Ok(known.clone());
        }
        let fresh = model.free_name(&format!("pleach.thin.literal.{value}"));
        patch.set_ints(&fresh, &[1], &[value])?;
        axes.insert(value, fresh.clone());
        Ok(fresh)
    };
    Ok(node("Slice", name, &[x, &literal(0)?, &literal(1)?, &literal(axis)?], name, vec![]))
}

/// Lets a node make zeros in the place of each large weight that is still read.
fn zeros_for_others(model: &Model, patch: &mut Patch, settled: &dyn Fn(&str) -> bool) -> Result<(), OnnxError> {
    for (i, tensor) in model.graph().initializer.iter().enumerate() {
        let large = tensor::dims(tensor).ok().and_then(|dims| tensor::element_count(&dims)).is_some_and(|n| n > LARGE_ELEMENTS);
        if !large || tensor::data_type(tensor) != DataType::Float || settled(tensor.name()) {
            continue;
        }
        let shape = model.free_name(&format!("pleach.weight.{i}"));
        patch.set_ints(&shape, &[tensor.dims.len()], &tensor.dims)?;
        patch.remove_initializer(tensor.name());
        patch.insert_before(NodeId(0), node("ConstantOfShape", &shape, &[&shape], tensor.name(), vec![]));
    }
    Ok(())
}
