//! What is written: the very bytes that were read, wherever nothing changed.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know for tests

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::proto::{ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use pleach_onnx::{Limits, Model, NodeId, Patch};
use prost::Message;

/// A length-delimited field, its length in more bytes than it needs.
fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encode_length_delimiter((number << 3 | 2) as usize, &mut out).unwrap();
    let length = content.len();
    out.extend([(length & 0x7f) as u8 | 0x80, (length >> 7 & 0x7f) as u8 | 0x80, (length >> 14) as u8]);
    out.extend(content);
    out
}

fn text(number: u64, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// A node `y = op(x)` whose operator comes first, with a field that no schema knows.
fn odd_node(op: &str, x: &str, y: &str) -> Vec<u8> {
    [text(4, op), text(1, x), text(2, y), field(99, b"node of tomorrow")].concat()
}

/// An initializer with unpacked dimensions and floats.
fn odd_tensor(name: &str) -> Vec<u8> {
    let mut out = text(8, name);
    out.extend([0x10, 0x01, 0x08, 0x02]); // FLOAT, dims: 2
    for value in [1.5f32, -2.5] {
        out.push(0x25); // float_data, one element
        out.extend(value.to_le_bytes());
    }
    out.extend(field(77, b"tensor of tomorrow"));
    out
}

/// x -> Relu -> Add(w) -> Neg, in an encoding that nobody would write, weights in the middle, fields of tomorrow on every level.
fn odd_model() -> Vec<u8> {
    let value = |name: &str| text(1, name);
    let add = [text(4, "Add"), text(1, "a"), text(1, "w"), text(2, "b")].concat();
    let graph = [
        field(1, &odd_node("Relu", "x", "a")),
        field(5, &odd_tensor("w")),
        field(88, b"graph of tomorrow"),
        field(1, &add),
        field(1, &odd_node("Neg", "b", "y")),
        field(11, &value("x")),
        field(12, &value("y")),
        text(2, "odd"),
    ]
    .concat();
    let mut out = vec![0x08, 0x88, 0x80, 0x00]; // IR version 8 in three bytes
    out.extend(field(8, &[0x10, 0x11]));
    out.extend(field(7, &graph));
    out.extend(field(100, b"model of tomorrow"));
    // A group, which protobuf gave up long ago, with a field in it.
    out.extend([0xab, 0x06, 0x08, 0x01, 0xac, 0x06]);
    out
}

fn decode(bytes: &[u8]) -> Model {
    Model::decode(bytes, &Limits::default()).unwrap()
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn an_unusual_encoding_comes_back_as_it_was() {
    let bytes = odd_model();
    let model = decode(&bytes);
    assert_eq!(model.floats("w"), Some((vec![2], vec![1.5, -2.5])));
    assert_eq!(model.nodes().map(|n| n.op_type()).collect::<Vec<_>>(), ["Relu", "Add", "Neg"]);
    assert_eq!(model.encode(), bytes);
    assert_eq!(model.apply(&Patch::new()).unwrap().encode(), bytes);
}

#[test]
fn a_patch_leaves_the_bytes_of_what_it_does_not_touch() {
    let model = decode(&odd_model());
    let mut patch = Patch::new();
    patch.set_attribute(NodeId(0), attribute("note", 1i64));
    let patched = model.apply(&patch).unwrap();
    let bytes = patched.encode();
    for kept in [
        field(5, &odd_tensor("w")),
        field(1, &odd_node("Neg", "b", "y")),
        field(88, b"graph of tomorrow"),
        field(99, b"node of tomorrow"),
        field(100, b"model of tomorrow"),
    ] {
        assert!(holds(&bytes, &kept), "{}", String::from_utf8_lossy(&kept));
    }
    assert!(!holds(&bytes, &field(1, &odd_node("Relu", "x", "a"))));
    let again = decode(&bytes);
    assert_eq!(again.node(NodeId(0)).unwrap().int("note"), Some(1));
    assert_eq!(again.graph(), patched.graph());
}

#[test]
fn a_changed_constant_keeps_what_its_schema_does_not_know() {
    let model = decode(&odd_model());
    let mut patch = Patch::new();
    patch.set_floats(&model, "w", &[2], &[3.0, 4.0]).unwrap();
    let bytes = model.apply(&patch).unwrap().encode();
    assert!(holds(&bytes, &field(77, b"tensor of tomorrow")) && holds(&bytes, &field(1, &odd_node("Relu", "x", "a"))));
    assert_eq!(decode(&bytes).floats("w"), Some((vec![2], vec![3.0, 4.0])));
}

#[test]
fn patching_back_gives_the_original_bytes() {
    let mut there = Patch::new();
    there.set_input(NodeId(2), 0, "a");
    let mut back = Patch::new();
    back.set_input(NodeId(2), 0, "b");
    let and_back = |model: &Model| model.apply(&there).unwrap().apply(&back).unwrap().encode();
    // Elements of one kind move together, to where the first of them stood; after that nothing moves.
    let settled = and_back(&decode(&odd_model()));
    assert_eq!(and_back(&decode(&settled)), settled);
}

#[test]
fn nodes_removed_added_and_renamed_are_written() {
    let model = decode(&odd_model());
    let mut patch = Patch::new();
    patch.remove_node(NodeId(0)).rename_uses("a", "x").add_output(pleach_onnx::builder::value_info("b", ElementKind::Unknown, None));
    patch.set_constant(TensorProto {
        name: Some("v".to_owned()),
        dims: vec![1],
        data_type: Some(DataType::Float.into()),
        raw_data: Some(vec![0u8; 4].into()),
        ..TensorProto::default()
    });
    let patched = model.apply(&patch).unwrap();
    let again = decode(&patched.encode());
    assert_eq!(again.graph(), patched.graph());
    assert_eq!(again.outputs().iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["y", "b"]);
    assert_eq!(again.initializers().collect::<Vec<_>>(), ["w", "v"]);
}

#[test]
fn a_file_of_two_graph_fields_is_still_written_right() {
    let mut bytes = odd_model();
    bytes.extend(field(7, &field(1, &odd_node("Abs", "y", "z"))));
    let model = decode(&bytes);
    assert_eq!(model.encode(), bytes);
    let mut patch = Patch::new();
    patch.set_attribute(NodeId(3), attribute("note", 1i64));
    let patched = model.apply(&patch).unwrap();
    assert_eq!(decode(&patched.encode()).graph(), patched.graph());
}

#[test]
fn large_typed_lists_become_shared_bytes_only_in_memory() {
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let mut graph = GraphBuilder::new("typed");
    let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1000)]);
    let w = graph.tensor(TensorProto {
        name: Some("w".to_owned()),
        dims: vec![1000],
        data_type: Some(DataType::Float.into()),
        float_data: values.clone(),
        metadata_props: vec![StringStringEntryProto { key: Some("origin".to_owned()), value: Some("list".to_owned()) }],
        ..TensorProto::default()
    });
    let y = graph.node("Add", &[&x, &w], vec![]);
    let y = graph.node("Relu", &[&y], vec![]);
    graph.output(&y);
    let bytes = graph.into_proto().encode_to_vec();
    let model = decode(&bytes);
    assert_eq!(model.floats("w"), Some((vec![1000], values.clone())));
    let mut patch = Patch::new();
    patch.set_attribute(NodeId(1), attribute("note", 1i64));
    let proto = ModelProto::decode(&*model.apply(&patch).unwrap().encode()).unwrap();
    assert_eq!(proto.graph.unwrap().initializer[0].float_data, values);
}

#[test]
fn metadata_functions_and_documents_survive_a_patch() {
    let mut proto = ModelProto::decode(&*odd_model()).unwrap();
    proto.doc_string = Some("about".to_owned());
    proto.metadata_props = vec![StringStringEntryProto { key: Some("author".to_owned()), value: Some("me".to_owned()) }];
    proto.functions = vec![pleach_onnx::proto::FunctionProto {
        name: Some("Twice".to_owned()),
        domain: Some("own".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![NodeProto {
            op_type: Some("Add".to_owned()),
            input: vec!["a".to_owned(); 2],
            output: vec!["b".to_owned()],
            ..NodeProto::default()
        }],
        ..Default::default()
    }];
    let mut patch = Patch::new();
    patch.set_attribute(NodeId(0), attribute("note", 1i64)).import("com.microsoft", 1);
    let patched = decode(&proto.encode_to_vec()).apply(&patch).unwrap();
    let again = ModelProto::decode(&*patched.encode()).unwrap();
    assert_eq!((&again.doc_string, &again.metadata_props, &again.functions), (&proto.doc_string, &proto.metadata_props, &proto.functions));
    assert_eq!(again.opset_import.len(), 2);
}
