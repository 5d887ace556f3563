//! One device: the real agent with its state folder, and its application.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pleach_domain::Tensor;
use pleach_proto::device::local_client::LocalClient;
use pleach_proto::device::{FeedbackRequest, StatusRequest, StatusResponse};
use pleach_proto::inference::ModelInferRequest;
use pleach_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use pleach_proto::inference::model_infer_request::InferInputTensor;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::eventually;
use super::process::{Process, binary, onnxruntime};

/// A running agent.
pub struct Agent {
    /// Its process.
    pub process: Process,
    dir: PathBuf,
    name: String,
    controller: String,
    token: PathBuf,
}

impl Agent {
    /// Starts an agent that enrols with the token.
    pub fn start(dir: &Path, name: &str, controller: &str, token: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let process = Self::launch(dir, name, controller, token);
        Self { process, dir: dir.to_path_buf(), name: name.to_owned(), controller: controller.to_owned(), token: token.to_path_buf() }
    }

    /// Ends the agent at once, with its child, and starts it again on the same state.
    pub fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = Self::launch(&self.dir, &self.name, &self.controller, &self.token);
    }

    /// Folder of the device.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Installs a bundle from a file: whether the agent took it, and its words.
    pub fn install(&self, bytes: &[u8]) -> (bool, String) {
        let file = self.dir.join("bundle.file");
        std::fs::write(&file, bytes).unwrap();
        let mut command = Command::new(binary("pleach-agent"));
        command.arg("install").arg(&file).arg("--state-dir").arg(self.state_dir()).args(["--controller", &self.controller]);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// What runs on the device; an error in words while nothing answers.
    pub async fn status(&self) -> Result<StatusResponse, String> {
        let channel = self.channel().await?;
        LocalClient::new(channel).status(StatusRequest {}).await.map(tonic::Response::into_inner).map_err(|e| e.to_string())
    }

    /// Waits until a bundle serves whose digest begins with `digest` (any when empty).
    pub async fn serving(&self, digest: &str) -> StatusResponse {
        eventually(&format!("{} serves {digest}", self.name), Duration::from_secs(60), || async {
            let status = self.status().await?;
            if !status.bundle_digest.is_empty() && status.bundle_digest.starts_with(digest) {
                Ok(status)
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await
    }

    /// One inference over the Unix socket; the class of each row.
    pub async fn infer(&self, id: &str, input: &Tensor) -> Result<Vec<usize>, String> {
        let status = self.status().await?;
        let tensor = InferInputTensor {
            name: "input".into(),
            datatype: "FP32".into(),
            shape: input.shape().iter().map(|&d| d as i64).collect(),
            ..InferInputTensor::default()
        };
        let request = ModelInferRequest {
            model_name: status.model_name,
            id: id.to_owned(),
            inputs: vec![tensor],
            raw_input_contents: vec![input.to_le_bytes()],
            ..ModelInferRequest::default()
        };
        let mut client = GrpcInferenceServiceClient::new(self.channel().await?);
        let response = client.model_infer(request).await.map_err(|e| e.to_string())?.into_inner();
        let raw = response.raw_output_contents.first().ok_or("no raw output")?;
        let values: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let classes = values.len() / input.rows();
        let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        Ok(values.chunks(classes).map(best).collect())
    }

    /// Sends true labels for an earlier request.
    pub async fn feedback(&self, id: &str, labels: &[i64]) -> bool {
        let mut client = LocalClient::new(self.channel().await.unwrap());
        let request = FeedbackRequest { request_id: id.to_owned(), labels: labels.to_vec() };
        client.feedback(request).await.unwrap().into_inner().matched
    }

    async fn channel(&self) -> Result<Channel, String> {
        let path = self.dir.join("inference.sock");
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://device.local").timeout(Duration::from_secs(10));
        endpoint.connect_with_connector(connect).await.map_err(|e| format!("{e:?}"))
    }

    fn launch(dir: &Path, name: &str, controller: &str, token: &Path) -> Process {
        let mut command = Command::new(binary("pleach-agent"));
        command.arg("run").args(["--controller", controller, "--device-id", name, "--threads", "1"]);
        command.arg("--state-dir").arg(dir.join("state")).arg("--inference-socket").arg(dir.join("inference.sock"));
        command.arg("--token-file").arg(token).env("ORT_DYLIB_PATH", onnxruntime());
        Process::start(name, &mut command, &dir.join("agent.log"))
    }
}
