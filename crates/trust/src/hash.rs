//! Digests, and the check of bytes against a signed length and signed hashes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};

use ring::digest::{Algorithm, Context, SHA256, SHA512, digest};
use serde::{Deserialize, Serialize};

use crate::error::{ClientError, TrustError};
use crate::metadata::TargetFile;

/// A SHA-256 digest; hexadecimal in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// Wraps the 32 bytes of a SHA-256.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(out)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        let parsed = Self(bytes);
        (parsed.to_string() == text).then_some(parsed)
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_hex(&text).ok_or("expected 64 lower-case hexadecimal digits")
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.to_string()
    }
}

/// Signed hashes by algorithm (`sha256`, `sha512`), hexadecimal.
pub type Hashes = BTreeMap<String, String>;

/// The hash table with one SHA-256.
pub fn sha256_only(digest: &Sha256Digest) -> Hashes {
    Hashes::from([("sha256".to_owned(), digest.to_string())])
}

/// Checks bytes against what was signed. Every listed hash must match; one of an unknown algorithm matches nothing.
///
/// # Errors
/// [`TrustError::Content`] naming the property that differs.
pub fn check(what: &str, bytes: &[u8], length: Option<u64>, hashes: Option<&Hashes>) -> Result<(), TrustError> {
    if let Some(expected) = length.filter(|&expected| expected != bytes.len() as u64) {
        return Err(differs(what, "length", &bytes.len().to_string(), &expected.to_string()));
    }
    for (name, expected) in hashes.into_iter().flatten() {
        let got = algorithm(name).map(|a| hex::encode(digest(a, bytes)));
        check_hash(what, name, got, expected)?;
    }
    Ok(())
}

/// Copies a signed file from `source` to `sink` and checks it as [`check`] does, in a fixed buffer. Reads at most one byte
/// more than was signed. What was written may be used only after `Ok`.
///
/// # Errors
/// [`ClientError::Trust`] when other bytes came than were signed, [`ClientError::Fetch`] or [`ClientError::Sink`] when reading
/// or writing fails.
pub fn copy_checked(what: &str, source: &mut dyn Read, file: &TargetFile, sink: &mut dyn Write) -> Result<(), ClientError> {
    let mut contexts: Vec<_> = file.hashes.iter().map(|(name, expected)| (name, expected, algorithm(name).map(Context::new))).collect();
    let mut buffer = vec![0; 64 * 1024];
    let mut length: u64 = 0;
    let mut source = source.take(file.length.saturating_add(1));
    loop {
        let read = source.read(&mut buffer).map_err(|error| ClientError::fetch(what, error.into()))?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        length += read as u64;
        contexts.iter_mut().filter_map(|(_, _, context)| context.as_mut()).for_each(|context| context.update(bytes));
        sink.write_all(bytes).map_err(|source| ClientError::Sink { path: what.to_owned(), source })?;
    }
    if length != file.length {
        let got = if length > file.length { "more".to_owned() } else { length.to_string() };
        return Err(differs(what, "length", &got, &file.length.to_string()).into());
    }
    for (name, expected, context) in contexts {
        check_hash(what, name, context.map(|c| hex::encode(c.finish())), expected)?;
    }
    Ok(())
}

fn algorithm(name: &str) -> Option<&'static Algorithm> {
    match name {
        "sha256" => Some(&SHA256),
        "sha512" => Some(&SHA512),
        _ => None,
    }
}

fn check_hash(what: &str, name: &str, got: Option<String>, expected: &str) -> Result<(), TrustError> {
    match got {
        Some(got) if got == expected => Ok(()),
        got => Err(differs(what, name, got.as_deref().unwrap_or("not known"), expected)),
    }
}

fn differs(what: &str, property: &str, got: &str, expected: &str) -> TrustError {
    TrustError::Content { what: what.into(), property: property.into(), got: got.into(), expected: expected.into() }
}
