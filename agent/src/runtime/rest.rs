//! The REST side of the inference API.
//!
//! Source: Open Inference Protocol, version 2, HTTP/REST, with the binary tensor data extension: behind a JSON head of
//! `Inference-Header-Content-Length` bytes the tensors follow as little-endian bytes, in the order of the head.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use pleach_domain::{Element, Tensor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::runtime::codec::{self, Content};
use crate::runtime::error::ServeError;
use crate::runtime::grpc;
use crate::runtime::host::Host;
use crate::runtime::ladder::{Ladder, Named};
use crate::runtime::server::{EXTENSIONS, MAX_REQUEST_BYTES, PLATFORM, SERVER_NAME, SERVER_VERSION};

const HEAD_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

type Shared = State<Arc<Host>>;
/// Name and version of a model, as in the path.
type Model = Path<(String, String)>;

/// All paths: `/v2/...` of the protocol and `/pleach/v1/...` of Pleach.
pub(crate) fn router(host: Arc<Host>) -> Router {
    let model = "/v2/models/{name}";
    let version = "/v2/models/{name}/versions/{version}";
    let unversioned = |Path(name): Path<String>| Path((name, String::new()));
    Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/health/live", get(async || Json(json!({ "live": true }))))
        .route("/v2/health/ready", get(server_ready))
        .route(model, get(async move |s: Shared, name: Path<String>| model_metadata(s, unversioned(name)).await))
        .route(version, get(model_metadata))
        .route(&format!("{model}/ready"), get(async move |s: Shared, name: Path<String>| model_ready(s, unversioned(name)).await))
        .route(&format!("{version}/ready"), get(model_ready))
        .route(
            &format!("{model}/infer"),
            post(async move |s: Shared, name: Path<String>, h: HeaderMap, b: Bytes| infer(s, unversioned(name), h, b).await),
        )
        .route(&format!("{version}/infer"), post(infer))
        .route("/v2/models", get(model_list))
        .route("/v2/repository/index", post(repository_index))
        .route("/metrics", get(metrics))
        .route("/pleach/v1/status", get(status))
        .route("/pleach/v1/feedback", post(feedback))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(host)
}

impl IntoResponse for ServeError {
    fn into_response(self) -> Response {
        (self.http_status(), Json(json!({ "error": self.to_string() }))).into_response()
    }
}

#[derive(Deserialize)]
struct InferRequest {
    #[serde(default, deserialize_with = "nullable")]
    id: String,
    #[serde(default, deserialize_with = "nullable")]
    parameters: Parameters,
    inputs: Vec<Input>,
    #[serde(default, deserialize_with = "nullable")]
    outputs: Vec<RequestedOutput>,
}

/// The parameters that mean something here; others are ignored, as the protocol says.
#[derive(Default, Deserialize)]
struct Parameters {
    binary_data_output: Option<bool>,
    binary_data_size: Option<usize>,
    binary_data: Option<bool>,
    /// Microseconds that the request gives; negative or 0: no limit.
    timeout: Option<i64>,
}

/// A field that some clients send as `null` where others leave it out.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default, deserialize_with = "nullable")]
    parameters: Parameters,
    #[serde(default)]
    data: Option<Value>,
}

#[derive(Deserialize)]
struct RequestedOutput {
    name: String,
    #[serde(default, deserialize_with = "nullable")]
    parameters: Parameters,
}

#[derive(Serialize)]
struct InferAnswer<'a> {
    model_name: &'a str,
    model_version: String,
    id: &'a str,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Elements<'a> {
    Fp32(&'a [f32]),
    Fp64(&'a [f64]),
    Int64(&'a [i64]),
    Int32(&'a [i32]),
    Uint8(&'a [u8]),
    Bool(Vec<bool>),
}

impl<'a> Elements<'a> {
    fn of(tensor: &'a Tensor) -> Self {
        match tensor.data() {
            Element::Fp32(v) => Self::Fp32(v),
            Element::Fp64(v) => Self::Fp64(v),
            Element::Int64(v) => Self::Int64(v),
            Element::Int32(v) => Self::Int32(v),
            Element::Uint8(v) => Self::Uint8(v),
            Element::Bool(v) => Self::Bool(v.iter().map(|&x| x != 0).collect()),
        }
    }
}

async fn server_metadata() -> Json<Value> {
    Json(json!({ "name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS }))
}

async fn server_ready(State(host): Shared) -> (StatusCode, Json<Value>) {
    let ready = host.active().is_some();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready })))
}

/// Names of the models that serve, as KServe lists them.
async fn model_list(State(host): Shared) -> Json<Value> {
    let names: Vec<_> = codec::index(&host, true).into_iter().map(|line| line.name).collect();
    Json(json!({ "models": names }))
}

#[derive(Default, Deserialize)]
struct IndexRequest {
    #[serde(default)]
    ready: bool,
}

async fn repository_index(State(host): Shared, body: Bytes) -> Result<Json<Value>, ServeError> {
    let request = if body.is_empty() { Ok(IndexRequest::default()) } else { serde_json::from_slice(&body) };
    let request = request.map_err(|e| ServeError::invalid(format!("index: {e}")))?;
    let line = |l: codec::IndexLine| json!({ "name": l.name, "version": l.version, "state": l.state, "reason": l.reason });
    Ok(Json(codec::index(&host, request.ready).into_iter().map(line).collect()))
}

async fn metrics(State(host): Shared) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], host.metrics())
}

async fn model_ready(State(host): Shared, Path((name, version)): Model) -> Result<Json<Value>, ServeError> {
    host.serving(&name, &version)?;
    Ok(Json(json!({ "name": name, "ready": true })))
}

async fn model_metadata(State(host): Shared, Path((name, version)): Model) -> Result<Json<Value>, ServeError> {
    let ladder = host.serving(&name, &version)?;
    let tensors = |specs: &[pleach_domain::runtime::TensorSpec]| -> Vec<Value> {
        let tensor = |s: &pleach_domain::runtime::TensorSpec| json!({ "name": s.name, "datatype": s.element_type.name(), "shape": codec::shape_of(s) });
        specs.iter().map(tensor).collect()
    };
    Ok(Json(json!({
        "name": ladder.model,
        "versions": [ladder.version.to_string()],
        "platform": PLATFORM,
        "inputs": tensors(&ladder.inputs),
        "outputs": tensors(&ladder.outputs),
    })))
}

async fn infer(State(host): Shared, Path((name, version)): Model, headers: HeaderMap, body: Bytes) -> Result<Response, ServeError> {
    let ladder = host.served(&name, &version).await?;
    let (head, tail) = split(&headers, &body)?;
    let request: InferRequest = serde_json::from_slice(head).map_err(|e| ServeError::invalid(format!("request: {e}")))?;
    let inputs = parse_inputs(&request, tail)?;
    codec::check(&ladder.inputs, &inputs)?;
    let names: Vec<_> = request.outputs.iter().map(|o| o.name.as_str()).collect();
    let places = codec::select(&ladder.outputs, &names)?;
    let id = codec::request_id(&request.id)?;
    let results = ladder.infer(id.clone(), inputs, codec::limit(request.parameters.timeout)).await?;
    answer(&ladder, &request, &id, &places, &results)
}

/// Splits a body into its JSON head and the binary tensors behind it.
fn split<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), ServeError> {
    let Some(value) = headers.get(HEAD_LENGTH) else { return Ok((body, &[])) };
    let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
    let parts = length.and_then(|length| body.split_at_checked(length));
    parts.ok_or_else(|| ServeError::invalid(format!("{HEAD_LENGTH}: expected a number up to {}, the length of the body", body.len())))
}

fn parse_inputs(request: &InferRequest, mut tail: &[u8]) -> Result<Named, ServeError> {
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in &request.inputs {
        let content = match (input.parameters.binary_data_size, &input.data) {
            (Some(size), None) => {
                let short = || ServeError::invalid(format!("input {:?}: {} of {size} bytes", input.name, tail.len()));
                let (bytes, rest) = tail.split_at_checked(size).ok_or_else(short)?;
                tail = rest;
                Content::Raw(bytes)
            }
            (None, Some(data)) => Content::Json(data),
            _ => return Err(ServeError::invalid(format!("input {:?}: expected either data or binary_data_size", input.name))),
        };
        inputs.push(codec::parse(&input.name, &input.datatype, &input.shape, &content)?);
    }
    if !tail.is_empty() {
        return Err(ServeError::invalid(format!("{} bytes behind the last binary input", tail.len())));
    }
    Ok(inputs)
}

fn answer(ladder: &Ladder, request: &InferRequest, id: &str, places: &[usize], results: &[Tensor]) -> Result<Response, ServeError> {
    let all_binary = request.parameters.binary_data_output.unwrap_or(false);
    let mut binary = Vec::new();
    let mut outputs = Vec::with_capacity(places.len());
    for (spec, tensor) in places.iter().filter_map(|&at| ladder.outputs.get(at).zip(results.get(at))) {
        let wanted = request.outputs.iter().find(|o| o.name == spec.name).and_then(|o| o.parameters.binary_data);
        let is_binary = wanted.unwrap_or(all_binary);
        let before = binary.len();
        if is_binary {
            binary.extend(tensor.to_le_bytes());
        }
        outputs.push(Output {
            name: &spec.name,
            datatype: tensor.element_type().name(),
            shape: tensor.shape(),
            parameters: is_binary.then(|| json!({ "binary_data_size": binary.len() - before })),
            data: (!is_binary).then(|| Elements::of(tensor)),
        });
    }
    let answer = InferAnswer { model_name: &ladder.model, model_version: ladder.version.to_string(), id, outputs };
    let mut body = serde_json::to_vec(&answer).map_err(|e| ServeError::Failed(e.to_string()))?;
    if binary.is_empty() {
        return Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response());
    }
    let length = HeaderValue::from(body.len());
    body.append(&mut binary);
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind), (HEAD_LENGTH, length)], body).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Feedback {
    request_id: String,
    labels: Vec<i64>,
}

async fn feedback(State(host): Shared, body: Bytes) -> Result<Json<Value>, ServeError> {
    let feedback: Feedback = serde_json::from_slice(&body).map_err(|e| ServeError::invalid(format!("feedback: {e}")))?;
    let matched = host.label(&feedback.request_id, &feedback.labels)?;
    Ok(Json(json!({ "matched": matched })))
}

async fn status(State(host): Shared) -> Json<Value> {
    let s = grpc::status(&host);
    Json(json!({
        "device_id": s.device_id,
        "bundle_digest": s.bundle_digest,
        "rung": s.rung,
        "model_name": s.model_name,
        "model_version": s.model_version,
        "requests": s.requests,
        "errors": s.errors,
        "state": s.state,
    }))
}
