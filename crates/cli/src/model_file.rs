//! Model files, with the weights that lie beside them.

use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use pleach_onnx::{Limits, Model};

use crate::inspect::InspectError;

/// Reads a model and its weights, wherever in its folder they are.
///
/// # Errors
/// When a file cannot be read, is too large, or is no model.
pub(crate) fn read(path: &Path) -> anyhow::Result<Model> {
    let limits = Limits::default();
    let size_bytes = std::fs::metadata(path).context("cannot read the model")?.len();
    if size_bytes > limits.max_bytes as u64 {
        bail!("{size_bytes} bytes: expected at most {}", limits.max_bytes);
    }
    let bytes = std::fs::read(path).context("cannot read the model")?;
    Ok(decode(path, bytes.into()).map_err(InspectError::Model)?)
}

/// Decodes a model that was read from `path`, with its weights.
///
/// # Errors
/// As [`Model::decode_external`].
pub(crate) fn decode(path: &Path, bytes: Bytes) -> Result<Model, pleach_onnx::OnnxError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Model::decode_external(bytes, &Limits::default(), &mut |location, max_bytes| read_weights(folder, location, max_bytes))
}

/// Reads a file of weights in the model's folder; symbolic links may not lead out of it.
fn read_weights(folder: &Path, location: &str, max_bytes: u64) -> io::Result<Bytes> {
    let folder = folder.canonicalize()?;
    let file = folder.join(location).canonicalize()?;
    if !file.starts_with(&folder) {
        return Err(io::Error::other("a symbolic link leads out of the model's folder"));
    }
    let size_bytes = std::fs::metadata(&file)?.len();
    if size_bytes > max_bytes {
        return Err(io::Error::other(format!("{size_bytes} bytes: expected at most {max_bytes}")));
    }
    std::fs::read(file).map(Bytes::from)
}
