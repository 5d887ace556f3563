//! What the agent on this device says of itself, asked on its own socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pleach_proto::device::StatusRequest;
use pleach_proto::device::local_client::LocalClient;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use crate::error::AgentError;

const DEADLINE: Duration = Duration::from_secs(5);

/// The answer, as text or JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Device id.
    pub device: String,
    /// `starting`, `serving`, `probation` or `empty`.
    pub state: String,
    /// Model name; empty when none serves.
    pub model: String,
    /// Model version.
    pub model_version: String,
    /// Rung that serves.
    pub rung: String,
    /// Digest of the bundle that serves.
    pub bundle: String,
    /// Inferences since it was activated.
    pub requests: u64,
    /// Failed ones.
    pub errors: u64,
}

/// Asks the agent that listens on `socket`.
///
/// # Errors
/// [`AgentError::NoAgent`] when none does, [`AgentError::Call`], [`AgentError::Deadline`].
pub async fn ask(socket: &Path) -> Result<Status, AgentError> {
    let path: PathBuf = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let failed = |source| AgentError::NoAgent { socket: socket.to_owned(), source };
    let channel = Endpoint::from_static("http://agent").connect_with_connector(connector).await.map_err(failed)?;
    let late = |_| AgentError::Deadline { call: "Status", seconds: DEADLINE.as_secs() };
    let answer = timeout(DEADLINE, LocalClient::new(channel).status(StatusRequest {})).await.map_err(late)?;
    let status = answer.map_err(AgentError::call("Status"))?.into_inner();
    Ok(Status {
        device: status.device_id,
        state: status.state,
        model: status.model_name,
        model_version: status.model_version,
        rung: status.rung,
        bundle: status.bundle_digest,
        requests: status.requests,
        errors: status.errors,
    })
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        writeln!(f, "device    {}", self.device)?;
        writeln!(f, "state     {}", self.state)?;
        writeln!(f, "model     {} {}", or_none(&self.model), self.model_version)?;
        writeln!(f, "rung      {}", or_none(&self.rung))?;
        writeln!(f, "bundle    {}", or_none(&self.bundle))?;
        write!(f, "requests  {} ({} failed)", self.requests, self.errors)
    }
}
