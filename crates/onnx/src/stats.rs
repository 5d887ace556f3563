//! What a model costs: multiply-accumulates, parameters, bytes.

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
