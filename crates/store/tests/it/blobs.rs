//! Blobs: nothing can be read under a digest that is not its own.

use std::io;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use pleach_domain::Digest;
use pleach_store::{Blobs, StoreError};

fn open() -> (Blobs, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Blobs::local(folder.path()).unwrap(), folder)
}

fn content() -> (Bytes, Digest) {
    let bytes: Vec<u8> = (0..20_000_000u32).map(|i| (i % 251) as u8).collect();
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    (bytes.into(), Digest::from_slice(digest.as_ref()).unwrap())
}

fn chunks(bytes: &Bytes) -> impl futures::Stream<Item = Result<Bytes, io::Error>> + Send + use<> {
    let parts: Vec<_> = bytes.chunks(1_000_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    stream::iter(parts)
}

fn files(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { files(&e.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn a_streamed_blob_reads_back_whole_and_from_any_offset() {
    let ((blobs, _folder), (bytes, digest)) = (open(), content());
    assert_eq!(blobs.put(&digest, 1 << 30, chunks(&bytes)).await.unwrap(), 20_000_000);
    assert_eq!(blobs.put(&digest, 1 << 30, chunks(&bytes)).await.unwrap(), 20_000_000, "again");
    assert_eq!(blobs.get(&digest, 1 << 30).await.unwrap(), bytes);
    assert_eq!(blobs.size(&digest).await.unwrap(), Some(20_000_000));
    for offset in [0u64, 1, 12_345_678, 19_999_999, 20_000_000, 30_000_000] {
        let reading = blobs.read(&digest, offset).await.unwrap().unwrap();
        assert_eq!(reading.length, 20_000_000);
        let got: Vec<Bytes> = reading.bytes.try_collect().await.unwrap();
        assert!(got.concat() == bytes.get(offset as usize..).unwrap_or_default(), "from {offset}");
    }
}

#[tokio::test]
async fn a_wrong_digest_a_broken_source_and_too_many_bytes_leave_nothing() {
    let ((blobs, folder), (bytes, digest)) = (open(), content());
    let wrong = Digest::new([1; 32]);
    let refused = blobs.put(&wrong, 1 << 30, chunks(&bytes)).await.unwrap_err();
    assert!(matches!(refused, StoreError::BlobDigest { got, expected } if got == digest && expected == wrong));
    let broken = chunks(&bytes).take(15).chain(stream::iter([Err(io::Error::other("cut off"))]));
    assert!(matches!(blobs.put(&digest, 1 << 30, broken).await.unwrap_err(), StoreError::BlobSource(_)));
    assert!(matches!(blobs.put(&digest, 19_999_999, chunks(&bytes)).await.unwrap_err(), StoreError::BlobSize { limit: 19_999_999 }));
    assert_eq!((blobs.size(&digest).await.unwrap(), blobs.size(&wrong).await.unwrap(), files(folder.path())), (None, None, 0));
    assert!(blobs.read(&digest, 0).await.unwrap().is_none());
    assert!(matches!(blobs.get(&digest, 1).await.unwrap_err(), StoreError::BlobMissing(missing) if missing == digest));
}

#[tokio::test]
async fn a_blob_that_was_altered_on_disk_is_refused() {
    let (blobs, folder) = open();
    let digest = blobs.put_bytes(Bytes::from_static(b"content")).await.unwrap();
    let hex = digest.to_string();
    std::fs::write(folder.path().join("sha256").join(&hex[..2]).join(&hex), b"CONTENT").unwrap();
    assert!(matches!(blobs.get(&digest, 100).await.unwrap_err(), StoreError::BlobDigest { expected, .. } if expected == digest));
    assert!(matches!(blobs.get(&digest, 3).await.unwrap_err(), StoreError::BlobSize { limit: 3 }));
}
