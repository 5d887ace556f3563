//! `cargo xtask dist`: Debian packages of the agent, the controller, the command line and the ONNX Runtime they load.
//!
//! Everything comes from this checkout and from `deploy/`; `dpkg-deb` puts it together. A package is for the machine's own
//! architecture.

mod trial;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::workspace::Workspace;
use crate::{onnxruntime, process};

/// How to build the packages.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder for the packages [default: `debian` in the target folder]
    #[arg(long)]
    output: Option<PathBuf>,
    /// Only these packages; repeatable
    #[arg(long, value_enum)]
    package: Vec<Package>,
    /// Take the debug build: quicker to make, slower to run
    #[arg(long)]
    debug: bool,
    /// Install, run, upgrade, remove and purge them in a Debian that is booted for it; needs root
    #[arg(long)]
    trial: bool,
}

/// A package that can be built.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Package {
    /// The service on a device
    Agent,
    /// The service that prunes and rolls out
    Controller,
    /// The command line
    Cli,
    /// The pinned ONNX Runtime, which the others load
    Onnxruntime,
}

/// A file of a package: its place, its content, its mode.
struct Entry {
    at: &'static str,
    from: PathBuf,
    mode: u32,
}

impl Package {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "pleach-agent",
            Self::Controller => "pleach-controller",
            Self::Cli => "pleach",
            Self::Onnxruntime => "pleach-onnxruntime",
        }
    }

    /// The cargo package whose executable has the name of this one.
    fn crate_name(self) -> Option<&'static str> {
        match self {
            Self::Agent => Some("pleach-agent"),
            Self::Controller => Some("pleach-controller"),
            Self::Cli => Some("pleach-cli"),
            Self::Onnxruntime => None,
        }
    }

    fn summary(self) -> &'static str {
        match self {
            Self::Agent => "keeps a device on its model bundle and serves inference",
            Self::Controller => "prunes, seals and rolls out models for a fleet of devices",
            Self::Cli => "command line: prune a model here, or talk to a controller",
            Self::Onnxruntime => "the ONNX Runtime that Pleach loads, official build",
        }
    }

    fn depends(self) -> &'static str {
        match self {
            Self::Agent | Self::Controller => "libc6 (>= 2.34), libgcc-s1, systemd (>= 250), pleach-onnxruntime",
            Self::Cli => "libc6 (>= 2.34), libgcc-s1, pleach-onnxruntime",
            Self::Onnxruntime => "libc6 (>= 2.27), libgcc-s1, libstdc++6",
        }
    }

    fn entries(self, root: &Path, binaries: &Path) -> anyhow::Result<Vec<Entry>> {
        let file = |at, from: PathBuf, mode| Entry { at, from, mode };
        let (deploy, docs) = (root.join("deploy"), root.join("docs"));
        Ok(match self {
            Self::Agent => vec![
                file("usr/bin/pleach-agent", binaries.join("pleach-agent"), 0o755),
                file("lib/systemd/system/pleach-agent.service", deploy.join("systemd/pleach-agent.service"), 0o644),
                file("usr/lib/sysusers.d/pleach-agent.conf", deploy.join("systemd/sysusers.conf"), 0o644),
                file("usr/share/doc/pleach-agent/agent.toml.example", deploy.join("agent.toml.example"), 0o644),
                file("usr/share/doc/pleach-agent/agent.md", docs.join("agent.md"), 0o644),
            ],
            Self::Controller => vec![
                file("usr/bin/pleach-controller", binaries.join("pleach-controller"), 0o755),
                file("lib/systemd/system/pleach-controller.service", deploy.join("systemd/pleach-controller.service"), 0o644),
                file("usr/share/doc/pleach-controller/controller.toml.example", deploy.join("controller.toml.example"), 0o644),
                file("usr/share/doc/pleach-controller/operating.md", docs.join("operating.md"), 0o644),
            ],
            Self::Cli => vec![
                file("usr/bin/pleach", binaries.join("pleach"), 0o755),
                file("usr/share/doc/pleach/prune.md", docs.join("prune.md"), 0o644),
            ],
            Self::Onnxruntime => vec![file("usr/lib/pleach/libonnxruntime.so", onnxruntime::ensure()?, 0o644)],
        })
    }
}

/// Builds the packages and prints where they are.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    ensure!(process::answers("dpkg-deb", &["--version"]), "dpkg-deb is needed to build packages: `apt-get install dpkg`");
    let all = [Package::Onnxruntime, Package::Agent, Package::Controller, Package::Cli];
    let wanted: Vec<_> = all.into_iter().filter(|p| options.package.is_empty() || options.package.contains(p)).collect();
    let mut build = workspace.cargo(&["build"]);
    let crates: Vec<_> = wanted.iter().filter_map(|p| p.crate_name()).collect();
    for name in &crates {
        build.args(["--package", name]);
    }
    if !options.debug {
        build.args(["--profile", "dist"]);
    }
    if !crates.is_empty() {
        process::run(&mut build)?;
    }
    let binaries = workspace.target.join(if options.debug { "debug" } else { "dist" });
    let output = options.output.clone().unwrap_or_else(|| workspace.target.join("debian"));
    fs::create_dir_all(&output).with_context(|| format!("creating {}", output.display()))?;
    let mut files = Vec::new();
    for package in wanted {
        files.push(build_package(workspace, package, &binaries, &output)?);
    }
    files.iter().for_each(|file| println!("{}", file.display()));
    if options.trial { trial::run(&files) } else { Ok(()) }
}

fn build_package(workspace: &Workspace, package: Package, binaries: &Path, output: &Path) -> anyhow::Result<PathBuf> {
    let staged = tempfile::tempdir()?;
    let tree = staged.path().join(package.name());
    let mut size_bytes = 0;
    for entry in package.entries(&workspace.root, binaries)? {
        let to = tree.join(entry.at);
        place(&entry.from, &to, entry.mode)?;
        if entry.at.starts_with("usr/bin/") {
            process::run(Command::new("strip").arg(&to))?;
        }
        size_bytes += fs::metadata(&to)?.len();
    }
    place(&workspace.root.join("deploy/debian/copyright"), &tree.join("usr/share/doc").join(package.name()).join("copyright"), 0o644)?;
    let control = tree.join("DEBIAN/control");
    let architecture = process::output(Command::new("dpkg").arg("--print-architecture"))?;
    fs::create_dir_all(tree.join("DEBIAN"))?;
    fs::write(&control, fields(package, architecture.trim(), size_bytes))?;
    for script in ["postinst", "prerm", "postrm"] {
        let from = workspace.root.join("deploy/debian").join(package.name()).join(script);
        if from.is_file() {
            place(&from, &tree.join("DEBIAN").join(script), 0o755)?;
        }
    }
    let file = output.join(format!("{}_{}_{}.deb", package.name(), env!("CARGO_PKG_VERSION"), architecture.trim()));
    process::output(Command::new("dpkg-deb").args(["--build", "--root-owner-group"]).arg(&tree).arg(&file))?;
    Ok(file)
}

/// The control file. Source: deb-control(5).
fn fields(package: Package, architecture: &str, size_bytes: u64) -> String {
    format!(
        "Package: {}\nVersion: {}\nArchitecture: {architecture}\nMaintainer: {} <{}>\nInstalled-Size: {}\nDepends: {}\nSection: net\nPriority: optional\n\
         Homepage: {}\nDescription: {}\n",
        package.name(),
        env!("CARGO_PKG_VERSION"),
        "The Pleach project",
        "pleach@localhost",
        size_bytes.div_ceil(1024),
        package.depends(),
        env!("CARGO_PKG_REPOSITORY"),
        package.summary(),
    )
}

fn place(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(fs::set_permissions(to, Permissions::from_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn units_are_hardened() {
        if !process::answers("systemd-analyze", &["--version"]) {
            eprintln!("skipped: no systemd-analyze here");
            return;
        }
        for unit in ["pleach-agent.service", "pleach-controller.service"] {
            let unit = root().join("deploy/systemd").join(unit);
            // Fails above an exposure of 2.0.
            process::output(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=20"]).arg(unit)).unwrap();
        }
    }

    #[test]
    fn every_file_of_a_package_but_executables_is_in_the_checkout() {
        for package in [Package::Agent, Package::Controller, Package::Cli] {
            for entry in package.entries(&root(), Path::new("/binaries")).unwrap() {
                assert!(entry.from.starts_with("/binaries") || entry.from.is_file(), "{}", entry.from.display());
            }
        }
    }

    #[test]
    fn control_fields_are_complete() {
        let fields = fields(Package::Agent, "amd64", 2049);
        for line in [
            "Package: pleach-agent",
            "Architecture: amd64",
            "Installed-Size: 3",
            "Depends: libc6 (>= 2.34), libgcc-s1, systemd (>= 250), pleach-onnxruntime",
        ] {
            assert!(fields.lines().any(|l| l == line), "{line}\n{fields}");
        }
    }
}
