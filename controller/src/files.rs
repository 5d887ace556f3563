//! Files that are there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::ControllerError;

/// Largest key or certificate file that is read.
const MAX_BYTES: u64 = 64 * 1024;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner only.
    Secret,
    /// Everybody.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Secret => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Makes a folder that only its owner may enter, with those above it.
pub(crate) fn private_folder(path: &Path) -> Result<(), ControllerError> {
    fs::create_dir_all(path).map_err(ControllerError::io("create folder", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(ControllerError::io("protect folder", path))
}

/// Writes a file through a neighbour and a rename, so that readers see the old or the new content.
pub(crate) fn replace(path: &Path, content: &[u8], access: Access) -> Result<(), ControllerError> {
    let draft = write_draft(path, content, access)?;
    fs::rename(&draft, path).map_err(ControllerError::io("replace", path))?;
    sync_folder(path)
}

/// Writes a file unless it is there already; of two writers at once, the first one wins.
pub(crate) fn create(path: &Path, content: &[u8], access: Access) -> Result<(), ControllerError> {
    let draft = write_draft(path, content, access)?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft).map_err(ControllerError::io("remove draft of", path))?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(ControllerError::io("create", path)(error)),
        _ => sync_folder(path),
    }
}

/// Reads a file when it is there. A secret that others may read is refused.
pub(crate) fn read(path: &Path, access: Access) -> Result<Option<Zeroizing<Vec<u8>>>, ControllerError> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(ControllerError::io("read", path))?,
    };
    let refuse = |reason: String| ControllerError::Key { path: path.to_owned(), reason };
    let mode = metadata.permissions().mode() & 0o777;
    if access == Access::Secret && mode & 0o077 != 0 {
        return Err(refuse(format!("has mode {mode:o}: expected 600, readable by its owner only")));
    }
    if metadata.len() > MAX_BYTES {
        return Err(refuse(format!("has {} bytes: expected at most {MAX_BYTES}", metadata.len())));
    }
    fs::read(path).map(|bytes| Some(Zeroizing::new(bytes))).map_err(ControllerError::io("read", path))
}

fn write_draft(path: &Path, content: &[u8], access: Access) -> Result<std::path::PathBuf, ControllerError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{}", crate::random::hex::<6>()?));
    let io = |doing| ControllerError::io(doing, &draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(&draft).map_err(io("create"))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("write"))?;
    Ok(draft)
}

fn sync_folder(path: &Path) -> Result<(), ControllerError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(ControllerError::io("sync folder", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_writer_wins_and_no_draft_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pem");
        create(&path, b"one", Access::Secret).unwrap();
        create(&path, b"two", Access::Secret).unwrap();
        assert_eq!(read(&path, Access::Secret).unwrap().unwrap().as_slice(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(read(&folder.path().join("b.pem"), Access::Secret).unwrap().is_none());
    }

    #[test]
    fn refuses_secrets_that_others_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pem");
        create(&path, b"one", Access::Public).unwrap();
        let refusal = read(&path, Access::Secret).unwrap_err().to_string();
        assert!(refusal.contains("has mode 644: expected 600"), "{refusal}");
    }
}
