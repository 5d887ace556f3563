//! Files as they come: whole, broken, hostile.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know for tests

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
use pleach_onnx::proto::tensor_proto::{DataLocation, DataType};
use pleach_onnx::proto::{ModelProto, OperatorSetIdProto, TensorProto};
use pleach_onnx::{Limits, Model, OnnxError};
use proptest::prelude::*;
use prost::Message;

fn small() -> Model {
    let mut graph = GraphBuilder::new("small");
    let x = graph.input("x", ElementKind::Float, &[Dim::Free("batch".to_owned()), Dim::Fixed(2), Dim::Fixed(4), Dim::Fixed(4)]);
    let w = graph.floats("w", &[3, 2, 1, 1], &[1.0, -1.0, 0.5, 2.0, 0.0, 1.5]);
    let y = graph.node("Conv", &[&x, &w], vec![attribute("kernel_shape", vec![1i64, 1])]);
    let y = graph.node("Relu", &[&y], vec![]);
    graph.output_of(&y, ElementKind::Float, &[Dim::Free("batch".to_owned()), Dim::Fixed(3), Dim::Fixed(4), Dim::Fixed(4)]);
    graph.build().unwrap()
}

fn decode(bytes: &[u8]) -> Result<Model, OnnxError> {
    Model::decode(bytes, &Limits::default())
}

fn changed(change: impl FnOnce(&mut ModelProto)) -> Result<Model, OnnxError> {
    let mut proto = small().to_proto();
    change(&mut proto);
    decode(&proto.encode_to_vec())
}

fn message(result: Result<Model, OnnxError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_unpatched_model_encodes_to_the_bytes_it_came_from() {
    let mut bytes = small().encode();
    bytes.extend([0xa2, 0x06, 0x00]); // field 100, of a format newer than ours
    assert_eq!(decode(&bytes).unwrap().encode(), bytes);
}

#[test]
fn reads_the_fixture() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/fm-resnet/model.onnx")).unwrap();
    let model = decode(&bytes).unwrap();
    assert_eq!(model.encode(), bytes);
    assert_eq!(model.nodes().count(), 57);
    assert_eq!(model.opset(""), Some(17));
    assert_eq!(model.floats("fc.weight").unwrap().0, [10, 128]);
    assert_eq!(model.producer("logits").unwrap().op_type(), "Gemm");
    assert_eq!(model.inputs()[0].dims, Some(vec![Dim::Free("batch".to_owned()), Dim::Fixed(1), Dim::Fixed(28), Dim::Fixed(28)]));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().encode();
    for length in 0..bytes.len() {
        let error = decode(&bytes[..length]).unwrap_err();
        assert!(!matches!(error, OnnxError::Malformed(_)), "prefix of {length} bytes: {error}");
    }
}

#[test]
fn a_file_cut_in_its_weights_is_called_truncated() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/fm-resnet/model.onnx")).unwrap();
    let error = decode(&bytes[..bytes.len() / 2]).unwrap_err();
    assert!(matches!(error, OnnxError::Truncated { .. }), "{error}");
    assert!(error.to_string().starts_with("truncated ONNX model"), "{error}");
}

#[test]
fn no_flipped_bit_makes_it_panic() {
    let bytes = small().encode();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            if let Ok(model) = decode(&flipped) {
                assert_eq!(model.encode(), flipped);
            }
        }
    }
}

#[test]
fn foreign_files_are_no_onnx() {
    for bytes in [
        &b""[..],
        b"PK\x03\x04zip archive",
        b"\x89PNG\r\n\x1a\n",
        b"{\"json\": true}",
        b"#!/bin/sh\necho no\n",
        b"\nname: text proto",
        &[0u8; 64],
    ] {
        let error = decode(bytes).unwrap_err();
        assert!(matches!(error, OnnxError::NotOnnx { .. }), "{bytes:?}: {error}");
    }
}

#[test]
fn a_model_without_a_graph_is_no_onnx() {
    let bytes = ModelProto { ir_version: Some(8), ..ModelProto::default() }.encode_to_vec();
    assert_eq!(message(decode(&bytes)), "not an ONNX model: expected a graph, found none");
}

#[test]
fn unknown_operator_sets_are_named() {
    let set = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    let with = |domain: &str, version| {
        let used = changed(|m| {
            m.opset_import.push(set(domain, version));
            m.graph.as_mut().unwrap().node[1].domain = Some(domain.to_owned());
        });
        message(used)
    };
    let expected = "expected ai.onnx 7 to 26, ai.onnx.ml 1 to 5, com.microsoft 1, or functions of the model's own";
    assert_eq!(with("x.y", 3), format!("operator set `x.y` version 3: {expected}"));
    assert_eq!(with("com.microsoft", 9), format!("operator set `com.microsoft` version 9: {expected}"));
    assert!(message(changed(|m| m.opset_import = vec![set("", 6)])).starts_with("operator set `ai.onnx` version 6"));
    assert!(message(changed(|m| m.opset_import = vec![set("ai.onnx", 99)])).starts_with("operator set `ai.onnx` version 99"));
    assert!(message(changed(|m| m.opset_import.clear())).starts_with("operator set `ai.onnx` version 0"));
    assert!(changed(|m| m.opset_import = vec![set("ai.onnx", 17)]).is_ok());
    assert!(changed(|m| m.opset_import.push(set("x.y", 3))).is_ok(), "no node uses it");
}

#[test]
fn nodes_of_an_undeclared_set_are_named() {
    let result = changed(|m| m.graph.as_mut().unwrap().node[1].domain = Some("com.microsoft".to_owned()));
    assert_eq!(message(result), "node `Relu_1` needs operator set `com.microsoft`, which the model does not import");
}

#[test]
fn unknown_format_versions_are_named() {
    assert_eq!(message(changed(|m| m.ir_version = Some(99))), "IR version 99: expected 3 to 13");
}

#[test]
fn tensors_whose_facts_disagree_are_named() {
    let tensor = |change: fn(&mut TensorProto)| message(changed(|m| change(&mut m.graph.as_mut().unwrap().initializer[0])));
    assert_eq!(tensor(|t| t.dims[0] = 4), "tensor `w`: dimensions [4, 2, 1, 1] of FLOAT need 32 bytes or elements, got 24");
    assert_eq!(tensor(|t| t.dims[0] = -3), "tensor `w`: dimensions [-3, 2, 1, 1]: expected none negative");
    assert!(tensor(|t| t.dims = vec![i64::MAX, i64::MAX]).ends_with("overflow"));
    assert!(tensor(|t| t.data_type = Some(77)).contains("element type 77"));
    assert!(tensor(|t| t.dims = [&[3i64, 2][..], &[1; 9]].concat()).contains("rank 11"));
    assert!(tensor(|t| t.data_location = Some(DataLocation::External.into())).contains("external file"));
}

#[test]
fn broken_edges_are_named() {
    let graph = |change: fn(&mut pleach_onnx::proto::GraphProto)| message(changed(|m| change(m.graph.as_mut().unwrap())));
    assert_eq!(
        graph(|g| g.node.swap(0, 1)),
        "node `Relu_1` uses tensor `Conv_0` before it is produced: expected nodes in topological order"
    );
    assert_eq!(
        graph(|g| g.node[0].input[0] = "Relu_1".to_owned()),
        "node `Conv_0` uses tensor `Relu_1` before it is produced: expected nodes in topological order"
    );
    assert_eq!(graph(|g| g.node[1].input[0] = "z".to_owned()), "node `Relu_1` uses tensor `z`, which nothing defines");
    assert_eq!(graph(|g| g.node[1].output[0] = "Conv_0".to_owned()), "tensor `Conv_0` is defined twice, the second time by node `Relu_1`");
    assert_eq!(graph(|g| g.output[0].name = Some("z".to_owned())), "graph output uses tensor `z`, which nothing defines");
    assert_eq!(graph(|g| g.node[1].op_type = None), "node `Relu_1`: it names no operator");
}

#[test]
fn limits_bound_what_is_accepted() {
    let bytes = small().encode();
    let with = |limits: Limits| Model::decode(&bytes, &limits).unwrap_err().to_string();
    assert_eq!(with(Limits { max_bytes: 10, ..Limits::default() }), format!("the model has {} bytes: expected at most 10", bytes.len()));
    assert_eq!(with(Limits { max_nodes: 1, ..Limits::default() }), "the model has 2 nodes: expected at most 1");
    assert_eq!(with(Limits { max_fields: 5, ..Limits::default() }), "the model has 6 fields: expected at most 5");
}

#[test]
fn hostile_lists_names_and_arities_are_refused() {
    let refused = |limits: Limits, change: fn(&mut ModelProto)| {
        let mut proto = small().to_proto();
        change(&mut proto);
        Model::decode(&proto.encode_to_vec(), &limits).unwrap_err().to_string()
    };
    let limits = Limits { max_list_bytes: 1000, max_arity: 10, max_name_bytes: 100, ..Limits::default() };
    // Each element takes one byte in the file and eight in memory; not packed, so that they are counted one by one.
    let lists = refused(limits, |m| m.graph.as_mut().unwrap().node[0].attribute[0].ints = vec![1; 200]);
    assert_eq!(lists, "the model has 1008 bytes in lists: expected at most 1000");
    let names = refused(limits, |m| m.graph.as_mut().unwrap().node[0].name = Some("n".repeat(101)));
    assert_eq!(names, "the model has 101 bytes in a name: expected at most 100");
    let inputs = refused(limits, |m| m.graph.as_mut().unwrap().node[0].input = vec!["x".to_owned(); 11]);
    assert_eq!(inputs, "the model has 11 inputs of a node: expected at most 10");
    let attributes = refused(limits, |m| {
        m.graph.as_mut().unwrap().node[0].attribute = (0..11i64).map(|i| attribute(&format!("a{i}"), i)).collect();
    });
    assert_eq!(attributes, "the model has 11 attributes of a node: expected at most 10");
    let twice = refused(limits, |m| m.graph.as_mut().unwrap().node[0].attribute = vec![attribute("a", 1i64); 2]);
    assert_eq!(twice, "node `Conv_0`: attribute `a` is given twice");
}

#[test]
fn empty_tensors_do_not_stand_for_endless_axes() {
    let result = changed(|m| {
        let tensor = &mut m.graph.as_mut().unwrap().initializer[0];
        (tensor.dims, tensor.raw_data) = (vec![0, 1 << 40], None);
    });
    assert!(message(result).contains("expected axes of at most"));
}

#[test]
fn groups_are_skipped_up_to_a_depth() {
    let with = |depth: usize| {
        let mut bytes = small().encode();
        bytes.extend([0xa3, 0x06].repeat(depth)); // field 100 begins
        bytes.extend([0xa4, 0x06].repeat(depth)); // field 100 ends
        bytes
    };
    let bytes = with(20);
    assert_eq!(decode(&bytes).unwrap().encode(), bytes);
    assert!(matches!(decode(&with(5000)), Err(OnnxError::TooLarge { .. })));
    let mut unclosed = small().encode();
    unclosed.extend([0xa3, 0x06]);
    assert!(matches!(decode(&unclosed), Err(OnnxError::Truncated { .. })));
}

#[test]
fn sparse_initializers_are_kept_and_are_no_constants() {
    let sparse = changed(|m| {
        let graph = m.graph.as_mut().unwrap();
        let tensor = |name: &str, dims: Vec<i64>, kind: DataType, bytes: Vec<u8>| TensorProto {
            name: Some(name.to_owned()),
            dims,
            data_type: Some(kind.into()),
            raw_data: Some(bytes.into()),
            ..TensorProto::default()
        };
        graph.initializer.clear();
        graph.sparse_initializer = vec![pleach_onnx::proto::SparseTensorProto {
            values: Some(tensor("w", vec![1], DataType::Float, vec![0; 4])),
            indices: Some(tensor("", vec![1], DataType::Int64, vec![0; 8])),
            dims: vec![3, 2, 1, 1],
        }];
    });
    let model = sparse.unwrap();
    assert!(model.is_defined("w") && model.constant_dims("w").is_none());
    let mut patch = pleach_onnx::Patch::new();
    patch.set_attribute(pleach_onnx::NodeId(0), attribute("note", 1i64));
    assert_eq!(decode(&model.apply(&patch).unwrap().encode()).unwrap().graph().sparse_initializer, model.graph().sparse_initializer);
}

#[test]
fn functions_are_validated_like_graphs() {
    let function = |nodes: Vec<pleach_onnx::proto::NodeProto>| {
        changed(|m| {
            m.functions = vec![pleach_onnx::proto::FunctionProto {
                name: Some("F".to_owned()),
                domain: Some("own".to_owned()),
                input: vec!["a".to_owned()],
                output: vec!["b".to_owned()],
                node: nodes,
                opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
                ..Default::default()
            }];
        })
    };
    assert!(function(vec![node("Relu", "", &["a"], "b", vec![])]).is_ok());
    assert!(message(function(vec![node("Relu", "", &["x"], "b", vec![])])).contains("uses tensor `x`, which nothing defines"));
    assert!(message(function(vec![])).contains("uses tensor `b`, which nothing defines"));
}

#[test]
fn wide_nests_are_validated_in_time() {
    // 20,000 nodes with a graph each, that see 20,000 names: checked by lookups, not by copies.
    let mut proto = small().to_proto();
    let graph = proto.graph.as_mut().unwrap();
    let mut inner = GraphBuilder::new("inner");
    inner.push(node("Relu", "", &["x"], "inner", vec![]));
    inner.output("inner");
    let inner = inner.into_proto().graph.unwrap();
    graph.node.extend((0..20_000).map(|i| node("If", "", &["x"], &format!("if{i}"), vec![attribute("then_branch", inner.clone())])));
    let begun = std::time::Instant::now();
    decode(&proto.encode_to_vec()).unwrap();
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn deeply_nested_graphs_are_refused() {
    let mut proto = small().to_proto();
    for _ in 0..40 {
        let inner = proto.graph.take().unwrap();
        let mut outer = small().to_proto();
        outer.graph.as_mut().unwrap().node[0].attribute.push(attribute("then_branch", inner));
        proto = outer;
    }
    assert!(matches!(decode(&proto.encode_to_vec()), Err(OnnxError::TooLarge { .. })));
}

#[test]
fn nested_graphs_may_use_outer_tensors_and_count_as_their_readers() {
    let mut inner = GraphBuilder::new("branch");
    let w = inner.floats("one", &[1], &[1.0]);
    let y = inner.node("Identity", &[&w], vec![]);
    inner.output(&y);
    let mut branch = inner.build().unwrap().graph().clone();
    branch.node[0] = node("Add", "add", &["x", "one"], &y, vec![]);
    let mut graph = GraphBuilder::new("outer");
    let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1)]);
    let condition = graph.input("condition", ElementKind::Bool, &[]);
    let y = graph.node("If", &[&condition], vec![attribute("then_branch", branch.clone()), attribute("else_branch", branch)]);
    graph.output(&y);
    let model = graph.build().unwrap();
    assert_eq!(model.consumers(&x).iter().map(|u| (u.node.0, u.input)).collect::<Vec<_>>(), [(0, None)]);
    assert_eq!(model.producer(&y).unwrap().captured(), ["x"]);
}

#[test]
fn constants_read_the_same_whatever_their_storage() {
    let values = [1.0f32, -2.5, 0.0, 96.0];
    let raw = |bytes: Vec<u8>, kind: DataType| TensorProto {
        raw_data: Some(bytes.into()),
        data_type: Some(kind.into()),
        ..TensorProto::default()
    };
    let typed = |kind: DataType| TensorProto { data_type: Some(kind.into()), ..TensorProto::default() };
    let halves = || values.iter().map(|&v| half::f16::from_f32(v));
    let brains = || values.iter().map(|&v| half::bf16::from_f32(v));
    let stored = [
        raw(values.iter().flat_map(|v| v.to_le_bytes()).collect(), DataType::Float),
        TensorProto { float_data: values.to_vec(), ..typed(DataType::Float) },
        raw(values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(), DataType::Double),
        TensorProto { double_data: values.iter().map(|&v| f64::from(v)).collect(), ..typed(DataType::Double) },
        raw(halves().flat_map(|v| v.to_le_bytes()).collect(), DataType::Float16),
        TensorProto { int32_data: halves().map(|v| i32::from(v.to_bits())).collect(), ..typed(DataType::Float16) },
        raw(brains().flat_map(|v| v.to_le_bytes()).collect(), DataType::Bfloat16),
        TensorProto { int32_data: brains().map(|v| i32::from(v.to_bits())).collect(), ..typed(DataType::Bfloat16) },
    ];
    for tensor in stored {
        let tensor = TensorProto { dims: vec![2, 2], ..tensor };
        let mut graph = GraphBuilder::new("constants");
        graph.tensor(TensorProto { name: Some("a".to_owned()), ..tensor.clone() });
        let b = graph.node("Constant", &[], vec![attribute("value", tensor)]);
        graph.output("a");
        graph.output(&b);
        let model = graph.build().unwrap();
        assert_eq!(model.floats("a"), Some((vec![2, 2], values.to_vec())));
        assert_eq!(model.floats(&b), Some((vec![2, 2], values.to_vec())));
        let cut = pleach_onnx::tensor::select(&model.constant_tensor(&b).unwrap(), 1, &[1]).unwrap();
        let mut graph = GraphBuilder::new("cut");
        graph.tensor(TensorProto { name: Some("a".to_owned()), ..cut });
        graph.output("a");
        assert_eq!(graph.build().unwrap().floats("a"), Some((vec![2, 1], vec![-2.5, 96.0])));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn no_spliced_bytes_make_it_panic(at in 0usize..250, bytes in prop::collection::vec(any::<u8>(), 1..8)) {
        let mut spliced = small().encode();
        let at = at.min(spliced.len());
        spliced.splice(at..at, bytes);
        let _ = decode(&spliced);
    }
}
