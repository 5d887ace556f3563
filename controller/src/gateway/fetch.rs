//! Downloads: the blobs that a device's desired state names, from any offset, in parts.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use pleach_domain::Digest;
use pleach_proto::fleet::fetch_response::Part;
use pleach_proto::fleet::{FetchHeader, FetchRequest, FetchResponse};
use pleach_store::blobs::Reading;
use pleach_store::{bundles, desired};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use super::{peer, status};
use crate::authority::DeviceCertificate;
use crate::controller::Shared;

/// Bytes in one part.
const PART_BYTES: usize = 128 * 1024;
/// Fewest bytes in one part of a slow download.
const SMALL_PART_BYTES: usize = 4 * 1024;
/// Parts that wait for the device: with the part size, what one download holds in memory.
const PARTS_AHEAD: usize = 4;
/// How often a running download asks whether the device is still active.
const RECHECK: Duration = Duration::from_secs(1);
/// How long a device may leave parts unread.
const SEND: Duration = Duration::from_secs(60);

/// Opens a download.
pub(super) async fn open(
    controller: Shared,
    device: DeviceCertificate,
    request: FetchRequest,
) -> Result<mpsc::Receiver<Result<FetchResponse, Status>>, Status> {
    let digest = Digest::from_slice(&request.digest).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let leaves = allowed(&controller, &device, &digest).await?;
    let reading = controller.blobs.read(&digest, request.offset).await.map_err(status::store)?;
    let reading = reading.ok_or_else(|| Status::unavailable(format!("blob {digest} is missing in the controller's store")))?;
    if request.offset > reading.length {
        return Err(Status::out_of_range(format!("offset {}: the blob has {} bytes", request.offset, reading.length)));
    }
    let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
    let header = FetchHeader { length: reading.length, leaves };
    tokio::spawn(async move {
        let mut flow = Flow::new(controller, device, sender.clone());
        if let Err(Some(status)) = flow.run(header, reading).await {
            let _ = tokio::time::timeout(SEND, sender.send(Err(status))).await;
        }
    });
    Ok(receiver)
}

/// The leaves of the bundle when the device should run it, nothing when it should measure the blob; otherwise a refusal that
/// does not tell whether there is such a blob.
async fn allowed(controller: &Shared, device: &DeviceCertificate, digest: &Digest) -> Result<Vec<u8>, Status> {
    let mut session = controller.store.read().await.map_err(status::store)?;
    let desired = desired::of_device(&mut session, &device.device).await.map_err(status::store)?;
    if desired.deployment.is_some_and(|d| d.digest == *digest) {
        let bundle = bundles::find_by_digest(&mut session, digest).await.map_err(status::store)?;
        return Ok(bundle.map(|b| b.leaves).unwrap_or_default());
    }
    if desired.measurements.iter().any(|task| task.blob == *digest) {
        return Ok(Vec::new());
    }
    Err(Status::not_found(format!("the desired state of this device names no blob {digest}")))
}

/// One download on its way: in parts, at a bounded rate, as long as the device is active.
struct Flow {
    controller: Shared,
    device: DeviceCertificate,
    sender: mpsc::Sender<Result<FetchResponse, Status>>,
    part_bytes: usize,
    start: Instant,
    sent_bytes: u64,
    checked: Instant,
}

/// The end of a download: a status that the device gets, or `None` when it has gone.
type Ended = Option<Status>;

impl Flow {
    fn new(controller: Shared, device: DeviceCertificate, sender: mpsc::Sender<Result<FetchResponse, Status>>) -> Self {
        // Eight parts a second at least, so that a slow download flows instead of jumping.
        let eighth = controller.config.delivery_bytes_per_second.and_then(|rate| usize::try_from(rate / 8).ok());
        let part_bytes = eighth.map_or(PART_BYTES, |bytes| bytes.clamp(SMALL_PART_BYTES, PART_BYTES));
        let now = Instant::now();
        Self { controller, device, sender, part_bytes, start: now, sent_bytes: 0, checked: now }
    }

    async fn run(&mut self, header: FetchHeader, mut reading: Reading) -> Result<(), Ended> {
        self.send(Part::Header(header)).await?;
        let mut waiting = BytesMut::with_capacity(self.part_bytes);
        while let Some(bytes) = reading.bytes.next().await {
            waiting.extend_from_slice(&bytes.map_err(|e| Some(status::store(e)))?);
            while waiting.len() >= self.part_bytes {
                let part = waiting.split_to(self.part_bytes).freeze();
                self.send_data(part).await?;
            }
        }
        if waiting.is_empty() { Ok(()) } else { self.send_data(waiting.freeze()).await }
    }

    async fn send_data(&mut self, part: Bytes) -> Result<(), Ended> {
        if self.controller.stop.is_cancelled() {
            return Err(Some(Status::unavailable("the controller ends; resume later")));
        }
        if self.checked.elapsed() > RECHECK {
            peer::active(&self.controller, &self.device).await.map_err(Some)?;
            self.checked = Instant::now();
        }
        self.sent_bytes += part.len() as u64;
        self.send(Part::Data(part)).await?;
        if let Some(rate) = self.controller.config.delivery_bytes_per_second {
            let due = Duration::from_secs_f64(self.sent_bytes as f64 / rate as f64);
            tokio::time::sleep_until(self.start + due).await;
        }
        Ok(())
    }

    async fn send(&self, part: Part) -> Result<(), Ended> {
        let message = FetchResponse { part: Some(part) };
        match tokio::time::timeout(SEND, self.sender.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(None),
            Err(_) => Err(Some(Status::deadline_exceeded("the device reads nothing"))),
        }
    }
}
