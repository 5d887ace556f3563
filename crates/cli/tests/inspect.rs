//! `pleach inspect` as users run it: on the fixtures, and on files that are no models.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not know for tests

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};
use pleach_onnx::proto::tensor_proto::DataLocation;
use pleach_onnx::proto::{StringStringEntryProto, TensorProto};
use pleach_onnx::{Limits, Model};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Runs `pleach inspect`; nothing of the environment but ONNX Runtime's place counts.
fn inspect(model: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pleach")).arg("inspect").arg(model).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(model: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&inspect(model, &[&["--output", "json"], args].concat()))).unwrap()
}

/// Exit code and message of a run that must fail.
fn refusal(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "nothing is printed of a model that was refused");
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn scratch(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, bytes).unwrap();
    (folder, file)
}

#[test]
fn text_shows_costs_groups_and_reasons() {
    insta::assert_snapshot!("text", stdout(&inspect(&fixture("fm-resnet/model.onnx"), &[])));
}

#[test]
fn json_has_what_programs_read() {
    let inspection = json(&fixture("fm-resnet/model.onnx"), &["--prove"]);
    assert_eq!(inspection["macs"], 21_906_048);
    assert!(inspection["parameters"].as_u64().unwrap() > 690_000);
    assert!(inspection["prunable_macs_share"].as_f64().unwrap() > 0.99);
    assert_eq!(inspection["groups"].as_array().unwrap().len(), 10);
    for part in inspection["frozen"].as_array().unwrap() {
        assert!(!part["name"].as_str().unwrap().is_empty() && !part["reason"].as_str().unwrap().is_empty());
    }
    for proof in ["permutation", "mask", "optimization", "folding"] {
        let worst = inspection["proof"][proof].as_f64().unwrap();
        assert!((0.0..=1e-5).contains(&worst), "{proof}: {worst:e}");
    }
    assert_eq!(inspection["proof"]["identity"], true);
}

#[test]
fn proofs_are_made_only_when_they_are_asked_for() {
    assert!(json(&fixture("fm-resnet/model.onnx"), &[]).get("proof").is_none());
}

#[test]
fn every_fixture_is_inspected_and_its_batch_follows_the_shape_given() {
    for name in ["fm-vgg", "fm-mbv2", "fm-yolo", "conll-bert", "spam-bert", "austen-gpt"] {
        let inspection = json(&fixture(&format!("{name}/model.onnx")), &[]);
        assert!(inspection["macs"].as_u64().unwrap() > 1_000_000, "{name}");
    }
    let one = json(&fixture("fm-vgg/model.onnx"), &[]);
    let four = json(&fixture("fm-vgg/model.onnx"), &["--shape", "input=4,1,28,28"]);
    assert_eq!(four["macs"].as_u64().unwrap(), 4 * one["macs"].as_u64().unwrap());
}

#[test]
fn the_page_asks_for_nothing_and_holds_every_group() {
    let page = stdout(&inspect(&fixture("fm-resnet/model.onnx"), &["--output", "html", "--prove"]));
    for foreign in ["src=", "href=", "@import", "url(http", "//cdn", "<link"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("default-src 'none'"));
    assert_eq!(page.matches("data-group=").count(), 10);
    assert_eq!(page.matches("class=\"box layer").count(), 17, "16 convolutions and one Gemm");
    assert!(page.contains("graph output `logits`"));
}

#[test]
fn hostile_names_stay_text_in_the_page() {
    let evil = "</script><script>alert(1)</script>";
    let (_folder, file) = scratch("evil.onnx", &convolution(evil, |tensor| tensor).encode());
    let page = stdout(&inspect(&file, &["--output", "html"]));
    assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert"));
}

/// `input` of 3 x 8 x 8 through one convolution whose tensors are called by `name`.
fn convolution(name: &str, change: impl Fn(TensorProto) -> TensorProto) -> Model {
    let mut graph = GraphBuilder::new("one");
    let axes = [Dim::Free("batch".to_owned()), Dim::Fixed(3), Dim::Fixed(8), Dim::Fixed(8)];
    let x = graph.input(name, ElementKind::Float, &axes);
    let w = graph.floats("weight", &[4, 3, 3, 3], &[0.1; 108]);
    let y = graph.node("Conv", &[&x, &w], vec![attribute("kernel_shape", vec![3i64, 3])]);
    graph.output(&y);
    let mut proto = graph.build().unwrap().to_proto();
    for tensor in &mut proto.graph.as_mut().unwrap().initializer {
        *tensor = change(tensor.clone());
    }
    Model::from_proto(proto, &Limits::default()).unwrap()
}

#[test]
fn rejects_what_is_no_model() {
    let (_folder, file) = scratch("text.onnx", b"this is no model at all, whatever its name says");
    let (code, message) = refusal(&inspect(&file, &[]));
    assert_eq!(code, 1);
    assert!(message.contains("text.onnx: reading the model: "), "{message}");
    let (code, message) = refusal(&inspect(Path::new("nowhere.onnx"), &[]));
    assert_eq!(code, 1);
    assert!(message.contains("nowhere.onnx: cannot read the model"), "{message}");
}

#[test]
fn rejects_a_truncated_model() {
    let bytes = std::fs::read(fixture("fm-resnet/model.onnx")).unwrap();
    for length in [bytes.len() / 2, bytes.len() - 1, 10] {
        let (_folder, file) = scratch("half.onnx", &bytes[..length]);
        let (code, message) = refusal(&inspect(&file, &[]));
        assert_eq!(code, 1);
        assert!(message.contains("reading the model"), "{length}: {message}");
    }
}

#[test]
fn rejects_a_shape_that_does_not_fit() {
    let model = fixture("fm-resnet/model.onnx");
    for (shape, expected) in [
        ("input=1,3,28,28", "the model takes [batch, 1, 28, 28]"),
        ("input=1,1,28", "the model takes [batch, 1, 28, 28]"),
        ("pixels=1,1,28,28", "the model's inputs are [\"input\"]"),
    ] {
        let (code, message) = refusal(&inspect(&model, &["--shape", shape]));
        assert_eq!(code, 1);
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(inspect(&model, &["--shape", "input"]).status.code(), Some(2));
    assert_eq!(inspect(&model, &["--shape", "input=a,b"]).status.code(), Some(2));
}

#[test]
fn external_data_is_read_from_the_models_folder_only() {
    let external = |tensor: TensorProto| TensorProto {
        data_location: Some(DataLocation::External.into()),
        external_data: vec![StringStringEntryProto { key: Some("location".to_owned()), value: Some("weights.bin".to_owned()) }],
        float_data: vec![],
        raw_data: None,
        ..tensor
    };
    let mut proto = convolution("x", |tensor| tensor).to_proto();
    let weight = &mut proto.graph.as_mut().unwrap().initializer[0];
    *weight = external(weight.clone());
    let (folder, file) = scratch("external.onnx", &prost::Message::encode_to_vec(&proto));
    let (code, message) = refusal(&inspect(&file, &[]));
    assert_eq!(code, 1);
    assert!(message.contains("tensor `weight` lies in an external file: reading `weights.bin`"), "{message}");
    std::fs::write(folder.path().join("weights.bin"), [0u8; 108 * 4]).unwrap();
    assert_eq!(json(&file, &[])["parameters"], 108);
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(elsewhere.path(), [0u8; 108 * 4]).unwrap();
    std::fs::remove_file(folder.path().join("weights.bin")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("weights.bin")).unwrap();
    let (_, message) = refusal(&inspect(&file, &[]));
    assert!(message.contains("a symbolic link leads out of the model's folder"), "{message}");
}

#[test]
fn says_what_to_do_without_onnx_runtime() {
    let run = |variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.arg("inspect").arg(fixture("fm-resnet/model.onnx")).env_remove("ORT_DYLIB_PATH");
        if let Some(value) = variable {
            command.env("ORT_DYLIB_PATH", value);
        }
        refusal(&command.output().unwrap())
    };
    for variable in [None, Some("/nowhere/libonnxruntime.so")] {
        let (code, message) = run(variable);
        assert_eq!(code, 1);
        assert!(message.contains("set ORT_DYLIB_PATH or --onnxruntime to libonnxruntime.so"), "{message}");
    }
}

#[test]
fn weights_beside_the_model_are_read_but_not_through_links_that_lead_away() {
    let whole = Model::decode(&std::fs::read(fixture("fm-resnet/model.onnx")).unwrap(), &Limits::default()).unwrap();
    let split = whole.encode_external("weights.bin", 1024).unwrap();
    let (folder, file) = scratch("model.onnx", &split.model);
    let weights = folder.path().join("weights.bin");
    std::fs::write(&weights, split.data.concat()).unwrap();
    let facts = |model: &Path| {
        let inspection = json(model, &["--prove"]);
        ["macs", "parameters", "prunable_macs_share", "groups", "proof"].map(|key| inspection[key].clone())
    };
    assert_eq!(facts(&file), facts(&fixture("fm-resnet/model.onnx")));
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::rename(&weights, elsewhere.path().join("weights.bin")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("weights.bin"), &weights).unwrap();
    let (code, message) = refusal(&inspect(&file, &[]));
    assert_eq!(code, 1);
    assert!(message.contains("a symbolic link leads out of the model's folder"), "{message}");
}
