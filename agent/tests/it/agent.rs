//! An agent as its own process, and the application that uses it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pleach_agent::status::{self, Status as AgentStatus};
use pleach_proto::fleet::event::State;
use pleach_proto::inference::ModelInferRequest;
use pleach_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use pleach_proto::inference::model_infer_request::InferInputTensor;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::bundle::{Bundle, fixture};
use crate::lab::{Lab, PATIENCE};

pub struct Agent {
    pub dir: tempfile::TempDir,
    url: String,
    child: Option<Child>,
    flags: Vec<String>,
    /// Variables that the agent gets.
    pub variables: Vec<(String, String)>,
}

impl Agent {
    /// A new device of the lab that does not run yet.
    pub fn new(lab: &Lab) -> Self {
        assert!(std::env::var_os("ORT_DYLIB_PATH").is_some(), "ORT_DYLIB_PATH must name ONNX Runtime's library");
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), lab.token()).unwrap();
        Self { dir, url: lab.url(), child: None, flags: Vec::new(), variables: Vec::new() }
    }

    /// Starts a new device of the lab.
    pub fn start(lab: &Lab) -> Self {
        let mut agent = Self::new(lab);
        agent.start_again();
        agent
    }

    /// A device that has proved `first` under sequence 1.
    pub async fn proven(lab: &Lab, first: &Bundle) -> Self {
        Self::proven_with(lab, first, &[]).await
    }

    /// The same, run with more flags.
    pub async fn proven_with(lab: &Lab, first: &Bundle, flags: &[&str]) -> Self {
        let mut agent = Self::new(lab);
        agent.flags = flags.iter().map(|&f| f.to_owned()).collect();
        agent.start_again();
        lab.wait_report("a profile", |r| r.profile.is_some()).await;
        lab.assign(first, 1);
        lab.wait_event(1, State::Probation).await;
        agent.infer(5).await;
        lab.wait_event(1, State::Proven).await;
        agent
    }

    /// Waits until a proven bundle serves, and uses it.
    pub async fn serves(&self, bundle: &Bundle) {
        let digest = bundle.digest.to_string();
        self.wait_status("serving the expected bundle", |s| s.bundle == digest && s.state == "serving").await;
        self.infer(3).await;
    }

    /// Starts it again on the same state.
    pub fn start_again(&mut self) {
        self.child = Some(self.command("run").args(&self.flags).envs(self.variables.clone()).spawn().unwrap());
    }

    /// A command line of the agent on this device, its log in a file.
    pub fn command(&self, subcommand: &str) -> Command {
        let log = fs::File::options().append(true).create(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach-agent"));
        command.arg(subcommand).args(["--controller", &self.url, "--threads", "1"]);
        command.arg("--state-dir").arg(self.state()).arg("--token-file").arg(self.dir.path().join("token"));
        command.arg("--inference-socket").arg(self.socket());
        command
            .env("PLEACH_AGENT_PROFILE_BUDGET_MS", "2")
            .env("PLEACH_AGENT_CALL_LIMIT_MS", "1000")
            .env("PLEACH_AGENT_RUNTIME_MEMORY_MAX_BYTES", "500000000")
            .env("NO_COLOR", "1")
            .stderr(Stdio::from(log))
            .stdout(Stdio::null());
        command
    }

    /// Runs a command of the agent to its end: whether it went well, and what it printed.
    pub fn ask(&self, subcommand: &str, arguments: &[&str]) -> (bool, String) {
        let output = self.command(subcommand).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Process id of the control half.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Another address of the controller, from the next start on.
    pub fn set_url(&mut self, url: String) {
        self.url = url;
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends it as systemd does; gives its exit.
    pub fn terminate(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap().success()
    }

    /// Kills the runtime half under it.
    pub fn kill_runtime(&self) {
        let pid = self.child.as_ref().unwrap().id();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let children = tasks.flatten().filter_map(|t| fs::read_to_string(t.path().join("children")).ok()).collect::<String>();
        let child: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
    }

    /// Waits until the agent says something of itself that fits.
    pub async fn wait_status(&self, what: &str, wanted: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
        let mut last = None;
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                last = status::ask(&self.socket()).await.ok();
                if let Some(status) = last.clone().filter(&wanted) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        match found.await {
            Ok(status) => status,
            Err(_) => panic!("the agent is not {what}: {last:?}\n{}", self.log()),
        }
    }

    /// Runs the fixture's input through the local API so many times; each must give the fixture's answer.
    pub async fn infer(&self, times: usize) {
        let mut client = GrpcInferenceServiceClient::new(self.channel().await);
        for _ in 0..times {
            let answer = client.model_infer(request()).await.unwrap().into_inner();
            let expected = fixture().output.tensor.as_fp32().unwrap();
            let (got, rest) = answer.raw_output_contents[0].as_chunks::<4>();
            assert!(rest.is_empty() && got.len() == expected.len());
            assert!(got.iter().zip(expected).all(|(g, e)| (f32::from_le_bytes(*g) - e).abs() < 1e-3));
        }
    }

    /// Uses the local API until something has come true; `false` when the agent ends before.
    pub async fn offers_until(&mut self, come_true: impl Fn() -> bool) -> bool {
        let mut client = GrpcInferenceServiceClient::new(self.lazy_channel());
        tokio::time::timeout(PATIENCE, async {
            while self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
                if come_true() {
                    return true;
                }
                // Refused is fine: nothing may serve yet, or the agent has just ended.
                let _ = tokio::time::timeout(Duration::from_millis(500), client.model_infer(request())).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            false
        })
        .await
        .unwrap_or_else(|_| panic!("it does not come true:\n{}", self.log()))
    }

    /// Waits until something has come true; `false` when the agent ends before.
    pub async fn lives_until(&mut self, come_true: impl Fn() -> bool) -> bool {
        tokio::time::timeout(PATIENCE, async {
            while self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
                if come_true() {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            false
        })
        .await
        .unwrap_or_else(|_| panic!("it does not come true:\n{}", self.log()))
    }

    /// Lets the model's thread misbehave, see `runtime::drill`; what came of it.
    pub async fn drill(&self, what: &str) -> Status {
        let drill = ModelInferRequest { id: format!("drill:{what}"), ..request() };
        GrpcInferenceServiceClient::new(self.channel().await).model_infer(drill).await.unwrap_err()
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_static("http://agent").connect_with_connector(connector(self.socket())).await.unwrap()
    }

    fn lazy_channel(&self) -> Channel {
        Endpoint::from_static("http://agent").connect_with_connector_lazy(connector(self.socket()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of the agent:\n{}", self.log());
        }
    }
}

/// Connects to the agent's socket, whatever address is asked for.
pub fn connector(
    socket: PathBuf,
) -> impl tower::Service<Uri, Response = TokioIo<UnixStream>, Error = std::io::Error, Future: Send> + Send + 'static {
    tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok(TokioIo::new(UnixStream::connect(socket).await?)) }
    })
}

pub fn request() -> ModelInferRequest {
    let input = &fixture().input;
    let tensor = InferInputTensor {
        name: input.name.clone(),
        datatype: input.tensor.element_type().name().into(),
        shape: input.tensor.shape().iter().map(|&d| d as i64).collect(),
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: "fm-resnet".into(),
        inputs: vec![tensor],
        raw_input_contents: vec![input.tensor.to_le_bytes()],
        ..ModelInferRequest::default()
    }
}
