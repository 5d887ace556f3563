//! Client of the controller's REST interface: HTTPS that trusts the controller's own CA and nothing else, a bearer token, retries.
//!
//! Reads and uploads are idempotent and repeated after a lost connection or an overloaded controller; creations are repeated
//! only when the connection was never made.

mod upload;

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use pleach_domain::policy::Policy;
use pleach_proto::rest::{
    ApiTokenView, DeviceView, LabelChange, List, ModelView, NewApiToken, NewModel, NewToken, Problem, RolloutView, TokenView, WhyView,
};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::ClientError;

/// Most bytes of an answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Times a request is tried.
const ATTEMPTS: u32 = 5;
/// Pause before the second try; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence inside an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the controller is and how to prove who asks.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Address of the REST interface, `https://host:port`.
    pub api: String,
    /// Certificate of the controller's CA, PEM.
    pub ca_file: PathBuf,
    /// File with the API token.
    pub token_file: PathBuf,
}

/// A client of one controller.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// Reads the CA and the token; connects with the first request.
    ///
    /// # Errors
    /// [`ClientError`] when a file cannot be read or holds something else, or the address is not https.
    pub fn new(connection: &Connection) -> Result<Self, ClientError> {
        // Another part of the process may have installed it already; the provider is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let read = |what, path: &PathBuf| std::fs::read(path).map_err(|source| ClientError::Read { what, path: path.clone(), source });
        let pem = read("the CA certificate", &connection.ca_file)?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(ClientError::Setup)?;
        if certificates.is_empty() {
            return Err(ClientError::NoCertificate { path: connection.ca_file.clone() });
        }
        let token = read("the API token", &connection.token_file)?;
        let mut bearer = HeaderValue::from_bytes(&[b"Bearer ", token.trim_ascii()].concat()).map_err(|_| ClientError::Token)?;
        bearer.set_sensitive(true);
        let address = || ClientError::Address { value: connection.api.clone() };
        let base = Url::parse(&connection.api).map_err(|_| address())?;
        if base.scheme() != "https" || base.host_str().is_none() {
            return Err(address());
        }
        let http = reqwest::Client::builder()
            .tls_certs_only(certificates)
            .https_only(true)
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, bearer)]))
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self { http, base })
    }

    /// Items of a list, e.g. `devices`, in JSON as they came.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, a refusal, or something that is no list.
    pub async fn list_json(&self, noun: &str, query: &[(&str, &str)]) -> Result<Vec<Value>, ClientError> {
        self.list(noun, query).await
    }

    /// Items of a list, e.g. `devices`, filtered by `query` where the interface offers it.
    ///
    /// # Errors
    /// As [`Client::list_json`], or when an item is not what this version knows.
    pub async fn list<T: DeserializeOwned>(&self, noun: &str, query: &[(&str, &str)]) -> Result<Vec<T>, ClientError> {
        let mut url = self.url(&[noun]);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let list: List<T> = self.call(Repeat::Always, &url, || self.http.get(url.clone())).await?;
        Ok(list.items)
    }

    /// Registers the next version of a model whose files were uploaded.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with code `model-invalid`, `model-operator-set` or `dataset-invalid` for bad files; others as ever.
    pub async fn create_model(&self, model: &NewModel) -> Result<ModelView, ClientError> {
        self.send(Method::POST, &["models"], Repeat::BeforeConnecting, model).await
    }

    /// Sets a policy; its next revision when it exists.
    ///
    /// # Errors
    /// [`ClientError::Refused`] names the field that is out of range; others as ever.
    pub async fn apply_policy(&self, policy: &Policy) -> Result<Value, ClientError> {
        self.send(Method::PUT, &["policies", policy.name.as_str()], Repeat::Always, policy).await
    }

    /// Creates an enrolment token; its text is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal.
    pub async fn create_token(&self, token: &NewToken) -> Result<TokenView, ClientError> {
        self.send(Method::POST, &["tokens"], Repeat::BeforeConnecting, token).await
    }

    /// Creates an API token; its text is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. a name that is taken.
    pub async fn create_api_token(&self, token: &NewApiToken) -> Result<ApiTokenView, ClientError> {
        self.send(Method::POST, &["api-tokens"], Repeat::BeforeConnecting, token).await
    }

    /// Takes an API token back.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. an unknown token.
    pub async fn revoke_api_token(&self, name: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, &["api-tokens", name], Repeat::BeforeConnecting, &serde_json::json!({})).await
    }

    /// Cuts a device off for ever.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. an unknown device.
    pub async fn revoke_device(&self, device: &str) -> Result<Value, ClientError> {
        self.send(Method::POST, &["devices", device, "revoke"], Repeat::Always, &serde_json::json!({})).await
    }

    /// Lets a device in that waits for a person.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. an unknown device.
    pub async fn approve_device(&self, device: &str) -> Result<Value, ClientError> {
        self.send(Method::POST, &["devices", device, "approve"], Repeat::Always, &serde_json::json!({})).await
    }

    /// What a device should run, as a file for `pleach-agent install`. The answer's body is the file.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. a device without an assignment.
    pub async fn export_device(&self, device: &str) -> Result<Response, ClientError> {
        let url = self.url(&["devices", device, "bundle"]);
        let answer = self.http.get(url.clone()).send().await;
        let response = answer.map_err(|source| ClientError::Unreachable { url: url.to_string(), source })?;
        match response.error_for_status_ref() {
            Ok(_) => Ok(response),
            // The refusal is in the body.
            Err(source) => match read_answer::<Value>(&url, response).await {
                Err(refused) => Err(refused),
                Ok(_) => Err(ClientError::Unreachable { url: url.to_string(), source }),
            },
        }
    }

    /// Sets and takes away labels of a device.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. a label that no selector could name.
    pub async fn label_device(&self, device: &str, change: &LabelChange) -> Result<DeviceView, ClientError> {
        self.send(Method::POST, &["devices", device, "labels"], Repeat::Always, change).await
    }

    /// A rollout.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. an unknown rollout.
    pub async fn rollout(&self, rollout: &str) -> Result<RolloutView, ClientError> {
        let url = self.url(&["rollouts", rollout]);
        self.call(Repeat::Always, &url, || self.http.get(url.clone())).await
    }

    /// Pauses, resumes, aborts, undoes or approves a rollout, as `deed` says.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `conflict` when its state does not allow it; others as ever.
    pub async fn steer_rollout(&self, rollout: &str, deed: &str) -> Result<RolloutView, ClientError> {
        self.send(Method::POST, &["rollouts", rollout, deed], Repeat::Always, &serde_json::json!({})).await
    }

    /// Why a device does or does not run what a rollout brings.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. an unknown device.
    pub async fn why(&self, device: &str, rollout: Option<&str>) -> Result<WhyView, ClientError> {
        let mut url = self.url(&["devices", device, "why"]);
        if let Some(rollout) = rollout {
            url.query_pairs_mut().append_pair("rollout", rollout);
        }
        self.call(Repeat::Always, &url, || self.http.get(url.clone())).await
    }

    /// Takes every use that an enrolment token has left.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. an unknown token.
    pub async fn revoke_token(&self, token: &str) -> Result<TokenView, ClientError> {
        self.send(Method::POST, &["tokens", token, "revoke"], Repeat::Always, &serde_json::json!({})).await
    }

    /// The newest signed file of a role. White space and order may differ from the controller's, which no signature minds.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer or a refusal, e.g. an unknown role.
    pub async fn trust_file(&self, role: &str) -> Result<Vec<u8>, ClientError> {
        let url = self.url(&["trust", role]);
        let file: Value = self.call(Repeat::Always, &url, || self.http.get(url.clone())).await?;
        Ok(file.to_string().into_bytes())
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        url
    }

    async fn send<B, T>(&self, method: Method, path: &[&str], repeat: Repeat, body: &B) -> Result<T, ClientError>
    where
        B: Serialize + Sync + ?Sized,
        T: DeserializeOwned,
    {
        let url = self.url(path);
        self.call(repeat, &url, || self.http.request(method.clone(), url.clone()).json(body)).await
    }

    /// Sends what `request` builds until it is answered or tried often enough.
    async fn call<T: DeserializeOwned>(&self, repeat: Repeat, url: &Url, request: impl Fn() -> RequestBuilder) -> Result<T, ClientError> {
        let mut attempt = 1;
        loop {
            let answer = request().send().await;
            let again = match &answer {
                Ok(response) => repeat == Repeat::Always && is_passing(response.status()),
                Err(error) => error.is_connect() || (repeat == Repeat::Always && !error.is_builder()),
            };
            if again && attempt < ATTEMPTS {
                tokio::time::sleep(pause(attempt)).await;
                attempt += 1;
                continue;
            }
            let response = answer.map_err(|source| ClientError::Unreachable { url: url.to_string(), source })?;
            return read_answer(url, response).await;
        }
    }
}

/// When a request may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// It does the same however often it arrives.
    Always,
    /// Only when it surely never arrived.
    BeforeConnecting,
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Doubling pauses, each shortened by a random share of up to half, so that clients do not come back together.
fn pause(attempt: u32) -> Duration {
    let share = RandomState::new().hash_one(attempt) as f64 / u64::MAX as f64;
    FIRST_PAUSE.mul_f64(f64::from(1_u32 << attempt.min(6)) * 0.5 * (1.0 - share / 2.0))
}

async fn read_answer<T: DeserializeOwned>(url: &Url, mut response: Response) -> Result<T, ClientError> {
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| ClientError::Unreachable { url: url.to_string(), source })? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(ClientError::TooLarge { url: url.to_string(), limit: MAX_ANSWER_BYTES });
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        return Err(ClientError::Refused { problem: parse_problem(status, &body) });
    }
    let body = if body.is_empty() { b"null".to_vec() } else { body };
    serde_json::from_slice(&body).map_err(|source| ClientError::Answer { url: url.to_string(), source })
}

/// The problem the controller describes; for anything else (a proxy's page, say) the status with the beginning of the text.
fn parse_problem(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        status: status.as_u16(),
        code: "http".to_owned(),
        detail: match String::from_utf8_lossy(body).chars().take(200).collect::<String>() {
            text if text.trim().is_empty() => status.canonical_reason().unwrap_or("refused").to_owned(),
            text => text,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_read_and_foreign_pages_quoted() {
        let body = br#"{"status":422,"code":"model-invalid","detail":"no ONNX model"}"#;
        assert_eq!(parse_problem(StatusCode::UNPROCESSABLE_ENTITY, body).code, "model-invalid");
        let foreign = parse_problem(StatusCode::BAD_GATEWAY, b"<html>gateway</html>");
        assert_eq!((foreign.status, foreign.code.as_str(), foreign.detail.as_str()), (502, "http", "<html>gateway</html>"));
        assert_eq!(parse_problem(StatusCode::NOT_FOUND, b"").detail, "Not Found");
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        for attempt in 1..40 {
            let full = FIRST_PAUSE.mul_f64(f64::from(1_u32 << attempt.min(6)) * 0.5);
            let pause = pause(attempt);
            assert!(pause <= full && pause >= full / 2, "{attempt}: {pause:?}");
        }
    }

    #[test]
    fn plain_http_is_refused_before_the_token_leaves() {
        let dir = std::env::temp_dir().join(format!("pleach-client-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (ca_file, token_file) = (dir.join("ca.pem"), dir.join("token"));
        std::fs::write(&ca_file, "").unwrap();
        std::fs::write(&token_file, "secret").unwrap();
        let connection = Connection { api: "http://localhost:1".into(), ca_file, token_file };
        assert!(matches!(Client::new(&connection), Err(ClientError::NoCertificate { .. })));
        std::fs::write(&connection.ca_file, CERTIFICATE).unwrap();
        assert!(matches!(Client::new(&connection), Err(ClientError::Address { .. })));
        let client = Client::new(&Connection { api: "https://localhost:1/".into(), ..connection }).unwrap();
        assert_eq!(client.url(&["devices", "a/b"]).as_str(), "https://localhost:1/api/v1/devices/a%2Fb");
        assert!(!format!("{client:?}").contains("secret"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    const CERTIFICATE: &str = include_str!("client/test-ca.pem");
}
