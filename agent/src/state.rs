//! The agent's state folder: where each file lies, and the lock that keeps a second agent out.
//!
//! ```text
//! lock                      held while an agent runs
//! keys/identity.key         Ed25519 seed, 32 bytes
//! keys/sealing.key          X25519 secret, 32 bytes
//! identity.json             device id, certificate chain, authority
//! trust/root.json           newest trusted TUF root
//! ledger.json               what is proven, what is being tried
//! door.sock                 commands on this device
//! bundles/<digest>.bundle   sealed bundles; .part and .leaves while they are downloaded
//! spool/<sequence>.report   reports that the controller has not acknowledged
//! ```
//! Everything is 0700 or 0600, and nothing in it is a plain model.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pleach_domain::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::error::AgentError;
use crate::files;

/// A state folder that this process holds.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    /// None where the folder is only looked at.
    _lock: Option<File>,
}

impl StateDir {
    /// Creates what is missing and takes the lock.
    ///
    /// # Errors
    /// [`AgentError::Locked`] when another agent holds it, [`AgentError::File`].
    pub fn open(root: &Path) -> Result<Self, AgentError> {
        for dir in [root.to_owned(), root.join("keys"), root.join("trust"), root.join("bundles"), root.join("spool")] {
            files::create_private_dir(&dir)?;
            match fs::set_permissions(&dir, Permissions::from_mode(0o700)) {
                // What is there serves; nothing new can come.
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
                done => done.map_err(AgentError::file("protecting", &dir))?,
            }
        }
        let path = root.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = match lock {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
            opened => opened,
        };
        let lock = lock.map_err(AgentError::file("opening", &path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| AgentError::Locked { path: root.to_owned() })?;
        Ok(Self { root: root.to_owned(), _lock: Some(lock) })
    }

    /// A state folder that is only read: nothing is made in it, and an agent may hold it.
    ///
    /// # Errors
    /// [`AgentError::File`] where there is none.
    pub fn look(root: &Path) -> Result<Self, AgentError> {
        fs::read_dir(root).map_err(AgentError::file("reading folder", root))?;
        Ok(Self { root: root.to_owned(), _lock: None })
    }

    /// The socket for commands on this device.
    pub fn door(&self) -> PathBuf {
        Self::door_of(&self.root)
    }

    /// The same, of a folder that another process holds.
    pub fn door_of(root: &Path) -> PathBuf {
        root.join("door.sock")
    }

    /// Where an offline bundle is put together.
    pub fn offline(&self) -> PathBuf {
        self.root.join("offline")
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The identity key.
    pub fn identity_key(&self) -> PathBuf {
        self.root.join("keys/identity.key")
    }

    /// The sealing key.
    pub fn sealing_key(&self) -> PathBuf {
        self.root.join("keys/sealing.key")
    }

    /// Device id and certificates.
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity.json")
    }

    /// The newest trusted root metadata.
    pub fn trusted_root(&self) -> PathBuf {
        self.root.join("trust/root.json")
    }

    /// The ledger.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.json")
    }

    /// The spool.
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// The folder of bundles.
    pub fn bundles(&self) -> PathBuf {
        self.root.join("bundles")
    }

    /// A whole sealed bundle.
    pub fn bundle(&self, digest: &Digest) -> PathBuf {
        self.bundles().join(format!("{digest}.bundle"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(AgentError::Locked { .. })));
        drop(held);
        StateDir::open(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join("keys")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
