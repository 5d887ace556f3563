//! `cargo xtask demo`.

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// Runs it.
pub(crate) fn run(_: &crate::workspace::Workspace, _: &Options) -> anyhow::Result<()> {
    Ok(())
}
