//! The task that owns the spool: takes reports in, signs and sends the oldest, deletes what is acknowledged.

use std::sync::Arc;
use std::time::Duration;

use pleach_proto::REPORT_CONTEXT;
use pleach_proto::fleet::fleet_client::FleetClient;
use pleach_proto::fleet::{Report, ReportAck, SignedReport};
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::slot::Slot;
use super::{Client, Device, Known};
use crate::backoff::{Backoff, random};
use crate::error::AgentError;
use crate::keys::DeviceKeys;
use crate::spool::{Draft, Spool};

const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const QUEUE: usize = 16;

struct Spooling {
    draft: Draft,
    done: oneshot::Sender<Result<u64, AgentError>>,
}

/// The way into the spool.
#[derive(Clone)]
pub(super) struct Reports(mpsc::Sender<Spooling>);

/// The task's half.
pub(super) struct Reporter {
    device: Arc<Device>,
    keys: Arc<DeviceKeys>,
    spool: Spool,
    incoming: mpsc::Receiver<Spooling>,
    client: watch::Receiver<Client>,
}

/// Joins both halves.
pub(super) fn open(device: Arc<Device>, keys: Arc<DeviceKeys>, spool: Spool, client: watch::Receiver<Client>) -> (Reports, Reporter) {
    let (sender, incoming) = mpsc::channel(QUEUE);
    Known::set(&device.known.report_sequence, spool.last_sequence());
    (Reports(sender), Reporter { device, keys, spool, incoming, client })
}

impl Reports {
    /// Spools a report; after `true` it survives a power cut. A report that cannot be spooled is logged and lost.
    pub(super) async fn push(&self, draft: Draft) -> bool {
        let (done, spooled) = oneshot::channel();
        if self.0.send(Spooling { draft, done }).await.is_err() {
            return false;
        }
        match spooled.await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::error!(error = crate::error::chain(&error), "a report could not be spooled");
                false
            }
            Err(_) => false,
        }
    }
}

impl Reporter {
    /// Works until every [`Reports`] is gone; what is spooled then waits for the next start.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        let mut sending: Slot<(u64, Result<ReportAck, Status>)> = Slot::empty();
        let mut not_before = Instant::now();
        loop {
            let waiting = sending.is_empty() && !self.spool.is_empty() && self.client.borrow().is_some();
            tokio::select! {
                incoming = self.incoming.recv() => match incoming {
                    Some(spooling) => self.spool(spooling),
                    None => return,
                },
                // A new connection is worth a try at once.
                Ok(()) = self.client.changed() => not_before = Instant::now(),
                () = sleep_until(not_before), if waiting => {
                    if let Some((client, report)) = self.next() {
                        sending.put(self.send(client, report));
                    }
                }
                (sequence, result) = sending.done() => {
                    match self.settle(sequence, result) {
                        Ok(()) => backoff.reset(),
                        Err(error) => {
                            let wait = backoff.next(random());
                            tracing::info!(report.sequence = sequence, error = crate::error::chain(&error), wait_ms = wait.as_millis() as u64, "a report has to wait");
                            not_before = Instant::now() + wait;
                        }
                    }
                }
            }
        }
    }

    fn spool(&mut self, spooling: Spooling) {
        let result = self.spool.push(spooling.draft, self.device.clock.now_ms());
        Known::set(&self.device.known.report_sequence, self.spool.last_sequence());
        // The one who asked may have gone.
        let _ = spooling.done.send(result);
    }

    fn next(&mut self) -> Option<(FleetClient<Channel>, Report)> {
        let client = self.client.borrow().clone()?;
        match self.spool.oldest() {
            Ok(report) => Some((client, report?)),
            Err(error) => {
                tracing::error!(error = crate::error::chain(&error), "the spool cannot be read");
                None
            }
        }
    }

    fn send(
        &self,
        mut client: FleetClient<Channel>,
        report: Report,
    ) -> impl Future<Output = (u64, Result<ReportAck, Status>)> + Send + 'static {
        let body = report.encode_to_vec();
        let signed = SignedReport { signature: self.keys.sign(REPORT_CONTEXT, &body), body };
        async move {
            let late = || Status::deadline_exceeded(format!("no acknowledgement within {} s", SEND_TIMEOUT.as_secs()));
            let answer = timeout(SEND_TIMEOUT, client.report(signed)).await.unwrap_or_else(|_| Err(late()));
            (report.sequence, answer.map(tonic::Response::into_inner))
        }
    }

    fn settle(&mut self, sequence: u64, result: Result<ReportAck, Status>) -> Result<(), AgentError> {
        match result {
            Ok(ack) if ack.sequence >= sequence => self.spool.acknowledge(ack.sequence)?,
            Ok(ack) => {
                let words = format!("the controller acknowledges {}, expected at least {sequence}", ack.sequence);
                return Err(AgentError::call("Report")(Status::internal(words)));
            }
            // It will never be accepted, and must not keep the ones behind it from being.
            Err(status) if status.code() == Code::InvalidArgument => {
                tracing::error!(
                    report.sequence = sequence,
                    reason = status.message(),
                    "the controller does not understand a report; dropping it"
                );
                self.spool.acknowledge(sequence)?;
            }
            Err(status) => return Err(AgentError::call("Report")(status)),
        }
        Known::set(&self.device.known.report_sequence, self.spool.last_sequence());
        Ok(())
    }
}
