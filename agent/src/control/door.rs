//! The way in for a person on the device: a socket in the state folder, so only the agent's own user and root reach it.
//!
//! One line of JSON asks, one line of JSON answers; an offline bundle follows its question as it is in its file, see
//! [`pleach_proto::offline`].

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pleach_proto::MAX_MESSAGE_BYTES;
use pleach_proto::fleet::{Deployment, FetchHeader};
use pleach_proto::offline::MAGIC;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Device;
use super::download::Offline;
use super::failure::Failure;
use crate::error::AgentError;
use crate::files;
use crate::ledger::Assigned;
use crate::state::StateDir;

const MAX_LINE_BYTES: u64 = 4096;
const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
/// Longest silence of whoever sends a bundle.
const SILENCE: Duration = Duration::from_secs(60);
const PIECE_BYTES: usize = 64 << 10;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Give up what is being tried, or go back to the bundle that was proven before.
    Rollback,
    /// Take the offline bundle that follows.
    Install,
}

/// What came of it, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done.
    pub done: bool,
    /// What was done, or why not.
    pub words: String,
}

/// A question on its way to the engine.
pub(super) enum Ask {
    Rollback,
    /// Is this deployment vouched for by both signers, and for this device?
    Vouch(Box<Deployment>),
    /// Move to a deployment whose bundle is on disk.
    Take(Box<Deployment>),
}

/// The engine's answer: words, and for a deployment what it assigns.
pub(super) type Said = Result<(String, Option<Assigned>), Failure>;
pub(super) type Asking = (Ask, oneshot::Sender<Said>);

/// Answers until `stop`. A device whose state folder takes no socket works all the same.
pub(super) async fn serve(device: Arc<Device>, engine: mpsc::Sender<Asking>, stop: CancellationToken) {
    let path = device.state.door();
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, path = %path.display(), "no door for commands on this device"),
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                // One at a time: each changes what the device runs.
                Ok((stream, _)) => tokio::select! {
                    () = stop.cancelled() => return,
                    () = attend(&device, &engine, stream) => {}
                },
                Err(error) => {
                    tracing::warn!(%error, "the door fails");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn attend(device: &Arc<Device>, engine: &mpsc::Sender<Asking>, stream: UnixStream) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let answer = match question(&mut reader).await {
        Ok(Question::Rollback) => ask(engine, Ask::Rollback).await,
        Ok(Question::Install) => install(device, engine, &mut reader).await,
        Err(failure) => Err(failure),
    };
    let answer = match answer {
        Ok((words, _)) => Answer { done: true, words },
        Err(failure) => Answer { done: false, words: format!("{}: {}", failure.check, failure.detail) },
    };
    tracing::info!(done = answer.done, words = answer.words, "a command on this device");
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    // Who asked may have gone; what was done is done.
    let _ = timeout(QUESTION_DEADLINE, writer.write_all(&line)).await;
}

async fn question(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Question, Failure> {
    let mut line = Vec::new();
    let read = timeout(QUESTION_DEADLINE, reader.take(MAX_LINE_BYTES).read_until(b'\n', &mut line)).await;
    read.map_err(|_| Failure::new("message", "no question came"))?.map_err(|e| Failure::new("message", e.to_string()))?;
    serde_json::from_slice(&line).map_err(|e| Failure::new("message", format!("the question: {e}")))
}

async fn ask(engine: &mpsc::Sender<Asking>, ask: Ask) -> Said {
    let gone = || Failure::new("interrupted", "the agent ends");
    let (reply, said) = oneshot::channel();
    engine.send((ask, reply)).await.map_err(|_| gone())?;
    said.await.map_err(|_| gone())?
}

/// Takes an offline bundle: first what is signed, then, only if that holds, the bytes, each chunk verified before it is written.
async fn install(device: &Arc<Device>, engine: &mpsc::Sender<Asking>, reader: &mut (impl AsyncRead + Unpin)) -> Said {
    let mut magic = [0; MAGIC.len()];
    exactly(reader, &mut magic).await?;
    if magic != *MAGIC {
        return Err(Failure::new("message", "this is no offline bundle"));
    }
    let deployment: Deployment = message(reader).await?;
    let header: FetchHeader = message(reader).await?;
    let (_, assigned) = ask(engine, Ask::Vouch(Box::new(deployment.clone()))).await?;
    let assigned = assigned.ok_or_else(|| Failure::new("message", "the deployment assigns nothing"))?;
    let mut offline = Offline::begin(Arc::clone(device), assigned, header)?;
    let mut piece = vec![0; PIECE_BYTES];
    while !offline.is_whole() {
        let read = timeout(SILENCE, reader.read(&mut piece)).await;
        let count = read.map_err(|_| Failure::new("message", "the bundle stopped coming"))?;
        let count = count.map_err(|e| Failure::new("message", e.to_string()))?;
        if count == 0 {
            return Err(Failure::new("length", "the bundle is cut off"));
        }
        offline = offline.append(piece.get(..count).unwrap_or_default().to_vec()).await?;
    }
    offline.finish().await?;
    ask(engine, Ask::Take(Box::new(deployment))).await
}

async fn message<M: Message + Default>(reader: &mut (impl AsyncRead + Unpin)) -> Result<M, Failure> {
    let mut delimiter = [0; 4];
    exactly(reader, &mut delimiter).await?;
    let length = usize::try_from(u32::from_le_bytes(delimiter)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE_BYTES {
        return Err(Failure::new("message", format!("a part of {length} bytes: expected at most {MAX_MESSAGE_BYTES}")));
    }
    let mut bytes = vec![0; length];
    exactly(reader, &mut bytes).await?;
    M::decode(bytes.as_slice()).map_err(|e| Failure::new("message", e.to_string()))
}

async fn exactly(reader: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) -> Result<(), Failure> {
    let read = timeout(SILENCE, reader.read_exact(bytes)).await.map_err(|_| Failure::new("message", "the file stopped coming"))?;
    read.map(drop).map_err(|e| Failure::new("message", format!("the file is cut off: {e}")))
}

/// Asks the agent that runs on `state_dir`; an offline bundle goes with [`Question::Install`].
///
/// # Errors
/// [`AgentError::NoDoor`] when none runs, [`AgentError::File`] for the bundle, [`AgentError::Door`] when it does not answer.
pub async fn knock(state_dir: &Path, question: Question, bundle: Option<PathBuf>) -> Result<Answer, AgentError> {
    let door = StateDir::door_of(state_dir);
    let stream = UnixStream::connect(&door).await.map_err(|source| AgentError::NoDoor { path: door.clone(), source })?;
    let broken = |source| AgentError::Door { path: door.clone(), source };
    let (reader, mut writer) = stream.into_split();
    let sending = async {
        let mut line = serde_json::to_vec(&question).map_err(io::Error::from)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
        if let Some(path) = bundle {
            tokio::io::copy(&mut File::open(path).await?, &mut writer).await?;
        }
        writer.shutdown().await
    };
    // The agent may refuse before it has read all: its answer says why.
    let sent = sending.await;
    let mut line = String::new();
    let read = BufReader::new(reader).take(MAX_LINE_BYTES).read_line(&mut line).await;
    match (read, sent) {
        (Ok(1..), _) => serde_json::from_str(&line).map_err(|e| broken(e.into())),
        (_, Err(error)) | (Err(error), _) => Err(broken(error)),
        (Ok(0), Ok(())) => Err(broken(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Removes everything that makes this device itself: identity, keys, bundles, ledger, spool. Its folder stays.
///
/// # Errors
/// [`AgentError::Locked`] while an agent runs, [`AgentError::File`].
pub fn reset(state: &StateDir) -> Result<(), AgentError> {
    for folder in ["keys", "trust", "bundles", "spool"].map(|name| state.root().join(name)) {
        for entry in std::fs::read_dir(&folder).map_err(AgentError::file("reading folder", &folder))? {
            files::remove(&entry.map_err(AgentError::file("reading folder", &folder))?.path())?;
        }
    }
    [state.identity(), state.ledger(), state.ledger().with_extension("json.bak"), state.door()]
        .iter()
        .try_for_each(|path| files::remove(path))
}
