//! Uploads: a file becomes a blob under the digest of its content.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use pleach_domain::Digest;
use pleach_proto::rest::BlobView;
use reqwest::Body;
use reqwest::header::CONTENT_LENGTH;
use ring::digest::{Context, SHA256};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::{Client, Repeat};
use crate::error::ClientError;

/// Bytes read at a time.
const PIECE_BYTES: usize = 64 << 10;

impl Client {
    /// Uploads a file as a stream; `progress` is told the bytes sent so far (it falls back to few when a try is repeated).
    ///
    /// # Errors
    /// [`ClientError::Read`] when the file cannot be read; [`ClientError::Refused`] when it is too large or was changed underway.
    pub async fn upload(&self, path: &Path, progress: impl Fn(u64) + Send + Sync + 'static) -> Result<BlobView, ClientError> {
        let failed = |source| ClientError::Read { what: "the file to upload", path: path.to_owned(), source };
        let (digest, size_bytes) = {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || sha256_of(&path)).await.map_err(|e| failed(e.into()))?.map_err(failed)?
        };
        // One handle for all tries: each reads it from the start through its own clone.
        let file = std::fs::File::open(path).map_err(failed)?;
        let progress = Arc::new(progress);
        let url = self.url(&["blobs", &digest.to_string()]);
        self.call(Repeat::Always, &url, || {
            let request = self.http.put(url.clone()).header(CONTENT_LENGTH, size_bytes);
            match rewound(&file) {
                Ok(file) => request.body(stream(file, Arc::clone(&progress))),
                Err(error) => request.body(Body::wrap_stream(futures::stream::iter([Err::<Vec<u8>, _>(error)]))),
            }
        })
        .await
    }
}

fn rewound(mut file: &std::fs::File) -> std::io::Result<std::fs::File> {
    std::io::Seek::rewind(&mut file)?;
    file.try_clone()
}

fn stream(file: std::fs::File, progress: Arc<impl Fn(u64) + Send + Sync + 'static>) -> Body {
    let sent = AtomicU64::new(0);
    Body::wrap_stream(ReaderStream::with_capacity(File::from_std(file), PIECE_BYTES).inspect_ok(move |piece| {
        let piece = piece.len() as u64;
        progress(sent.fetch_add(piece, Ordering::Relaxed) + piece);
    }))
}

fn sha256_of(path: &Path) -> std::io::Result<(Digest, u64)> {
    let mut file = std::fs::File::open(path)?;
    let (mut context, mut length, mut buffer) = (Context::new(&SHA256), 0, vec![0; PIECE_BYTES]);
    loop {
        let read = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..read).filter(|p| !p.is_empty()) else { break };
        context.update(piece);
        length += read as u64;
    }
    let digest = Digest::from_slice(context.finish().as_ref()).map_err(std::io::Error::other)?;
    Ok((digest, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_and_length_are_those_of_the_file() {
        let path = std::env::temp_dir().join(format!("pleach-upload-{}", std::process::id()));
        std::fs::write(&path, b"abc").unwrap();
        let (digest, length) = sha256_of(&path).unwrap();
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); // FIPS 180-2, B.1
        assert_eq!(length, 3);
        std::fs::remove_file(path).unwrap();
    }
}
