//! What a model costs: multiply-accumulates, parameters, bytes.

use std::collections::HashMap;

use crate::model::{Model, Node, NodeId};
use crate::shapes::Shapes;

/// Cost of a model at one batch size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Multiply-accumulates of convolutions and matrix products.
    pub macs: u64,
    /// Elements of float constants.
    pub parameters: u64,
    /// Bytes of the encoded file.
    pub size_bytes: u64,
    /// Multiply-accumulates by node, for the nodes that have any.
    pub node_macs: Vec<(NodeId, u64)>,
}

/// Counts a model's cost at a batch of `rows`.
pub fn statistics(model: &Model, shapes: &Shapes, rows: usize) -> Statistics {
    let node_macs: Vec<(NodeId, u64)> =
        model.nodes().map(|node| (node.id, node_macs(model, node, shapes, rows))).filter(|&(_, macs)| macs > 0).collect();
    let constants = model.initializers().chain(model.nodes().filter(|n| n.is("Constant")).filter_map(|n| n.output(0)));
    let parameters = constants.filter_map(|name| model.floats(name)).map(|(_, values)| values.len() as u64).sum();
    Statistics { macs: node_macs.iter().map(|(_, macs)| macs).sum(), parameters, size_bytes: model.encode().len() as u64, node_macs }
}

/// Most bytes of activations that are alive at once at a batch of `rows`, when nodes run in order and each tensor is freed behind its
/// last reader: four bytes an element, constants not counted, tensors of unknown shape left out. What a runtime's arena holds at least.
pub fn activation_bytes(model: &Model, shapes: &Shapes, rows: usize) -> u64 {
    let bytes = |name: &str| shapes.at(name, rows).map_or(0, |s| s.iter().fold(4u64, |a, &d| a.saturating_mul(d as u64)));
    let mut readers: HashMap<&str, usize> = HashMap::new();
    for name in model.nodes().flat_map(|n| n.inputs().chain(n.captured())) {
        *readers.entry(name).or_default() += 1;
    }
    let inputs = model.inputs();
    let mut alive: u64 = inputs.iter().map(|i| bytes(&i.name)).sum();
    let mut most = alive;
    for node in model.nodes() {
        alive = node.outputs().fold(alive, |a, name| a.saturating_add(bytes(name)));
        most = most.max(alive);
        let mut free = |name: &str| alive = alive.saturating_sub(if model.constant_dims(name).is_some() { 0 } else { bytes(name) });
        node.outputs().filter(|name| !readers.contains_key(name) && !model.is_output(name)).for_each(&mut free);
        for name in node.inputs().chain(node.captured()) {
            let Some(left) = readers.get_mut(name) else { continue };
            *left -= 1;
            if *left == 0 && !model.is_output(name) {
                free(name);
            }
        }
    }
    most
}

/// Multiply-accumulates of one node at a batch of `rows`; 0 for nodes without any and for unknown shapes.
pub fn node_macs(model: &Model, node: Node<'_>, shapes: &Shapes, rows: usize) -> u64 {
    let dims = |name: Option<&str>| name.and_then(|n| shapes.at(n, rows).or_else(|| model.constant_dims(n)));
    let count = |dims: &[usize]| dims.iter().fold(1u64, |a, &d| a.saturating_mul(d as u64));
    let macs = || -> Option<u64> {
        match node.op_type() {
            "Conv" => Some(count(&dims(node.output(0))?).saturating_mul(count(dims(node.input(1))?.get(1..)?))),
            "ConvTranspose" => Some(count(&dims(node.input(0))?).saturating_mul(count(dims(node.input(1))?.get(1..)?))),
            "Gemm" => {
                let depth = *dims(node.input(0))?.get(usize::from(node.int("transA").unwrap_or(0) == 0))?;
                Some(count(&dims(node.output(0))?).saturating_mul(depth as u64))
            }
            "MatMul" => Some(count(&dims(node.output(0))?).saturating_mul(*dims(node.input(0))?.last()? as u64)),
            _ => Some(0),
        }
    };
    if node.domain().is_empty() { macs().unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{Dim, ElementKind, GraphBuilder};
    use crate::shapes::AxisLength;

    #[test]
    fn activations_die_behind_their_last_reader() {
        // x -> a -> b -> c = a + b: at the third node x is gone; a, b and c are alive.
        let mut graph = GraphBuilder::new("chain");
        let x = graph.input("x", ElementKind::Float, &[Dim::Free("rows".to_owned()), Dim::Fixed(8)]);
        let a = graph.node("Relu", &[&x], vec![]);
        let b = graph.node("Relu", &[&a], vec![]);
        let c = graph.node("Add", &[&a, &b], vec![]);
        graph.output(&c);
        let model = graph.build().unwrap();
        let mut shapes = Shapes::default();
        for name in [&x, &a, &b, &c] {
            shapes.insert(name, vec![AxisLength { base: 0, per_row: 1 }, AxisLength { base: 8, per_row: 0 }]);
        }
        assert_eq!(activation_bytes(&model, &shapes, 2), 3 * 2 * 8 * 4);
    }
}
