//! The stream that a device keeps open: greets, then sends the whole desired state whenever it changed.

use std::time::Duration;

use pleach_domain::state::DeviceState;
use pleach_proto::fleet::agent_message::Message as Up;
use pleach_proto::fleet::controller_message::Message as Down;
use pleach_proto::fleet::{AgentMessage, ControllerMessage, DesiredState, Hello, Pong, Refusal};
use pleach_proto::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use pleach_store::{audit, devices};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::enrollment::check_boot_id;
use super::{desired, peer, status};
use crate::authority::DeviceCertificate;
use crate::controller::Shared;
use crate::random;

/// How long a new stream may wait with its first message.
const GREETING: Duration = Duration::from_secs(10);
/// How long a device may leave messages unread.
const SEND: Duration = Duration::from_secs(30);
/// How often a stream looks for a change that nobody told it of, such as fresh metadata.
const LOOK: Duration = Duration::from_secs(60);
/// How often a device that talks is noted as heard.
const HEARD: Duration = Duration::from_secs(30);

type Sender = mpsc::Sender<Result<ControllerMessage, Status>>;

/// Why a stream ends.
enum End {
    /// The device went away, or the controller ends.
    Quiet,
    /// The device must be told.
    Refused(Refusal),
    /// The call fails.
    Failed(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// Opens a stream; it lives in a task of its own until the device, a newer stream, a revocation or the controller's end closes it.
pub(super) fn open(
    controller: Shared,
    device: DeviceCertificate,
    inbound: Streaming<AgentMessage>,
) -> mpsc::Receiver<Result<ControllerMessage, Status>> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let id = device.device.clone();
        let mut stream = Stream { controller, device, inbound, sender: sender.clone(), sent: None, generation: 0, heard: None };
        match stream.run().await {
            End::Quiet => debug!(device.id = %id, "stream closed"),
            End::Refused(refusal) => {
                info!(device.id = %id, code = refusal.code, "stream refused");
                let _ = tokio::time::timeout(SEND, sender.send(Ok(message(Down::Refusal(refusal))))).await;
            }
            End::Failed(status) => {
                info!(device.id = %id, code = ?status.code(), reason = status.message(), "stream ended");
                let _ = tokio::time::timeout(SEND, sender.send(Err(status))).await;
            }
        }
    });
    receiver
}

struct Stream {
    controller: Shared,
    device: DeviceCertificate,
    inbound: Streaming<AgentMessage>,
    sender: Sender,
    sent: Option<DesiredState>,
    generation: u64,
    heard: Option<Instant>,
}

impl Stream {
    async fn run(&mut self) -> End {
        match self.converse().await {
            Ok(()) => End::Quiet,
            Err(end) => end,
        }
    }

    async fn converse(&mut self) -> Result<(), End> {
        let hello = self.greet().await?;
        self.refuse_a_copy(&hello.boot_id).await?;
        let mut seat = self.controller.presence.enter(&self.device.device);
        self.note_heard(&hello.boot_id).await?;
        self.controller.wake.all();
        info!(device.id = %self.device.device, agent.version = hello.agent_version.chars().take(40).collect::<String>(), "stream open");
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let left_ms = u64::try_from(self.device.not_after_ms.saturating_sub(random::now_ms())).unwrap_or(0);
        let expiry = tokio::time::sleep(Duration::from_millis(left_ms));
        tokio::pin!(expiry);
        let stop = self.controller.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = &mut expiry => return Err(Status::unauthenticated("the client certificate has expired: renew it").into()),
                changed = seat.look.changed() => {
                    if changed.is_err() {
                        return Err(refused("superseded-stream", "a newer stream of this device is open"));
                    }
                    self.deliver(&hello).await?;
                }
                _ = look.tick() => self.deliver(&hello).await?,
                up = self.inbound.message() => match up {
                    Ok(Some(up)) => self.answer(up, &hello).await?,
                    Ok(None) | Err(_) => return Ok(()),
                },
            }
        }
    }

    async fn greet(&mut self) -> Result<Hello, End> {
        let first = tokio::time::timeout(GREETING, self.inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello came within 10 seconds"))?;
        let Some(Up::Hello(hello)) = first?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("the first message is not Hello").into());
        };
        let version = hello.protocol_version;
        if !(OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION).contains(&version) {
            let words = format!(
                "the agent speaks protocol version {version}: expected {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}; {}",
                if version < OLDEST_PROTOCOL_VERSION { "update the agent" } else { "update the controller" }
            );
            return Err(refused("protocol-version", words));
        }
        check_boot_id(&hello.boot_id)?;
        Ok(hello)
    }

    /// Has a device wait for a person when its key speaks from two machines; an open stream of the other one ends too.
    async fn refuse_a_copy(&self, boot_id: &str) -> Result<(), End> {
        let (id, at_ms) = (&self.device.device, random::now_ms());
        let mut session = self.controller.store.write().await.map_err(status::store)?;
        let known = devices::find(&mut session, id).await.map_err(status::store)?;
        let before = known.map(|device| device.enrolled.boot_id).unwrap_or_default();
        if !self.controller.presence.boot_returned(id, &before, boot_id) {
            return Ok(());
        }
        if devices::suspend(&mut session, id, at_ms).await.map_err(status::store)? {
            let entry = audit::Entry { actor: "controller", action: "device.cloned", subject: id.as_str(), before: None, after: None };
            audit::append(&mut session, &entry, at_ms).await.map_err(status::store)?;
            session.commit().await.map_err(status::store)?;
            warn!(device.id = %id, "one key on two machines: the device waits for a person");
        }
        self.controller.presence.nudge(id);
        Err(refused("cloned-key", "this device's key is in use on two machines: revoke it, and enrol each with a key of its own"))
    }

    /// Checks that the device is active, and sends the desired state when it is another than the one sent last.
    async fn deliver(&mut self, hello: &Hello) -> Result<(), End> {
        self.check_active().await?;
        let mut session = self.controller.store.read().await.map_err(status::store)?;
        let desired = desired::build(&mut session, &self.device.device, hello.root_version).await.map_err(status::store)?;
        drop(session);
        if self.sent.as_ref() == Some(&desired) {
            return Ok(());
        }
        self.generation += 1;
        let message = DesiredState { generation: self.generation, server_time_ms: random::now_ms(), ..desired.clone() };
        self.sent = Some(desired);
        self.send(Down::Desired(message)).await
    }

    async fn answer(&mut self, up: AgentMessage, hello: &Hello) -> Result<(), End> {
        match up.message {
            Some(Up::Ping(ping)) => {
                if self.heard.is_none_or(|at| at.elapsed() > HEARD) {
                    self.note_heard(&hello.boot_id).await?;
                }
                self.send(Down::Pong(Pong { sent_at_ms: ping.sent_at_ms, server_time_ms: random::now_ms() })).await
            }
            Some(Up::Hello(_)) => Err(Status::invalid_argument("a second Hello on one stream").into()),
            // A message that a newer agent may send and this version does not know.
            None => Ok(()),
        }
    }

    async fn check_active(&self) -> Result<(), End> {
        match peer::active(&self.controller, &self.device).await {
            Ok(()) => Ok(()),
            Err(status) if status.code() == tonic::Code::PermissionDenied => {
                let mut session = self.controller.store.read().await.map_err(status::store)?;
                let state = devices::state(&mut session, &self.device.device).await.map_err(status::store)?;
                let code = if state == Some(DeviceState::Pending) { "not-approved" } else { "revoked" };
                Err(refused(code, status.message()))
            }
            Err(status) => Err(status.into()),
        }
    }

    async fn note_heard(&mut self, boot_id: &str) -> Result<(), End> {
        let mut session = self.controller.store.write().await.map_err(status::store)?;
        devices::seen(&mut session, &self.device.device, boot_id, random::now_ms()).await.map_err(status::store)?;
        session.commit().await.map_err(status::store)?;
        self.heard = Some(Instant::now());
        Ok(())
    }

    async fn send(&self, down: Down) -> Result<(), End> {
        match tokio::time::timeout(SEND, self.sender.send(Ok(message(down)))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Quiet),
            Err(_) => Err(Status::deadline_exceeded("the device reads nothing").into()),
        }
    }
}

fn message(down: Down) -> ControllerMessage {
    ControllerMessage { message: Some(down) }
}

fn refused(code: &str, words: impl Into<String>) -> End {
    End::Refused(Refusal { code: code.to_owned(), message: words.into() })
}
