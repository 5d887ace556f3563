//! Keeps one stream to the controller open, renews the certificate it rests on, and publishes what is desired.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pleach_proto::fleet::agent_message::Message as Up;
use pleach_proto::fleet::controller_message::Message as Down;
use pleach_proto::fleet::fleet_client::FleetClient;
use pleach_proto::fleet::{AgentMessage, ControllerMessage, Hello, Ping};
use pleach_proto::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Client, Desired, Device};
use crate::backoff::{Backoff, jittered, random};
use crate::error::{AgentError, chain};
use crate::identity::{self, Identity};
use crate::keys::DeviceKeys;
use crate::{boot, tls};

/// Room for the leaf list of the largest bundle within one message.
const MESSAGE_SLACK: usize = 64 * 1024;
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest sleep before the certificate is looked at again: clocks jump.
const RENEWAL_LOOK: Duration = Duration::from_secs(3600);

struct Link {
    device: Arc<Device>,
    keys: Arc<DeviceKeys>,
    identity: Identity,
    /// Spreads renewals; the same for one certificate.
    jitter: u64,
    client: watch::Sender<Client>,
    desired: watch::Sender<Desired>,
}

/// Connects again and again until `stop` is cancelled.
pub(super) async fn run(
    device: Arc<Device>,
    keys: Arc<DeviceKeys>,
    identity: Identity,
    client: watch::Sender<Client>,
    desired: watch::Sender<Desired>,
    stop: CancellationToken,
) {
    let mut link = Link { device, keys, identity, jitter: random(), client, desired };
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(60));
    loop {
        let ended = tokio::select! {
            Err(error) = link.connect(&mut backoff) => error,
            () = stop.cancelled() => return,
        };
        link.client.send_replace(None);
        let wait = match &ended {
            // A person has to change something first.
            AgentError::Refused { code, .. } if code != "superseded-stream" => jittered(Duration::from_secs(60), random()),
            _ => backoff.next(random()),
        };
        tracing::info!(error = chain(&ended), wait_ms = wait.as_millis() as u64, "not connected");
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Link {
    async fn connect(&mut self, backoff: &mut Backoff) -> Result<Infallible, AgentError> {
        self.renew_when_due().await;
        let config = self.identity.client_config(&self.keys, &self.device.clock)?;
        let channel = tls::connect(&self.device.config.endpoint()?, config).await?;
        let mut client = FleetClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES + MESSAGE_SLACK)
            .max_encoding_message_size(MAX_MESSAGE_BYTES + MESSAGE_SLACK);
        let (up, outbound) = mpsc::channel(4);
        let _ = up.send(message(Up::Hello(self.hello()))).await;
        let late = |_| AgentError::Deadline { call: "Sync", seconds: OPEN_TIMEOUT.as_secs() };
        let opened = timeout(OPEN_TIMEOUT, client.sync(ReceiverStream::new(outbound))).await.map_err(late)?;
        let inbound = opened.map_err(AgentError::call("Sync"))?.into_inner();
        self.converse(client, up, inbound, backoff).await
    }

    async fn converse(
        &mut self,
        client: FleetClient<Channel>,
        up: mpsc::Sender<AgentMessage>,
        mut inbound: Streaming<ControllerMessage>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, AgentError> {
        let silence = self.device.config.ping_interval() * 2 + OPEN_TIMEOUT;
        let mut ping = interval(self.device.config.ping_interval());
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        let renewal = sleep(self.until_renewal());
        tokio::pin!(renewal);
        let mut newest = 0;
        let mut greeted = false;
        loop {
            tokio::select! {
                received = timeout(silence, inbound.message()) => {
                    let late = |_| AgentError::Deadline { call: "the controller", seconds: silence.as_secs() };
                    let received = received.map_err(late)?.map_err(AgentError::call("Sync"))?;
                    let content = received.ok_or(AgentError::Closed)?.message;
                    if !greeted && !matches!(content, Some(Down::Refusal(_))) {
                        greeted = true;
                        backoff.reset();
                        tracing::info!(controller = self.device.config.controller, "connected");
                        self.client.send_replace(Some(client.clone()));
                    }
                    self.take(content, &mut newest)?;
                }
                _ = ping.tick() => {
                    // A full channel means that earlier pings wait: the silence will show.
                    let _ = up.try_send(message(Up::Ping(Ping { sent_at_ms: self.device.clock.now_ms() })));
                }
                () = &mut renewal => {
                    self.renew_when_due().await;
                    renewal.set(sleep(self.until_renewal()));
                }
            }
        }
    }

    fn take(&self, content: Option<Down>, newest: &mut u64) -> Result<(), AgentError> {
        match content {
            Some(Down::Desired(desired)) if desired.generation > *newest => {
                *newest = desired.generation;
                self.device.clock.raise_floor(desired.server_time_ms);
                self.desired.send_replace(Some(Arc::new(desired)));
            }
            Some(Down::Desired(older)) => tracing::debug!(generation = older.generation, newest, "ignoring an older desired state"),
            Some(Down::Pong(pong)) => self.device.clock.raise_floor(pong.server_time_ms),
            Some(Down::Refusal(refusal)) => return Err(AgentError::Refused { code: refusal.code, message: refusal.message }),
            // A message that a newer controller may send and this version does not know.
            None => {}
        }
        Ok(())
    }

    fn hello(&self) -> Hello {
        let known = &self.device.known;
        Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot::id(),
            proven_sequence: known.proven_sequence.load(Ordering::Relaxed),
            root_version: known.root_version.load(Ordering::Relaxed),
            report_sequence: known.report_sequence.load(Ordering::Relaxed),
        }
    }

    fn until_renewal(&self) -> Duration {
        let left_ms = self.identity.renewal_at_ms(self.jitter).saturating_sub(self.device.clock.now_ms());
        // Never at once: a renewal that failed a moment ago is not tried in a loop.
        Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)).clamp(Duration::from_secs(30), RENEWAL_LOOK)
    }

    /// Renews when it is time. Failing is no reason not to connect: the old certificate may be good still.
    async fn renew_when_due(&mut self) {
        if !self.identity.renewal_due(self.device.clock.now_ms(), self.jitter) {
            return;
        }
        let endpoint = match self.device.config.endpoint() {
            Ok(endpoint) => endpoint,
            Err(error) => return tracing::error!(%error, "the controller's address is not valid"),
        };
        match identity::renew(&endpoint, &self.device.state, &self.keys, &self.device.clock, &self.identity).await {
            Ok(renewed) => {
                self.identity = renewed;
                self.jitter = random();
            }
            Err(error) => tracing::warn!(error = chain(&error), "the certificate could not be renewed"),
        }
    }
}

fn message(content: Up) -> AgentMessage {
    AgentMessage { message: Some(content) }
}
