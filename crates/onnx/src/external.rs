//! Weights in files beside the model: resolved when it is read, split off when it is written.
//!
//! A location comes from the file and is not trusted: it must be a relative path of plain names, offsets and lengths must lie in
//! the file and fit the tensor, and what all tensors claim together is bounded, so that many claims on one file do not become
//! more memory than was read. The format is that of the ONNX specification (External Data); the optional checksum is the SHA-1
//! of the whole file.

use std::collections::HashMap;

use prost::bytes::Bytes;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::error::OnnxError;
use crate::proto::tensor_proto::DataLocation;
use crate::proto::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use crate::tensor;
use crate::validate::Limits;

/// Reads a file by its location in the model's folder; the number is the most bytes it may have.
pub type ReadFile<'a> = dyn FnMut(&str, u64) -> std::io::Result<Bytes> + 'a;

/// Where weights begin in a file of their own, so that they can be mapped: a multiple of the page size.
const ALIGNMENT: usize = 4096;

/// A model in two files.
#[derive(Clone, Debug)]
pub struct Split {
    /// The model itself.
    pub model: Vec<u8>,
    /// The pieces of the file of weights, to be written one behind the other.
    pub data: Vec<Bytes>,
}

/// Puts the weights of other files into their tensors, and tells how many there were.
pub(crate) fn resolve(model: &mut ModelProto, limits: &Limits, read: &mut ReadFile<'_>) -> Result<usize, OnnxError> {
    let mut files = Files { files: HashMap::new(), claimed: 0, resolved: 0, limits, read };
    if let Some(graph) = &mut model.graph {
        files.graph(graph)?;
    }
    model.functions.iter_mut().try_for_each(|function| files.nodes(&mut function.node))?;
    Ok(files.resolved)
}

struct Files<'a, 'r> {
    files: HashMap<String, File>,
    /// Bytes of all tensors so far.
    claimed: u64,
    resolved: usize,
    limits: &'a Limits,
    read: &'a mut ReadFile<'r>,
}

struct File {
    bytes: Bytes,
    /// SHA-1 as hex, once it was asked for.
    checksum: Option<String>,
}

impl Files<'_, '_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), OnnxError> {
        graph.initializer.iter_mut().try_for_each(|tensor| self.tensor(tensor))?;
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), OnnxError> {
        for attribute in nodes.iter_mut().flat_map(|n| &mut n.attribute) {
            attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(|tensor| self.tensor(tensor))?;
            attribute.g.iter_mut().chain(&mut attribute.graphs).try_for_each(|graph| self.graph(graph))?;
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), OnnxError> {
        if tensor.data_location() != DataLocation::External {
            return Ok(());
        }
        let name = tensor.name().to_owned();
        let wrong = |reason: String| OnnxError::ExternalData { name: name.clone(), reason };
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key() == key).map(|e| e.value().to_owned());
        let number = |key: &str| {
            let number = entry(key).map(|v| v.parse::<u64>().map_err(|_| wrong(format!("{key} `{v}` is no number")))).transpose();
            number.map(|n| n.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
        };
        let location = entry("location").ok_or_else(|| wrong("it names no location".to_owned()))?;
        check_location(&location).map_err(wrong)?;
        let needed = needed_bytes(tensor)?;
        self.claimed = self.claimed.saturating_add(needed as u64);
        if self.claimed > self.limits.max_external_bytes {
            return Err(OnnxError::TooLarge { what: "bytes in other files", got: self.claimed, limit: self.limits.max_external_bytes });
        }
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let file = self.file(&location).map_err(|e| wrong(format!("reading `{location}`: {e}")))?;
        if let Some(expected) = entry("checksum") {
            let own = file.checksum.get_or_insert_with(|| hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &file.bytes).as_ref()));
            if !expected.eq_ignore_ascii_case(own) {
                return Err(wrong(format!("`{location}` has checksum {own}: expected {expected}")));
            }
        }
        let available = file.bytes.len().saturating_sub(offset);
        let length = length.unwrap_or(available);
        if length != needed || length > available {
            let dims = &tensor.dims;
            let reason = format!("bytes {offset}+{length} of {} in `{location}`: dimensions {dims:?} need {needed}", file.bytes.len());
            return Err(wrong(reason));
        }
        tensor.raw_data = Some(file.bytes.slice(offset.min(file.bytes.len())..).split_to(length));
        tensor.external_data.clear();
        tensor.data_location = None;
        self.resolved += 1;
        Ok(())
    }

    fn file(&mut self, location: &str) -> std::io::Result<&mut File> {
        let bytes = match self.files.get(location) {
            Some(_) => Bytes::new(),
            None => (self.read)(location, self.limits.max_external_bytes)?,
        };
        Ok(self.files.entry(location.to_owned()).or_insert(File { bytes, checksum: None }))
    }
}

/// Bytes of a tensor's elements.
fn needed_bytes(tensor: &TensorProto) -> Result<usize, OnnxError> {
    let dims = tensor::dims(tensor)?;
    let bits = tensor::element_bits(tensor::data_type(tensor)).and_then(|bits| tensor::element_count(&dims)?.checked_mul(bits));
    bits.map(|bits| bits.div_ceil(8)).ok_or_else(|| OnnxError::ExternalData {
        name: tensor.name().to_owned(),
        reason: format!("element type {} has no bytes to be read", tensor.data_type()),
    })
}

/// Refuses whatever could lead out of the model's folder, on any system.
fn check_location(location: &str) -> Result<(), String> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
    if location.len() <= 1024 && location.strip_prefix("./").unwrap_or(location).split('/').all(plain) {
        return Ok(());
    }
    Err(format!("location {location:?}: expected a path of plain names inside the model's folder"))
}

/// Moves large tensors out of a graph, and gives the pieces of the file they move to.
pub(crate) fn split(graph: &mut GraphProto, location: &str, min_bytes: usize) -> Result<Vec<Bytes>, OnnxError> {
    check_location(location).map_err(|reason| OnnxError::ExternalData { name: String::new(), reason })?;
    static ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];
    let (mut pieces, mut end) = (Vec::new(), 0usize);
    for tensor in &mut graph.initializer {
        tensor::settle(tensor);
        let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= min_bytes.max(1)) else { continue };
        let start = end.next_multiple_of(ALIGNMENT);
        pieces.extend((start > end).then(|| Bytes::from_static(&ZEROS).split_to(start - end)));
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
        tensor.external_data =
            vec![entry("location", location.to_owned()), entry("offset", start.to_string()), entry("length", raw.len().to_string())];
        tensor.data_location = Some(DataLocation::External.into());
        end = start + raw.len();
        pieces.push(raw);
    }
    Ok(pieces)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
