//! The data half: ONNX Runtime and the local inference API, in a process of its own.
//!
//! It gets decrypted bundles from the control half through sealed memory, over a socket pair on its standard input, and serves the
//! one that is active by the Open Inference Protocol v2 on a Unix socket and, by choice, a loopback port. It opens no other network
//! connection, reads no key and no state, and ends when the control half does. A call that never returns ends it too: the control
//! half then starts another on the last proven bundle.

pub(crate) mod channel;
mod codec;
mod control;
mod error;
mod grpc;
mod host;
mod ladder;
mod rest;
mod server;
mod telemetry;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pleach_inference::{OrtOptions, OrtRuntime};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

pub use error::RuntimeHalfError;

use host::Host;
use server::Listeners;

/// Time that requests in flight have when the control half is gone.
const DRAIN: Duration = Duration::from_secs(2);
/// A model call longer than this never returns, as far as anyone waiting is concerned.
const HANG_LIMIT: Duration = Duration::from_secs(30);
const HANG_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Exit code after a hang: an internal software error, as in sysexits.h.
const EXIT_HANG: i32 = 70;

/// Arguments of `pleach-agent runtime`, which only `pleach-agent run` starts.
#[derive(Clone, Debug, clap::Args)]
pub struct RuntimeArgs {
    /// Unix socket of the inference API.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Loopback address of the inference API, beside the socket.
    #[arg(long, value_name = "ADDRESS")]
    pub loopback: Option<SocketAddr>,
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
}

/// Runs the data half until the control half closes the channel.
///
/// # Errors
/// [`RuntimeHalfError`] when it cannot come up.
pub fn run(args: RuntimeArgs) -> Result<(), RuntimeHalfError> {
    let channel = control_channel()?;
    let runtime = OrtRuntime::new(OrtOptions { library: args.onnxruntime, threads: args.threads })?;
    let host = Arc::new(Host::new(runtime, args.device_id, args.queue));
    let start = |what| move |source| RuntimeHalfError::Start { what, source };
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start("the executor"))?;
    executor.block_on(async {
        let listeners = Listeners::bind(&args.socket, args.loopback).await?;
        tracing::info!(socket = %args.socket.display(), loopback = ?listeners.loopback(), "inference API listens");
        let stop = CancellationToken::new();
        let (controlled, stopped) = (Arc::clone(&host), stop.clone().drop_guard());
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let _stopped = stopped;
                if let Err(error) = control::serve(channel, controlled) {
                    tracing::error!(%error, "the control channel is broken");
                }
            })
            .map_err(start("the control thread"))?;
        let watched = Arc::clone(&host);
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || watch(&watched)).map_err(start("the watchdog"))?;
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

fn watch(host: &Host) {
    loop {
        thread::sleep(HANG_CHECK_INTERVAL);
        if let Some(running) = host.longest_call().filter(|&r| r > HANG_LIMIT) {
            tracing::error!(running_ms = running.as_millis() as u64, "a model call does not return; the runtime ends");
            std::process::exit(EXIT_HANG);
        }
    }
}
