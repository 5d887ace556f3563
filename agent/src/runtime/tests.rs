//! The runtime half over real sockets with the fixture model, in this process. `ORT_DYLIB_PATH` must name libonnxruntime.so.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};

use pleach_artifact::manifest::MANIFEST_FORMAT;
use pleach_artifact::{BundleManifest, KnownAnswer, NamedTensor, PayloadReader, Rung, RungSource, sha256};
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_domain::{Digest, Tensor};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_proto::device::local_client::LocalClient;
use pleach_proto::device::{FeedbackRequest, StatusRequest};
use pleach_proto::fleet::{MeasurementInput, MeasurementModel, MeasurementSet};
use pleach_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use pleach_proto::inference::model_infer_request::InferInputTensor;
use pleach_proto::inference::{InferTensorContents, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, ServerReadyRequest};
use pleach_proto::runtime::{Activate, CollectWindow, Load, Measure, Reply, Request, Stats, request};
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::channel::{Receiver, send};
use super::error::ServeError;
use super::host::Host;
use super::ladder::Serving;
use super::server::Listeners;
use super::{codec, control};
use crate::supervisor::SealedMemory;

const OLD: Digest = Digest::new([1; 32]);
const NEW: Digest = Digest::new([2; 32]);
const TOKEN: &str = "0123456789abcdef";

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn runtime() -> OrtRuntime {
    OrtRuntime::new(OrtOptions { library: None, threads: NonZeroUsize::MIN }).unwrap_or_else(|e| panic!("{e}"))
}

fn host(queue: usize) -> Arc<Host> {
    host_with(Serving { queue, ..Serving::default() })
}

fn host_with(serving: Serving) -> Arc<Host> {
    Arc::new(Host::new(runtime(), "device-1".to_owned(), serving))
}

fn images(rows: usize) -> (Tensor, Vec<i64>) {
    static DATA: LazyLock<Dataset> =
        LazyLock::new(|| Dataset::parse_npz(&fixture("fashion-validation.npz"), &DatasetLimits::default()).unwrap());
    let data = DATA.slice_rows(0, rows).unwrap();
    (data.inputs()["input"].clone(), data.labels().unwrap().to_vec())
}

/// A payload of the fixture model whose expected answer is off by `error`.
fn payload(version: u64, error: f32) -> Vec<u8> {
    payload_of(version, error, &["full"])
}

/// The same with these rungs, each of them the fixture model.
fn payload_of(version: u64, error: f32, rungs: &[&str]) -> Vec<u8> {
    let onnx = fixture("fm-resnet/model.onnx");
    let mut model = runtime().load(&onnx, Optimization::All).unwrap();
    let (input, _) = images(2);
    let answer = model.run(&[("input", &input)]).unwrap().remove(0);
    let off = answer.as_fp32().unwrap().iter().map(|x| x + error).collect();
    let expected = Tensor::fp32(answer.shape().to_vec(), off).unwrap();
    let output = model.outputs()[0].name.clone();
    let rung = |(name, place): (&&str, u64)| Rung {
        name: (*name).to_owned(),
        offset_bytes: place * onnx.len() as u64,
        length_bytes: onnx.len() as u64,
        sha256: sha256(&onnx),
        macs: 1 + place,
        known_answer: KnownAnswer { outputs: vec![NamedTensor { name: output.clone(), tensor: expected.clone() }], rtol: 1e-3, atol: 1e-3 },
    };
    let manifest = BundleManifest {
        format: MANIFEST_FORMAT,
        model: "fm-resnet".parse().unwrap(),
        version,
        class: "test-class".parse().unwrap(),
        task: "classification".to_owned(),
        labels: (0..10).map(|i| i.to_string()).collect(),
        inputs: model.inputs().to_vec(),
        outputs: model.outputs().to_vec(),
        request_batch: 1,
        known_answer_inputs: vec![NamedTensor { name: "input".to_owned(), tensor: input }],
        rungs: rungs.iter().zip(0u64..).map(rung).collect(),
        created_at_ms: 0,
    };
    let mut bytes = Vec::new();
    let sources: Vec<_> = rungs.iter().map(|_| RungSource { onnx: &onnx }).collect();
    std::io::copy(&mut PayloadReader::new(&manifest, &sources).unwrap(), &mut bytes).unwrap();
    bytes
}

fn serving(queue: usize) -> Arc<Host> {
    let host = host(queue);
    host.load_payload(OLD, &payload(1, 0.0)).unwrap();
    host.activate(OLD, false).unwrap();
    host
}

/// The API of a host on a socket of its own, until dropped.
struct Api {
    folder: TempDir,
    host: Arc<Host>,
    stop: CancellationToken,
    loopback: std::net::SocketAddr,
}

impl Api {
    async fn start(host: Arc<Host>) -> Self {
        let folder = TempDir::new().unwrap();
        let (socket, stop) = (folder.path().join("inference.sock"), CancellationToken::new());
        let bound = crate::listeners::Listeners::bind(&socket, Some(("127.0.0.1:0".parse().unwrap(), TOKEN.to_owned()))).unwrap();
        let loopback = bound.loopback().unwrap();
        let mut files = bound.files().map(|f| f.try_clone_to_owned().unwrap());
        let listeners = Listeners { unix: files.next().unwrap(), loopback: Some((files.next().unwrap(), TOKEN.to_owned())) };
        tokio::spawn(listeners.serve(Arc::clone(&host), stop.clone()));
        Self { folder, host, stop, loopback }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("inference.sock")
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("unix://{}", self.socket().display())).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(self.channel().await)
    }

    /// One HTTP/1.1 request over the Unix socket: status, head, body.
    async fn http(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = tokio::net::UnixStream::connect(self.socket()).await.unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: device\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, answer[end + 4..].to_vec())
    }

    async fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.http(method, path, "", &serde_json::to_vec(body).unwrap()).await;
        (status, serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&body))))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn infer_request(id: &str, images: &Tensor, raw: bool) -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: images.as_fp32().unwrap().to_vec(), ..InferTensorContents::default() };
    ModelInferRequest {
        model_name: "fm-resnet".to_owned(),
        id: id.to_owned(),
        inputs: vec![InferInputTensor {
            name: "input".to_owned(),
            datatype: "FP32".to_owned(),
            shape: images.shape().iter().map(|&d| d as i64).collect(),
            contents: (!raw).then_some(contents),
            ..InferInputTensor::default()
        }],
        raw_input_contents: if raw { vec![images.to_le_bytes()] } else { Vec::new() },
        ..ModelInferRequest::default()
    }
}

fn best(scores: &[f32]) -> Vec<i64> {
    let class = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as i64;
    scores.chunks(10).map(class).collect()
}

#[tokio::test]
async fn readiness_and_metadata_follow_what_serves() {
    let api = Api::start(host(8)).await;
    let mut client = api.client().await;
    let model = || ModelReadyRequest { name: "fm-resnet".to_owned(), version: String::new() };
    assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    assert!(!client.model_ready(model()).await.unwrap().into_inner().ready);
    assert_eq!(api.json("GET", "/v2/health/ready", &json!({})).await.0, 503);
    assert_eq!(api.json("GET", "/v2/health/live", &json!({})).await.0, 200);

    api.host.load_payload(OLD, &payload(1, 0.0)).unwrap();
    assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready, "loaded is not yet serving");
    api.host.activate(OLD, true).unwrap();
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    assert!(client.model_ready(model()).await.unwrap().into_inner().ready);
    let request = ModelMetadataRequest { name: "fm-resnet".to_owned(), version: "1".to_owned() };
    let metadata = client.model_metadata(request).await.unwrap().into_inner();
    assert_eq!(metadata.inputs[0].shape, [-1, 1, 28, 28]);
    assert_eq!((metadata.versions, metadata.inputs[0].datatype.as_str()), (vec!["1".to_owned()], "FP32"));
    let unknown = ModelMetadataRequest { name: "other".to_owned(), version: String::new() };
    assert_eq!(client.model_metadata(unknown).await.unwrap_err().code(), Code::NotFound);
    let (status, body) = api.json("GET", "/v2/models/fm-resnet/versions/2", &json!({})).await;
    assert_eq!(
        (status, body["error"].as_str().unwrap()),
        (404, r#"version "2" of model "fm-resnet" is not here: this device serves version 1"#)
    );
    let (_, body) = api.json("GET", "/v2/models/fm-resnet", &json!({})).await;
    assert_eq!(body["inputs"][0]["shape"], json!([-1, 1, 28, 28]));

    let mut local = LocalClient::new(api.channel().await);
    let state = async |local: &mut LocalClient<Channel>| local.status(StatusRequest {}).await.unwrap().into_inner().state;
    assert_eq!(state(&mut local).await, "probation");
    api.host.activate(OLD, false).unwrap();
    assert_eq!(state(&mut local).await, "serving");
    api.host.unload(OLD);
    assert_eq!(state(&mut local).await, "empty");
}

#[tokio::test]
async fn grpc_answers_in_the_form_that_was_asked_and_feedback_counts() {
    let api = Api::start(serving(8)).await;
    let (mut client, mut local) = (api.client().await, LocalClient::new(api.channel().await));
    let (images, labels) = images(32);
    let raw = client.model_infer(infer_request("r1", &images, true)).await.unwrap().into_inner();
    assert_eq!((raw.id.as_str(), raw.model_version.as_str(), raw.outputs[0].shape.as_slice()), ("r1", "1", &[32, 10][..]));
    let raw: Vec<f32> = raw.raw_output_contents[0].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let typed = client.model_infer(infer_request("", &images, false)).await.unwrap().into_inner();
    assert_eq!(typed.id.len(), 32, "an id is made where none was given");
    assert_eq!(typed.outputs[0].contents.as_ref().unwrap().fp32_contents, raw);

    let mut feedback = labels.clone();
    feedback[0] = -100;
    let say = |id: &str, labels: &[i64]| FeedbackRequest { request_id: id.to_owned(), labels: labels.to_vec() };
    assert_eq!(local.feedback(say("r1", &[10; 32])).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(local.feedback(say("r1", &[1])).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(local.feedback(say("r1", &feedback)).await.unwrap().into_inner().matched);
    assert!(!local.feedback(say("r1", &feedback)).await.unwrap().into_inner().matched, "labels count once");
    assert!(!local.feedback(say("never", &[1])).await.unwrap().into_inner().matched);

    let windows = api.host.collect();
    let [window] = windows.as_slice() else { panic!("{windows:?}") };
    let confusion = window.confusion.as_ref().unwrap();
    let hits = best(&raw).iter().zip(&labels).skip(1).filter(|(a, b)| a == b).count() as u64;
    assert_eq!((confusion.total(), confusion.correct()), (31, hits));
    assert!(hits > 26, "{hits} of 31");
    assert_eq!((window.bundle, window.requests, window.errors, window.latency.count()), (OLD, 2, 0, 2));
    assert!(window.latency.quantile_us(0.5) > 0 && window.memory_bytes > 0, "{window:?}");
    assert!(api.host.collect().is_empty(), "a collected window begins anew");
}

#[tokio::test]
async fn rest_answers_json_and_binary() {
    let api = Api::start(serving(8)).await;
    let (images, labels) = images(4);
    let input = json!({ "name": "input", "datatype": "FP32", "shape": [4, 1, 28, 28], "data": images.as_fp32().unwrap() });
    let request = json!({ "id": "r1", "inputs": [input] });
    let (status, body) = api.json("POST", "/v2/models/fm-resnet/infer", &request).await;
    assert_eq!((status, &body["id"], &body["outputs"][0]["shape"]), (200, &json!("r1"), &json!([4, 10])));
    let scores: Vec<f32> = serde_json::from_value(body["outputs"][0]["data"].clone()).unwrap();
    assert_eq!(
        api.json("POST", "/pleach/v1/feedback", &json!({ "request_id": "r1", "labels": labels })).await.1,
        json!({ "matched": true })
    );

    let bytes = images.to_le_bytes();
    let input = json!({ "name": "input", "datatype": "FP32", "shape": [4, 1, 28, 28], "parameters": { "binary_data_size": bytes.len() } });
    let head = serde_json::to_vec(&json!({ "inputs": [input], "parameters": { "binary_data_output": true } })).unwrap();
    let header = format!("inference-header-content-length: {}\r\n", head.len());
    let (status, answer, body) = api.http("POST", "/v2/models/fm-resnet/versions/1/infer", &header, &[head, bytes].concat()).await;
    assert_eq!(status, 200);
    let length = answer.lines().find_map(|l| l.strip_prefix("inference-header-content-length: ")).unwrap().parse().unwrap();
    let (head, tail) = body.split_at(length);
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], tail.len());
    let binary: Vec<f32> = tail.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(binary, scores);
    let (_, status) = api.json("GET", "/pleach/v1/status", &json!({})).await;
    assert_eq!((&status["device_id"], &status["requests"]), (&json!("device-1"), &json!(2)));
}

#[tokio::test]
async fn one_loopback_port_speaks_both_protocols_to_those_with_its_token() {
    let api = Api::start(serving(8)).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", api.loopback)).unwrap();
    let mut client = GrpcInferenceServiceClient::new(endpoint.connect().await.unwrap());
    for (token, allowed) in [(Some(TOKEN), true), (Some("wrong"), false), (None, false)] {
        let mut request = tonic::Request::new(ServerReadyRequest {});
        let header = token.map_or(String::new(), |t| format!("authorization: Bearer {t}\r\n"));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        match client.server_ready(request).await {
            Ok(answer) => assert!(allowed && answer.into_inner().ready),
            Err(status) => assert_eq!((allowed, status.code()), (false, Code::Unauthenticated)),
        }
        let mut stream = tokio::net::TcpStream::connect(api.loopback).await.unwrap();
        stream.write_all(format!("GET /v2 HTTP/1.1\r\nhost: device\r\nconnection: close\r\n{header}\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (status, words) = if allowed { ("HTTP/1.1 200", "binary_tensor_data") } else { ("HTTP/1.1 401", "no valid token") };
        assert!(answer.starts_with(status) && answer.contains(words), "{answer}");
    }
}

#[tokio::test]
async fn bad_requests_are_refused_in_words_and_count_no_error() {
    let api = Api::start(serving(8)).await;
    let mut client = api.client().await;
    let (images, _) = images(1);
    let good = infer_request("", &images, true);
    let mut refused = async |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = good.clone();
        change(&mut request);
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        status.message().to_owned()
    };
    assert_eq!(refused(&|r| r.inputs[0].name = "x".to_owned()).await, r#"input "x" is not one of the model: expected ["input"]"#);
    let message = refused(&|r| r.inputs[0].datatype = "FP16".to_owned()).await;
    assert_eq!(message, r#"input "input": datatype "FP16": expected FP32, FP64, INT64, INT32, UINT8 or BOOL"#);
    assert!(refused(&|r| r.inputs[0].shape = vec![1, 784]).await.contains("[1, 784]: expected FP32 [?, 1, 28, 28]"));
    assert!(refused(&|r| r.inputs[0].shape = vec![-1]).await.contains("none below 0"));
    assert!(refused(&|r| r.inputs[0].shape = vec![0, 1, 28, 28]).await.contains("cannot hold 784 elements"));
    assert!(refused(&|r| r.raw_input_contents[0].truncate(7)).await.contains("tensor of shape"));
    assert!(refused(&|r| r.raw_input_contents.push(Vec::new())).await.contains("2 raw inputs: expected 1"));
    assert!(refused(&|r| r.inputs.clear()).await.contains("1 raw inputs: expected 0"));
    assert!(refused(&|r| r.id = "x".repeat(300)).await.contains("request id of 300 bytes"));
    for body in [
        json!({}),
        json!({ "inputs": [] }),
        json!({ "inputs": [{ "name": "input", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": ["a"] }] }),
    ] {
        let (status, answer) = api.json("POST", "/v2/models/fm-resnet/infer", &body).await;
        assert_eq!(status, 400, "{answer}");
    }
    let (status, _, _) = api.http("POST", "/v2/models/fm-resnet/infer", "inference-header-content-length: 99\r\n", b"{}").await;
    assert_eq!(status, 400);
    let stats = api.host.active().unwrap();
    assert_eq!((stats.requests(), stats.errors()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_at_once() {
    let host = serving(1);
    let (images, _) = images(256);
    let ladder = host.serving("fm-resnet", "").unwrap();
    let mut requests = JoinSet::new();
    for i in 0..8 {
        let (ladder, inputs) = (Arc::clone(&ladder), vec![("input".to_owned(), images.clone())]);
        requests.spawn(async move { ladder.infer(i.to_string(), inputs, None).await });
    }
    let results = requests.join_all().await;
    let answered = results.iter().filter(|r| r.is_ok()).count();
    let refused = results.iter().filter(|r| matches!(r, Err(ServeError::Overloaded { waiting: 1 }))).count();
    assert!(answered >= 1 && refused >= 1 && answered + refused == 8, "{answered} answered, {refused} refused");
    let status = tonic::Status::from(ServeError::Overloaded { waiting: 1 });
    assert_eq!((status.code(), ServeError::Overloaded { waiting: 1 }.http_status().as_u16()), (Code::ResourceExhausted, 429));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swap_under_load_drops_no_request() {
    let api = Api::start(serving(64)).await;
    let (images, _) = images(1);
    let (stop, mut clients) = (CancellationToken::new(), JoinSet::new());
    for c in 0..4 {
        let (mut client, images, stop) = (api.client().await, images.clone(), stop.clone());
        clients.spawn(async move {
            let mut versions = Vec::new();
            while !stop.is_cancelled() {
                let answer = client.model_infer(infer_request(&format!("{c}-{}", versions.len()), &images, true)).await;
                versions.push(answer.unwrap().into_inner().model_version);
            }
            versions
        });
    }
    let (host, served) = (Arc::clone(&api.host), Arc::clone(&api.host));
    let payloads = [payload(2, 0.0), payload(1, 0.0)];
    let swaps = tokio::task::spawn_blocking(move || {
        for round in 0..4 {
            let (from, to) = if round % 2 == 0 { (OLD, NEW) } else { (NEW, OLD) };
            host.load_payload(to, &payloads[round % 2]).unwrap();
            host.activate(to, true).unwrap();
            host.unload(from);
        }
    });
    swaps.await.unwrap();
    while served.active().unwrap().requests() == 0 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    let versions = clients.join_all().await.concat();
    let served = |v: &str| versions.iter().filter(|version| *version == v).count();
    assert!(served("1") > 0 && served("2") > 0, "{} requests", versions.len());
    let windows = api.host.collect();
    assert_eq!(windows.iter().map(|w| w.requests).sum::<u64>(), versions.len() as u64);
    assert_eq!(windows.iter().map(|w| w.errors).sum::<u64>(), 0);
}

#[test]
fn wrong_answer_corrupted_rung_and_garbage_are_refused_by_name() {
    let host = host(8);
    let wrong = host.load_payload(OLD, &payload(1, 0.1)).unwrap_err();
    assert_eq!(wrong.check, "known-answer");
    assert!(wrong.detail.contains("rung \"full\"") && wrong.detail.contains("element 0 is "), "{wrong}");
    let mut corrupted = payload(1, 0.0);
    let middle = corrupted.len() - 1000;
    corrupted[middle] ^= 1;
    assert_eq!(host.load_payload(OLD, &corrupted).unwrap_err().check, "rung-digest");
    assert_eq!(host.load_payload(OLD, &corrupted[..100]).unwrap_err().check, "payload");
    assert_eq!(host.load_payload(OLD, b"").unwrap_err().check, "payload");
    assert_eq!(host.activate(OLD, false).unwrap_err().check, "activate");
    assert!(host.active().is_none());
}

#[test]
fn failed_load_leaves_the_serving_bundle_alone() {
    let host = serving(8);
    host.load_payload(NEW, &payload(2, 0.1)).unwrap_err();
    assert_eq!(host.active().unwrap().ladder.digest, OLD);
    host.load_payload(OLD, b"loaded already, so not read").unwrap();
}

/// One end of a control channel whose other end a host serves.
struct Control {
    socket: UnixStream,
    receiver: Receiver,
    next: u64,
}

impl Control {
    fn start(host: Arc<Host>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || control::serve(Receiver::new(theirs.try_clone().unwrap()), theirs, host));
        Self { receiver: Receiver::new(ours.try_clone().unwrap()), socket: ours, next: 0 }
    }

    fn ask(&mut self, request: request::Request, memory: Option<&SealedMemory>) -> Reply {
        self.next += 1;
        let files: Vec<_> = memory.iter().map(|m| m.as_fd()).collect();
        send(&self.socket, &Request { id: self.next, request: Some(request) }, &files).unwrap();
        let reply: Reply = self.receiver.receive().unwrap().unwrap();
        assert_eq!(reply.id, self.next);
        reply
    }
}

fn sealed(bytes: &[u8]) -> SealedMemory {
    SealedMemory::from_writer(|w| w.write_all(bytes)).unwrap()
}

#[test]
fn control_half_loads_activates_measures_and_collects() {
    let host = host(8);
    let mut control = Control::start(Arc::clone(&host));
    let load = || request::Request::Load(Load { bundle_digest: OLD.to_string() });
    assert_eq!(control.ask(load(), None).failure.unwrap().check, "seals");
    assert_eq!(control.ask(load(), Some(&sealed(b"nonsense"))).failure.unwrap().check, "payload");
    assert_eq!(control.ask(load(), Some(&sealed(&payload(1, 0.0)))).failure, None);
    let activate = request::Request::Activate(Activate { bundle_digest: OLD.to_string(), probation: true });
    assert_eq!(control.ask(activate, None).failure, None);
    let ladder = host.serving("fm-resnet", "1").unwrap();
    let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
    executor.block_on(ladder.infer("r".to_owned(), vec![("input".to_owned(), images(1).0)], None)).unwrap();
    let reply = control.ask(request::Request::Stats(Stats {}), None);
    let stats = reply.stats.unwrap();
    assert_eq!((stats.bundle_digest, stats.requests, stats.errors), (OLD.to_string(), 1, 0));
    assert!(reply.onnxruntime_version.starts_with("1."), "{}", reply.onnxruntime_version);

    let input = |shape| MeasurementInput { name: "input".to_owned(), datatype: "FP32".to_owned(), shape };
    let model =
        |key: &str, shape| MeasurementModel { key: key.to_owned(), onnx: fixture("fm-resnet/model.onnx"), inputs: vec![input(shape)] };
    let set = MeasurementSet { models: vec![model("one", vec![1, 1, 28, 28]), model("four", vec![4, 1, 28, 28])] };
    let measure = || request::Request::Measure(Measure { budget_ms: 1 });
    let timings = control.ask(measure(), Some(&sealed(&set.encode_to_vec()))).timings;
    assert_eq!(timings.iter().map(|t| t.key.as_str()).collect::<Vec<_>>(), ["one", "four"]);
    assert!(timings.iter().all(|t| t.mean_us > 0.0), "{timings:?}");
    let set = MeasurementSet { models: vec![model("huge", vec![u32::MAX, u32::MAX])] };
    let failure = control.ask(measure(), Some(&sealed(&set.encode_to_vec()))).failure.unwrap();
    assert_eq!(failure.check, "measure");

    let windows = control.ask(request::Request::CollectWindow(CollectWindow {}), None).windows;
    assert_eq!((windows.len(), windows[0].requests, windows[0].rung.as_str()), (1, 1, "full"));
}

#[test]
fn unsealed_memory_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert_eq!(host(8).load(OLD, file.into()).unwrap_err().check, "seals");
}

#[test]
fn a_stop_of_the_control_half_ends_the_control_thread() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn(move || control::serve(Receiver::new(theirs.try_clone().unwrap()), theirs, host(8)));
    drop(ours);
    serving.join().unwrap().unwrap();
}

#[test]
fn nested_json_reads_as_flat_and_bounds_hold() {
    let parse = |datatype: &str, shape: &[i64], value: Value| codec::parse("x", datatype, shape, &codec::Content::Json(&value));
    let (_, nested) = parse("INT64", &[2, 2], json!([[1, 2], [3, 4]])).unwrap();
    assert_eq!(nested.as_int64().unwrap(), [1, 2, 3, 4]);
    assert!(parse("BOOL", &[3], json!([true, false, 1])).is_ok());
    for (datatype, value) in [("UINT8", json!([256])), ("INT32", json!([1.5])), ("BOOL", json!([2])), ("FP32", json!([null]))] {
        assert!(parse(datatype, &[1], value.clone()).is_err(), "{datatype} {value}");
    }
    assert!(parse("FP32", &[i64::MAX, i64::MAX], json!([1.0])).is_err());
    assert!(parse("FP32", &[1; 9], json!([1.0])).is_err());
}

/// Value of a line of the metrics.
fn metric(host: &Host, line: &str) -> f64 {
    let text = host.metrics();
    let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {line} in\n{text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_share_a_call_and_each_gets_its_own_rows() {
    let host = host_with(Serving { queue: 64, batch_max_rows: 16, ..Serving::default() });
    host.load_payload(OLD, &payload(1, 0.0)).unwrap();
    host.activate(OLD, false).unwrap();
    let ladder = host.serving("fm-resnet", "").unwrap();
    let (all, _) = images(24);
    let named = |x: Tensor| vec![("input".to_owned(), x)];
    let expected = ladder.infer("all".into(), named(all.clone()), None).await.unwrap().remove(0);
    // One long call first, so that the others wait together.
    let (long, _) = images(500);
    let mut requests = JoinSet::new();
    let first = Arc::clone(&ladder);
    requests.spawn(async move { (0, 0, first.infer("long".into(), named(long), None).await.unwrap().remove(0)) });
    tokio::task::yield_now().await;
    for (row, rows) in [(0usize, 1usize), (1, 2), (3, 1), (4, 8), (12, 8), (20, 4)] {
        let (ladder, x) = (Arc::clone(&ladder), all.slice_rows(row, row + rows));
        requests.spawn(
            async move { (row, rows, ladder.infer(format!("{row}"), vec![("input".to_owned(), x)], None).await.unwrap().remove(0)) },
        );
    }
    while let Some(done) = requests.join_next().await {
        let (row, rows, got) = done.unwrap();
        let want = expected.slice_rows(row, row + rows);
        let near = |(g, w): (&f32, &f32)| (g - w).abs() < 1e-3;
        assert!(rows == 0 || got.shape() == want.shape());
        assert!(rows == 0 || got.as_fp32().unwrap().iter().zip(want.as_fp32().unwrap()).all(near), "{row}");
    }
    assert!(metric(&host, "pleach_shared_calls_total") >= 1.0, "{}", host.metrics());
    assert_eq!(metric(&host, "pleach_requests_total{rung=\"full\",outcome=\"answered\"}"), 8.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_too_late_for_its_limit_is_not_run() {
    let host = serving(8);
    let ladder = host.serving("fm-resnet", "").unwrap();
    let (long, _) = images(500);
    let busy = tokio::spawn({
        let ladder = Arc::clone(&ladder);
        async move { ladder.infer("long".into(), vec![("input".to_owned(), long)], None).await }
    });
    tokio::task::yield_now().await;
    let limit = Some(std::time::Duration::from_micros(1));
    let late = ladder.infer("late".into(), vec![("input".to_owned(), images(1).0)], limit).await.unwrap_err();
    assert!(matches!(late, ServeError::Deadline), "{late}");
    busy.await.unwrap().unwrap();
    ladder.infer("next".into(), vec![("input".to_owned(), images(1).0)], None).await.unwrap();
    assert_eq!(metric(&host, "pleach_requests_expired_total"), 1.0);
    assert_eq!(metric(&host, "pleach_requests_total{rung=\"full\",outcome=\"answered\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pressed_device_serves_a_slimmer_rung_and_audits_it() {
    let host = host_with(Serving { audit_share: 1.0, ..Serving::default() });
    host.load_payload(OLD, &payload_of(1, 0.0, &["slim", "full"])).unwrap();
    host.activate(OLD, false).unwrap();
    let ladder = host.serving("fm-resnet", "").unwrap();
    let infer = || ladder.infer(String::new(), vec![("input".to_owned(), images(4).0)], None);
    infer().await.unwrap();
    host.press(true);
    infer().await.unwrap();
    assert_eq!(metric(&host, "pleach_requests_total{rung=\"slim\",outcome=\"answered\"}"), 1.0);
    assert_eq!(metric(&host, "pleach_requests_total{rung=\"full\",outcome=\"answered\"}"), 1.0);
    // The next request comes after the audit, in the one thread.
    while metric(&host, "pleach_audited_rows_total") < 4.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(metric(&host, "pleach_agreed_rows_total"), metric(&host, "pleach_audited_rows_total"));
    let rungs: Vec<_> = host.collect().into_iter().map(|w| (w.rung, w.requests)).collect();
    assert!(rungs.contains(&("slim".to_owned(), 1)) && rungs.contains(&("full".to_owned(), 1)), "{rungs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_asks_the_fuller_rung_only_where_the_slim_one_is_not_sure() {
    for (confidence, rung) in [(0.0, "slim"), (1.0, "full")] {
        let host = host_with(Serving { cascade_confidence: Some(confidence), ..Serving::default() });
        host.load_payload(OLD, &payload_of(1, 0.0, &["slim", "full"])).unwrap();
        host.activate(OLD, false).unwrap();
        let ladder = host.serving("fm-resnet", "").unwrap();
        ladder.infer(String::new(), vec![("input".to_owned(), images(64).0)], None).await.unwrap();
        assert_eq!(host.collect().remove(0).rung, rung);
    }
}

#[tokio::test]
async fn index_and_metrics_say_what_is_loaded_and_what_serves() {
    let host = serving(8);
    host.load_payload(NEW, &payload(2, 0.0)).unwrap();
    let api = Api::start(host).await;
    let (_, index) = api.json("POST", "/v2/repository/index", &json!({})).await;
    let states: Vec<_> = index.as_array().unwrap().iter().map(|m| (m["version"].as_str().unwrap(), m["state"].as_str().unwrap())).collect();
    assert_eq!(states, [("1", "READY"), ("2", "UNAVAILABLE")]);
    let (_, index) = api.json("POST", "/v2/repository/index", &json!({ "ready": true })).await;
    assert_eq!(index.as_array().unwrap().len(), 1);
    let (_, models) = api.json("GET", "/v2/models", &json!({})).await;
    assert_eq!(models, json!({ "models": ["fm-resnet"] }));
    let (status, head, body) = api.http("GET", "/metrics", "", b"").await;
    let text = String::from_utf8(body).unwrap();
    assert!(status == 200 && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(text.contains(&format!("pleach_bundle_info{{model=\"fm-resnet\",version=\"1\",bundle=\"{OLD}\"}} 1")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_a_bundle_that_is_expected_and_no_longer_than_its_failure() {
    let host = host(8);
    host.expect_bundle();
    let waiting = tokio::spawn({
        let host = Arc::clone(&host);
        async move { host.served("fm-resnet", "").await.map(|l| l.version) }
    });
    host.load_payload(OLD, &payload(1, 0.0)).unwrap();
    assert!(!waiting.is_finished());
    host.activate(OLD, false).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    let failing = self::host(8);
    failing.expect_bundle();
    failing.load_payload(OLD, b"nonsense").unwrap_err();
    assert!(matches!(failing.served("fm-resnet", "").await, Err(ServeError::NoModel)));
}
