//! The controller and three devices, as real processes in a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use pleach_cli::{Client, Connection};
use pleach_proto::rest::NewToken;
use serde::Deserialize;
use tempfile::TempDir;

use super::child::Process;
use super::limits::{Group, Limits};
use super::load::{self, Load, Requests};
use super::narrator::Narrator;

/// One kind of device.
#[derive(Debug)]
pub(super) struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Threads inference uses.
    pub threads: usize,
    /// Share of one processor it may use.
    pub quota: Option<f64>,
    /// Processors it runs on where only affinity can be had.
    processors: &'static str,
}

/// A small server.
pub(super) const GATEWAY: Kind = Kind { name: "gateway", threads: 2, quota: None, processors: "0-1" };
/// A smart camera, which will lose half of its processor.
pub(super) const CAMERA: Kind = Kind { name: "camera", threads: 1, quota: Some(0.6), processors: "0" };
/// A slow sensor.
pub(super) const SENSOR: Kind = Kind { name: "sensor", threads: 1, quota: Some(0.25), processors: "1" };
/// All of them.
pub(super) const KINDS: [Kind; 3] = [GATEWAY, CAMERA, SENSOR];

/// Longest wait for the controller's listeners.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// What was built.
pub(super) struct Binaries {
    pub controller: PathBuf,
    pub agent: PathBuf,
    pub cli: PathBuf,
}

/// What the controller writes when its listeners are up.
#[derive(Deserialize)]
struct Ready {
    agents: String,
    api: String,
    ca_file: PathBuf,
    admin_token_file: PathBuf,
}

/// One running device. Its parts end in the order in which they stand here.
pub(super) struct Device {
    /// What kind it is; also its name.
    pub kind: &'static Kind,
    /// The application on it.
    pub load: Option<Load>,
    /// Its inference socket.
    socket: PathBuf,
    agent: Process,
    /// Its limits.
    pub group: Group,
}

/// Everything that runs. Its parts end in the order in which they stand here.
pub(super) struct Fleet {
    /// The devices, in the order of [`KINDS`].
    pub devices: Vec<Device>,
    controller: Process,
    ready: Ready,
    /// Speaks to the controller.
    pub client: Client,
    limits: Limits,
    agent_binary: PathBuf,
    library: PathBuf,
    folder: TempDir,
}

impl Fleet {
    /// Starts the controller; devices come later.
    pub(super) async fn start(binaries: &Binaries, library: &Path, narrator: &Narrator) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("pleach-demo-").tempdir().context("cannot create a temporary folder")?;
        let ready_file = folder.path().join("ready.json");
        let config = folder.path().join("controller.toml");
        fs::write(&config, "reconcile_interval_ms = 250\n")?;
        // Pruning is work that can wait, and the machine is shared with the devices.
        let mut command = Command::new("nice");
        command.args(["-n", "10"]).arg(&binaries.controller).arg("serve");
        command.arg("--config").arg(&config).arg("--data-dir").arg(folder.path().join("controller"));
        command.args(["--listen-agents", "127.0.0.1:0", "--listen-api", "127.0.0.1:0"]);
        command.arg("--ready-file").arg(&ready_file).env("ORT_DYLIB_PATH", library).env("ORT_DISABLE_TELEMETRY", "1");
        let mut controller = Process::start("controller", command, folder.path())?;
        let ready = wait_ready(&mut controller, &ready_file).await.inspect_err(|_| controller.print_log())?;
        let connection = Connection { api: ready.api.clone(), ca_file: ready.ca_file.clone(), token_file: ready.admin_token_file.clone() };
        let client = Client::new(&connection)?;
        let limits = Limits::detect();
        narrator.say(&format!("controller up at {}; devices limited by {}", ready.api, limits.describe()));
        let (agent_binary, library) = (binaries.agent.clone(), library.to_owned());
        Ok(Self { devices: Vec::new(), controller, ready, client, limits, agent_binary, library, folder })
    }

    /// Enrols and starts a device of each kind, and the application on it.
    pub(super) async fn start_devices(&mut self, requests: &Arc<Requests>) -> anyhow::Result<()> {
        for kind in &KINDS {
            let token = NewToken { labels: [("kind".to_owned(), kind.name.to_owned())].into(), uses: 1, ttl_seconds: 600 };
            let token = self.client.create_token(&token).await?.token.context("the controller sent no token text")?;
            let mut device = self.start_device(kind, &token)?;
            device.load = Some(load::start(device.socket.clone(), Arc::clone(requests)));
            self.devices.push(device);
        }
        Ok(())
    }

    fn start_device(&self, kind: &'static Kind, token: &str) -> anyhow::Result<Device> {
        let home = self.folder.path().join(kind.name);
        fs::create_dir_all(&home)?;
        let (token_file, socket) = (home.join("token"), home.join("inference.sock"));
        fs::write(&token_file, token)?;
        let group = self.limits.group(kind.name, kind.processors, kind.quota)?;
        let mut command = group.command(&self.agent_binary);
        command.args(["run", "--controller", &self.ready.agents, "--device-id", kind.name]);
        command.arg("--state-dir").arg(home.join("state")).arg("--token-file").arg(&token_file);
        command.arg("--inference-socket").arg(&socket).arg("--onnxruntime").arg(&self.library);
        command.args(["--threads", &kind.threads.to_string()]).env("ORT_DISABLE_TELEMETRY", "1");
        let agent = Process::start(kind.name, command, self.folder.path())?;
        group.started(agent.id());
        Ok(Device { kind, load: None, socket, agent, group })
    }

    /// The device of a kind.
    pub(super) fn device(&mut self, kind: &Kind) -> anyhow::Result<&mut Device> {
        self.devices.iter_mut().find(|d| d.kind.name == kind.name).with_context(|| format!("no {} was started", kind.name))
    }

    /// An error when anything ended by itself.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.controller.check()?;
        self.devices.iter_mut().try_for_each(|d| d.agent.check())
    }

    /// The end of every log, to stderr.
    pub(super) fn print_logs(&self) {
        self.controller.print_log();
        self.devices.iter().for_each(|d| d.agent.print_log());
    }

    /// Where everything is, for who wants to look around.
    pub(super) fn print_access(&self, cli: &Path) {
        let Ready { api, ca_file, admin_token_file, agents } = &self.ready;
        println!("\nthe dashboard is at {api}: log in with the token in {}", admin_token_file.display());
        println!("agents dial {agents}; logs and state are in {}", self.folder.path().display());
        println!(
            "\nexport PLEACH_API={api}\nexport PLEACH_CA={}\nexport PLEACH_TOKEN_FILE={}",
            ca_file.display(),
            admin_token_file.display()
        );
        for noun in ["devices", "variants", "deployments", "windows", "decisions"] {
            println!("{} get {noun}", cli.display());
        }
        println!(r#"curl --cacert $PLEACH_CA -H "Authorization: Bearer $(cat $PLEACH_TOKEN_FILE)" $PLEACH_API/api/v1/decisions"#);
        for device in &self.devices {
            println!("{}: Open Inference Protocol v2 (gRPC and REST) on {}", device.kind.name, device.socket.display());
        }
    }
}

impl Drop for Fleet {
    /// Tells all agents to end before the first is waited for, so that they end side by side.
    fn drop(&mut self) {
        self.devices.iter().for_each(|d| d.agent.terminate());
    }
}

async fn wait_ready(controller: &mut Process, file: &Path) -> anyhow::Result<Ready> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        if let Ok(text) = fs::read(file) {
            return serde_json::from_slice(&text).context("the controller's ready file is not understood");
        }
        controller.check()?;
        if Instant::now() > deadline {
            bail!("the controller is not ready after {} s", READY_DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
