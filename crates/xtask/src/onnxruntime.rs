//! ONNX Runtime: the official wheel of one pinned version, fetched by pip, checked against pinned hashes, kept in a cache folder.
//!
//! The version is pinned because official Linux builds from 1.29 on send telemetry; 1.28.0 has none.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use ring::digest::{SHA256, digest};

use crate::process;

const VERSION: &str = "1.28.0";

/// The wheel for one architecture. The CPython 3.11 one, whatever Python runs here: only the library inside is used.
struct Wheel {
    architecture: &'static str,
    wheel_sha256: &'static str,
    library_sha256: &'static str,
}

const WHEELS: [Wheel; 2] = [
    Wheel {
        architecture: "x86_64",
        wheel_sha256: "a166b78ee04f3a37fa1ef82034b6a3ce96d9684e582d4d30b296de83e9998bb5",
        library_sha256: "aa4079d18f4ea7a5f3a94d80cd4bbe0f2740436626622d64d793803a20381083",
    },
    Wheel {
        architecture: "aarch64",
        wheel_sha256: "8d66f9ceb29909c70839e4e4fb3435c7b490050d8f162bd5f3aba4ca01ee517f",
        library_sha256: "23a37c2994bc273e1d59a4f49af6cba5bf1cfbc29f04907ec27df375aba50a7d",
    },
];

/// Returns the path of the library, fetching it first when the cache has none or a damaged one.
///
/// The cache folder is `$PLEACH_CACHE`, else `pleach` in `$XDG_CACHE_HOME` or `~/.cache`.
pub(crate) fn ensure() -> anyhow::Result<PathBuf> {
    let architecture = std::env::consts::ARCH;
    let wheel = WHEELS
        .iter()
        .find(|w| w.architecture == architecture)
        .with_context(|| format!("no official ONNX Runtime wheel is pinned for {architecture}: set ORT_DYLIB_PATH yourself"))?;
    let folder = cache_folder()?.join(format!("onnxruntime-{VERSION}-{architecture}"));
    let library = folder.join(library_name());
    if is_intact(&library, wheel.library_sha256)? {
        return Ok(library);
    }
    eprintln!("fetching ONNX Runtime {VERSION} for {architecture} into {}", folder.display());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // In the cache folder itself, so that the last step is a rename within one file system.
    let work = tempfile::tempdir_in(&folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    let file = download(wheel, work.path())?;
    let extracted = work.path().join(library_name());
    extract(&file, &extracted)?;
    if !is_intact(&extracted, wheel.library_sha256)? {
        bail!("the library inside {} is not the pinned one", file.display());
    }
    fs::rename(&extracted, &library).with_context(|| format!("cannot move the library to {}", library.display()))?;
    Ok(library)
}

fn library_name() -> String {
    format!("libonnxruntime.so.{VERSION}")
}

pub(crate) fn cache_folder() -> anyhow::Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from("PLEACH_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|p| p.join("pleach")))
        .or_else(|| from("HOME").map(|p| p.join(".cache/pleach")))
        .context("no cache folder: set PLEACH_CACHE")
}

fn download(wheel: &Wheel, folder: &Path) -> anyhow::Result<PathBuf> {
    if !process::answers("python3", &["-m", "pip", "--version"]) {
        bail!("ONNX Runtime is fetched with pip: install Python 3 with pip (Debian: apt-get install python3-pip), or set ORT_DYLIB_PATH");
    }
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, format!("onnxruntime=={VERSION} --hash=sha256:{}\n", wheel.wheel_sha256))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(["--implementation=cp", "--python-version=3.11", "--abi=cp311"])
        .args(["2_28", "2_27"].map(|glibc| format!("--platform=manylinux_{glibc}_{}", wheel.architecture)))
        .arg("--dest")
        .arg(folder)
        .arg("--requirement")
        .arg(&requirements);
    process::output(&mut pip).context("cannot download ONNX Runtime")?;
    let found = fs::read_dir(folder)?.filter_map(Result::ok).map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
    found.context("pip reported success but left no wheel")
}

/// Python reads the archive, as it is needed for pip anyway.
fn extract(wheel: &Path, to: &Path) -> anyhow::Result<()> {
    const SCRIPT: &str = "\
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source, open(sys.argv[3], 'xb') as target:
    shutil.copyfileobj(source, target)
";
    let member = format!("onnxruntime/capi/{}", library_name());
    process::output(Command::new("python3").args(["-c", SCRIPT]).arg(wheel).arg(member).arg(to)).context("cannot unpack ONNX Runtime")?;
    Ok(())
}

fn is_intact(file: &Path, sha256: &str) -> anyhow::Result<bool> {
    match fs::read(file) {
        Ok(bytes) => Ok(hex::encode(digest(&SHA256, &bytes)) == sha256),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_library_is_not_intact() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, B.1
        assert!(is_intact(file.path(), abc).unwrap());
        fs::write(file.path(), b"abd").unwrap();
        assert!(!is_intact(file.path(), abc).unwrap());
        assert!(!is_intact(Path::new("/nonexistent/library"), abc).unwrap());
    }
}
