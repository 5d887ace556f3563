//! Files that survive a power cut: written beside, synced, renamed, and the folder synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::AgentError;

/// Creates a folder (and those above it) that only its owner may enter.
///
/// # Errors
/// [`AgentError::File`].
pub fn create_private_dir(path: &Path) -> Result<(), AgentError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(AgentError::file("creating folder", path))
}

/// Replaces a file as a whole: after a crash either the old or the new content is there. Mode 0600.
///
/// # Errors
/// [`AgentError::File`]; the old content is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let beside = beside(path);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        let (begin, rest) = bytes.split_at(bytes.len() / 2);
        step();
        file.write_all(begin)?;
        step();
        file.write_all(rest)?;
        file.sync_all()
    };
    let written = write().map_err(AgentError::file("writing", &beside)).and_then(|()| rename(&beside, path));
    if written.is_err() {
        // A full disk must get its bytes back.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Renames a file within its folder and syncs the folder.
///
/// # Errors
/// [`AgentError::File`].
pub fn rename(from: &Path, to: &Path) -> Result<(), AgentError> {
    step();
    fs::rename(from, to).map_err(AgentError::file("renaming to", to))?;
    step();
    sync_parent(to)
}

/// Removes a file; that it is not there is fine.
///
/// # Errors
/// [`AgentError::File`].
pub fn remove(path: &Path) -> Result<(), AgentError> {
    step();
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AgentError::file("removing", path)(source)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads a file of at most `most` bytes; `None` when there is none.
///
/// # Errors
/// [`AgentError::FileTooLong`], [`AgentError::File`].
pub fn read_bounded(path: &Path, most: u64) -> Result<Option<Vec<u8>>, AgentError> {
    let file = match File::open(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(AgentError::file("opening", path))?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(AgentError::file("reading", path))?;
    if bytes.len() as u64 > most {
        return Err(AgentError::FileTooLong { path: path.to_owned(), most });
    }
    Ok(Some(bytes))
}

/// Ends this process as a power cut would, at the step that a test counts to.
#[cfg(debug_assertions)]
fn step() {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static STEP: LazyLock<Option<u64>> = LazyLock::new(|| std::env::var("PLEACH_DRILL_FILE_STEP").ok()?.parse().ok());
    static MADE: AtomicU64 = AtomicU64::new(0);
    if let Some(step) = *STEP
        && MADE.fetch_add(1, Ordering::Relaxed) + 1 == step
    {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
fn step() {}

fn sync_parent(path: &Path) -> Result<(), AgentError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(AgentError::file("syncing folder", parent))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_longer_files_than_promised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"four").unwrap();
        assert!(matches!(read_bounded(&path, 3), Err(AgentError::FileTooLong { most: 3, .. })));
        assert!(read_bounded(&dir.path().join("b"), 3).unwrap().is_none());
    }
}
