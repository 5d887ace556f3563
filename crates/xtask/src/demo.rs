//! `cargo xtask demo`: the whole journey on this machine, with real processes, and a verdict on whether all of it happened.
//!
//! One trained model becomes three pruned, sealed variants for three kinds of device, is delivered, verified, run, measured, and
//! pruned again because of what was measured. Everything is read back through the controller's REST interface.

mod calibrate;
mod child;
mod evidence;
mod fleet;
mod journey;
mod limits;
mod load;
mod narrator;
mod verdict;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use self::fleet::{Binaries, Fleet};
use self::journey::Journey;
use self::narrator::Narrator;
use crate::workspace::Workspace;
use crate::{dashboard, onnxruntime, process, test};

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Keep everything running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Longest time the journey may take, not counting the build
    #[arg(long, value_name = "N", default_value_t = 300)]
    seconds: u64,
}

/// Builds, runs the journey, prints the table and the verdict, and leaves nothing behind.
///
/// # Errors
/// When anything of the journey did not happen; the message names it.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let library = onnxruntime::ensure()?;
    let binaries = build(workspace)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = show(workspace, options, binaries, library) => done,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to end"),
        }
    })
}

fn build(workspace: &Workspace) -> anyhow::Result<Binaries> {
    let begun = Instant::now();
    if let Err(error) = dashboard::build(workspace) {
        eprintln!("going on without a dashboard: {error:#}");
    }
    eprintln!("building the release binaries");
    let packages = ["--package=pleach-controller", "--package=pleach-agent", "--package=pleach-cli"];
    process::run(workspace.cargo(&["build", "--release"]).args(packages))?;
    eprintln!("built in {}", test::seconds(begun.elapsed()));
    let binary = |name: &str| -> anyhow::Result<PathBuf> {
        let path = workspace.target.join("release").join(name);
        path.is_file().then_some(path).with_context(|| format!("the build made no {name}"))
    };
    Ok(Binaries { controller: binary("pleach-controller")?, agent: binary("pleach-agent")?, cli: binary("pleach")? })
}

/// The journey and what follows it. When this is dropped halfway, its guards end every process and remove every trace.
async fn show(workspace: &Workspace, options: &Options, binaries: Binaries, library: PathBuf) -> anyhow::Result<()> {
    let narrator = Narrator::start();
    let fixtures = workspace.root.join("tests/fixtures");
    let pace = calibrate::measure(&fixtures, &library)?;
    let fleet = Fleet::start(&binaries, &library, &narrator).await?;
    let mut journey = Journey::new(fleet, narrator, pace);

    let limit = Duration::from_secs(options.seconds);
    let outcome = match tokio::time::timeout(limit, journey.travel(&fixtures)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("not done after {} s", options.seconds)),
    };
    journey.print_table();
    let missing = verdict::print(journey.findings());
    if let Err(error) = &outcome {
        eprintln!("\nstopped: {error:#}");
    }
    if outcome.is_err() || missing > 0 {
        journey.fleet().print_logs();
    }
    if options.keep {
        journey.fleet().print_access(&binaries.cli);
        eprintln!("\nrunning until Ctrl-C");
        std::future::pending::<()>().await;
    }
    println!("\nKeep it running and look around: cargo xtask demo --keep");
    outcome?;
    if missing > 0 {
        bail!("{missing} of the claims above did not come true");
    }
    Ok(())
}
