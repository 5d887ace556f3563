//! PostgreSQL's server binaries, for the tests that start a server of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// Returns the folder that holds `initdb` and `postgres`; as root on Debian it installs them when they are missing.
pub(crate) fn ensure() -> anyhow::Result<PathBuf> {
    if let Some(folder) = find() {
        return Ok(folder);
    }
    if !(process::is_root() && process::answers("apt-get", &["--version"])) {
        bail!("the tests start a PostgreSQL server: install its server binaries (Debian: apt-get install postgresql)");
    }
    eprintln!("installing PostgreSQL by apt");
    let apt = |args: &[&str]| process::output(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args));
    apt(&["update", "--quiet"]).context("cannot install PostgreSQL")?;
    apt(&["install", "--yes", "--quiet", "--no-install-recommends", "postgresql"]).context("cannot install PostgreSQL")?;
    find().context("apt installed PostgreSQL, but its server binaries are in no known place")
}

/// Debian keeps them out of the path, one folder for each version; the newest counts.
fn find() -> Option<PathBuf> {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
    let newest = debian.map(|e| e.path().join("bin")).filter(|p| holds_server(p)).max_by_key(|p| version(p));
    newest.or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).find(|p| holds_server(p)))
}

fn holds_server(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
}

fn version(bin: &Path) -> u32 {
    bin.parent().and_then(Path::file_name).and_then(|n| n.to_str()).and_then(|n| n.parse().ok()).unwrap_or(0)
}
