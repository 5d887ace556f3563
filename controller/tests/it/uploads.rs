use std::io::Write;

use pleach_domain::Digest;
use pleach_proto::rest::{List, ModelView, Problem};
use prost::Message;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{Fixture, fixture, problem};

const ONNX: &str = "fm-resnet/model.onnx";
const CALIBRATION: &str = "fashion-calibration.npz";
const VALIDATION: &str = "fashion-validation.npz";

async fn register(server: &Fixture, onnx: Digest, calibration: Digest, validation: Digest) -> reqwest::Response {
    register_as(server, "classification", onnx, calibration, validation).await
}

async fn register_as(server: &Fixture, task: &str, onnx: Digest, calibration: Digest, validation: Digest) -> reqwest::Response {
    let body = json!({"name": "m", "task": task, "onnx": onnx, "calibration": calibration, "validation": validation});
    server.admin(Method::POST, "/api/v1/models").json(&body).send().await.unwrap()
}

async fn models(server: &Fixture) -> Vec<ModelView> {
    server.get::<List<ModelView>>("/api/v1/models").await.items
}

/// A stored (not compressed) `.npz` of float arrays and labels.
fn npz(arrays: &[(&str, &[usize], &[f32])], labels: &[i64]) -> Vec<u8> {
    let mut zip = Zip::default();
    for (name, shape, values) in arrays {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        zip.add(&format!("{name}.npy"), &npy("<f4", shape, &bytes));
    }
    let bytes: Vec<u8> = labels.iter().flat_map(|v| v.to_le_bytes()).collect();
    zip.add("labels.npy", &npy("<i8", &[labels.len()], &bytes));
    zip.finish()
}

fn npy(kind: &str, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|d| format!("{d},")).collect();
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(bytes);
    out
}

/// The zip format (APPNOTE 6.3), stored entries only.
#[derive(Default)]
struct Zip {
    out: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl Zip {
    fn add(&mut self, name: &str, content: &[u8]) {
        let offset = self.out.len() as u32;
        let (size, crc) = ((content.len() as u32).to_le_bytes(), crc32(content).to_le_bytes());
        let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &size, &size, &(name.len() as u16).to_le_bytes(), &[0, 0]].concat();
        self.out.write_all(b"PK\x03\x04").unwrap();
        self.out.extend([&common[..], name.as_bytes(), content].concat());
        self.directory.extend([b"PK\x01\x02\x14\x00", &common[..], &[0; 10], &offset.to_le_bytes(), name.as_bytes()].concat());
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let start = (self.out.len() as u32).to_le_bytes();
        let (n, size) = (self.entries.to_le_bytes(), (self.directory.len() as u32).to_le_bytes());
        self.out.extend(&self.directory);
        self.out.extend([b"PK\x05\x06\0\0\0\0", &n[..], &n, &size, &start, &[0, 0]].concat());
        self.out
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg()));
    !bytes.iter().fold(!0, step)
}

#[tokio::test]
async fn registers_a_real_model_in_versions_and_counts_its_cost() {
    let server = Fixture::start().await;
    let (onnx, calibration) = (server.upload(&fixture(ONNX)).await, server.upload(&fixture(CALIBRATION)).await);
    let validation = server.upload(&fixture(VALIDATION)).await;
    let response = register(&server, onnx, calibration, validation).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let first: ModelView = response.json().await.unwrap();
    assert_eq!((first.version, first.size_bytes), (1, fixture(ONNX).len() as u64));
    assert!(first.macs > 1_000_000 && first.parameters > 100_000, "{first:?}");
    assert_eq!(register(&server, onnx, calibration, validation).await.json::<ModelView>().await.unwrap().version, 2);
    assert_eq!(models(&server).await.len(), 2);
}

#[tokio::test]
async fn an_upload_with_another_digest_or_too_many_bytes_is_not_kept() {
    let server = Fixture::start_with(|config| config.max_upload_bytes = 1_000).await;
    let announced = pleach_artifact::sha256(b"announced");
    let put = async |path: String, body: Vec<u8>| server.admin(Method::PUT, &path).body(body).send().await.unwrap();
    let refused = problem(put(format!("/api/v1/blobs/{announced}"), b"other".to_vec()).await).await;
    assert_eq!((refused.status, refused.code.as_str()), (422, "digest-mismatch"));
    assert!(refused.detail.contains(&announced.to_string()) && refused.detail.contains(&pleach_artifact::sha256(b"other").to_string()));
    let large = vec![7; 1_001];
    let path = format!("/api/v1/blobs/{}", pleach_artifact::sha256(&large));
    assert_eq!(problem(put(path, large.clone()).await).await.code, "too-large");
    assert_eq!(problem(put("/api/v1/blobs/xyz".into(), vec![]).await).await.code, "field-invalid");
    for digest in [announced, pleach_artifact::sha256(b"other"), pleach_artifact::sha256(&large)] {
        assert_eq!(server.controller().blobs.size(&digest).await.unwrap(), None);
    }
}

#[tokio::test]
async fn bad_models_are_refused_in_words_and_leave_no_row() {
    let server = Fixture::start().await;
    let data = (server.upload(&fixture(CALIBRATION)).await, server.upload(&fixture(VALIDATION)).await);
    let whole = fixture(ONNX);
    let mut unknown = pleach_onnx::proto::ModelProto::decode(whole.as_slice()).unwrap();
    unknown.opset_import[0].version = Some(99);
    let mut cyclic = pleach_onnx::proto::ModelProto::decode(whole.as_slice()).unwrap();
    cyclic.graph.as_mut().unwrap().node.reverse();
    let cases = [
        (b"no model at all".to_vec(), "model-invalid", "model: "),
        (whole[..whole.len() / 2].to_vec(), "model-invalid", "truncated ONNX model"),
        (unknown.encode_to_vec(), "model-operator-set", "operator set `ai.onnx` version 99: expected ai.onnx 7 to"),
        (cyclic.encode_to_vec(), "model-invalid", "topological order"),
    ];
    for (bytes, code, words) in cases {
        let onnx = server.upload(&bytes).await;
        let refused: Problem = problem(register(&server, onnx, data.0, data.1).await).await;
        assert_eq!((refused.status, refused.code.as_str()), (422, code), "{}", refused.detail);
        assert!(refused.detail.contains(words), "{}", refused.detail);
    }
    let missing = problem(register(&server, Digest::new([1; 32]), data.0, data.1).await).await;
    assert_eq!(missing.code, "blob-missing");
    assert!(models(&server).await.is_empty());
}

#[tokio::test]
async fn models_of_every_task_are_registered_and_those_of_another_task_refused() {
    let server = Fixture::start().await;
    let mut files = Vec::new();
    for (name, task) in [("fm-yolo", "detection"), ("austen-gpt", "language-model"), ("austen-gpt", "tagging"), ("spam-bert", "values")] {
        let upload = async |file: &str| server.upload(&fixture(&format!("{name}/{file}"))).await;
        let (onnx, calibration, validation) = (upload("model.onnx").await, upload("calibration.npz").await, upload("validation.npz").await);
        let response = register_as(&server, task, onnx, calibration, validation).await;
        assert_eq!(response.status(), StatusCode::CREATED, "{name}: {}", response.text().await.unwrap());
        files.push((onnx, calibration, validation));
    }
    let tasks: Vec<String> = models(&server).await.into_iter().map(|m| m.task).collect();
    assert_eq!(tasks, ["detection", "language-model", "tagging", "values"]);
    let (onnx, calibration, validation) = files[0];
    for (task, code, words) in [
        ("classification", "model-invalid", "expected scores [rows, classes]"),
        ("language-model", "model-invalid", "expected an output of scores [rows, positions, tokens]"),
        ("poetry", "field-invalid", r#"task is "poetry": expected one of ["classification", "tagging""#),
    ] {
        let refused = problem(register_as(&server, task, onnx, calibration, validation).await).await;
        assert_eq!((refused.status, refused.code.as_str()), (422, code), "{}", refused.detail);
        assert!(refused.detail.contains(words), "{}", refused.detail);
    }
}

#[tokio::test]
async fn bad_datasets_are_refused_in_words_and_leave_no_row() {
    let server = Fixture::start().await;
    let onnx = server.upload(&fixture(ONNX)).await;
    let good = server.upload(&fixture(CALIBRATION)).await;
    let image = vec![0.5; 2 * 784];
    let mut nan = image.clone();
    nan[1_000] = f32::NAN;
    let cases = [
        (b"no archive".to_vec(), "expected an .npz archive"),
        (npz(&[("input", &[2, 1, 28, 28], &image)], &[0]), "1 rows of targets: expected 2"),
        (npz(&[("input", &[2, 28, 28], &image)], &[0, 1]), "shape [2, 28, 28]: expected [rows, 1, 28, 28]"),
        (npz(&[("picture", &[2, 1, 28, 28], &image)], &[0, 1]), r#"dataset array "input": missing"#),
        (npz(&[("input", &[2, 1, 28, 28], &nan)], &[0, 1]), "NaN or infinity in row 1"),
        (npz(&[("input", &[2, 1, 28, 28], &image)], &[0, 10]), "label 10 in row 1: expected 0 to 9"),
        (npz(&[("input", &[2, 1, 28, 28], &image)], &[0, -1]), "label -1 in row 1: expected 0 to 9"),
    ];
    for (bytes, words) in cases {
        let bad = server.upload(&bytes).await;
        let refused = problem(register(&server, onnx, good, bad).await).await;
        assert_eq!((refused.status, refused.code.as_str()), (422, "dataset-invalid"), "{}", refused.detail);
        assert!(refused.detail.starts_with("validation data: ") && refused.detail.contains(words), "{}", refused.detail);
    }
    let mut zip = Zip::default();
    zip.add("input.npy", &npy("<i8", &[1, 1, 28, 28], &[0; 784 * 8]));
    let integers = server.upload(&zip.finish()).await;
    let refused = problem(register(&server, onnx, integers, good).await).await;
    assert!(refused.detail.contains("calibration data") && refused.detail.contains("type INT64: expected FP32"), "{}", refused.detail);
    assert!(models(&server).await.is_empty());
}
