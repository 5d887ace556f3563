//! `cargo xtask bench agent`: what the agent costs on a device. The measurements are in `agent/benches/agent.rs`, which has the
//! executable and the scripted controller of the agent's tests.

use super::Output;
use crate::workspace::Workspace;
use crate::{onnxruntime, process};

/// How to print what was measured.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Form of the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Builds what is shipped and measures it.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let mut bench = workspace.cargo(&["bench", "--profile", "dist", "--package", "pleach-agent", "--bench", "agent"]);
    if options.output == Output::Json {
        bench.args(["--", "--json"]);
    }
    process::run(bench.env("ORT_DYLIB_PATH", onnxruntime::ensure()?).env("ORT_DISABLE_TELEMETRY", "1"))
}
