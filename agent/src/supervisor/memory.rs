//! Sealed memory: a file without a name that lives in memory and that nobody, its maker included, can change any more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// A decrypted bundle or measurement set on its way to the runtime half. Never touches a disk.
#[derive(Debug)]
pub struct SealedMemory(OwnedFd);

impl SealedMemory {
    /// Lets `fill` write the content, then seals it.
    ///
    /// # Errors
    /// What `fill` returns, or the operating system's refusal as `E`.
    pub fn from_writer<E: From<io::Error>>(fill: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> Result<Self, E> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("pleach", flags).map_err(io::Error::from)?);
        fill(&mut file)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(io::Error::from)?;
        Ok(Self(file.into()))
    }
}

impl AsFd for SealedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_cannot_be_changed_after_sealing() {
        let memory = SealedMemory::from_writer(|w| w.write_all(b"plaintext")).unwrap();
        let mut file = File::from(memory.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(file.write(b"more").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(file.set_len(0).is_err());
        assert_eq!(file.metadata().unwrap().len(), 9);
    }

    #[test]
    fn error_of_the_writer_comes_back() {
        let error = SealedMemory::from_writer(|_| Err(io::Error::other("no key"))).unwrap_err();
        assert_eq!(error.to_string(), "no key");
    }
}
