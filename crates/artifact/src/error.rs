//! What can go wrong while a bundle is sealed, verified, opened or parsed.

use std::io;

use pleach_domain::Digest;
use thiserror::Error;

/// A bundle, a wrap or a payload that was refused, and the check that refused it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The header is not one of a sealed bundle this version reads.
    #[error("bundle header: {field} is {got}, expected {expected}")]
    Header {
        /// Field of the header.
        field: &'static str,
        /// What came.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// A length that no sealed bundle can have.
    #[error("bundle length {got} is not possible: expected {expected}")]
    Length {
        /// Bytes as given.
        got: u64,
        /// What is allowed.
        expected: String,
    },
    /// A chunk number behind the end of the bundle.
    #[error("chunk {index} does not exist: the bundle has {count} chunks")]
    ChunkIndex {
        /// Number as given, from 0.
        index: u32,
        /// Chunks of the bundle.
        count: u32,
    },
    /// A chunk of another length than its place demands.
    #[error("chunk {index} has {got} bytes, expected {expected}")]
    ChunkLength {
        /// Number of the chunk, from 0.
        index: u32,
        /// Bytes that came.
        got: usize,
        /// Bytes it must have.
        expected: usize,
    },
    /// A chunk whose hash is not its leaf of the hash tree: damaged, exchanged or reordered in transit.
    #[error("chunk {index} does not match its leaf of the hash tree")]
    ChunkHash {
        /// Number of the chunk, from 0.
        index: u32,
    },
    /// A list of leaves whose number is wrong.
    #[error("leaf list has {got} bytes, expected {expected}")]
    LeafCount {
        /// Bytes that came.
        got: usize,
        /// Bytes it must have.
        expected: usize,
    },
    /// A list of leaves that does not hash to the signed root.
    #[error("leaf list hashes to {got}, the signed root is {expected}")]
    TreeRoot {
        /// Root computed from the leaves.
        got: Digest,
        /// Root from signed metadata.
        expected: Digest,
    },
    /// The whole bundle has another digest than the signed one.
    #[error("bundle digest is {got}, the signed digest is {expected}")]
    BundleDigest {
        /// Digest of the bytes that came.
        got: Digest,
        /// Digest from signed metadata.
        expected: Digest,
    },
    /// A chunk that does not decrypt: wrong key, altered, truncated, reordered or repeated.
    #[error("chunk {index} does not decrypt under the content key")]
    ChunkDecrypt {
        /// Number of the chunk, from 0.
        index: u32,
    },
    /// Bytes behind the last chunk.
    #[error("the bundle goes on after its last chunk at byte {at}")]
    TrailingBytes {
        /// Offset of the first byte that should not be there.
        at: u64,
    },
    /// Opening ended before the last chunk.
    #[error("the bundle ends after {opened} of {count} chunks")]
    Truncated {
        /// Chunks opened.
        opened: u32,
        /// Chunks of the bundle.
        count: u32,
    },
    /// The source gave fewer or more bytes than it promised.
    #[error("payload source gave {got} bytes, it promised {expected}")]
    SourceLength {
        /// Bytes read; one more than promised stands for any surplus.
        got: u64,
        /// Bytes promised.
        expected: u64,
    },
    /// A key or wrap of the wrong length or form.
    #[error("{what} is not valid: expected {expected}")]
    KeyForm {
        /// What was parsed.
        what: &'static str,
        /// What is allowed.
        expected: &'static str,
    },
    /// A wrap that does not open: another device, another context, or altered.
    #[error("the wrapped content key does not open for this device, bundle, class and sequence")]
    Unwrap,
    /// A stored content key that does not open: another key-encryption key, another bundle, or altered.
    #[error("the stored content key does not open for bundle {bundle}")]
    StoredKey {
        /// Bundle it was opened for.
        bundle: Digest,
    },
    /// The manifest is not the JSON this version reads.
    #[error("bundle manifest is not valid")]
    ManifestSyntax(#[source] serde_json::Error),
    /// A field of the manifest that is out of its range.
    #[error("bundle manifest: {field} is {got}, expected {expected}")]
    Manifest {
        /// Field, dotted.
        field: String,
        /// What came.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// A rung whose bytes do not have the digest of the manifest.
    #[error("rung {rung:?} has digest {got}, the manifest says {expected}")]
    RungDigest {
        /// Name of the rung.
        rung: String,
        /// Digest of the bytes.
        got: Digest,
        /// Digest in the manifest.
        expected: Digest,
    },
    /// The operating system gave no randomness, or ring refused a key.
    #[error("cryptographic primitive failed: {0}")]
    Crypto(&'static str),
    /// Reading the source or writing the result failed.
    #[error("{doing} failed")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ArtifactError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
