//! Changes to a graph.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know for tests

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node, value_info};
use pleach_onnx::proto::TensorProto;
use pleach_onnx::tensor::{select, zero};
use pleach_onnx::{Model, NodeId, OnnxError, Patch};

fn model() -> Model {
    let mut graph = GraphBuilder::new("two layers");
    let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(2)]);
    let w = graph.floats("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let y = graph.node("MatMul", &[&x, &w], vec![]);
    let y = graph.node("Relu", &[&y], vec![]);
    graph.output_of(&y, ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(3)]);
    graph.build().unwrap()
}

#[test]
fn an_empty_patch_changes_nothing() {
    let model = model();
    assert!(Patch::new().is_empty());
    assert_eq!(model.apply(&Patch::new()).unwrap().encode(), model.encode());
}

#[test]
fn constants_are_replaced_in_place_and_added_behind() {
    let model = model();
    let mut patch = Patch::new();
    patch.set_floats(&model, "w", &[2, 1], &[7.0, 8.0]).unwrap().set_ints("n", &[1], &[5]).unwrap();
    patch.set_axis_length("Relu_1", 1, 1);
    let patched = model.apply(&patch).unwrap();
    assert_eq!(patched.initializers().collect::<Vec<_>>(), ["w", "n"]);
    assert_eq!(patched.floats("w"), Some((vec![2, 1], vec![7.0, 8.0])));
    assert_eq!(patched.outputs()[0].dims, Some(vec![Dim::Fixed(1), Dim::Fixed(1)]));
    assert_eq!(model.floats("w").unwrap().0, [2, 3]);
}

#[test]
fn nodes_are_inserted_replaced_and_removed_by_their_old_ids() {
    let model = model();
    let mut patch = Patch::new();
    patch.insert_before(NodeId(1), node("Neg", "neg", &["MatMul_0"], "negated", vec![]));
    patch.set_input(NodeId(1), 0, "negated").set_attribute(NodeId(1), attribute("note", 3i64));
    let patched = model.apply(&patch).unwrap();
    assert_eq!(patched.nodes().map(|n| n.op_type()).collect::<Vec<_>>(), ["MatMul", "Neg", "Relu"]);
    assert_eq!(patched.node(NodeId(2)).unwrap().int("note"), Some(3));
    let mut back = Patch::new();
    back.remove_node(NodeId(1)).rename_uses("negated", "MatMul_0");
    let back = patched.apply(&back).unwrap();
    assert_eq!(back.nodes().map(|n| n.op_type()).collect::<Vec<_>>(), ["MatMul", "Relu"]);
    assert_eq!(back.consumers("MatMul_0").len(), 1);
}

#[test]
fn a_patch_that_breaks_the_graph_is_refused() {
    let model = model();
    let mut dangling = Patch::new();
    dangling.remove_node(NodeId(0));
    assert!(matches!(model.apply(&dangling), Err(OnnxError::Undefined { .. })));
    let mut missing = Patch::new();
    missing.remove_node(NodeId(9));
    assert!(matches!(model.apply(&missing), Err(OnnxError::NoSuchNode(NodeId(9)))));
}

#[test]
fn outputs_are_added_for_probes() {
    let mut patch = Patch::new();
    patch.add_output(value_info("MatMul_0", ElementKind::Float, None));
    let patched = model().apply(&patch).unwrap();
    assert_eq!(patched.outputs().iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["Relu_1", "MatMul_0"]);
}

#[test]
fn cuts_select_and_zero_along_any_axis() {
    let tensor = model().constant_tensor("w").unwrap();
    let floats = |tensor| {
        let mut patch = Patch::new();
        patch.set_constant(tensor);
        model().apply(&patch).unwrap().floats("w").unwrap()
    };
    assert_eq!(floats(select(&tensor, 0, &[1]).unwrap()), (vec![1, 3], vec![4.0, 5.0, 6.0]));
    assert_eq!(floats(select(&tensor, 1, &[2, 0]).unwrap()), (vec![2, 2], vec![3.0, 1.0, 6.0, 4.0]));
    assert_eq!(floats(zero(&tensor, 1, &[1]).unwrap()), (vec![2, 3], vec![1.0, 0.0, 3.0, 4.0, 0.0, 6.0]));
    assert!(select(&tensor, 1, &[3]).is_err());
    assert!(select(&tensor, 2, &[0]).is_err());
    assert!(zero(&tensor, 0, &[2]).is_err());
}

#[test]
fn constants_given_by_their_shape_alone_are_read_and_cut() {
    let mut graph = GraphBuilder::new("light");
    let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(4)]);
    let shape = graph.ints("shape", &[2], &[4, 6]);
    let value =
        TensorProto { dims: vec![1], data_type: Some(1), raw_data: Some(0.5f32.to_le_bytes().to_vec().into()), ..TensorProto::default() };
    let w = graph.node("ConstantOfShape", &[&shape], vec![attribute("value", value)]);
    let y = graph.node("MatMul", &[&x, &w], vec![]);
    graph.output(&y);
    let model = graph.build().unwrap();
    assert_eq!(model.constant_dims(&w), Some(vec![4, 6]));
    assert_eq!(model.floats(&w), Some((vec![4, 6], vec![0.5; 24])));
    let mut cut = Patch::new();
    cut.set_constant(select(&model.constant_tensor(&w).unwrap(), 1, &[0, 3]).unwrap());
    let pruned = model.apply(&cut).unwrap();
    assert_eq!(pruned.floats(&w), Some((vec![4, 2], vec![0.5; 8])));
    assert_eq!(pruned.producer(&w).unwrap().op_type(), "ConstantOfShape", "nothing is stored that was not");
    let again = pruned.apply(Patch::new().set_constant(select(&pruned.constant_tensor(&w).unwrap(), 1, &[0]).unwrap())).unwrap();
    assert_eq!(again.constant_dims(&w), Some(vec![4, 1]));
    let mut mask = Patch::new();
    mask.set_constant(zero(&model.constant_tensor(&w).unwrap(), 1, &[1]).unwrap());
    let masked = model.apply(&mask).unwrap();
    assert_eq!(masked.producer(&w).unwrap().op_type(), "Constant");
    assert_eq!(masked.floats(&w).unwrap().1[..3], [0.5, 0.0, 0.5]);
}

#[test]
fn every_form_of_a_constant_node_is_read() {
    let constant = |attribute| {
        let mut graph = GraphBuilder::new("constant");
        let y = graph.node("Constant", &[], vec![attribute]);
        graph.output(&y);
        graph.build().unwrap()
    };
    let name = "Constant_0";
    assert_eq!(constant(attribute("value_float", 2.5f32)).floats(name), Some((vec![], vec![2.5])));
    assert_eq!(constant(attribute("value_floats", vec![2.5f32, 1.0])).floats(name), Some((vec![2], vec![2.5, 1.0])));
    assert_eq!(constant(attribute("value_int", 7i64)).ints(name), Some(vec![7]));
    assert_eq!(constant(attribute("value_ints", vec![7i64, 8])).ints(name), Some(vec![7, 8]));
    assert_eq!(constant(attribute("value_ints", vec![7i64, 8])).constant_dims(name), Some(vec![2]));
    assert_eq!(constant(attribute("value_string", "text")).constant(name), None);
}
