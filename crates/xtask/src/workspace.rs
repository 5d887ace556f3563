//! Where the workspace and its build products are.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;

use crate::process;

/// Folders of this checkout.
#[derive(Deserialize)]
pub(crate) struct Workspace {
    /// Top folder.
    #[serde(rename = "workspace_root")]
    pub root: PathBuf,
    /// Where cargo builds to.
    #[serde(rename = "target_directory")]
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let text = process::output(cargo().args(["metadata", "--no-deps", "--format-version=1", "--manifest-path", manifest]))?;
        serde_json::from_str(&text).context("cannot read what cargo metadata says")
    }

    /// A cargo command in this workspace.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root).args(args);
        command
    }
}

/// The cargo that runs us.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
