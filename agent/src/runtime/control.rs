//! Answers the control half. Quick requests are answered in turn; what takes long gets a thread of its own, so that signs of
//! life, windows and swaps never wait for a measurement.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pleach_domain::Digest;
use pleach_domain::profile::MeasuredKernel;
use pleach_proto::fleet;
use pleach_proto::runtime::{Reply, Request, StatsReply, request};

use crate::runtime::channel::{Receiver, send};
use crate::runtime::error::Failure;
use crate::runtime::host::Host;
use crate::runtime::server::Listeners;

/// Longest time on one timed model.
const MAX_BUDGET: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Answers {
    socket: Arc<Mutex<UnixStream>>,
    host: Arc<Host>,
}

/// Waits for the listeners, which come before anything else.
///
/// # Errors
/// When the channel breaks or something else comes first.
pub(crate) fn receive_listeners(receiver: &mut Receiver) -> io::Result<Listeners> {
    let wrong = |words: &'static str| io::Error::new(io::ErrorKind::InvalidData, words);
    let request = receiver.receive::<Request>()?.and_then(|r| r.request);
    let Some(request::Request::Listen(listen)) = request else { return Err(wrong("the first message has no listeners")) };
    let unix = receiver.take_file().ok_or_else(|| wrong("no socket came along"))?;
    let loopback = if listen.loopback_token.is_empty() {
        None
    } else {
        Some((receiver.take_file().ok_or_else(|| wrong("no loopback port came along"))?, listen.loopback_token))
    };
    Ok(Listeners { unix, loopback })
}

/// Serves requests until the other end closes.
///
/// # Errors
/// When the channel breaks or carries something else than requests.
pub(crate) fn serve(mut receiver: Receiver, socket: UnixStream, host: Arc<Host>) -> io::Result<()> {
    let answers = Answers { socket: Arc::new(Mutex::new(socket)), host };
    while let Some(Request { id, request }) = receiver.receive::<Request>()? {
        let Some(request) = request else { return Err(io::Error::new(io::ErrorKind::InvalidData, "a request without content")) };
        let file = match request {
            request::Request::Load(_) | request::Request::Measure(_) => receiver.take_file(),
            _ => None,
        };
        match request {
            request::Request::Load(_) | request::Request::Measure(_) | request::Request::Profile(_) => {
                let answers = answers.clone();
                let answer = move || answers.answer(id, request, file);
                thread::Builder::new().name("control-task".to_owned()).spawn(answer).map(drop)?;
            }
            _ => answers.answer(id, request, file),
        }
    }
    Ok(())
}

impl Answers {
    fn answer(&self, id: u64, request: request::Request, file: Option<OwnedFd>) {
        let reply = self.act(request, file).unwrap_or_else(|failure| {
            tracing::warn!(check = failure.check, detail = failure.detail, "a request of the control half failed");
            Reply { failure: Some(failure.into()), ..Reply::default() }
        });
        let reply = Reply { id, onnxruntime_version: self.host.onnxruntime_version(), ..reply };
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = send(&socket, &reply, &[]) {
            tracing::warn!(%error, "the control half does not take an answer");
        }
    }

    fn act(&self, request: request::Request, file: Option<OwnedFd>) -> Result<Reply, Failure> {
        let host = &self.host;
        let file = || file.ok_or_else(|| Failure::new("seals", "no file came along"));
        let mut reply = Reply::default();
        match request {
            request::Request::Load(load) => host.load(digest(&load.bundle_digest)?, file()?)?,
            request::Request::Activate(activate) => host.activate(digest(&activate.bundle_digest)?, activate.probation)?,
            request::Request::Listen(_) => return Err(Failure::new("listen", "the listeners came before")),
            request::Request::Unload(unload) => host.unload(digest(&unload.bundle_digest)?),
            request::Request::Press(press) => host.press(press.pressed),
            request::Request::CollectWindow(_) => reply.windows = host.collect().iter().map(fleet::Window::from).collect(),
            request::Request::Measure(measure) => reply.timings = timings(&host.measure(file()?, budget(measure.budget_ms))?),
            request::Request::Profile(profile) => reply.timings = timings(&host.profile(budget(profile.budget_ms))?),
            request::Request::Stats(_) => {
                let stats = |a: crate::runtime::host::Active| StatsReply {
                    bundle_digest: a.ladder.digest.to_string(),
                    requests: a.requests(),
                    errors: a.errors(),
                };
                reply.stats = Some(host.active().map(stats).unwrap_or_default());
            }
        }
        Ok(reply)
    }
}

fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|e| Failure::of("digest", &e))
}

fn budget(budget_ms: u32) -> Duration {
    Duration::from_millis(budget_ms.into()).min(MAX_BUDGET)
}

fn timings(kernels: &[MeasuredKernel]) -> Vec<fleet::KernelTiming> {
    kernels.iter().map(fleet::KernelTiming::from).collect()
}
