//! Sealing: a payload goes in, chunk by chunk, and a sealed bundle, its digest and its hash tree come out.
//!
//! STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance,
//! 2015): the nonce of a chunk is `prefix (7) || counter (u32, big endian) || last (1)`, so that no chunk can be moved,
//! repeated or left out, and the end cannot be cut off.

use std::io::{Read, Write};
use std::sync::mpsc::{self, Receiver, SyncSender};

use pleach_domain::Digest;
use ring::aead;
use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use crate::error::ArtifactError;
use crate::header::{CHUNK_BYTES, HEADER_BYTES, Header, Layout, Suite, TAG_BYTES};
use crate::key::{ContentKey, random};
use crate::tree::{self, Leaves};

/// Most chunks that wait to be hashed.
const AHEAD: usize = 8;

/// What sealing made, beside the bytes it wrote.
#[derive(Debug)]
pub struct Sealed {
    /// SHA-256 of the sealed bundle: its identity.
    pub digest: Digest,
    /// Length of the sealed bundle in bytes.
    pub length: u64,
    /// Root of the hash tree, to be signed.
    pub tree_root: Digest,
    /// The leaves, to be kept beside the bundle.
    pub leaves: Leaves,
    /// The fresh key it was sealed under.
    pub content_key: ContentKey,
    /// The cipher.
    pub suite: Suite,
}

/// Seals exactly `plaintext_bytes` from `payload` under a fresh content key. Holds a dozen chunks in memory.
///
/// # Errors
/// [`ArtifactError::Length`] for a payload that is too long, [`ArtifactError::SourceLength`] when the source ends early or
/// goes on, [`ArtifactError::Io`] when reading or writing fails. What was written by then is to be thrown away.
pub fn seal(payload: &mut dyn Read, plaintext_bytes: u64, suite: Suite, sink: &mut dyn Write) -> Result<Sealed, ArtifactError> {
    seal_with(payload, plaintext_bytes, suite, ContentKey::generate()?, random()?, sink)
}

/// [`seal()`] with the randomness given; apart for known-answer tests.
pub(crate) fn seal_with(
    payload: &mut dyn Read,
    plaintext_bytes: u64,
    suite: Suite,
    content_key: ContentKey,
    nonce_prefix: [u8; 7],
    sink: &mut dyn Write,
) -> Result<Sealed, ArtifactError> {
    let layout = Layout::of_plaintext(plaintext_bytes)?;
    let header = Header { suite, plaintext_bytes, nonce_prefix };
    let cipher = cipher(&content_key, suite)?;
    let mut leaves = Vec::with_capacity(layout.chunk_count() as usize);
    let mut left = plaintext_bytes;
    let digest = hashed_beside(|whole| {
        for index in 0..layout.chunk_count() {
            let mut buffer = Zeroizing::new(whole.spare());
            if index == 0 {
                buffer.extend_from_slice(&header.encode());
            }
            let start = buffer.len();
            let take = left.min(CHUNK_BYTES as u64);
            fill(payload, &mut buffer, take, plaintext_bytes - left, plaintext_bytes)?;
            left -= take;
            let nonce = nonce(&header, index, left == 0);
            let plain = buffer.get_mut(start..).unwrap_or_default();
            let tag = cipher
                .seal_in_place_separate_tag(nonce, aead::Aad::from(header.encode()), plain)
                .map_err(|_| ArtifactError::Crypto("encryption of a chunk"))?;
            buffer.extend_from_slice(tag.as_ref());
            leaves.push(tree::leaf(&buffer));
            sink.write_all(&buffer).map_err(ArtifactError::io("writing the sealed bundle"))?;
            whole.update(std::mem::take(&mut *buffer))?;
        }
        refuse_surplus(payload, plaintext_bytes)
    })?;
    let leaves = Leaves::new(leaves);
    Ok(Sealed { digest, length: layout.sealed_bytes(), tree_root: leaves.root(), leaves, content_key, suite })
}

/// Takes the chunks of a bundle to the thread that hashes them all, and their buffers back.
struct Whole {
    chunks: SyncSender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
}

impl Whole {
    /// An empty buffer for one chunk.
    fn spare(&self) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(HEADER_BYTES + CHUNK_BYTES + TAG_BYTES));
        buffer.clear();
        buffer
    }

    fn update(&self, chunk: Vec<u8>) -> Result<(), ArtifactError> {
        self.chunks.send(chunk).map_err(|_| ArtifactError::Crypto("hash of the bundle"))
    }
}

/// Gives the SHA-256 of all that `work` hands on. It is computed on a thread of its own, at most [`AHEAD`] chunks behind: a chunk
/// is hashed twice, for the tree and for the whole, and one after the other would take nearly twice as long.
fn hashed_beside(work: impl FnOnce(&Whole) -> Result<(), ArtifactError>) -> Result<Digest, ArtifactError> {
    let (chunks, incoming) = mpsc::sync_channel::<Vec<u8>>(AHEAD);
    let (outgoing, spare) = mpsc::channel();
    std::thread::scope(|scope| {
        let hasher = scope.spawn(move || {
            let mut context = Context::new(&SHA256);
            for chunk in incoming {
                context.update(&chunk);
                // Nobody takes buffers back any more once the work has ended.
                let _ = outgoing.send(chunk);
            }
            tree::finish(context)
        });
        let whole = Whole { chunks, spare };
        let worked = work(&whole);
        drop(whole);
        let digest = hasher.join().map_err(|_| ArtifactError::Crypto("hash of the bundle"))?;
        worked.map(|()| digest)
    })
}

pub(crate) fn cipher(key: &ContentKey, suite: Suite) -> Result<aead::LessSafeKey, ArtifactError> {
    let key = aead::UnboundKey::new(suite.algorithm(), key.secret_bytes()).map_err(|_| ArtifactError::Crypto("content key"))?;
    Ok(aead::LessSafeKey::new(key))
}

pub(crate) fn nonce(header: &Header, index: u32, last: bool) -> aead::Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    bytes[..7].copy_from_slice(&header.nonce_prefix);
    bytes[7..11].copy_from_slice(&index.to_be_bytes());
    bytes[11] = u8::from(last);
    aead::Nonce::assume_unique_for_key(bytes)
}

fn fill(source: &mut dyn Read, buffer: &mut Vec<u8>, take: u64, before: u64, promised: u64) -> Result<(), ArtifactError> {
    let got = source.take(take).read_to_end(buffer).map_err(ArtifactError::io("reading the payload"))? as u64;
    if got == take { Ok(()) } else { Err(ArtifactError::SourceLength { got: before + got, expected: promised }) }
}

fn refuse_surplus(source: &mut dyn Read, promised: u64) -> Result<(), ArtifactError> {
    let mut probe = Vec::new();
    match source.take(1).read_to_end(&mut probe).map_err(ArtifactError::io("reading the payload"))? {
        0 => Ok(()),
        _ => Err(ArtifactError::SourceLength { got: promised + 1, expected: promised }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests and roots come from a second implementation of `docs/artifact-format.md`, in Python with its `cryptography` package.
    #[test]
    fn seals_the_bytes_that_another_implementation_of_the_format_seals() {
        let payload: Vec<u8> = (0..CHUNK_BYTES + 100).map(|i| (i % 251) as u8).collect();
        let expected = [
            (
                Suite::Aes256Gcm,
                "5911fc6de1bc7c4a5c7619ddb6c9dd6d5b0889733a6ea185cbe06e253ab913a8",
                "036784eca5e9db5f36ed9787917d7929ccd781fbdb3d483e1d3773560bad6023",
            ),
            (
                Suite::ChaCha20Poly1305,
                "aa476cdef8365caabbb13b96cb96a32f2398c0b4deaafce2caf54f7fa4c94a36",
                "f06ffc7ddac1fc1fad9ab92c096e1d68b7e63700d2b114ef6bd0899a864d8f1f",
            ),
        ];
        for (suite, digest, root) in expected {
            let key = ContentKey::from_slice(&[0x42; 32]).unwrap();
            let sealed = seal_with(&mut &*payload, payload.len() as u64, suite, key, *b"nonce-7", &mut Vec::new()).unwrap();
            assert_eq!(sealed.digest.to_string(), digest, "{suite}");
            assert_eq!(sealed.tree_root.to_string(), root, "{suite}");
        }
    }
}
