//! One controller with its database and blobs, in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pleach_cli::client::{Client, Connection};
use pleach_domain::Digest;
use pleach_domain::policy::Policy;
use pleach_domain::state::Observed;
use pleach_proto::rest::{DeploymentView, ModelView, NewModel, NewToken, VariantView};
use serde::Deserialize;
use tempfile::TempDir;

use super::agent::Agent;
use super::eventually;
use super::process::{Process, binary, onnxruntime};
use super::tiny::ModelFiles;

/// Which database the controller uses.
#[derive(Clone, Copy, Debug)]
pub enum Database {
    /// A file of its own.
    Sqlite,
    /// A database of its own on a real server.
    Postgres,
}

/// What the controller writes when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    agents: String,
    api: String,
    ca_file: PathBuf,
    admin_token_file: PathBuf,
}

/// A running controller.
pub struct Cluster {
    controller: Process,
    ready: Ready,
    database_url: Option<String>,
    settings: Vec<(String, String)>,
    /// Client with the administrator's token.
    pub client: Client,
    /// Last, so that logs outlive the processes.
    dir: TempDir,
}

impl Cluster {
    /// Starts a controller with a fresh database.
    pub async fn start(database: Database) -> Self {
        Self::start_with(database, &[]).await
    }

    /// Starts a controller with a fresh database and settings by environment, e.g. `("PLEACH_DELIVERY_BYTES_PER_SECOND", "100000")`.
    pub async fn start_with(database: Database, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("pleach-it-").tempdir().unwrap();
        let database_url = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(tokio::task::spawn_blocking(pleach_tests::postgres::database).await.unwrap()),
        };
        let settings: Vec<_> = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (controller, ready) = launch(dir.path(), database_url.as_deref(), &settings, None).await;
        let connection = Connection { api: ready.api.clone(), ca_file: ready.ca_file.clone(), token_file: ready.admin_token_file.clone() };
        let client = Client::new(&connection).unwrap();
        Self { controller, ready, database_url, settings, client, dir }
    }

    /// Temporary folder of this cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Address for agents.
    pub fn agents_url(&self) -> &str {
        &self.ready.agents
    }

    /// Address of the REST interface and the dashboard.
    pub fn api_url(&self) -> &str {
        &self.ready.api
    }

    /// File with the administrator's token.
    pub fn token_path(&self) -> &Path {
        &self.ready.admin_token_file
    }

    /// Ends the controller at once.
    pub fn kill_controller(&mut self) {
        self.controller.kill();
    }

    /// Asks the controller to end; whether it drained and ended well.
    pub fn stop_controller(&mut self) -> bool {
        self.controller.terminate().success()
    }

    /// Starts the controller again on the same addresses and data; `settings` replace those of before.
    pub async fn restart_controller(&mut self, settings: &[(&str, &str)]) {
        self.controller.kill();
        self.settings = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (controller, ready) = launch(self.dir.path(), self.database_url.as_deref(), &self.settings, Some(&self.ready)).await;
        self.controller = controller;
        self.ready = ready;
    }

    /// A fresh enrolment token in a file.
    pub async fn token_file(&self, uses: u32, ttl_seconds: u32) -> PathBuf {
        let token = self.client.create_token(&NewToken { uses, ttl_seconds, ..NewToken::default() }).await.unwrap();
        let path = self.dir.path().join(format!("token-{}", token.id));
        std::fs::write(&path, token.token.unwrap()).unwrap();
        path
    }

    /// Enrols and starts an agent named `name`.
    pub async fn agent(&self, name: &str) -> Agent {
        let token = self.token_file(1, 600).await;
        Agent::start(&self.dir.path().join(name), name, self.agents_url(), &token)
    }

    /// Uploads a model's files and registers it.
    pub async fn push_model(&self, name: &str, files: &ModelFiles) -> ModelView {
        let mut digests = Vec::new();
        for path in [&files.onnx, &files.calibration, &files.validation] {
            digests.push(self.upload(path).await);
        }
        let model = NewModel {
            name: name.into(),
            task: "classification".into(),
            onnx: digests[0],
            calibration: digests[1],
            validation: digests[2],
        };
        self.client.create_model(&model).await.unwrap()
    }

    /// Uploads one file.
    pub async fn upload(&self, path: &Path) -> Digest {
        self.client.upload(path, |_| {}).await.unwrap().digest
    }

    /// Applies a policy given as JSON.
    pub async fn apply_policy(&self, policy: serde_json::Value) {
        let policy: Policy = serde_json::from_value(policy).unwrap();
        self.client.apply_policy(&policy).await.unwrap();
    }

    /// Newest deployment of a device, once `wanted` holds for it.
    pub async fn deployment(&self, device: &str, what: &str, wanted: impl Fn(&DeploymentView) -> bool) -> DeploymentView {
        eventually(&format!("{device} {what}"), Duration::from_secs(120), || async {
            let all: Vec<DeploymentView> = self.client.list("deployments", &[]).await.map_err(|e| format!("{e:?}"))?;
            let newest = all.into_iter().filter(|d| d.device == device).max_by_key(|d| d.sequence);
            match newest {
                Some(d) if wanted(&d) => Ok(d),
                Some(d) => Err(format!("sequence {} is {} ({:?}: {:?}); {}", d.sequence, d.state, d.check, d.detail, self.jobs().await)),
                None => Err(format!("no deployment; {}", self.jobs().await)),
            }
        })
        .await
    }

    /// Newest deployment of a device, once it is proven.
    pub async fn proven(&self, device: &str) -> DeploymentView {
        self.deployment(device, "proves its bundle", |d| d.state == Observed::Proven).await
    }

    /// Newest variant, once there is one that `wanted` holds for.
    pub async fn variant(&self, what: &str, wanted: impl Fn(&VariantView) -> bool) -> VariantView {
        eventually(what, Duration::from_secs(120), || async {
            let all: Vec<VariantView> = self.client.list("variants", &[]).await.map_err(|e| format!("{e:?}"))?;
            let count = all.len();
            match all.into_iter().rfind(|v| wanted(v)) {
                Some(variant) => Ok(variant),
                None => Err(format!("{count} variants; {}", self.jobs().await)),
            }
        })
        .await
    }

    async fn jobs(&self) -> String {
        let jobs = self.client.list_json("jobs", &[]).await.unwrap_or_default();
        let variants: Vec<VariantView> = self.client.list("variants", &[]).await.unwrap_or_default();
        let rejected: Vec<_> = variants.iter().filter_map(|v| v.rejection.as_deref()).collect();
        let decisions = self.client.list_json("decisions", &[]).await.unwrap_or_default();
        format!("jobs {jobs:?}; rejected {rejected:?}; decisions {}", serde_json::to_string(&decisions).unwrap_or_default())
    }
}

async fn launch(dir: &Path, database_url: Option<&str>, settings: &[(String, String)], before: Option<&Ready>) -> (Process, Ready) {
    let ready_file = dir.join("ready.json");
    let _ = std::fs::remove_file(&ready_file);
    let address =
        |url: Option<&str>| url.map_or("127.0.0.1:0".to_owned(), |u| u.trim_start_matches("https://").replace("localhost", "127.0.0.1"));
    let mut command = Command::new(binary("pleach-controller"));
    command.arg("serve").arg("--data-dir").arg(dir.join("controller")).arg("--ready-file").arg(&ready_file);
    command.args([
        "--listen-agents",
        &address(before.map(|r| r.agents.as_str())),
        "--listen-api",
        &address(before.map(|r| r.api.as_str())),
    ]);
    if let Some(url) = database_url {
        command.args(["--database-url", url]);
    }
    command.env("ORT_DYLIB_PATH", onnxruntime()).env("PLEACH_RECONCILE_INTERVAL_MS", "200");
    command.envs(settings.iter().map(|(k, v)| (k, v)));
    let process = std::cell::RefCell::new(Process::start("controller", &mut command, &dir.join("controller.log")));
    let ready = eventually("the controller gets ready", Duration::from_secs(30), || async {
        assert!(process.borrow_mut().is_running(), "the controller ended\n{}", process.borrow().log_tail());
        let text = std::fs::read(&ready_file).map_err(|e| e.to_string())?;
        serde_json::from_slice::<Ready>(&text).map_err(|e| e.to_string())
    })
    .await;
    (process.into_inner(), ready)
}
