//! A running controller, people and agents that talk to it.

use std::path::{Path, PathBuf};

use pleach_artifact::SealingKey;
use pleach_controller::serve::{self, Running};
use pleach_controller::{Config, Shared};
use pleach_domain::{DeviceId, Digest};
use pleach_proto::fleet::agent_message::Message as Up;
use pleach_proto::fleet::controller_message::Message as Down;
use pleach_proto::fleet::enrollment_client::EnrollmentClient;
use pleach_proto::fleet::fleet_client::FleetClient;
use pleach_proto::fleet::{AgentMessage, EnrollRequest, EnrollResponse, Hello, RenewRequest, Report, SignedReport};
use pleach_proto::rest::Problem;
use pleach_proto::{PROTOCOL_VERSION, REPORT_CONTEXT, SEALING_KEY_CONTEXT};
use pleach_trust::{SigningKey, sign_payload};
use prost::Message;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) running: Running,
    pub(crate) http: Client,
    admin: String,
    ca: String,
}

pub(crate) fn config(folder: &Path) -> Config {
    let local = "127.0.0.1:0".parse().unwrap();
    Config {
        data_dir: folder.join("data"),
        listen_agents: local,
        listen_api: local,
        ready_file: Some(folder.join("ready.json")),
        reconcile_interval_ms: 100,
        ..Config::default()
    }
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        assert!(std::env::var_os("ORT_DYLIB_PATH").is_some(), "set ORT_DYLIB_PATH to the ONNX Runtime 1.28 library");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let (ca_file, token_file) = (config.ca_file(), config.admin_token_file());
        let running = serve::start(config).await.unwrap();
        let ca = std::fs::read_to_string(ca_file).unwrap();
        let root = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
        let http = Client::builder().tls_certs_only([root]).build().unwrap();
        Self { folder, running, http, admin: std::fs::read_to_string(token_file).unwrap(), ca }
    }

    pub(crate) fn controller(&self) -> &Shared {
        self.running.controller()
    }

    /// A request without a token.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("https://127.0.0.1:{}{path}", self.running.api.port()))
    }

    /// A request of the administrator.
    pub(crate) fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(&self.admin)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let response = self.admin(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    }

    pub(crate) async fn upload(&self, bytes: &[u8]) -> Digest {
        let digest = pleach_artifact::sha256(bytes);
        let response = self.admin(Method::PUT, &format!("/api/v1/blobs/{digest}")).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        digest
    }

    /// The text of a fresh enrolment token.
    pub(crate) async fn token(&self, uses: u32) -> String {
        let body = json!({"uses": uses, "ttl_seconds": 600, "labels": {"site": "north"}});
        let response = self.admin(Method::POST, "/api/v1/tokens").json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        response.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
    }

    /// The text of a fresh API token.
    pub(crate) async fn api_token(&self, body: Value) -> String {
        let response = self.admin(Method::POST, "/api/v1/api-tokens").json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        response.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn channel(&self, agent: Option<&Agent>) -> Channel {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca)).domain_name("localhost");
        if let Some(agent) = agent {
            tls = tls.identity(Identity::from_pem(agent.certificate_pem(), agent.key.to_pem().unwrap().as_str()));
        }
        let address = format!("https://127.0.0.1:{}", self.running.agents.port());
        Endpoint::new(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn enroll(&self, agent: &Agent, token: &str) -> Result<EnrollResponse, Status> {
        self.enroll_request(agent.enroll_request(token)).await
    }

    pub(crate) async fn enroll_request(&self, request: EnrollRequest) -> Result<EnrollResponse, Status> {
        EnrollmentClient::new(self.channel(None).await).enroll(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn renew(&self, request: RenewRequest) -> Result<EnrollResponse, Status> {
        EnrollmentClient::new(self.channel(None).await).renew(request).await.map(tonic::Response::into_inner)
    }

    /// A fresh agent that is enrolled.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let mut agent = Agent::new(name);
        let token = self.token(1).await;
        agent.keep(self.enroll(&agent, &token).await.unwrap());
        agent
    }

    pub(crate) async fn fleet(&self, agent: &Agent) -> FleetClient<Channel> {
        FleetClient::new(self.channel(Some(agent)).await)
    }

    /// Opens the agent's stream with this protocol version.
    pub(crate) async fn sync(
        &self,
        agent: &Agent,
        protocol_version: u32,
    ) -> (mpsc::Sender<AgentMessage>, Streaming<pleach_proto::fleet::ControllerMessage>) {
        self.sync_as(agent, protocol_version, "boot").await
    }

    /// Opens the agent's stream with this protocol version, from a machine in this boot.
    pub(crate) async fn sync_as(
        &self,
        agent: &Agent,
        protocol_version: u32,
        boot_id: &str,
    ) -> (mpsc::Sender<AgentMessage>, Streaming<pleach_proto::fleet::ControllerMessage>) {
        let (sender, receiver) = mpsc::channel(4);
        let hello = Hello { protocol_version, agent_version: "test".into(), boot_id: boot_id.into(), ..Hello::default() };
        sender.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let stream = self.fleet(agent).await.sync(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        (sender, stream)
    }

    /// Opens the agent's stream and reads the first desired state off it.
    pub(crate) async fn connect(&self, agent: &Agent) -> (mpsc::Sender<AgentMessage>, Streaming<pleach_proto::fleet::ControllerMessage>) {
        let (sender, mut stream) = self.sync(agent, PROTOCOL_VERSION).await;
        let first = next(&mut stream).await.unwrap().unwrap();
        assert!(matches!(first, Down::Desired(d) if d.generation == 1 && d.deployment.is_none()));
        (sender, stream)
    }

    pub(crate) async fn revoke(&self, agent: &Agent) {
        let path = format!("/api/v1/devices/{}/revoke", agent.id());
        assert_eq!(self.admin(Method::POST, &path).send().await.unwrap().status(), StatusCode::OK);
    }
}

/// The next message of a stream; `None` at its end. Fails when none comes for ten seconds.
pub(crate) async fn next(stream: &mut Streaming<pleach_proto::fleet::ControllerMessage>) -> Result<Option<Down>, Status> {
    let message = tokio::time::timeout(std::time::Duration::from_secs(10), stream.message()).await.expect("nothing came for 10 seconds");
    message.map(|m| m.and_then(|m| m.message))
}

/// The keys of a device, and what it got for them.
pub(crate) struct Agent {
    pub(crate) key: SigningKey,
    pub(crate) sealing: SealingKey,
    name: String,
    enrolled: Option<EnrollResponse>,
}

impl Agent {
    pub(crate) fn new(name: &str) -> Self {
        Self { key: SigningKey::generate().unwrap(), sealing: SealingKey::generate().unwrap(), name: name.into(), enrolled: None }
    }

    pub(crate) fn keep(&mut self, response: EnrollResponse) {
        self.enrolled = Some(response);
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.enrolled.as_ref().unwrap().device_id.parse().unwrap()
    }

    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.enrolled.as_ref().unwrap().certificate_chain_der[0].clone()
    }

    fn certificate_pem(&self) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(self.certificate());
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    pub(crate) fn csr(&self) -> Vec<u8> {
        let pair = rcgen::KeyPair::from_pem(&self.key.to_pem().unwrap()).unwrap();
        rcgen::CertificateParams::default().serialize_request(&pair).unwrap().der().to_vec()
    }

    pub(crate) fn enroll_request(&self, token: &str) -> EnrollRequest {
        let sealing = self.sealing.public_key().unwrap();
        EnrollRequest {
            token: token.into(),
            csr_der: self.csr(),
            sealing_public_key: sealing.as_bytes().to_vec(),
            sealing_signature: sign_payload(&self.key, SEALING_KEY_CONTEXT, sealing.as_bytes()).to_vec(),
            requested_id: self.name.clone(),
            boot_id: "boot".into(),
        }
    }

    pub(crate) fn renew_request(&self) -> RenewRequest {
        RenewRequest { csr_der: self.csr(), certificate_der: self.certificate(), boot_id: "boot".into() }
    }

    pub(crate) fn report(&self, sequence: u64) -> Report {
        Report { device_id: self.id().to_string(), boot_id: "boot".into(), sequence, ..Report::default() }
    }

    pub(crate) fn sign(&self, report: &Report) -> SignedReport {
        let body = report.encode_to_vec();
        let signature = sign_payload(&self.key, REPORT_CONTEXT, &body).to_vec();
        SignedReport { body, signature }
    }
}

pub(crate) async fn problem(response: reqwest::Response) -> Problem {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(problem.status, status);
    problem
}

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    std::fs::read(path).unwrap()
}
