//! What a model costs: multiply-accumulates, parameters, bytes.

mod macs;

use std::collections::HashMap;

use crate::model::{Model, NodeId, element_type};
use crate::proto::tensor_proto::DataType;
use crate::shapes::Shapes;
use crate::tensor::element_bits;
pub use macs::node_macs;

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
    let floats = model.constants().filter(|name| model.constant_type(name).is_some_and(is_float));
    let parameters = floats.filter_map(|name| model.constant_dims(name)).map(|dims| dims.iter().product::<usize>() as u64).sum();
    Statistics { macs: node_macs.iter().map(|(_, macs)| macs).sum(), parameters, size_bytes: model.encode().len() as u64, node_macs }
}

/// Most bytes of activations that are alive at once at a batch of `rows`, when nodes run in order and each tensor is freed behind its
/// last reader: `max over nodes of sum over live tensors of elements x bytes of an element`, constants not counted, tensors of unknown
/// shape left out. What a runtime's arena holds at least.
pub fn activation_bytes(model: &Model, shapes: &Shapes, rows: usize) -> u64 {
    let widths = element_widths(model);
    let bytes = |name: &str| {
        let width = widths.get(name).copied().unwrap_or(4);
        shapes.at(name, rows).map_or(0, |s| s.iter().fold(width, |a, &d| a.saturating_mul(d as u64)))
    };
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

/// Bytes of an element of each activation: declared, or following from the operator; most give what they are given.
fn element_widths(model: &Model) -> HashMap<&str, u64> {
    let width = |kind: i32| DataType::try_from(kind).ok().and_then(element_bits).map(|bits| (bits as u64).div_ceil(8));
    let graph = model.graph();
    let declared = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
    let mut widths: HashMap<&str, u64> = declared.filter_map(|info| Some((info.name(), width(element_type(info))?))).collect();
    for node in model.nodes() {
        let of = |index: usize| {
            let name = node.input(index)?;
            widths.get(name).copied().or_else(|| model.constant_type(name).and_then(width))
        };
        let own = match node.op_type() {
            "Cast" => node.int("to").and_then(|to| width(i32::try_from(to).ok()?)),
            "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => Some(8),
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Not" | "IsNaN" | "IsInf" => Some(1),
            "QuantizeLinear" | "DynamicQuantizeLinear" | "QLinearConv" | "QLinearMatMul" => Some(1),
            "ConvInteger" | "MatMulInteger" => Some(4),
            "DequantizeLinear" | "Where" => of(1),
            _ => of(0),
        };
        for output in node.outputs() {
            widths.entry(output).or_insert(own.unwrap_or(4));
        }
    }
    widths
}

fn is_float(kind: i32) -> bool {
    matches!(DataType::try_from(kind), Ok(DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
    use crate::proto::{AttributeProto, OperatorSetIdProto};
    use crate::shapes::AxisLength;
    use crate::validate::Limits;

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

    /// Multiply-accumulates of a node over inputs of the given shapes, at batch 1.
    fn macs(op: &str, domain: &str, attributes: Vec<AttributeProto>, inputs: &[&[usize]], output: &[usize]) -> u64 {
        let mut graph = GraphBuilder::new("one node");
        let mut shapes = Shapes::default();
        let axes = |dims: &[usize]| dims.iter().map(|&d| AxisLength { base: d as i64, per_row: 0 }).collect::<Vec<_>>();
        let names: Vec<String> = inputs
            .iter()
            .enumerate()
            .map(|(i, dims)| {
                let name = format!("x{i}");
                shapes.insert(&name, axes(dims));
                graph.input(&name, ElementKind::Float, &[])
            })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut node = node(op, "n", &names, "y", attributes);
        node.domain = Some(domain.to_owned());
        graph.push(node);
        shapes.insert("y", axes(output));
        graph.output("y");
        let mut proto = graph.into_proto();
        proto.opset_import.push(OperatorSetIdProto { domain: Some("com.microsoft".to_owned()), version: Some(1) });
        let model = Model::from_proto(proto, &Limits::default()).unwrap();
        statistics(&model, &shapes, 1).macs
    }

    #[test]
    fn work_is_counted_by_the_formula_of_each_operator() {
        let ms = "com.microsoft";
        assert_eq!(macs("Conv", "", vec![attribute("group", 2i64)], &[&[1, 4, 5, 5], &[6, 2, 3, 3]], &[1, 6, 3, 3]), 54 * 18);
        assert_eq!(macs("ConvTranspose", "", vec![], &[&[1, 4, 5, 5], &[4, 6, 2, 2]], &[1, 6, 10, 10]), 100 * 24);
        assert_eq!(macs("QLinearConv", "", vec![], &[&[1, 4, 5, 5], &[], &[], &[6, 4, 1, 1]], &[1, 6, 5, 5]), 150 * 4);
        assert_eq!(macs("Gemm", "", vec![attribute("transA", 1i64)], &[&[7, 2], &[7, 3]], &[2, 3]), 2 * 3 * 7);
        assert_eq!(macs("MatMul", "", vec![], &[&[2, 8, 5, 4], &[2, 8, 4, 5]], &[2, 8, 5, 5]), 400 * 4);
        assert_eq!(
            macs("Einsum", "", vec![attribute("equation", "bhid, bhjd -> bhij")], &[&[2, 3, 5, 4], &[2, 3, 6, 4]], &[2, 3, 5, 6]),
            720
        );
        assert_eq!(macs("Einsum", "", vec![attribute("equation", "...i,io->...o")], &[&[2, 5, 4], &[4, 3]], &[2, 5, 3]), 120);
        // 10 rows of 8 to 24 columns, then scores and values: 2 x 5 x 5 x 8 each.
        assert_eq!(macs("Attention", ms, vec![], &[&[2, 5, 8], &[8, 24], &[24]], &[2, 5, 8]), 10 * 8 * 24 + 2 * 2 * 5 * 5 * 8);
        assert_eq!(macs("MultiHeadAttention", ms, vec![], &[&[2, 5, 8], &[2, 7, 8], &[2, 7, 6]], &[2, 5, 6]), 7 * (80 + 60));
        assert_eq!(macs("Attention", "", vec![], &[&[2, 4, 5, 2], &[2, 4, 7, 2], &[2, 4, 7, 2]], &[2, 4, 5, 2]), 7 * (80 + 80));
        assert_eq!(macs("Relu", "", vec![], &[&[9]], &[9]), 0);
    }
}
