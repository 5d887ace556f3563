//! The application on a device: asks for inference at a steady rate over the Unix socket and sends the true labels back.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use pleach_domain::dataset::Dataset;
use pleach_proto::device::FeedbackRequest;
use pleach_proto::device::local_client::LocalClient;
use pleach_proto::inference::ModelInferRequest;
use pleach_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use pleach_proto::inference::model_infer_request::InferInputTensor;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};

use super::calibrate::BATCH;

/// Time between two requests of one device.
const INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for one answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the application has seen.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Requests answered.
    pub answered: AtomicU64,
    /// Requests that failed after the first was answered.
    pub failed: AtomicU64,
}

/// A running application; dropping it ends it.
pub(super) struct Load {
    /// What it has seen so far.
    pub counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The requests that the application sends, in turn.
pub(super) struct Requests {
    model: String,
    batches: Vec<Batch>,
}

struct Batch {
    tensor: InferInputTensor,
    raw: Vec<u8>,
    labels: Vec<i64>,
}

impl Requests {
    /// Cuts labelled data into requests.
    pub(super) fn new(model: &str, data: &Dataset) -> anyhow::Result<Self> {
        let batch = |rows: Dataset| -> anyhow::Result<Batch> {
            let (name, input) = rows.inputs().iter().next().context("the data have no input")?;
            let shape = input.shape().iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>()?;
            let datatype = input.element_type().name().to_owned();
            let tensor = InferInputTensor { name: name.clone(), datatype, shape, ..InferInputTensor::default() };
            Ok(Batch { tensor, raw: input.to_le_bytes(), labels: rows.labels().context("the data have no labels")?.to_vec() })
        };
        let batches = data.batches(BATCH).map(batch).collect::<anyhow::Result<_>>()?;
        Ok(Self { model: model.to_owned(), batches })
    }
}

/// Starts the application of one device; it waits for the socket and for a model behind it.
pub(super) fn start(socket: PathBuf, requests: Arc<Requests>) -> Load {
    let counts = Arc::new(Counts::default());
    let task = tokio::spawn(drive(socket, requests, Arc::clone(&counts)));
    Load { counts, task }
}

async fn drive(socket: PathBuf, requests: Arc<Requests>, counts: Arc<Counts>) {
    let mut number = 0_usize;
    loop {
        if let Ok(channel) = connect(&socket).await {
            serve(channel, &requests, &counts, &mut number).await;
        }
        sleep(INTERVAL).await;
    }
}

/// Asks in steady turns until the connection is lost.
async fn serve(channel: Channel, requests: &Requests, counts: &Counts, number: &mut usize) {
    let mut inference = GrpcInferenceServiceClient::new(channel.clone());
    let mut local = LocalClient::new(channel);
    let mut turns = interval(INTERVAL);
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        turns.tick().await;
        let Some(batch) = requests.batches.get(*number % requests.batches.len().max(1)) else { return };
        let id = format!("demo-{number}");
        *number += 1;
        let request = ModelInferRequest {
            model_name: requests.model.clone(),
            id: id.clone(),
            inputs: vec![batch.tensor.clone()],
            raw_input_contents: vec![batch.raw.clone()],
            ..ModelInferRequest::default()
        };
        match timeout(DEADLINE, inference.model_infer(request)).await {
            Ok(Ok(_)) => {
                counts.answered.fetch_add(1, Ordering::Relaxed);
                // A label that does not arrive costs a little evidence and nothing else.
                let _ = timeout(DEADLINE, local.feedback(FeedbackRequest { request_id: id, labels: batch.labels.clone() })).await;
            }
            // Before the first bundle there is no model, which is no failure.
            Ok(Err(_)) | Err(_) if counts.answered.load(Ordering::Relaxed) == 0 => return,
            Ok(Err(_)) | Err(_) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

async fn connect(socket: &std::path::Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    // The address is never looked at: the connector goes to the socket.
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://device.local").connect_with_connector(connector).await
}
