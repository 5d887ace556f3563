//! The data half: ONNX Runtime and the local inference API, in a process of its own.
//!
//! It gets decrypted bundles from the control half through sealed memory, over a socket pair on its standard input, and serves the
//! one that is active by the Open Inference Protocol v2 on listeners that come over the same pair. It can open no file of the agent's,
//! no socket and no program (see [`sandbox`]), and ends when the control half does. A call that never returns ends it too: the
//! control half then starts another on the last proven bundle.

pub(crate) mod channel;
mod codec;
mod control;
#[cfg(debug_assertions)]
mod drill;
mod error;
mod grpc;
mod host;
mod ladder;
mod metrics;
mod rest;
mod sandbox;
mod server;
mod telemetry;
#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pleach_inference::{LIBRARY_VARIABLE, OrtOptions, OrtRuntime};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

pub use error::RuntimeHalfError;

use channel::Receiver;
use host::Host;
use ladder::Serving;

/// Time that requests in flight have when the control half is gone.
const DRAIN: Duration = Duration::from_secs(2);
const HANG_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Exit code after a hang: an internal software error, as in sysexits.h.
const EXIT_HANG: i32 = 70;

/// Arguments of `pleach-agent runtime`, which only `pleach-agent run` starts.
#[derive(Clone, Debug, clap::Args)]
pub struct RuntimeArgs {
    /// Threads one model call uses.
    #[arg(long, value_name = "N", default_value = "1")]
    pub threads: NonZeroUsize,
    /// ONNX Runtime's shared library [else: the variable ORT_DYLIB_PATH].
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
    /// Name of this device, for the application.
    #[arg(long, value_name = "ID")]
    pub device_id: String,
    /// Requests that may wait for the model; more are refused at once.
    #[arg(long, value_name = "N", default_value = "64")]
    pub queue: usize,
    /// Rows of waiting requests that may share one model call.
    #[arg(long, value_name = "N", default_value = "1")]
    pub batch_max_rows: usize,
    /// Milliseconds that requests may wait before a slimmer rung serves.
    #[arg(long, value_name = "MS", default_value = "250")]
    pub step_down_wait_ms: u64,
    /// Keep the answer of the slimmest rung that is this sure.
    #[arg(long, value_name = "0..1")]
    pub cascade_confidence: Option<f32>,
    /// Share of answers of slimmer rungs that are checked against the fullest.
    #[arg(long, value_name = "0..1", default_value = "0.01")]
    pub audit_share: f32,
    /// Milliseconds after which a model call that does not return ends this process.
    #[arg(long, value_name = "MS", default_value = "30000")]
    pub call_limit_ms: u64,
    /// Requests wait for the proven bundle, which comes next.
    #[arg(long)]
    pub expects_bundle: bool,
    /// Bytes of memory this process may take.
    #[arg(long, value_name = "BYTES")]
    pub memory_max_bytes: Option<u64>,
}

/// Runs the data half until the control half closes the channel.
///
/// # Errors
/// [`RuntimeHalfError`] when it cannot come up.
pub fn run(args: RuntimeArgs) -> Result<(), RuntimeHalfError> {
    let channel = control_channel()?;
    let mut receiver = Receiver::new(channel.try_clone().map_err(RuntimeHalfError::NoChannel)?);
    let library = args.onnxruntime.or_else(|| std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from));
    // Before any other thread: what comes later inherits it.
    sandbox::enter(library.as_deref(), args.memory_max_bytes);
    let listeners = control::receive_listeners(&mut receiver).map_err(RuntimeHalfError::NoListeners)?;
    let runtime = OrtRuntime::new(OrtOptions { library, threads: args.threads })?;
    let serving = Serving {
        queue: args.queue,
        batch_max_rows: args.batch_max_rows,
        step_down_wait: Duration::from_millis(args.step_down_wait_ms),
        cascade_confidence: args.cascade_confidence,
        audit_share: args.audit_share,
    };
    let host = Arc::new(Host::new(runtime, args.device_id, serving));
    if args.expects_bundle {
        host.expect_bundle();
    }
    let start = |what| move |source| RuntimeHalfError::Start { what, source };
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start("the executor"))?;
    executor.block_on(async {
        let stop = CancellationToken::new();
        let (controlled, stopped) = (Arc::clone(&host), stop.clone().drop_guard());
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let _stopped = stopped;
                if let Err(error) = control::serve(receiver, channel, controlled) {
                    tracing::error!(%error, "the control channel is broken");
                }
            })
            .map_err(start("the control thread"))?;
        let (watched, limit) = (Arc::clone(&host), Duration::from_millis(args.call_limit_ms));
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || watch(&watched, limit)).map_err(start("the watchdog"))?;
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = listeners.serve(host, stop.clone()) => served,
            () = drained => Ok(()),
        }
    })
}

/// The socket on standard input. The kernel ends this process with the thread that started it, in case the channel stays open.
fn control_channel() -> Result<UnixStream, RuntimeHalfError> {
    let open = || -> io::Result<UnixStream> {
        let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        channel.peer_addr()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(channel)
    };
    open().map_err(RuntimeHalfError::NoChannel)
}

fn watch(host: &Host, limit: Duration) {
    loop {
        thread::sleep(HANG_CHECK_INTERVAL.min(limit / 4));
        if let Some(running) = host.longest_call().filter(|&r| r > limit) {
            tracing::error!(running_ms = running.as_millis() as u64, "a model call does not return; the runtime ends");
            std::process::exit(EXIT_HANG);
        }
    }
}
