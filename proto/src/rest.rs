//! JSON views of the REST interface under `/api/v1`, shared by the controller and its clients.
//!
//! Lists answer `{"items": [...]}`; errors answer `application/problem+json` (RFC 9457) as [`Problem`].
//! Every request but `/healthz` carries `Authorization: Bearer <token>`.

use std::collections::BTreeMap;

use pleach_domain::Digest;
use pleach_domain::adapt::{Evidence, FrontPoint, Outcome};
use pleach_domain::gate::Reading;
use pleach_domain::id::ApiTokenId;
use pleach_domain::profile::HardwareProfile;
use pleach_domain::role::Role;
use pleach_domain::rollout::RolloutRules;
use pleach_domain::state::{BundleState, DeviceState, JobState, Observed, RolloutState, Span, VariantState};
use serde::{Deserialize, Serialize};

/// Header under which the checksum of an upload travels back, hexadecimal SHA-256.
pub const DIGEST_HEADER: &str = "x-pleach-sha256";

/// A list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct List<T> {
    /// What there is, newest last unless said otherwise.
    pub items: Vec<T>,
}

/// An error, after RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Machine-readable code, e.g. `model-invalid`.
    pub code: String,
    /// What went wrong and what to do, in words.
    pub detail: String,
}

/// `PUT /api/v1/blobs/{sha256}` (raw body) answers this; the upload is refused when the body has another digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobView {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// `POST /api/v1/models`: registers the next version of a model whose three files were uploaded as blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewModel {
    /// Name of the model.
    pub name: String,
    /// What it does; only `classification` so far.
    pub task: String,
    /// The ONNX file.
    pub onnx: Digest,
    /// Calibration samples, .npz.
    pub calibration: Digest,
    /// Labelled validation set, .npz.
    pub validation: Digest,
}

/// One version of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelView {
    /// Name.
    pub name: String,
    /// Version, from 1.
    pub version: u32,
    /// Task.
    pub task: String,
    /// The ONNX file.
    pub onnx: Digest,
    /// Calibration samples.
    pub calibration: Digest,
    /// Labelled validation set.
    pub validation: Digest,
    /// Multiply-accumulates for one sample.
    pub macs: u64,
    /// Parameters.
    pub parameters: u64,
    /// Size of the ONNX file in bytes.
    pub size_bytes: u64,
    /// When it was registered, milliseconds since 1970 UTC.
    pub created_at_ms: i64,
}

/// `POST /api/v1/tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Labels that devices enrolled with it get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How many devices it enrols.
    pub uses: u32,
    /// Seconds until it expires.
    pub ttl_seconds: u32,
}

/// An enrolment token, whose text is shown once.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenView {
    /// Public half.
    pub id: String,
    /// The whole token, only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Uses left.
    pub uses_left: u32,
    /// When it expires, milliseconds since 1970 UTC.
    pub expires_at_ms: i64,
}

/// `POST /api/v1/api-tokens`: a token for a person or a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewApiToken {
    /// Name, as the audit log gives it.
    pub name: ApiTokenId,
    /// What it may do.
    pub role: Role,
    /// Seconds until it expires; never, when absent.
    pub ttl_seconds: Option<u32>,
}

/// An API token, whose text is shown once.
#[derive(Clone, Serialize, Deserialize)]
pub struct ApiTokenView {
    /// Name.
    pub name: ApiTokenId,
    /// What it may do.
    pub role: Role,
    /// The whole token, only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_at_ms: i64,
    /// When it expires, milliseconds since 1970 UTC; never, when absent.
    pub expires_at_ms: Option<i64>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Identifier.
    pub id: String,
    /// State.
    pub state: DeviceState,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Class; absent until the device has sent its profile.
    pub class: Option<String>,
    /// Why it is in this class.
    pub class_reason: Option<String>,
    /// Profile; absent until sent.
    pub profile: Option<HardwareProfile>,
    /// Whether its stream is open now.
    pub connected: bool,
    /// When it was last heard, milliseconds since 1970 UTC.
    pub last_seen_at_ms: Option<i64>,
    /// When it enrolled, milliseconds since 1970 UTC.
    pub enrolled_at_ms: i64,
}

/// A device class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassView {
    /// Identifier.
    pub id: String,
    /// Architecture.
    pub architecture: String,
    /// Widest vector extension.
    pub vector: String,
    /// Threads inference uses.
    pub inference_threads: u32,
    /// Active devices in it.
    pub devices: u64,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Identifier.
    pub id: String,
    /// Kind, e.g. `prune`.
    pub kind: String,
    /// State.
    pub state: JobState,
    /// Attempts begun.
    pub attempt: u32,
    /// Stage it is in.
    pub stage: String,
    /// Share of the stage done, 0 to 1.
    pub progress: f64,
    /// Why it failed.
    pub error: Option<String>,
    /// What it is for: class, model, budget revision.
    pub subject: String,
}

/// A variant: one pruned model for one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantView {
    /// Identifier.
    pub id: String,
    /// Class.
    pub class: String,
    /// Model name.
    pub model: String,
    /// Model version.
    pub model_version: u32,
    /// Revision of the budget it was made for.
    pub budget_revision: u32,
    /// The budget: predicted mean latency of a request, microseconds.
    pub budget_us: f64,
    /// State.
    pub state: VariantState,
    /// Digest of the pruned ONNX file; absent when rejected.
    pub digest: Option<Digest>,
    /// The engine's report, as JSON (dense and pruned quality, MACs, sizes, widths, front, seconds).
    pub report: serde_json::Value,
    /// For a rejected variant: which floor or budget, and the nearest feasible point.
    pub rejection: Option<String>,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_at_ms: i64,
}

/// A sealed bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleView {
    /// Identifier.
    pub id: String,
    /// Variant inside.
    pub variant: String,
    /// Class.
    pub class: String,
    /// State.
    pub state: BundleState,
    /// SHA-256 of the ciphertext.
    pub digest: Digest,
    /// Length of the ciphertext in bytes.
    pub size_bytes: u64,
    /// When it was sealed, milliseconds since 1970 UTC.
    pub created_at_ms: i64,
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Identifier.
    pub id: String,
    /// Class.
    pub class: String,
    /// Bundle.
    pub bundle: String,
    /// State.
    pub state: RolloutState,
    /// Why it is in this state, or what it waits for.
    pub reason: String,
    /// Its rules, as they stood when it began.
    pub rules: RolloutRules,
    /// Wave, from 0.
    pub wave: usize,
    /// Devices that may have the bundle in this wave.
    pub target: u64,
    /// Devices it is for.
    pub devices: u64,
    /// Devices that were given it.
    pub given: u64,
    /// Devices that proved it.
    pub proven: u64,
    /// Devices that failed or refused it.
    pub failed: u64,
    /// Devices on their way back to what they had.
    pub returning: u64,
    /// Devices that failed to go back.
    pub stranded: u64,
    /// What its gates said last.
    pub readings: Vec<Reading>,
    /// Who applied the policy that it follows from.
    pub begun_by: String,
    /// Who approved it.
    pub approved_by: String,
    /// When it began, milliseconds since 1970 UTC.
    pub created_at_ms: i64,
    /// When this wave or state began, milliseconds since 1970 UTC.
    pub since_ms: i64,
}

/// Why a device does or does not run what a rollout brings: `GET /api/v1/devices/{id}/why?rollout=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyView {
    /// Device.
    pub device: String,
    /// The rollout that was asked about, else the newest of the device's class.
    pub rollout: Option<String>,
    /// The answer, in one sentence.
    pub answer: String,
    /// Everything it rests on, in the order in which it decides.
    pub facts: Vec<String>,
}

/// A change of a device's labels: `POST /api/v1/devices/{id}/labels`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelChange {
    /// Labels to set.
    pub set: BTreeMap<String, String>,
    /// Labels to take away.
    pub remove: Vec<String>,
}

/// What one device should run and what it has proved: `GET /api/v1/deployments`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeploymentView {
    /// Device.
    pub device: String,
    /// Class of the device.
    pub class: String,
    /// Assignment sequence, per device.
    pub sequence: u64,
    /// Rollout that assigned it.
    pub rollout: String,
    /// Bundle.
    pub bundle: String,
    /// SHA-256 of the bundle's ciphertext.
    pub digest: Digest,
    /// Variant inside.
    pub variant: String,
    /// State the device has proved.
    pub state: Observed,
    /// The check that failed.
    pub check: Option<String>,
    /// More about it.
    pub detail: Option<String>,
    /// When it was assigned, milliseconds since 1970 UTC.
    pub assigned_at_ms: i64,
    /// When its state last changed, milliseconds since 1970 UTC.
    pub changed_at_ms: i64,
}

/// How many devices are in one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCount {
    /// State.
    pub state: DeviceState,
    /// Devices.
    pub count: u64,
}

/// How many devices of one class have their newest assignment in one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentCount {
    /// Class of the devices.
    pub class: String,
    /// State of the assignment.
    pub state: Observed,
    /// Devices.
    pub count: u64,
}

/// The fleet in counts: `GET /api/v1/fleet`. Its size does not depend on the number of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetView {
    /// Devices by state.
    pub devices: Vec<DeviceCount>,
    /// Devices whose stream is open at the controller that answers.
    pub connected: u64,
    /// Newest assignments by class and state.
    pub deployments: Vec<DeploymentCount>,
}

/// A telemetry window: `GET /api/v1/windows?device=&class=&since_ms=&limit=`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowView {
    /// Device.
    pub device: String,
    /// Class of the device.
    pub class: String,
    /// Number, per device.
    pub number: u64,
    /// SHA-256 of the bundle's ciphertext.
    pub bundle: Digest,
    /// Rung.
    pub rung: String,
    /// Start, milliseconds since 1970 UTC.
    pub start_ms: i64,
    /// Length in milliseconds.
    pub duration_ms: u32,
    /// Requests answered or failed.
    pub requests: u64,
    /// Requests failed.
    pub errors: u64,
    /// Median latency in microseconds.
    pub p50_us: u64,
    /// 95th percentile of latency in microseconds.
    pub p95_us: u64,
    /// Labelled samples.
    pub labelled: u64,
    /// Accuracy on them.
    pub accuracy: Option<f64>,
    /// Macro recall on them.
    pub recall: Option<f64>,
    /// Macro F1 on them.
    pub f1: Option<f64>,
}

/// Telemetry of a device or class, added up over a span: `GET /api/v1/rollups?device=|class=&span=&since_ms=&until_ms=&limit=`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollupView {
    /// Over how long.
    pub span: Span,
    /// Begin of the span, milliseconds since 1970 UTC.
    pub start_ms: i64,
    /// SHA-256 of the bundle's ciphertext.
    pub bundle: Digest,
    /// Rung.
    pub rung: String,
    /// Windows.
    pub windows: u64,
    /// Requests answered or failed.
    pub requests: u64,
    /// Requests failed.
    pub errors: u64,
    /// Median latency in microseconds.
    pub p50_us: u64,
    /// 95th percentile of latency in microseconds.
    pub p95_us: u64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: u64,
    /// Labelled samples.
    pub labelled: u64,
    /// Accuracy on them.
    pub accuracy: Option<f64>,
    /// CPU time that inference used, in microseconds.
    pub cpu_us: u64,
    /// Most resident memory, in bytes.
    pub max_memory_bytes: u64,
}

/// A decision of the adaptation loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionView {
    /// Identifier.
    pub id: String,
    /// Class.
    pub class: String,
    /// Model.
    pub model: String,
    /// Policy.
    pub policy: String,
    /// What was decided.
    pub outcome: Outcome,
    /// What it rests on.
    pub evidence: Evidence,
    /// Revision of the budget it wrote.
    pub budget_revision: Option<u32>,
    /// When, milliseconds since 1970 UTC.
    pub at_ms: i64,
}

/// The latency/accuracy front of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontView {
    /// Points, by latency.
    pub points: Vec<FrontPoint>,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// Position, from 1.
    pub sequence: u64,
    /// Who, e.g. `token:admin`, `controller`.
    pub actor: String,
    /// What, e.g. `policy.apply`.
    pub action: String,
    /// On what.
    pub subject: String,
    /// Hash of this entry, which covers the hash of the one before.
    pub hash: Digest,
    /// When, milliseconds since 1970 UTC.
    pub at_ms: i64,
}
