//! A client's folder of verified metadata: one file a role, named after the role and never after a version.
//!
//! The folder is not trusted. Whatever is read from it goes through the same checks as what comes from a repository; only
//! `root.json`, which [`crate::client::begin`] puts there, is an anchor.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::ClientError;

/// The folder.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in this folder, which must exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Reads a role's file, unless it is missing or longer than `limit_bytes`.
    ///
    /// # Errors
    /// [`ClientError::Cache`] when the file is there and cannot be read.
    pub fn load(&self, role: &str, limit_bytes: usize) -> Result<Option<Vec<u8>>, ClientError> {
        let path = self.path(role);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ClientError::cache(&path, error)),
        };
        let mut bytes = Vec::new();
        file.take(limit_bytes as u64 + 1).read_to_end(&mut bytes).map_err(|error| ClientError::cache(&path, error))?;
        Ok(Some(bytes).filter(|bytes| bytes.len() <= limit_bytes))
    }

    /// Puts a role's file in place, whole or not at all.
    ///
    /// # Errors
    /// [`ClientError::Cache`] when it cannot be written.
    pub fn store(&self, role: &str, bytes: &[u8]) -> Result<(), ClientError> {
        let path = self.path(role);
        let unfinished = self.folder.join(format!("{}.json.new", file_name(role)));
        replace(&unfinished, &path, bytes).map_err(|error| ClientError::cache(&path, error))
    }

    fn path(&self, role: &str) -> PathBuf {
        self.folder.join(format!("{}.json", file_name(role)))
    }
}

fn replace(unfinished: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(unfinished, path)
}

/// A name that stays one path component in a folder and in a URL: everything but `A-Z a-z 0-9 - . _ ~` is percent-encoded
/// (RFC 3986, section 2.3). Names that differ stay different; with a suffix behind it, no name is `.` or `..`.
pub fn file_name(name: &str) -> String {
    percent_encode(name, |byte| matches!(byte, b'-' | b'.' | b'_' | b'~'))
}

/// Percent-encodes all bytes but ASCII letters, digits and those that `keep` names.
pub(crate) fn percent_encode(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let encode = |byte: u8| match byte {
        plain if plain.is_ascii_alphanumeric() || keep(plain) => char::from(plain).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_component_and_stay_apart() {
        for (name, expected) in [
            ("targets", "targets"),
            ("../x", "..%2Fx"),
            ("/x", "%2Fx"),
            ("?", "%3F"),
            ("%2F", "%252F"),
            ("a\\b", "a%5Cb"),
            ("\0", "%00"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(file_name(name), expected);
        }
    }
}
