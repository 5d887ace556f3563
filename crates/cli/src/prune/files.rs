//! Files read within bounds, and written whole or not at all.

use std::fs::Permissions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

/// What a new file may be used for, before the user's mask.
const MODE: u32 = 0o666;

/// Reads a file of at most `most` bytes.
pub(super) fn read(path: &Path, most: u64) -> anyhow::Result<Vec<u8>> {
    let size_bytes = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
    if size_bytes > most {
        bail!("{}: {size_bytes} bytes: expected at most {most}", path.display());
    }
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Whether a file can be made where `path` says, before the work begins.
pub(super) fn check_writable(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("cannot write {}: it is a folder", path.display());
    }
    temporary(path).map(drop)
}

/// Writes a file beside its place and moves it there, so that nobody ever sees half of it.
pub(super) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_by(path, |file| file.write_all(bytes))
}

fn write_by(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> anyhow::Result<()> {
    let mut file = temporary(path)?;
    let filled = fill(file.as_file_mut()).and_then(|()| file.as_file().sync_all());
    filled.and_then(|()| file.persist(path).map(drop).map_err(|e| e.error)).with_context(|| format!("cannot write {}", path.display()))
}

fn temporary(path: &Path) -> anyhow::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(".pleach-").permissions(Permissions::from_mode(MODE)).tempfile_in(folder);
    made.with_context(|| format!("cannot write {}", path.display()))
}

/// Prints a result; a reader that has seen enough is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match write!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("cannot print"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.onnx");
        write(&path, b"old").unwrap();
        let full = |file: &mut dyn Write| {
            file.write_all(b"half of it")?;
            Err(std::io::Error::from_raw_os_error(28))
        };
        let error = format!("{:#}", write_by(&path, full).unwrap_err());
        assert!(error.contains("cannot write") && error.contains("No space left on device"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn places_that_cannot_be_written_are_known_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_writable(&folder.path().join("no/such/out.onnx")).is_err());
        assert!(check_writable(folder.path()).unwrap_err().to_string().contains("is a folder"));
        check_writable(&folder.path().join("out.onnx")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
