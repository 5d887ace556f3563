//! `pleach-agent`: the service on a device.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pleach_agent::check::{Finding, Verdict};
use pleach_agent::clock::Clock;
use pleach_agent::config::{Config, Flags};
use pleach_agent::control::Question;
use pleach_agent::keys::DeviceKeys;
use pleach_agent::ledger::LedgerFile;
use pleach_agent::runtime::RuntimeArgs;
use pleach_agent::state::StateDir;
use pleach_agent::{check, control, error, identity, runtime, status};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "Examples:
  pleach-agent enroll --controller https://pleach.example:7443 --state-dir /var/lib/pleach --token-file token
  pleach-agent run --config /etc/pleach/agent.toml
  pleach-agent status --output json

Every key of the configuration file can also be set by a variable, e.g. PLEACH_AGENT_STATE_DIR.
PLEACH_LOG sets what is logged, e.g. PLEACH_LOG=pleach_agent=debug.";

/// Keeps this device on the model bundle that its fleet assigns, and serves inference locally.
#[derive(Parser)]
#[command(name = "pleach-agent", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent; enrols first when it has a token and no identity.
    Run(Settings),
    /// Enrols this device with a token, and ends.
    Enroll(Settings),
    /// Says what serves on this device.
    Status {
        #[command(flatten)]
        settings: Settings,
        /// Form of the answer.
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Looks whether this device is fit to run: library, disk, identity, ledger, bundle, agent. Ends with 1 when something fails.
    Check {
        #[command(flatten)]
        settings: Settings,
        /// Form of the answer.
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Gives up the assignment that is being tried, or goes back to the bundle that was proven before.
    Rollback(Settings),
    /// Installs a bundle from a file, verified like one that comes from the controller.
    Install {
        /// The file, as `pleach` wrote it for this device.
        bundle: PathBuf,
        #[command(flatten)]
        settings: Settings,
    },
    /// Forgets identity, keys, bundles and reports; the device has to enrol again. The agent must be stopped.
    Reset {
        /// Required: nothing of this can be undone.
        #[arg(long, required = true)]
        yes: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// The half that serves inference; `run` starts it.
    #[command(hide = true)]
    Runtime(RuntimeArgs),
}

#[derive(Args)]
struct Settings {
    /// Configuration file, TOML.
    #[arg(long, value_name = "FILE", env = "PLEACH_AGENT_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Settings {
    fn load(&self) -> Result<Config, error::AgentError> {
        Config::load(self.config.as_deref(), &self.flags)
    }
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("PLEACH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init();
    match act(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("pleach-agent: {}", error::chain(&*problem));
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Runtime(args) => Ok(runtime::run(args)?),
        Command::Run(settings) => {
            let config = settings.load()?;
            executor()?.block_on(async { Ok(control::run(config, stop_on_signal()?).await?) })
        }
        Command::Enroll(settings) => executor()?.block_on(enroll(settings.load()?)),
        Command::Status { settings, output } => {
            let socket = settings.socket()?;
            let status = executor()?.block_on(status::ask(&socket))?;
            match output {
                Output::Text => println!("{status}"),
                Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
            }
            Ok(())
        }
        Command::Check { settings, output } => looked(&executor()?.block_on(check::run(&settings.load()?)), output),
        Command::Rollback(settings) => asked(&settings.load()?, Question::Rollback, None),
        Command::Install { bundle, settings } => asked(&settings.load()?, Question::Install, Some(bundle)),
        Command::Reset { yes: _, settings } => Ok(control::reset(&StateDir::open(&settings.load()?.state_dir)?)?),
    }
}

fn looked(findings: &[Finding], output: Output) -> anyhow::Result<()> {
    match output {
        Output::Text => findings.iter().for_each(|finding| println!("{finding}")),
        Output::Json => println!("{}", serde_json::to_string_pretty(findings)?),
    }
    match findings.iter().filter(|f| f.verdict == Verdict::Failed).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} checks failed", findings.len()),
    }
}

fn asked(config: &Config, question: Question, bundle: Option<PathBuf>) -> anyhow::Result<()> {
    let answer = executor()?.block_on(control::knock(&config.state_dir, question, bundle))?;
    if !answer.done {
        bail!("{}", answer.words);
    }
    println!("{}", answer.words);
    Ok(())
}

impl Settings {
    /// The socket needs no controller to be configured.
    fn socket(&self) -> Result<PathBuf, error::AgentError> {
        match &self.flags.inference_socket {
            Some(socket) => Ok(socket.clone()),
            None if self.config.is_none() && self.flags.controller.is_none() => Ok(Config::default().inference_socket),
            None => self.load().map(|config| config.inference_socket),
        }
    }
}

async fn enroll(config: Config) -> anyhow::Result<()> {
    let state = StateDir::open(&config.state_dir)?;
    let keys = DeviceKeys::load_or_create(&state)?;
    let clock = Clock::new(LedgerFile::new(state.ledger()).load()?.time_floor_ms);
    let identity = identity::load_or_enrol(&config, &state, &keys, &clock).await?;
    println!("{}", identity.device());
    Ok(())
}

fn executor() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting the executor")
}

fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stopped.cancel();
    });
    Ok(stop)
}
