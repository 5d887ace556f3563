//! The control half's hand on its runtime: starts the child process, asks it, watches it, and tells how it ended.
//!
//! One [`RuntimeHandle`] is one child. When it ends, by itself or because the watchdog ended it, every open request fails, and
//! [`RuntimeHandle::exited`] tells; the control half then starts another and loads the last proven bundle into it. Nothing here
//! decides what runs.

mod error;
mod memory;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use pleach_domain::profile::MeasuredKernel;
use pleach_domain::window::Window;
use pleach_domain::{DeviceId, Digest};
use pleach_inference::TELEMETRY_VARIABLE;
use pleach_proto::WireError;
use pleach_proto::runtime::{Activate, CollectWindow, Listen, Load, Measure, Press, Profile, Reply, Request, Stats, Unload, request};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

pub use error::SupervisorError;
pub use memory::SealedMemory;

use crate::listeners::Listeners;
use crate::runtime::channel::{Receiver, send};

const START_DEADLINE: Duration = Duration::from_secs(30);
const LOAD_DEADLINE: Duration = Duration::from_secs(120);
const QUICK_DEADLINE: Duration = Duration::from_secs(10);
/// Time between signs of life that the watchdog asks for.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Time a child has to end by itself once its channel is closed.
const LINGER: Duration = Duration::from_secs(5);
const REAP_INTERVAL: Duration = Duration::from_millis(10);
/// Loading and warming one model up, on top of its budget.
const TIMING_OVERHEAD: Duration = Duration::from_secs(2);
const STANDARD_KERNELS_MOST: u32 = 256;

/// How to start the runtime half.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// The executable, which knows the subcommand `runtime`; the agent's own, as a rule.
    pub executable: PathBuf,
    /// Where the inference API listens.
    pub listeners: Arc<Listeners>,
    /// Threads inference uses.
    pub threads: u32,
    /// ONNX Runtime's library; else the environment names it.
    pub onnxruntime: Option<PathBuf>,
    /// Name of this device, for the application.
    pub device_id: DeviceId,
    /// How requests are served.
    pub serving: ServingOptions,
    /// After this long a model call never returns, as far as anyone waiting is concerned.
    pub call_limit: Duration,
    /// Whether a proven bundle is loaded next: requests then wait for it.
    pub expects_bundle: bool,
    /// Bytes of memory the runtime may take.
    pub memory_max_bytes: Option<u64>,
}

/// How the runtime serves requests, see the keys of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingOptions {
    /// Requests that may wait.
    pub queue: u32,
    /// Rows of waiting requests that may share one model call.
    pub batch_max_rows: u32,
    /// Milliseconds that requests may wait before a slimmer rung serves.
    pub step_down_wait_ms: u64,
    /// The least sure answer of a slimmer rung that is kept, 0 to 1.
    pub cascade_confidence: Option<f32>,
    /// Share of answers of slimmer rungs that are checked against the fullest, 0 to 1.
    pub audit_share: f32,
}

/// What an active bundle has shown so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It still has to prove itself.
    Probation,
    /// It has proved itself.
    Proven,
}

/// Counters of the serving bundle since it was activated first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeStats {
    /// The bundle that serves.
    pub bundle: Option<Digest>,
    /// Requests answered or failed.
    pub requests: u64,
    /// Requests failed.
    pub errors: u64,
    /// Version of ONNX Runtime.
    pub onnxruntime_version: String,
}

/// How a runtime ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// E.g. `exit status: 0`, `signal: 9 (SIGKILL)`.
    pub detail: String,
}

/// One running runtime half. Clones speak to the same child; the child ends when the last is dropped.
#[derive(Clone, Debug)]
pub struct RuntimeHandle(Arc<Link>);

#[derive(Debug)]
struct Link {
    socket: Mutex<UnixStream>,
    next_id: AtomicU64,
    pending: Arc<Pending>,
    exited: watch::Receiver<Option<Exit>>,
    process: OwnedFd,
    pid: u32,
}

type Pending = Mutex<HashMap<u64, oneshot::Sender<Reply>>>;

impl RuntimeHandle {
    /// Starts a runtime and waits until it answers.
    ///
    /// # Errors
    /// [`SupervisorError::Spawn`], or [`SupervisorError::Exited`] and [`SupervisorError::Deadline`] when it does not come up.
    pub async fn spawn(options: &RuntimeOptions) -> Result<Self, SupervisorError> {
        let (ours, theirs) = UnixStream::pair().map_err(SupervisorError::Spawn)?;
        ours.set_write_timeout(Some(SEND_TIMEOUT)).map_err(SupervisorError::Spawn)?;
        let receiver = Receiver::new(ours.try_clone().map_err(SupervisorError::Spawn)?);
        let (started_tx, started) = oneshot::channel();
        let (exited_tx, exited) = watch::channel(None);
        let pending = Arc::new(Pending::default());
        let (command, replies) = (command(options, theirs), Arc::clone(&pending));
        // The kernel ends the child when the thread that started it ends, so the thread that reads from it starts it.
        thread::Builder::new()
            .name("runtime".to_owned())
            .spawn(move || attend(command, receiver, started_tx, &replies, &exited_tx))
            .map_err(SupervisorError::Spawn)?;
        let gone = |_| SupervisorError::Spawn(io::ErrorKind::BrokenPipe.into());
        let (process, pid) = started.await.map_err(gone)?.map_err(SupervisorError::Spawn)?;
        let handle = Self(Arc::new(Link { socket: Mutex::new(ours), next_id: AtomicU64::new(1), pending, exited, process, pid }));
        handle.0.hand_over(&options.listeners)?;
        handle.ask("start", START_DEADLINE, request::Request::Stats(Stats {}), None).await?;
        tokio::spawn(watch_over(Arc::downgrade(&handle.0)));
        Ok(handle)
    }

    /// `Some` once the child has ended.
    pub fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.0.exited.clone()
    }

    /// Process id of the child.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Ends the child at once.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Loads a decrypted bundle: parses it, creates its sessions, warms them up and runs its known-answer test. Serves nothing
    /// yet; loading a bundle again changes nothing.
    ///
    /// # Errors
    /// [`SupervisorError::Failed`] with check `seals`, `payload`, `rung-digest`, `load`, `signature` or `known-answer`; and as all requests.
    pub async fn load(&self, memory: SealedMemory, bundle: Digest) -> Result<(), SupervisorError> {
        let request = request::Request::Load(Load { bundle_digest: bundle.to_string() });
        self.ask("load", LOAD_DEADLINE, request, Some(memory)).await.map(drop)
    }

    /// Makes a loaded bundle the one that serves; requests in flight finish on the one before. Repeating it with another standing
    /// changes only that.
    ///
    /// # Errors
    /// [`SupervisorError::Failed`] with check `activate` when it is not loaded; and as all requests.
    pub async fn activate(&self, bundle: Digest, standing: Standing) -> Result<(), SupervisorError> {
        let probation = standing == Standing::Probation;
        let request = request::Request::Activate(Activate { bundle_digest: bundle.to_string(), probation });
        self.ask("activate", QUICK_DEADLINE, request, None).await.map(drop)
    }

    /// Forgets a bundle; one that serves stops serving. Unloading an unknown one changes nothing.
    ///
    /// # Errors
    /// As all requests.
    pub async fn unload(&self, bundle: Digest) -> Result<(), SupervisorError> {
        let request = request::Request::Unload(Unload { bundle_digest: bundle.to_string() });
        self.ask("unload", QUICK_DEADLINE, request, None).await.map(drop)
    }

    /// Closes the current window: one for each bundle and rung that had requests or labels, numbered 0. The caller numbers them.
    ///
    /// # Errors
    /// As all requests.
    pub async fn collect_windows(&self) -> Result<Vec<Window>, SupervisorError> {
        let request = request::Request::CollectWindow(CollectWindow {});
        let reply = self.ask("collect window", QUICK_DEADLINE, request, None).await?;
        let windows: Result<_, WireError> = reply.windows.into_iter().map(Window::try_from).collect();
        windows.map_err(|source| SupervisorError::Reply { request: "collect window", source })
    }

    /// Tells whether the device is hot or short of memory; slimmer rungs serve while it is.
    ///
    /// # Errors
    /// As all requests.
    pub async fn press(&self, pressed: bool) -> Result<(), SupervisorError> {
        self.ask("press", QUICK_DEADLINE, request::Request::Press(Press { pressed }), None).await.map(drop)
    }

    /// Times an encoded `MeasurementSet` of `models` models, about `budget` of wall time each, at low priority.
    ///
    /// # Errors
    /// [`SupervisorError::Failed`] with check `measure`; and as all requests.
    pub async fn measure(&self, memory: SealedMemory, models: u32, budget: Duration) -> Result<Vec<MeasuredKernel>, SupervisorError> {
        let request = request::Request::Measure(Measure { budget_ms: milliseconds(budget) });
        let reply = self.ask("measure", timing_deadline(models, budget), request, Some(memory)).await?;
        Ok(reply.timings.into_iter().map(MeasuredKernel::from).collect())
    }

    /// Times the standard kernels, about `budget` of wall time each, at low priority.
    ///
    /// # Errors
    /// [`SupervisorError::Failed`] with check `profile`; and as all requests.
    pub async fn profile(&self, budget: Duration) -> Result<Vec<MeasuredKernel>, SupervisorError> {
        let request = request::Request::Profile(Profile { budget_ms: milliseconds(budget) });
        let reply = self.ask("profile", timing_deadline(STANDARD_KERNELS_MOST, budget), request, None).await?;
        Ok(reply.timings.into_iter().map(MeasuredKernel::from).collect())
    }

    /// Counters of the serving bundle.
    ///
    /// # Errors
    /// As all requests.
    pub async fn stats(&self) -> Result<RuntimeStats, SupervisorError> {
        let reply = self.ask("stats", QUICK_DEADLINE, request::Request::Stats(Stats {}), None).await?;
        let stats = reply.stats.unwrap_or_default();
        let parsed = (!stats.bundle_digest.is_empty()).then(|| stats.bundle_digest.parse()).transpose();
        let field = |source| WireError::Field { field: "stats.bundle_digest", source };
        let bundle = parsed.map_err(|e| SupervisorError::Reply { request: "stats", source: field(e) })?;
        Ok(RuntimeStats { bundle, requests: stats.requests, errors: stats.errors, onnxruntime_version: reply.onnxruntime_version })
    }

    async fn ask(
        &self,
        name: &'static str,
        deadline: Duration,
        request: request::Request,
        memory: Option<SealedMemory>,
    ) -> Result<Reply, SupervisorError> {
        let (id, answer) = self.0.begin(name, request, memory)?;
        let _forget = Forget { id, pending: &self.0.pending };
        let reply = match timeout(deadline, answer).await {
            Ok(Ok(reply)) => reply,
            // The reading thread drops what is pending when the child has ended.
            Ok(Err(_)) => return Err(ended(self.0.exited.clone()).await),
            Err(_) => return Err(SupervisorError::Deadline { request: name, after: deadline }),
        };
        match reply.failure {
            Some(f) => Err(SupervisorError::Failed { request: name, check: f.check, detail: f.detail }),
            None => Ok(reply),
        }
    }
}

impl Link {
    fn begin(
        &self,
        name: &'static str,
        request: request::Request,
        memory: Option<SealedMemory>,
    ) -> Result<(u64, oneshot::Receiver<Reply>), SupervisorError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        lock(&self.pending).insert(id, tx);
        // After the insertion: whatever is pending when the child ends is dropped, and nobody answers what comes later.
        if let Some(exit) = self.exited.borrow().clone() {
            lock(&self.pending).remove(&id);
            return Err(SupervisorError::Exited { detail: exit.detail });
        }
        let message = Request { id, request: Some(request) };
        let files: Vec<_> = memory.iter().map(AsFd::as_fd).collect();
        let sent = send(&lock(&self.socket), &message, &files);
        sent.map_err(|source| {
            lock(&self.pending).remove(&id);
            SupervisorError::Send { request: name, source }
        })?;
        Ok((id, rx))
    }

    /// The listeners, which need no answer: the first answer shows that they arrived.
    fn hand_over(&self, listeners: &Listeners) -> Result<(), SupervisorError> {
        let listen = Listen { loopback_token: listeners.token().unwrap_or_default().to_owned() };
        let message = Request { id: 0, request: Some(request::Request::Listen(listen)) };
        let files: Vec<_> = listeners.files().collect();
        send(&lock(&self.socket), &message, &files).map_err(|source| SupervisorError::Send { request: "listen", source })
    }

    fn kill(&self) {
        // It may have ended by itself: then there is nothing to do.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The child drains and ends when its channel closes; the reading thread keeps a clone open, so close both ways.
        let _ = lock(&self.socket).shutdown(std::net::Shutdown::Both);
    }
}

/// Removes a request that nobody waits for any more.
struct Forget<'a> {
    id: u64,
    pending: &'a Pending,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.pending).remove(&self.id);
    }
}

async fn ended(mut exited: watch::Receiver<Option<Exit>>) -> SupervisorError {
    let detail = match exited.wait_for(Option::is_some).await {
        Ok(exit) => exit.as_ref().map_or_else(String::new, |e| e.detail.clone()),
        Err(_) => "unknown".to_owned(),
    };
    SupervisorError::Exited { detail }
}

fn command(options: &RuntimeOptions, channel: UnixStream) -> Command {
    let mut command = Command::new(&options.executable);
    command.arg("runtime").arg("--threads").arg(options.threads.to_string()).arg("--device-id").arg(options.device_id.as_str());
    if options.expects_bundle {
        command.arg("--expects-bundle");
    }
    let serving = &options.serving;
    command.arg("--queue").arg(serving.queue.to_string()).arg("--batch-max-rows").arg(serving.batch_max_rows.to_string());
    command.arg("--step-down-wait-ms").arg(serving.step_down_wait_ms.to_string());
    command.arg("--audit-share").arg(serving.audit_share.to_string());
    if let Some(confidence) = serving.cascade_confidence {
        command.arg("--cascade-confidence").arg(confidence.to_string());
    }
    command.arg("--call-limit-ms").arg(options.call_limit.as_millis().to_string());
    if let Some(bytes) = options.memory_max_bytes {
        command.arg("--memory-max-bytes").arg(bytes.to_string());
    }
    if let Some(library) = &options.onnxruntime {
        command.arg("--onnxruntime").arg(library);
    }
    // Neither the service manager nor its credentials are the runtime's to know.
    command.env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
    command.env(TELEMETRY_VARIABLE, "1").stdin(Stdio::from(OwnedFd::from(channel))).stdout(Stdio::null());
    command
}

type Started = io::Result<(OwnedFd, u32)>;

/// Starts the child, hands its replies out until the channel closes, and tells how it ended.
fn attend(
    mut command: Command,
    mut receiver: Receiver,
    started: oneshot::Sender<Started>,
    pending: &Pending,
    exited: &watch::Sender<Option<Exit>>,
) {
    let opened = command.spawn().and_then(|mut child| {
        let process = open_process(&child).inspect_err(|_| drop(child.kill().and_then(|()| child.wait())))?;
        Ok((child, process))
    });
    // The command holds the child's end of the channel, which must close with the child.
    drop(command);
    let (mut child, process) = match opened {
        Ok(opened) => opened,
        Err(error) => return drop(started.send(Err(error))),
    };
    let _ = started.send(Ok((process, child.id())));
    loop {
        match receiver.receive::<Reply>() {
            Ok(Some(reply)) => {
                if let Some(waiting) = lock(pending).remove(&reply.id) {
                    let _ = waiting.send(reply);
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "the runtime's channel is broken");
                break;
            }
        }
    }
    let detail = reap(&mut child);
    exited.send_replace(Some(Exit { detail }));
    lock(pending).clear();
}

fn open_process(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Waits for a child whose channel has closed; one that lingers is ended.
fn reap(child: &mut Child) -> String {
    let closed = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.to_string(),
            Ok(None) if closed.elapsed() < LINGER => thread::sleep(REAP_INTERVAL),
            Ok(None) => {
                let _ = child.kill();
                return child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            }
            Err(error) => return format!("cannot be waited for: {error}"),
        }
    }
}

/// Asks for a sign of life again and again, and ends a child that gives none.
async fn watch_over(link: Weak<Link>) {
    let mut tick = interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(link) = link.upgrade() else { return };
        let handle = RuntimeHandle(link);
        match handle.stats().await {
            Err(SupervisorError::Deadline { after, .. }) => {
                tracing::error!(pid = handle.pid(), after_ms = after.as_millis() as u64, "the runtime hangs and is ended");
                handle.kill();
                return;
            }
            Err(SupervisorError::Exited { .. } | SupervisorError::Send { .. }) => return,
            _ => {}
        }
    }
}

fn timing_deadline(models: u32, budget: Duration) -> Duration {
    QUICK_DEADLINE + (budget * 2 + TIMING_OVERHEAD) * models
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
