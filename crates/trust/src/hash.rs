//! Digests, and the check of bytes against a signed length and signed hashes.

use std::collections::BTreeMap;
use std::fmt;

use ring::digest::{SHA256, SHA512, digest};
use serde::{Deserialize, Serialize};

use crate::error::TrustError;

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
    let differs = |property: &str, got: String, expected: String| TrustError::Content {
        what: what.to_owned(),
        property: property.to_owned(),
        got,
        expected,
    };
    if let Some(expected) = length.filter(|&expected| expected != bytes.len() as u64) {
        return Err(differs("length", bytes.len().to_string(), expected.to_string()));
    }
    for (algorithm, expected) in hashes.into_iter().flatten() {
        let got = match algorithm.as_str() {
            "sha256" => hex::encode(digest(&SHA256, bytes)),
            "sha512" => hex::encode(digest(&SHA512, bytes)),
            _ => "not known".to_owned(),
        };
        if got != *expected {
            return Err(differs(algorithm, got, expected.clone()));
        }
    }
    Ok(())
}
