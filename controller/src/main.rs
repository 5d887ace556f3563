//! `pleach-controller`: the controller's process.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use pleach_controller::config::{Config, LogFormat};
use pleach_controller::serve;
use pleach_inference::TELEMETRY_VARIABLE;
use sd_notify::NotifyState;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Prunes, seals and rolls out models for a fleet of devices.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command_,
}

#[derive(Subcommand)]
enum Command_ {
    /// Serve agents and people until a signal ends it.
    Serve(Settings),
    /// Bring the database up to date and end.
    Migrate(Settings),
}

/// Every flag can also stand in the file, or in the environment behind `PLEACH_`.
#[derive(Args, Serialize)]
struct Settings {
    /// Configuration file, TOML.
    #[arg(long, env = "PLEACH_CONFIG")]
    #[serde(skip)]
    config: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    flags: Flags,
}

#[derive(Args, Serialize)]
struct Flags {
    /// Folder of database, blobs and keys.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Address that agents dial.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_agents: Option<SocketAddr>,
    /// Address of the REST interface.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_api: Option<SocketAddr>,
    /// Name or address that the server certificate is for; repeatable.
    #[arg(long)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hostname: Vec<String>,
    /// `sqlite://…` or `postgres://…`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// File to write once both listeners are up.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_file: Option<PathBuf>,
    /// `text` or `json`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<String>,
    /// Life of a device certificate in seconds.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_seconds: Option<u32>,
    /// Most bytes a second that one download stream gets.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_bytes_per_second: Option<u64>,
    /// How often reconcilers look for work unasked, in milliseconds.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    reconcile_interval_ms: Option<u64>,
    /// Threads that prune.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_threads: Option<usize>,
    /// ONNX Runtime library; else the variable ORT_DYLIB_PATH names it.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    onnxruntime: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    silence_telemetry()?;
    let (settings, serves) = match Cli::parse().command {
        Command_::Serve(settings) => (settings, true),
        Command_::Migrate(settings) => (settings, false),
    };
    let config = Config::load(settings.config.as_deref(), &settings.flags)?;
    log(config.log_format);
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    runtime.block_on(async { if serves { run(config).await } else { Ok(serve::migrate(&config).await?) } })
}

async fn run(config: Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut running = tokio::select! {
        running = serve::start(config) => running?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tell(&[NotifyState::Ready]);
    let failed = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = running.failed() => true,
        () = signs_of_life() => false,
    };
    tell(&[NotifyState::Stopping]);
    running.shutdown().await;
    anyhow::ensure!(!failed, "a part of the controller failed; the log says which");
    Ok(())
}

/// Tells the service manager again and again that this process is alive, where it wants to know.
async fn signs_of_life() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut tick = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager does not listen");
    }
}

/// Starts this program again with ONNX Runtime's telemetry switched off: a process cannot change its own environment safely.
fn silence_telemetry() -> anyhow::Result<()> {
    if std::env::var_os(TELEMETRY_VARIABLE).is_some_and(|v| v == "1") {
        return Ok(());
    }
    let program = std::env::current_exe().context("find this program")?;
    let error = Command::new(program).args(std::env::args_os().skip(1)).env(TELEMETRY_VARIABLE, "1").exec();
    Err(error).context("start again with telemetry off")
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
