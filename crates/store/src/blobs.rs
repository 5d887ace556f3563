//! Blobs: files under their SHA-256, beside the database.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use pleach_domain::Digest;
use ring::digest::{Context, SHA256};

use crate::column::sha256;
use crate::error::StoreError;

/// Bytes gathered before they are written: object stores want parts of at least 5 MiB.
const PART_BYTES: usize = 8 << 20;

/// A blob store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
}

/// A blob, or the rest of one, on its way out.
pub struct Reading {
    /// Length of the whole blob in bytes.
    pub length: u64,
    /// Its bytes from the offset on.
    pub bytes: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Blobs {
    /// Blobs in a local folder, which must exist. What is written is synced to the disk.
    ///
    /// # Errors
    /// [`StoreError::Blob`] when the folder cannot be used.
    pub fn local(folder: &Path) -> Result<Self, StoreError> {
        let store = LocalFileSystem::new_with_prefix(folder).map_err(StoreError::blob("open"))?.with_fsync(true);
        Ok(Self { store: Arc::new(store) })
    }

    /// Stores a blob that was announced as `digest` and answers its length. Nothing can be read under the digest before all of it
    /// has come and hashed right. Holds one part (8 MiB) in memory.
    ///
    /// # Errors
    /// [`StoreError::BlobDigest`], [`StoreError::BlobSize`] beyond `limit` bytes, [`StoreError::BlobSource`] when the source breaks off,
    /// [`StoreError::Blob`]; nothing is kept then.
    pub async fn put<E>(&self, digest: &Digest, limit: u64, source: impl Stream<Item = Result<Bytes, E>> + Send) -> Result<u64, StoreError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut upload = self.store.put_multipart(&place(digest)).await.map_err(StoreError::blob("put"))?;
        match receive(upload.as_mut(), digest, limit, source).await {
            Ok(length) => {
                upload.complete().await.map_err(StoreError::blob("complete"))?;
                Ok(length)
            }
            Err(e) => {
                upload.abort().await.map_err(StoreError::blob("abort"))?;
                Err(e)
            }
        }
    }

    /// Stores bytes that are in memory and answers their digest.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn put_bytes(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        let digest = sha256(&bytes);
        self.store.put(&place(&digest), bytes.into()).await.map_err(StoreError::blob("put"))?;
        Ok(digest)
    }

    /// A whole blob of at most `limit` bytes, its digest checked.
    ///
    /// # Errors
    /// [`StoreError::BlobMissing`], [`StoreError::BlobSize`], [`StoreError::BlobDigest`] when it was altered, [`StoreError::Blob`].
    pub async fn get(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let got = self.store.get(&place(digest)).await.map_err(|e| missing(digest, "get", e))?;
        if got.meta.size > limit {
            return Err(StoreError::BlobSize { limit });
        }
        let bytes = got.bytes().await.map_err(StoreError::blob("read"))?;
        match sha256(&bytes) {
            same if same == *digest => Ok(bytes),
            other => Err(StoreError::BlobDigest { got: other, expected: *digest }),
        }
    }

    /// A blob from `offset` on, as it lies there (the receiver checks it); `None` when there is none.
    /// An offset at or behind the end gives no bytes.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn read(&self, digest: &Digest, offset: u64) -> Result<Option<Reading>, StoreError> {
        let Some(length) = self.size(digest).await? else { return Ok(None) };
        if offset >= length {
            return Ok(Some(Reading { length, bytes: futures::stream::empty().boxed() }));
        }
        let options = GetOptions { range: Some(GetRange::Offset(offset)), ..GetOptions::default() };
        let got = self.store.get_opts(&place(digest), options).await.map_err(|e| missing(digest, "get", e))?;
        Ok(Some(Reading { length, bytes: got.into_stream().map_err(StoreError::blob("read")).boxed() }))
    }

    /// Length of a blob in bytes; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match self.store.head(&place(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(StoreError::blob("head")(e)),
        }
    }
}

async fn receive<E: std::error::Error + Send + Sync + 'static>(
    upload: &mut dyn MultipartUpload,
    digest: &Digest,
    limit: u64,
    source: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<u64, StoreError> {
    let mut source = std::pin::pin!(source);
    let (mut hash, mut length, mut part) = (Context::new(&SHA256), 0u64, Vec::new());
    while let Some(bytes) = source.next().await {
        let bytes = bytes.map_err(|e| StoreError::BlobSource(Box::new(e)))?;
        length += bytes.len() as u64;
        if length > limit {
            return Err(StoreError::BlobSize { limit });
        }
        hash.update(&bytes);
        part.extend_from_slice(&bytes);
        if part.len() >= PART_BYTES {
            write_part(upload, &mut part).await?;
        }
    }
    write_part(upload, &mut part).await?;
    let mut got = [0; 32];
    got.copy_from_slice(hash.finish().as_ref());
    let got = Digest::new(got);
    if got == *digest { Ok(length) } else { Err(StoreError::BlobDigest { got, expected: *digest }) }
}

async fn write_part(upload: &mut dyn MultipartUpload, part: &mut Vec<u8>) -> Result<(), StoreError> {
    upload.put_part(PutPayload::from(std::mem::take(part))).await.map_err(StoreError::blob("write"))
}

/// `sha256/ab/abcd…`: two digits of folder keep directories small.
fn place(digest: &Digest) -> ObjectPath {
    let hex = digest.to_string();
    ObjectPath::from_iter(["sha256", hex.get(..2).unwrap_or_default(), &hex])
}

fn missing(digest: &Digest, doing: &'static str, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => StoreError::BlobMissing(*digest),
        other => StoreError::blob(doing)(other),
    }
}
