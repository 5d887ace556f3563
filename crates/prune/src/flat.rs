//! Width 0: a constant in place of a branch.
//!
//! Where a group is all that some layers read, those layers may put out their mean instead: the branch before them is dead and goes.
//! Behind an Add the constant is broadcast; elsewhere it is spread to the shape that the layer had.

use std::collections::BTreeSet;

use pleach_onnx::builder::{attribute, node};
use pleach_onnx::proto::NodeProto;
use pleach_onnx::{Model, NodeId, OnnxError, Patch};

use crate::coupling::Group;
use crate::network::{Layer, Network};

/// Most layers that one group's constant may replace: more of them are no branch.
const MOST_READERS: usize = 2;

/// Layers, by place in the network, that read a group and nothing else; `None` where some reader is no such layer.
pub(crate) fn readers(network: &Network, group: &Group) -> Option<Vec<usize>> {
    if group.consumers.is_empty() || group.consumers.len() > MOST_READERS {
        return None;
    }
    let reader = |node: NodeId| {
        let index = network.layers.iter().position(|l| l.node == node)?;
        let layer = &network.layers[index];
        let consumer = group.consumers.iter().find(|c| c.node == node)?;
        let covered: usize = consumer.units.iter().map(<[usize]>::len).sum();
        (layer.groups() == 1 && layer.bias.is_some() && covered == layer.inputs).then_some(index)
    };
    let readers: Vec<usize> = group.consumers.iter().map(|c| reader(c.node)).collect::<Option<_>>()?;
    // What else reads the group's channels must live behind those layers alone.
    let dead = dead_layers(network, &readers);
    let mut producers = group.producers.iter().filter_map(|p| network.layers.iter().position(|l| l.node == p.node));
    producers.all(|p| dead.contains(&p)).then_some(readers)
}

/// Layers, by place, that nothing needs when others put out constants; those others among them.
pub(crate) fn dead_layers(network: &Network, constant: &[usize]) -> BTreeSet<usize> {
    let stopped: Vec<NodeId> = constant.iter().map(|&i| network.layers[i].node).collect();
    let needed = needed(&network.model, &stopped);
    (0..network.layers.len()).filter(|i| constant.contains(i) || !needed.contains(&network.layers[*i].node.0)).collect()
}

/// Nodes that the outputs need, when some nodes need nothing themselves.
fn needed(model: &Model, stopped: &[NodeId]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
    while let Some(name) = open.pop() {
        let Some(node) = model.producer(&name).filter(|n| found.insert(n.id.0)) else { continue };
        if !stopped.contains(&node.id) {
            open.extend(node.inputs().chain(node.captured()).map(str::to_owned));
        }
    }
    found
}

/// Replaces a layer by its bias, in a patch to a model whose node ids are the network's.
///
/// # Errors
/// [`OnnxError`] when the model is not the network's.
pub(crate) fn replace(model: &Model, network: &Network, layer: &Layer, patch: &mut Patch) -> Result<(), OnnxError> {
    let old = model.node(layer.node).ok_or(OnnxError::NoSuchNode(layer.node))?;
    let bias = layer.bias.as_deref().and_then(|b| model.floats(b)).map(|(_, values)| values).unwrap_or_default();
    let rank = network.shapes.axes(&layer.output).map_or(0, <[_]>::len);
    let mut dims = vec![1; rank];
    if let Some(length) = dims.get_mut(layer.axes[1]) {
        *length = bias.len();
    }
    let name = model.free_name(&format!("{}.constant", layer.output));
    patch.set_floats(model, &name, &dims, &bias)?;
    // Of a MatMul the Add behind it adds the bias.
    let last = if old.is("MatMul") { model.producer(&layer.output).map_or(layer.node, |n| n.id) } else { layer.node };
    if last != layer.node {
        patch.remove_node(layer.node);
    }
    if layer.partner.is_some() {
        patch.remove_node(last);
        patch.rename_uses(&layer.output, &name);
        return Ok(());
    }
    patch.replace_node(last, spread(model, network, layer, &name, &shape(network, layer, bias.len()))?);
    Ok(())
}

/// The layer's shape with so many outputs, at one row.
fn shape(network: &Network, layer: &Layer, outputs: usize) -> Vec<i64> {
    let mut shape: Vec<i64> =
        network.shapes.at(&layer.output, 1).unwrap_or_default().into_iter().map(|d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
    if let Some(length) = shape.get_mut(layer.axes[1]) {
        *length = i64::try_from(outputs).unwrap_or(i64::MAX);
    }
    shape
}

/// Nodes that spread a constant over the rows of the first input.
fn spread(model: &Model, network: &Network, layer: &Layer, constant: &str, shape: &[i64]) -> Result<Vec<NodeProto>, OnnxError> {
    let output = layer.output.as_str();
    let free = |part: &str| model.free_name(&format!("{output}.{part}"));
    let grows = |name: &str| network.shapes.axes(name).and_then(|a| a.first()).is_some_and(|a| a.per_row == 1);
    let ints = |name: &str, values: &[i64]| -> Result<_, OnnxError> {
        let tensor = pleach_onnx::tensor::encode_ints(name, &[values.len()], values)?;
        Ok(node("Constant", name, &[], name, vec![attribute("value", tensor)]))
    };
    let batch = model.inputs().into_iter().map(|i| i.name).find(|name| grows(name));
    let (target, rest) = (free("shape"), free("space"));
    let Some(input) = batch else {
        return Ok(vec![ints(&target, shape)?, node("Expand", output, &[constant, &target], output, vec![])]);
    };
    let (all, first, rows) = (free("lengths"), free("first"), free("rows"));
    Ok(vec![
        node("Shape", &all, &[&input], &all, vec![]),
        ints(&first, &[0])?,
        node("Gather", &rows, &[&all, &first], &rows, vec![]),
        ints(&rest, shape.get(1..).unwrap_or_default())?,
        node("Concat", &target, &[&rows, &rest], &target, vec![attribute("axis", 0i64)]),
        node("Expand", output, &[constant, &target], output, vec![]),
    ])
}
