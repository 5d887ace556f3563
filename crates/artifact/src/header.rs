//! The first 32 bytes of a sealed bundle, and where each chunk lies.
//!
//! ```text
//!  0..8   magic  89 'P' 'L' 'E' 'A' 'C' 'H' 0A
//!  8      format version, 1
//!  9      suite: 1 AES-256-GCM, 2 ChaCha20-Poly1305
//! 10..12  zero
//! 12..16  chunk size, 65536 (u32, big endian)
//! 16..24  plaintext length in bytes (u64, big endian)
//! 24..31  nonce prefix
//! 31      zero
//! ```
//! The header travels at the head of chunk 0, is hashed into leaf 0 and is the associated data of every chunk.

use std::fmt;
use std::ops::Range;

use ring::aead;
use serde::{Deserialize, Serialize};

use crate::error::ArtifactError;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 32;
/// Plaintext bytes in a chunk; only the last chunk may hold fewer.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of the authentication tag behind each chunk.
pub const TAG_BYTES: usize = 16;
/// Largest payload: 8 GiB, so that a leaf list stays at 4 MiB.
pub const MAX_PLAINTEXT_BYTES: u64 = 8 << 30;

const MAGIC: [u8; 8] = *b"\x89PLEACH\n";
const FORMAT: u8 = 1;
const SEALED_CHUNK_BYTES: u64 = (CHUNK_BYTES + TAG_BYTES) as u64;

/// The cipher of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Suite {
    /// AES-256-GCM, for classes with AES instructions.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439), for classes without.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl Suite {
    /// The name used in metadata, e.g. `aes-256-gcm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// Parses [`Suite::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Aes256Gcm, Self::ChaCha20Poly1305].into_iter().find(|s| s.name() == name)
    }

    fn code(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    pub(crate) fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The header of a sealed bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Cipher of every chunk.
    pub suite: Suite,
    /// Length of the payload before sealing.
    pub plaintext_bytes: u64,
    /// First seven bytes of every nonce.
    pub nonce_prefix: [u8; 7],
}

impl Header {
    /// The 32 bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = FORMAT;
        out[9] = self.suite.code();
        out[12..16].copy_from_slice(&(CHUNK_BYTES as u32).to_be_bytes());
        out[16..24].copy_from_slice(&self.plaintext_bytes.to_be_bytes());
        out[24..31].copy_from_slice(&self.nonce_prefix);
        out
    }

    /// Parses a header; the encoding is unique, so anything else is refused.
    ///
    /// # Errors
    /// [`ArtifactError::Header`] naming the field that is wrong.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ArtifactError> {
        let wrong = |field, got: String, expected: String| ArtifactError::Header { field, got, expected };
        let (magic, rest) = bytes.split_at(8);
        if magic != MAGIC {
            return Err(wrong("magic", hex::encode(magic), hex::encode(MAGIC)));
        }
        let &[format, code, z0, z1, c0, c1, c2, c3, p0, p1, p2, p3, p4, p5, p6, p7, n0, n1, n2, n3, n4, n5, n6, z2] = rest else {
            return Err(wrong("length", bytes.len().to_string(), HEADER_BYTES.to_string()));
        };
        if format != FORMAT {
            return Err(wrong("format version", format.to_string(), FORMAT.to_string()));
        }
        let suite = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305].into_iter().find(|s| s.code() == code);
        let suite = suite.ok_or_else(|| wrong("suite", code.to_string(), "1 or 2".into()))?;
        let chunk = u32::from_be_bytes([c0, c1, c2, c3]);
        if chunk as usize != CHUNK_BYTES {
            return Err(wrong("chunk size", chunk.to_string(), CHUNK_BYTES.to_string()));
        }
        if [z0, z1, z2] != [0; 3] {
            return Err(wrong("reserved bytes", hex::encode([z0, z1, z2]), "zero".into()));
        }
        let plaintext_bytes = u64::from_be_bytes([p0, p1, p2, p3, p4, p5, p6, p7]);
        if plaintext_bytes > MAX_PLAINTEXT_BYTES {
            return Err(wrong("plaintext length", plaintext_bytes.to_string(), format!("at most {MAX_PLAINTEXT_BYTES}")));
        }
        Ok(Self { suite, plaintext_bytes, nonce_prefix: [n0, n1, n2, n3, n4, n5, n6] })
    }

    /// Where the chunks of this bundle lie.
    pub fn layout(&self) -> Layout {
        Layout { plaintext_bytes: self.plaintext_bytes }
    }
}

/// Where each chunk of a sealed bundle lies; follows from the length alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    plaintext_bytes: u64,
}

impl Layout {
    /// The layout of a payload of this length.
    ///
    /// # Errors
    /// [`ArtifactError::Length`] above [`MAX_PLAINTEXT_BYTES`].
    pub fn of_plaintext(plaintext_bytes: u64) -> Result<Self, ArtifactError> {
        if plaintext_bytes > MAX_PLAINTEXT_BYTES {
            return Err(ArtifactError::Length {
                got: plaintext_bytes,
                expected: format!("at most {MAX_PLAINTEXT_BYTES} bytes of payload"),
            });
        }
        Ok(Self { plaintext_bytes })
    }

    /// The layout of a sealed bundle of this length, as signed metadata gives it.
    ///
    /// # Errors
    /// [`ArtifactError::Length`] when no payload seals to that length.
    pub fn of_sealed(sealed_bytes: u64) -> Result<Self, ArtifactError> {
        let impossible = || ArtifactError::Length { got: sealed_bytes, expected: "the length of a sealed bundle".into() };
        let body = sealed_bytes.checked_sub(HEADER_BYTES as u64).ok_or_else(impossible)?;
        let tags = body.div_ceil(SEALED_CHUNK_BYTES) * TAG_BYTES as u64;
        let layout = Self::of_plaintext(body.checked_sub(tags).ok_or_else(impossible)?)?;
        if layout.sealed_bytes() == sealed_bytes { Ok(layout) } else { Err(impossible()) }
    }

    /// Bytes of the payload before sealing.
    pub fn plaintext_bytes(&self) -> u64 {
        self.plaintext_bytes
    }

    /// Bytes of the sealed bundle, header and tags included.
    pub fn sealed_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.plaintext_bytes + u64::from(self.chunk_count()) * TAG_BYTES as u64
    }

    /// Number of chunks; an empty payload still has one.
    pub fn chunk_count(&self) -> u32 {
        // At most 2^17, see MAX_PLAINTEXT_BYTES.
        (self.plaintext_bytes.div_ceil(CHUNK_BYTES as u64) as u32).max(1)
    }

    /// The bytes of the sealed bundle that chunk `index` takes (chunk 0 begins with the header).
    ///
    /// # Errors
    /// [`ArtifactError::ChunkIndex`] behind the end.
    pub fn chunk_range(&self, index: u32) -> Result<Range<u64>, ArtifactError> {
        let count = self.chunk_count();
        if index >= count {
            return Err(ArtifactError::ChunkIndex { index, count });
        }
        let header = HEADER_BYTES as u64;
        let start = if index == 0 { 0 } else { header + u64::from(index) * SEALED_CHUNK_BYTES };
        let end = if index + 1 == count { self.sealed_bytes() } else { header + u64::from(index + 1) * SEALED_CHUNK_BYTES };
        Ok(start..end)
    }

    /// Length in bytes of chunk `index`; see [`Layout::chunk_range`].
    ///
    /// # Errors
    /// [`ArtifactError::ChunkIndex`] behind the end.
    pub fn chunk_len(&self, index: u32) -> Result<usize, ArtifactError> {
        self.chunk_range(index).map(|r| (r.end - r.start) as usize)
    }

    /// The first chunk that is not whole when only the first `have_bytes` bytes are there: where a download resumes.
    pub fn resume_at(&self, have_bytes: u64) -> u32 {
        if have_bytes >= self.sealed_bytes() {
            return self.chunk_count();
        }
        (have_bytes.saturating_sub(HEADER_BYTES as u64) / SEALED_CHUNK_BYTES) as u32
    }
}
