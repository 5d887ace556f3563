//! The same network in every form that files give it: what is found and proved does not depend on where weights are kept.

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node, value_info};
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::proto::type_proto::Value;
use pleach_onnx::proto::{FunctionProto, ModelProto, OperatorSetIdProto, TensorProto};
use pleach_onnx::{Limits, Model};
use pleach_prune::{Silent, fold, proof};

use super::{Case, Noise, conv, image, runtime};

/// Three convolutions with a residual: two groups.
fn plain() -> ModelProto {
    let (mut graph, mut noise) = (GraphBuilder::new("forms"), Noise(21));
    let x = image(&mut graph);
    let a = conv(&mut graph, &mut noise, &x, 4, 8);
    let b = conv(&mut graph, &mut noise, &a, 8, 6);
    let b = graph.node("Relu", &[&b], vec![]);
    let c = conv(&mut graph, &mut noise, &b, 6, 8);
    let sum = graph.node("Add", &[&a, &c], vec![]);
    let y = conv(&mut graph, &mut noise, &sum, 8, 3);
    graph.output(&y);
    graph.into_proto()
}

fn model(proto: ModelProto) -> Model {
    Model::from_proto(proto, &Limits::default()).unwrap()
}

/// Proves a form and its folded self, and counts the groups of the latter.
fn groups(form: Model) -> Vec<usize> {
    let folded = Case::new(fold::fold(&form).unwrap());
    Case::new(form).prove();
    folded.prove();
    assert!(folded.prunable() > 0.99);
    folded.coupling.groups.iter().map(|g| g.size).collect()
}

#[test]
fn initializers_and_those_that_are_inputs_too() {
    let mut listed = plain();
    assert_eq!(groups(model(listed.clone())), [8, 6]);
    let graph = listed.graph.as_mut().unwrap();
    for tensor in &graph.initializer {
        let dims: Vec<Dim> = tensor.dims.iter().map(|&d| Dim::Fixed(d as usize)).collect();
        graph.input.push(value_info(tensor.name(), ElementKind::Float, Some(&dims)));
    }
    assert_eq!(groups(model(listed)), [8, 6]);
}

#[test]
fn weights_in_constant_nodes_and_in_typed_lists() {
    let mut constants = plain();
    let graph = constants.graph.as_mut().unwrap();
    for tensor in std::mem::take(&mut graph.initializer) {
        let mut node = node("Constant", tensor.name(), &[], tensor.name(), vec![]);
        node.attribute = vec![attribute("value", tensor)];
        graph.node.insert(0, node);
    }
    assert_eq!(groups(model(constants)), [8, 6]);
    let mut lists = plain();
    for tensor in &mut lists.graph.as_mut().unwrap().initializer {
        let raw = tensor.raw_data.take().unwrap();
        tensor.float_data = raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    }
    assert_eq!(groups(model(lists)), [8, 6]);
}

#[test]
fn layers_in_functions() {
    let mut proto = plain();
    let graph = proto.graph.as_mut().unwrap();
    for conv in graph.node.iter_mut().filter(|n| n.op_type() == "Conv") {
        conv.op_type = Some("Layer".to_owned());
        conv.domain = Some("own".to_owned());
        conv.attribute.clear();
    }
    let mut layer = node("Conv", "conv", &["x", "w", "b"], "y", vec![attribute("pads", vec![1i64; 4])]);
    layer.doc_string = Some("the layer itself".to_owned());
    proto.functions = vec![FunctionProto {
        name: Some("Layer".to_owned()),
        domain: Some("own".to_owned()),
        input: ["x", "w", "b"].map(str::to_owned).to_vec(),
        output: vec!["y".to_owned()],
        node: vec![layer],
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        ..FunctionProto::default()
    }];
    proto.opset_import.push(OperatorSetIdProto { domain: Some("own".to_owned()), version: Some(1) });
    assert_eq!(groups(model(proto)), [8, 6]);
}

#[test]
fn weights_given_by_their_shape_alone() {
    let (mut graph, mut noise) = (GraphBuilder::new("light"), Noise(22));
    let x = image(&mut graph);
    let mut filled = |graph: &mut GraphBuilder, dims: &[i64]| {
        let name = graph.free_name("shape");
        let shape = graph.ints(&name, &[dims.len()], dims);
        let value = noise.floats(1, 0.2)[0];
        let value =
            TensorProto { dims: vec![1], data_type: Some(DataType::Float.into()), float_data: vec![value], ..TensorProto::default() };
        graph.node("ConstantOfShape", &[&shape], vec![attribute("value", value)])
    };
    let w = filled(&mut graph, &[6, 4, 1, 1]);
    let a = graph.node("Conv", &[&x, &w], vec![]);
    let a = graph.node("Relu", &[&a], vec![]);
    let w = filled(&mut graph, &[3, 6, 1, 1]);
    let y = graph.node("Conv", &[&a, &w], vec![]);
    graph.output(&y);
    let case = Case::new(graph.build().unwrap());
    case.prove();
    assert_eq!(case.coupling.groups.iter().map(|g| g.size).collect::<Vec<_>>(), [6]);
    let pruned = pleach_prune::surgery::prune(&case.model, &case.coupling, &case.shapes, &case.keep(50)).unwrap();
    assert!(pruned.nodes().filter(|n| n.is("ConstantOfShape")).count() == 2, "nothing is stored that was not");
}

#[test]
fn half_precision_holds_within_its_own_rounding() {
    let mut proto = plain();
    let graph = proto.graph.as_mut().unwrap();
    for tensor in &mut graph.initializer {
        let values = tensor.raw_data.take().unwrap();
        let halves = values.as_chunks::<4>().0.iter().map(|b| half::f16::from_f32(f32::from_le_bytes(*b)));
        tensor.int32_data = halves.map(|v| i32::from(v.to_bits())).collect();
        tensor.data_type = Some(DataType::Float16.into());
    }
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            tensor.elem_type = Some(DataType::Float16.into());
        }
    }
    let model = model(proto);
    assert!(proof::bar(&model) > proof::BAR && proof::bar(&model) < 0.01);
    assert_eq!(groups(model), [8, 6]);
}

/// A constant of eight-bit integers, or of integers that hold a bias.
fn integers(graph: &mut GraphBuilder, kind: DataType, dims: &[usize], values: &[i32]) -> String {
    let dims = dims.iter().map(|&d| d as i64).collect();
    let name = Some(graph.free_name("q"));
    graph.tensor(TensorProto { name, dims, data_type: Some(kind.into()), int32_data: values.to_vec(), ..TensorProto::default() })
}

/// A value through bytes and back, as quantisers write it around every layer.
fn through_bytes(graph: &mut GraphBuilder, x: &str, scale: f32) -> String {
    let (name, zero) = (graph.free_name("scale"), integers(graph, DataType::Uint8, &[], &[128]));
    let scale = graph.floats(&name, &[], &[scale]);
    let bytes = graph.node("QuantizeLinear", &[x, &scale, &zero], vec![]);
    graph.node("DequantizeLinear", &[&bytes, &scale, &zero], vec![])
}

/// A layer whose weights and bias are integers with a scale for each output, as ONNX Runtime's static quantiser writes them.
fn quantized_layer(graph: &mut GraphBuilder, noise: &mut Noise, x: &str, (op, dims): (&str, &[usize]), x_scale: f32) -> String {
    let outputs = dims[0];
    let scales: Vec<f32> = (0..outputs).map(|o| 0.002 + 0.0005 * o as f32).collect();
    let weights: Vec<i32> = noise.floats(dims.iter().product(), 127.0).iter().map(|v| v.round() as i32).collect();
    let biases: Vec<i32> = noise.floats(outputs, 500.0).iter().map(|v| v.round() as i32).collect();
    let mut parts = vec![x.to_owned()];
    for (kind, dims, values, factor) in [(DataType::Int8, dims, weights, 1.0), (DataType::Int32, &dims[..1], biases, x_scale)] {
        let (name, q, zero) =
            (graph.free_name("scales"), integers(graph, kind, dims, &values), integers(graph, kind, &[outputs], &vec![0; outputs]));
        let scale = graph.floats(&name, &[outputs], &scales.iter().map(|s| s * factor).collect::<Vec<_>>());
        parts.push(graph.node("DequantizeLinear", &[&q, &scale, &zero], vec![attribute("axis", 0i64)]));
    }
    let inputs: Vec<&str> = parts.iter().map(String::as_str).collect();
    let attributes = if op == "Gemm" { vec![attribute("transB", 1i64)] } else { vec![] };
    graph.node(op, &inputs, attributes)
}

#[test]
fn layers_between_quantised_values() {
    let (mut graph, mut noise) = (GraphBuilder::new("bytes").opset(17), Noise(31));
    let x = image(&mut graph);
    let mut at = through_bytes(&mut graph, &x, 0.01);
    for dims in [[8usize, 4, 3, 3], [6, 8, 1, 1]] {
        let y = quantized_layer(&mut graph, &mut noise, &at, ("Conv", &dims), 0.01);
        let y = graph.node("Relu", &[&y], vec![]);
        at = through_bytes(&mut graph, &y, 0.01);
    }
    let pooled = graph.node("GlobalAveragePool", &[&at], vec![]);
    let flat = graph.node("Flatten", &[&pooled], vec![]);
    let y = quantized_layer(&mut graph, &mut noise, &flat, ("Gemm", &[5, 6]), 0.01);
    graph.output(&y);
    let model = graph.build().unwrap();
    assert!(proof::bar(&model) > proof::BAR && proof::bar(&model) < 0.01);
    assert_eq!(groups(model), [8, 6]);
}

#[test]
fn a_group_that_misses_a_member_is_named() {
    let mut case = Case::new(model(plain()));
    let group = &mut case.coupling.groups[1];
    let name = group.name.clone();
    let bias = group.members.iter().position(|m| m.constant.ends_with(".bias")).unwrap();
    group.members.remove(bias);
    let (runtime, inputs) = (runtime(), case.inputs());
    let Case { model, coupling, shapes, .. } = &case;
    let subject = proof::Subject { runtime: &runtime, model, coupling, shapes, inputs: &inputs };
    let error = proof::prove(&subject, 1, &Silent).unwrap_err().to_string();
    assert!(error.contains("permutation") && error.contains(&format!("group `{name}` alone")), "{error}");
}
