//! The dashboard's page and assets, made by npm from `controller/dashboard`; the controller embeds what is in its `dist`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::bail;

use crate::process;
use crate::workspace::Workspace;

/// Installs what the lock file names, where that changed, and builds.
pub(crate) fn build(workspace: &Workspace) -> anyhow::Result<()> {
    let folder = workspace.root.join("controller/dashboard");
    if !process::answers("npm", &["--version"]) {
        bail!("the dashboard is built by npm, which is not installed: `apt-get install nodejs npm` (Node.js 20 or newer)");
    }
    // npm writes this file at the end of an installation.
    if modified(&folder.join("node_modules/.package-lock.json")) < modified(&folder.join("package-lock.json")) {
        process::run(npm(&folder).args(["ci", "--no-audit", "--no-fund"]))?;
    }
    process::run(npm(&folder).args(["run", "--silent", "build", "--", "--logLevel", "warn"]))
}

fn npm(folder: &Path) -> Command {
    let mut command = Command::new("npm");
    command.current_dir(folder);
    command
}

/// None when there is no such file, which is older than everything.
fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|m| m.modified()).ok()
}
