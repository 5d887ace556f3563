//! Downloads a sealed bundle: each chunk is checked against the signed hash tree before it is written, and what was written
//! survives a crash of either side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pleach_domain::Digest;
use pleach_proto::fleet::fetch_response::Part;
use pleach_proto::fleet::fleet_client::FleetClient;
use pleach_proto::fleet::{FetchHeader, FetchRequest, FetchResponse};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::failure::Failure;
use super::{Client, Device};
use crate::backoff::{Backoff, random};
use crate::ledger::Assigned;
use crate::{files, profile};

mod part;

use part::PartFile;

/// Longest silence within a download.
const SILENCE: Duration = Duration::from_secs(60);
/// Times that damaged bytes are asked for again.
const DAMAGED_TRIES: u32 = 3;
/// Bytes that stay free for the ledger and the spool.
pub(super) const RESERVE_BYTES: u64 = 4 << 20;

/// Why one try ended.
#[derive(Debug)]
enum Stop {
    /// Worth another try, for ever.
    Network(Status),
    /// Bytes that are not what was signed: worth a few tries.
    Damaged(Failure),
    /// No try will help.
    Failed(Failure),
}

/// Downloads until the bundle is whole, verified and synced under its final name. Waits for the controller as long as it takes;
/// dropping the future pauses the download.
///
/// # Errors
/// The check that failed: `chunk-hash`, `hash-tree`, `disk-full`, `storage`.
pub(super) async fn bundle(device: Arc<Device>, client: watch::Receiver<Client>, assigned: Assigned) -> Result<(), Failure> {
    if device.state.bundle(&assigned.digest).exists() {
        return Ok(());
    }
    let (folder, wanted) = (device.state.bundles(), assigned.clone());
    let resumed = spawn_blocking(move || PartFile::resume(&folder, &wanted)).await.map_err(|e| Failure::new("storage", e.to_string()))?;
    let mut part = resumed?;
    let have = part.as_ref().map_or(0, PartFile::offset);
    room(&device, assigned.length_bytes.saturating_sub(have))?;
    let mut tries = Tries::new(client);
    while !part.as_ref().is_some_and(PartFile::is_whole) {
        let before = part.as_ref().map_or(0, PartFile::offset);
        let mut client = tries.client().await?;
        tracing::info!(bundle = %assigned.digest, from_byte = before, size_bytes = assigned.length_bytes, "downloading");
        let stop = fetch(&mut client, &device, &assigned, &mut part).await.err();
        let progressed = part.as_ref().map_or(0, PartFile::offset) > before;
        tries.settle(stop, progressed).await?;
    }
    let Some(part) = part else { return Ok(()) };
    spawn_blocking(move || part.finish()).await.map_err(|e| Failure::new("storage", e.to_string()))?
}

/// A bundle that comes from a file, verified like one that comes from the controller.
pub(super) struct Offline {
    device: Arc<Device>,
    digest: Digest,
    part: PartFile,
}

impl Offline {
    /// Begins with what the file says of itself.
    ///
    /// # Errors
    /// The checks `length`, `hash-tree`, `disk-full`, `storage`.
    pub(super) fn begin(device: Arc<Device>, assigned: Assigned, header: FetchHeader) -> Result<Self, Failure> {
        if header.length != assigned.length_bytes {
            let words = format!("the bundle has {} bytes, signed are {}", header.length, assigned.length_bytes);
            return Err(Failure::new("length", words));
        }
        room(&device, assigned.length_bytes)?;
        files::create_private_dir(&device.state.offline()).map_err(|e| Failure::of_agent(&e))?;
        // A file is read from its beginning, whatever came of an earlier one.
        part::discard(&device.state.offline(), &assigned.digest)?;
        let part = PartFile::begin(&device.state.offline(), &assigned, &header.leaves)?;
        Ok(Self { device, digest: assigned.digest, part })
    }

    pub(super) fn is_whole(&self) -> bool {
        self.part.is_whole()
    }

    /// Takes bytes as they come.
    ///
    /// # Errors
    /// The checks `chunk-hash`, `disk-full`, `storage`; what came so far is removed.
    pub(super) async fn append(mut self, bytes: Vec<u8>) -> Result<Self, Failure> {
        let appended = spawn_blocking(move || {
            let appended = self.part.append(&bytes);
            (self, appended)
        });
        let (offline, appended) = appended.await.map_err(|e| Failure::new("storage", e.to_string()))?;
        match appended {
            Ok(()) => Ok(offline),
            Err(failure) => part::discard(&offline.device.state.offline(), &offline.digest).and(Err(failure)),
        }
    }

    /// Puts the whole bundle where bundles are.
    ///
    /// # Errors
    /// The checks `disk-full`, `storage`.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        let moved = spawn_blocking(move || {
            let Self { device, digest, part } = self;
            part.finish()?;
            let whole = device.state.offline().join(format!("{digest}.bundle"));
            files::rename(&whole, &device.state.bundle(&digest)).map_err(|e| Failure::of_agent(&e))
        });
        moved.await.map_err(|e| Failure::new("storage", e.to_string()))?
    }
}

/// Whether so many bytes fit beside what is reserved.
fn room(device: &Device, missing: u64) -> Result<(), Failure> {
    let free = profile::free_bytes(device.state.root());
    if free < missing.saturating_add(RESERVE_BYTES) {
        let words = format!("{free} bytes are free, the download needs {missing} and {RESERVE_BYTES} in reserve");
        return Err(Failure::new("disk-full", words));
    }
    Ok(())
}

/// Downloads a blob that is no bundle into `sink` and checks its digest.
///
/// # Errors
/// In words, when the blob is not what was named.
pub(super) async fn blob(client: watch::Receiver<Client>, digest: Digest, length: u64) -> Result<Vec<u8>, Failure> {
    let mut tries = Tries::new(client);
    loop {
        let mut client = tries.client().await?;
        match fetch_blob(&mut client, &digest, length).await {
            Ok(bytes) => return Ok(bytes),
            Err(stop) => tries.settle(Some(stop), false).await?,
        }
    }
}

/// Waits between tries, and counts those that are bounded.
struct Tries {
    client: watch::Receiver<Client>,
    backoff: Backoff,
    damaged: u32,
}

impl Tries {
    fn new(client: watch::Receiver<Client>) -> Self {
        Self { client, backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(30)), damaged: 0 }
    }

    async fn client(&mut self) -> Result<FleetClient<Channel>, Failure> {
        let connected = self.client.wait_for(Option::is_some).await.map(|c| c.clone());
        connected.ok().flatten().ok_or_else(|| Failure::new("interrupted", "the agent ends"))
    }

    async fn settle(&mut self, stop: Option<Stop>, progressed: bool) -> Result<(), Failure> {
        if progressed {
            self.backoff.reset();
        }
        match stop {
            None => return Ok(()),
            Some(Stop::Failed(failure)) => return Err(failure),
            Some(Stop::Damaged(failure)) => {
                self.damaged += 1;
                if self.damaged >= DAMAGED_TRIES {
                    return Err(failure);
                }
                tracing::warn!(check = failure.check, detail = failure.detail, "the download is damaged; asking again");
            }
            Some(Stop::Network(status)) => {
                tracing::info!(code = ?status.code(), reason = status.message(), "the download was interrupted");
            }
        }
        let wait = self.backoff.next(random());
        // A new connection is worth a try at once.
        let _ = timeout(wait, self.client.changed()).await;
        sleep(Duration::from_millis(10)).await;
        Ok(())
    }
}

async fn fetch(client: &mut FleetClient<Channel>, device: &Device, assigned: &Assigned, part: &mut Option<PartFile>) -> Result<(), Stop> {
    let offset = part.as_ref().map_or(0, PartFile::offset);
    let mut stream = open(client, &assigned.digest, offset).await?;
    let header = match next(&mut stream).await?.and_then(|r| r.part) {
        Some(Part::Header(header)) => header,
        Some(Part::Data(_)) | None => return Err(Stop::Network(Status::internal("the download does not begin with its header"))),
    };
    if header.length != assigned.length_bytes {
        let words = format!("the bundle has {} bytes, signed are {}", header.length, assigned.length_bytes);
        return Err(Stop::Damaged(Failure::new("length", words)));
    }
    if part.is_none() {
        *part = Some(PartFile::begin(&device.state.bundles(), assigned, &header.leaves).map_err(stop_of)?);
    }
    let Some(part) = part.as_mut() else { return Ok(()) };
    part.forget_partial();
    while !part.is_whole() {
        match next(&mut stream).await?.and_then(|r| r.part) {
            Some(Part::Data(bytes)) => part.append(&bytes).map_err(stop_of)?,
            Some(Part::Header(_)) => return Err(Stop::Network(Status::internal("a second header within one download"))),
            None => return Err(Stop::Network(Status::unavailable(format!("the download ended at byte {}", part.offset())))),
        }
    }
    Ok(())
}

async fn fetch_blob(client: &mut FleetClient<Channel>, digest: &Digest, length: u64) -> Result<Vec<u8>, Stop> {
    let mut stream = open(client, digest, 0).await?;
    let mut bytes = Vec::new();
    while let Some(response) = next(&mut stream).await? {
        if let Some(Part::Data(data)) = response.part {
            if (bytes.len() + data.len()) as u64 > length {
                return Err(Stop::Damaged(Failure::new("length", format!("the blob has more than {length} bytes"))));
            }
            bytes.extend_from_slice(&data);
        }
    }
    if (bytes.len() as u64) < length {
        return Err(Stop::Network(Status::unavailable(format!("the download ended at byte {}", bytes.len()))));
    }
    let got = pleach_artifact::sha256(&bytes);
    if got == *digest {
        Ok(bytes)
    } else {
        Err(Stop::Damaged(Failure::new("digest", format!("the blob has digest {got}, expected {digest}"))))
    }
}

async fn open(client: &mut FleetClient<Channel>, digest: &Digest, offset: u64) -> Result<Streaming<FetchResponse>, Stop> {
    let request = FetchRequest { digest: digest.as_bytes().to_vec(), offset };
    let opened = timeout(SILENCE, client.fetch(request)).await.map_err(|_| silent())?;
    opened.map(tonic::Response::into_inner).map_err(Stop::Network)
}

async fn next(stream: &mut Streaming<FetchResponse>) -> Result<Option<FetchResponse>, Stop> {
    timeout(SILENCE, stream.message()).await.map_err(|_| silent())?.map_err(Stop::Network)
}

fn silent() -> Stop {
    Stop::Network(Status::deadline_exceeded(format!("the controller is silent for {} s", SILENCE.as_secs())))
}

fn stop_of(failure: Failure) -> Stop {
    match failure.check.as_str() {
        "chunk-hash" | "hash-tree" => Stop::Damaged(failure),
        _ => Stop::Failed(failure),
    }
}

/// An error of writing a file, as the check it fails.
fn storage(doing: &str, error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    Failure::new(if full { "disk-full" } else { "storage" }, format!("{doing}: {error}"))
}
