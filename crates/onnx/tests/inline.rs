//! Functions of the model's own, put in the place of their calls.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know for tests

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
use pleach_onnx::proto::attribute_proto::AttributeType;
use pleach_onnx::proto::{AttributeProto, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto};
use pleach_onnx::{Limits, Model, OnnxError};

fn set(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("own".to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: outputs.iter().map(|&o| o.to_owned()).collect(),
        node: nodes,
        opset_import: vec![set("", 17), set("own", 1)],
        ..FunctionProto::default()
    }
}

fn call(name: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto { domain: Some("own".to_owned()), ..node(name, output, inputs, output, attributes) }
}

/// A graph of the given nodes from `x` to `y`, with functions.
fn model(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    let mut graph = GraphBuilder::new("calls");
    graph.input("x", ElementKind::Float, &[Dim::Fixed(4)]);
    nodes.into_iter().for_each(|node| graph.push(node));
    graph.output("y");
    let mut proto = graph.into_proto();
    proto.functions = functions;
    proto.opset_import.push(set("own", 1));
    proto
}

fn inlined(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> Result<Model, OnnxError> {
    Model::from_proto(model(nodes, functions), &Limits::default()).unwrap().inline(&Limits::default())
}

/// Operator, inputs and outputs of every node.
fn shown(model: &Model) -> Vec<String> {
    model.nodes().map(|n| format!("{}({}) -> {}", n.op_type(), n.proto.input.join(", "), n.proto.output.join(", "))).collect()
}

fn reference(name: &str, of: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ref_attr_name: Some(of.to_owned()),
        r#type: Some(kind.into()),
        ..AttributeProto::default()
    }
}

#[test]
fn each_call_has_names_of_its_own() {
    let twice = function("Twice", &["a"], &["b"], vec![node("Relu", "r", &["a"], "t", vec![]), node("Add", "s", &["t", "t"], "b", vec![])]);
    let model = inlined(vec![call("Twice", &["x"], "m", vec![]), call("Twice", &["m"], "y", vec![])], vec![twice]).unwrap();
    assert_eq!(shown(&model), ["Relu(x) -> m/t", "Add(m/t, m/t) -> m", "Relu(m) -> y/t", "Add(y/t, y/t) -> y"]);
    assert_eq!(model.nodes().map(|n| n.label()).collect::<Vec<_>>(), ["m/r", "m/s", "y/r", "y/s"]);
    assert!(model.to_proto().functions.is_empty());
}

#[test]
fn names_that_are_taken_are_not_taken_again() {
    let one = function("One", &["a"], &["b"], vec![node("Relu", "", &["a"], "t", vec![]), node("Neg", "", &["t"], "b", vec![])]);
    let nodes = vec![node("Abs", "", &["x"], "y/t", vec![]), call("One", &["y/t"], "y", vec![])];
    let shown = shown(&inlined(nodes, vec![one]).unwrap());
    assert!(shown[1].starts_with("Relu(y/t) -> y/t.") && shown[2].ends_with("-> y"), "{shown:?}");
}

#[test]
fn functions_call_functions_but_not_without_end() {
    let inner = function("Inner", &["a"], &["b"], vec![node("Relu", "", &["a"], "b", vec![])]);
    let outer = function("Outer", &["a"], &["b"], vec![call("Inner", &["a"], "t", vec![]), call("Inner", &["t"], "b", vec![])]);
    let model = inlined(vec![call("Outer", &["x"], "y", vec![])], vec![outer, inner]).unwrap();
    assert_eq!(shown(&model), ["Relu(x) -> y/t", "Relu(y/t) -> y"]);
    let endless = function("Endless", &["a"], &["b"], vec![call("Endless", &["a"], "b", vec![])]);
    let error = inlined(vec![call("Endless", &["x"], "y", vec![])], vec![endless]).unwrap_err();
    assert_eq!(error.to_string(), "function `own::Endless`: calls nest deeper than 8");
}

#[test]
fn functions_that_grow_without_bound_are_refused() {
    let level = |i: usize| {
        let calls = (0..20).map(|k| call(&format!("F{}", i + 1), &["a"], &format!("t{k}"), vec![])).collect();
        function(&format!("F{i}"), &["a"], &["t0"], calls)
    };
    let mut functions: Vec<_> = (0..6).map(level).collect();
    functions.push(function("F6", &["a"], &["b"], vec![node("Relu", "", &["a"], "b", vec![])]));
    let error = inlined(vec![call("F0", &["x"], "y", vec![])], functions).unwrap_err();
    assert!(matches!(error, OnnxError::TooLarge { .. }), "{error}");
}

#[test]
fn attributes_are_the_calls_or_the_defaults_or_absent() {
    let mut leaky = function("Leaky", &["a"], &["b"], vec![]);
    leaky.attribute = vec!["alpha".to_owned()];
    leaky.attribute_proto = vec![attribute("slope", 0.5f32)];
    leaky.node = vec![
        node("LeakyRelu", "", &["a"], "t", vec![reference("alpha", "alpha", AttributeType::Float)]),
        node("LeakyRelu", "", &["t"], "b", vec![reference("alpha", "slope", AttributeType::Float)]),
    ];
    let nodes =
        vec![call("Leaky", &["x"], "m", vec![attribute("alpha", 0.1f32)]), call("Leaky", &["m"], "y", vec![attribute("slope", 0.2f32)])];
    let model = inlined(nodes, vec![leaky]).unwrap();
    assert_eq!(model.nodes().map(|n| n.float("alpha")).collect::<Vec<_>>(), [Some(0.1), Some(0.5), None, Some(0.2)]);
}

#[test]
fn inputs_handed_through_and_values_given_twice_become_identities() {
    let both = function("Both", &["a"], &["a", "b", "b"], vec![node("Relu", "", &["a"], "b", vec![])]);
    let mut node = call("Both", &["x"], "p", vec![]);
    node.output = vec!["p".to_owned(), "q".to_owned(), "y".to_owned()];
    assert_eq!(shown(&inlined(vec![node], vec![both]).unwrap()), ["Relu(x) -> q", "Identity(x) -> p", "Identity(q) -> y"]);
}

#[test]
fn absent_inputs_stay_absent_and_outputs_nobody_wants_get_names() {
    let clip = function(
        "Cut",
        &["a", "low", "high"],
        &["b", "c"],
        vec![node("Clip", "", &["a", "low", "high"], "b", vec![]), node("Neg", "", &["b"], "c", vec![])],
    );
    let shown = shown(&inlined(vec![call("Cut", &["x"], "y", vec![])], vec![clip]).unwrap());
    assert_eq!(shown, ["Clip(x, , ) -> y", "Neg(y) -> y/c"]);
}

#[test]
fn graphs_nested_in_a_body_are_renamed_with_it() {
    let branch = |op: &str| {
        let mut graph = GraphBuilder::new("branch");
        graph.floats("k", &[1], &[1.0]);
        graph.push(node(op, "", &["t", "k"], "out", vec![]));
        graph.output("out");
        graph.into_proto().graph.unwrap()
    };
    let body = vec![
        node("Relu", "", &["a"], "t", vec![]),
        node("If", "", &["c"], "b", vec![attribute("then_branch", branch("Add")), attribute("else_branch", branch("Mul"))]),
    ];
    let choose = function("Choose", &["a", "c"], &["b"], body);
    let nodes = vec![
        node("Cast", "", &["x"], "c", vec![attribute("to", 9i64)]),
        call("Choose", &["x", "c"], "m", vec![]),
        call("Choose", &["m", "c"], "y", vec![]),
    ];
    let model = inlined(nodes, vec![choose]).unwrap();
    assert_eq!(model.node(pleach_onnx::NodeId(2)).unwrap().captured(), ["m/t"]);
    assert_eq!(model.node(pleach_onnx::NodeId(4)).unwrap().captured(), ["y/t"]);
}

#[test]
fn a_function_of_another_operator_set_version_stays() {
    let mut old = function("Old", &["a"], &["b"], vec![node("Relu", "", &["a"], "b", vec![])]);
    old.opset_import = vec![set("", 13)];
    let new = function("New", &["a"], &["b"], vec![node("Neg", "", &["a"], "b", vec![])]);
    let model = inlined(vec![call("Old", &["x"], "m", vec![]), call("New", &["m"], "y", vec![])], vec![old, new]).unwrap();
    assert_eq!(shown(&model), ["Old(x) -> m", "Neg(m) -> y"]);
    assert_eq!(model.to_proto().functions.len(), 2);
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let one = function("One", &["a"], &["b"], vec![node("Relu", "", &["a"], "b", vec![])]);
    let error = inlined(vec![call("One", &["x", "x"], "y", vec![])], vec![one]).unwrap_err();
    assert_eq!(error.to_string(), "function `own::One`: node `y` has 2 inputs: expected at most 1");
}
