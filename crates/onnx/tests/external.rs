//! Weights in files beside the model.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know for tests

use std::io;

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};
use pleach_onnx::proto::tensor_proto::{DataLocation, DataType};
use pleach_onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};
use pleach_onnx::{Limits, Model, NodeId, OnnxError, Patch};
use prost::Message;
use prost::bytes::Bytes;

const VALUES: [f32; 4] = [1.0, 2.0, 3.0, 4.0];

/// A model whose weight `w` of 2 x 2 floats lies where the entries say.
fn model(entries: &[(&str, &str)]) -> Bytes {
    let mut graph = GraphBuilder::new("external");
    let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(2)]);
    let w = graph.tensor(TensorProto {
        name: Some("w".to_owned()),
        dims: vec![2, 2],
        data_type: Some(DataType::Float.into()),
        data_location: Some(DataLocation::External.into()),
        external_data: entries
            .iter()
            .map(|(key, value)| StringStringEntryProto { key: Some((*key).to_owned()), value: Some((*value).to_owned()) })
            .collect(),
        ..TensorProto::default()
    });
    let y = graph.node("MatMul", &[&x, &w], vec![]);
    graph.output(&y);
    graph.into_proto().encode_to_vec().into()
}

/// Eight bytes of something else, then the weight.
fn file() -> Bytes {
    [vec![0u8; 8], VALUES.iter().flat_map(|v| v.to_le_bytes()).collect()].concat().into()
}

fn read(entries: &[(&str, &str)]) -> Result<Model, OnnxError> {
    Model::decode_external(model(entries), &Limits::default(), &mut |location, _| match location {
        "weights.bin" | "deep/weights.bin" => Ok(file()),
        _ => Err(io::ErrorKind::NotFound.into()),
    })
}

fn refusal(entries: &[(&str, &str)]) -> String {
    read(entries).unwrap_err().to_string()
}

#[test]
fn weights_are_read_from_their_place() {
    for location in ["weights.bin", "./weights.bin", "deep/weights.bin"] {
        let location = location.trim_start_matches("./");
        let model = read(&[("location", location), ("offset", "8"), ("length", "16")]).unwrap();
        assert_eq!(model.floats("w"), Some((vec![2, 2], VALUES.to_vec())));
    }
    assert!(read(&[("location", "weights.bin"), ("offset", "8")]).is_ok(), "to the end of the file");
}

#[test]
fn the_written_model_holds_them_and_the_read_bytes_are_kept() {
    let entries = [("location", "weights.bin"), ("offset", "8")];
    let found = read(&entries).unwrap();
    assert_eq!(found.original(), Some(&model(&entries)));
    let whole = Model::decode(&found.encode(), &Limits::default()).unwrap();
    assert_eq!(whole.floats("w"), Some((vec![2, 2], VALUES.to_vec())));
}

#[test]
fn without_a_reader_they_are_refused_by_name() {
    let error = Model::decode(&model(&[("location", "weights.bin")]), &Limits::default()).unwrap_err();
    assert!(matches!(error, OnnxError::ExternalData { ref name, .. } if name == "w"), "{error}");
}

#[test]
fn locations_outside_the_folder_are_refused() {
    for location in ["/etc/passwd", "../w", "a/../../w", "", "a//b", "C:\\w", "c:w", "a\\..\\w", ".", "nul\0", &"x".repeat(2000)] {
        let error = refusal(&[("location", location)]);
        assert!(error.contains("expected a path of plain names inside the model's folder"), "{location:?}: {error}");
    }
    assert!(refusal(&[]).contains("it names no location"));
}

#[test]
fn places_that_do_not_fit_are_refused() {
    let at = |offset: &str, length: &str| refusal(&[("location", "weights.bin"), ("offset", offset), ("length", length)]);
    assert!(at("9", "16").contains("bytes 9+16 of 24 in `weights.bin`"), "{}", at("9", "16"));
    assert!(at("0", "24").contains("need 16"));
    assert!(at("0", "15").contains("need 16"));
    assert!(at("18446744073709551615", "16").contains("need 16"));
    assert!(at("-1", "16").contains("offset `-1` is no number"));
    assert!(at("8", "99999999999999999999999").contains("is no number"));
    assert!(refusal(&[("location", "weights.bin")]).contains("bytes 0+24"));
    assert!(refusal(&[("location", "other.bin")]).contains("reading `other.bin`"));
}

#[test]
fn checksums_are_of_the_whole_file() {
    let with = |checksum: &str| read(&[("location", "weights.bin"), ("offset", "8"), ("checksum", checksum)]);
    let error = with("da39a3ee5e6b4b0d3255bfef95601890afd80709").unwrap_err().to_string();
    let own = error.split("has checksum ").nth(1).unwrap().split(':').next().unwrap().to_owned();
    assert_eq!(own.len(), 40);
    assert!(with(&own).is_ok() && with(&own.to_uppercase()).is_ok());
}

#[test]
fn what_all_tensors_claim_is_bounded() {
    let limits = Limits { max_external_bytes: 15, ..Limits::default() };
    let bytes = model(&[("location", "weights.bin"), ("offset", "8")]);
    let error = Model::decode_external(bytes, &limits, &mut |_, _| Ok(file())).unwrap_err();
    assert_eq!(error.to_string(), "the model has 16 bytes in other files: expected at most 15");
}

#[test]
fn weights_are_split_off_and_found_again() {
    let read_back = |split: pleach_onnx::Split| {
        let data: Bytes = split.data.concat().into();
        Model::decode_external(split.model.into(), &Limits::default(), &mut |location, _| {
            assert_eq!(location, "model.data");
            Ok(data.clone())
        })
        .unwrap()
    };
    let mut graph = GraphBuilder::new("two weights");
    let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(2)]);
    let (a, b) = (graph.floats("a", &[2, 2], &VALUES), graph.floats("b", &[2, 2], &[5.0; 4]));
    let small = graph.floats("small", &[2], &[1.0; 2]);
    let y = graph.node("MatMul", &[&x, &a], vec![]);
    let y = graph.node("MatMul", &[&y, &b], vec![]);
    let y = graph.node("Add", &[&y, &small], vec![]);
    graph.output(&y);
    let whole = Model::decode(&graph.build().unwrap().encode(), &Limits::default()).unwrap();
    let split = whole.encode_external("model.data", 16).unwrap();
    let stored = ModelProto::decode(&*split.model).unwrap().graph.unwrap().initializer;
    assert_eq!(stored.iter().map(|t| t.external_data.len()).collect::<Vec<_>>(), [3, 3, 0]);
    assert_eq!(stored[1].external_data[1].value(), "4096", "weights begin at a page");
    let back = read_back(split);
    assert_eq!(back.graph(), whole.graph());
    let mut patch = Patch::new();
    patch.set_attribute(NodeId(0), attribute("note", 1i64));
    let patched = back.apply(&patch).unwrap();
    assert_eq!(read_back(patched.encode_external("model.data", 16).unwrap()).graph(), patched.graph());
    assert!(whole.encode_external("../model.data", 16).is_err());
}
