//! Opening: a sealed bundle goes in, chunk by chunk in order, and the payload comes out. The inverse of [`crate::seal()`].

use std::io::{Read, Write};

use pleach_domain::Digest;
use ring::aead;
use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use crate::error::ArtifactError;
use crate::header::{CHUNK_BYTES, HEADER_BYTES, Header, Layout, TAG_BYTES};
use crate::key::ContentKey;
use crate::seal::{cipher, nonce};
use crate::tree;

/// Opens the chunks of one bundle in order. Holds one chunk and the expanded key.
pub struct Opener {
    layout: Layout,
    content_key: ContentKey,
    state: Option<(Header, aead::LessSafeKey)>,
    next: u32,
    whole: Context,
    buffer: Zeroizing<Vec<u8>>,
}

impl Opener {
    /// Prepares to open a bundle of `sealed_bytes`, as signed metadata gives it.
    ///
    /// # Errors
    /// [`ArtifactError::Length`] when no bundle has that length.
    pub fn new(content_key: ContentKey, sealed_bytes: u64) -> Result<Self, ArtifactError> {
        Ok(Self {
            layout: Layout::of_sealed(sealed_bytes)?,
            content_key,
            state: None,
            next: 0,
            whole: Context::new(&SHA256),
            buffer: Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES)),
        })
    }

    /// Where the chunks lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Opens the next chunk and gives its plaintext, which is wiped by the next call.
    ///
    /// # Errors
    /// [`ArtifactError::ChunkIndex`] after the last chunk, [`ArtifactError::ChunkLength`], [`ArtifactError::Header`] in
    /// chunk 0, [`ArtifactError::ChunkDecrypt`] for a chunk that is not the next one under this key.
    pub fn open_chunk(&mut self, chunk: &[u8]) -> Result<&[u8], ArtifactError> {
        let index = self.next;
        let expected = self.layout.chunk_len(index)?;
        if chunk.len() != expected {
            return Err(ArtifactError::ChunkLength { index, got: chunk.len(), expected });
        }
        let body = if index == 0 { self.begin(chunk)? } else { chunk };
        let (header, key) = self.state.as_ref().ok_or(ArtifactError::ChunkDecrypt { index })?;
        self.buffer.clear();
        self.buffer.extend_from_slice(body);
        let nonce = nonce(header, index, index + 1 == self.layout.chunk_count());
        let plain = key
            .open_in_place(nonce, aead::Aad::from(header.encode()), &mut self.buffer)
            .map_err(|_| ArtifactError::ChunkDecrypt { index })?;
        self.whole.update(chunk);
        self.next += 1;
        Ok(plain)
    }

    /// Ends opening: every chunk came, and together they are the bundle that was signed. Only now may the plaintext be used.
    ///
    /// # Errors
    /// [`ArtifactError::Truncated`] before the last chunk, [`ArtifactError::BundleDigest`] for other bytes than were signed.
    pub fn finish(self, digest: &Digest) -> Result<(), ArtifactError> {
        let count = self.layout.chunk_count();
        if self.next != count {
            return Err(ArtifactError::Truncated { opened: self.next, count });
        }
        let got = tree::finish(self.whole);
        if got == *digest { Ok(()) } else { Err(ArtifactError::BundleDigest { got, expected: *digest }) }
    }

    fn begin<'c>(&mut self, chunk: &'c [u8]) -> Result<&'c [u8], ArtifactError> {
        let short = ArtifactError::ChunkLength { index: 0, got: chunk.len(), expected: HEADER_BYTES };
        let (header, body) = chunk.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
        let header = Header::decode(header)?;
        if header.layout() != self.layout {
            return Err(ArtifactError::Header {
                field: "plaintext length",
                got: header.plaintext_bytes.to_string(),
                expected: self.layout.plaintext_bytes().to_string(),
            });
        }
        let key = cipher(&self.content_key, header.suite)?;
        self.state = Some((header, key));
        Ok(body)
    }
}

/// Opens a whole bundle from `source` into `sink`, one chunk at a time, and checks that it is the one with `digest`.
///
/// # Errors
/// Those of [`Opener`], [`ArtifactError::TrailingBytes`] when the source goes on, [`ArtifactError::Io`]. What was written
/// to `sink` may be used only after `Ok`.
pub fn open(
    source: &mut dyn Read,
    sealed_bytes: u64,
    digest: &Digest,
    content_key: ContentKey,
    sink: &mut dyn Write,
) -> Result<(), ArtifactError> {
    let mut opener = Opener::new(content_key, sealed_bytes)?;
    let layout = opener.layout();
    let reading = "reading the sealed bundle";
    let mut chunk = Vec::with_capacity(HEADER_BYTES + CHUNK_BYTES + TAG_BYTES);
    for index in 0..layout.chunk_count() {
        chunk.clear();
        let expected = layout.chunk_len(index)?;
        source.take(expected as u64).read_to_end(&mut chunk).map_err(ArtifactError::io(reading))?;
        let plain = opener.open_chunk(&chunk)?;
        sink.write_all(plain).map_err(ArtifactError::io("writing the opened payload"))?;
    }
    chunk.clear();
    if source.take(1).read_to_end(&mut chunk).map_err(ArtifactError::io(reading))? != 0 {
        return Err(ArtifactError::TrailingBytes { at: layout.sealed_bytes() });
    }
    opener.finish(digest)
}
