//! The secrets that one controller holds: the fleet's signing keys and the key that content keys are kept under.
//!
//! One folder of files that only their owner reads. A ceremony that moves root and release off this machine replaces files here.

use std::path::Path;

use pleach_artifact::KeyEncryptionKey;
use pleach_trust::{FleetKeys, SigningKey};

use crate::error::ControllerError;
use crate::files::{self, Access};

/// The secrets of a controller, wiped from memory when dropped.
#[derive(Debug)]
pub struct Keys {
    /// Sign metadata: root, targets, snapshot, timestamp, release, director.
    pub fleet: FleetKeys,
    /// Encrypts content keys at rest.
    pub content: KeyEncryptionKey,
    /// The root key before the present one, while it has to hand over (`root.previous.pem`).
    pub previous_root: Option<SigningKey>,
    /// A root that was signed elsewhere (`root.next.json`); it is published when it is the next one.
    pub offered_root: Option<Vec<u8>>,
}

impl Keys {
    /// Opens the keys of a folder; makes those that are not there.
    ///
    /// # Errors
    /// [`ControllerError`] when a file cannot be read, written or used.
    pub fn open(folder: &Path) -> Result<Self, ControllerError> {
        files::private_folder(folder)?;
        let fleet = FleetKeys::load(|name| open_signing_key(&folder.join(format!("{name}.pem"))))?;
        let previous = folder.join("root.previous.pem");
        let previous_root = files::read(&previous, Access::Secret)?.map(|pem| signing_key(&previous, &pem)).transpose()?;
        let offered_root = files::read(&folder.join("root.next.json"), Access::Public)?.map(|bytes| bytes.to_vec());
        Ok(Self { fleet, content: open_content_key(&folder.join("content.key"))?, previous_root, offered_root })
    }
}

fn open_signing_key(path: &Path) -> Result<SigningKey, ControllerError> {
    if files::read(path, Access::Secret)?.is_none() {
        let pem = SigningKey::generate().and_then(|key| key.to_pem()).map_err(|e| refused(path, e))?;
        files::create(path, pem.as_bytes(), Access::Secret)?;
    }
    signing_key(path, &files::read(path, Access::Secret)?.unwrap_or_default())
}

fn signing_key(path: &Path, pem: &[u8]) -> Result<SigningKey, ControllerError> {
    let pem = std::str::from_utf8(pem).map_err(|_| refused(path, "is no PEM"))?;
    SigningKey::from_pem(pem).map_err(|e| refused(path, e))
}

fn open_content_key(path: &Path) -> Result<KeyEncryptionKey, ControllerError> {
    if files::read(path, Access::Secret)?.is_none() {
        let key = KeyEncryptionKey::generate().map_err(|e| refused(path, e))?;
        files::create(path, key.secret_bytes(), Access::Secret)?;
    }
    let bytes = files::read(path, Access::Secret)?.unwrap_or_default();
    KeyEncryptionKey::from_slice(&bytes).map_err(|e| refused(path, e))
}

fn refused(path: &Path, reason: impl ToString) -> ControllerError {
    ControllerError::Key { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_again_gives_the_same_keys_in_files_of_their_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (Keys::open(folder.path()).unwrap(), Keys::open(folder.path()).unwrap());
        assert_eq!(a.content, b.content);
        for ((name, x), (_, y)) in a.fleet.named().iter().zip(b.fleet.named()) {
            assert_eq!(x.public_key().ed25519_bytes(), y.public_key().ed25519_bytes(), "{name}");
        }
        for file in std::fs::read_dir(folder.path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn refuses_a_key_file_that_holds_something_else() {
        let folder = tempfile::tempdir().unwrap();
        files::create(&folder.path().join("root.pem"), b"nonsense", Access::Secret).unwrap();
        assert!(matches!(Keys::open(folder.path()), Err(ControllerError::Key { path, .. }) if path.ends_with("root.pem")));
    }
}
