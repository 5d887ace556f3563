//! NumPy's `.npz`: a zip archive of `.npy` arrays, read within bounds.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use npyz::npz::NpzArchive;
use npyz::{DType, NpyFile, Order, TypeChar};

use super::{DatasetLimits, fault};
use crate::error::DomainError;
use crate::tensor::{Element, MAX_RANK, Tensor};

/// Longest `.npy` header that is read; NumPy writes 128 bytes.
const MAX_HEADER_BYTES: usize = 4096;

/// All arrays of an archive by name.
///
/// # Errors
/// [`DomainError::Dataset`] for anything that is no such archive or is larger than `limits`.
pub(super) fn parse(bytes: &[u8], limits: &DatasetLimits) -> Result<BTreeMap<String, Tensor>, DomainError> {
    let mut archive = NpzArchive::new(Cursor::new(bytes)).map_err(|e| fault("", format!("{e}: expected an .npz archive")))?;
    let zip = archive.zip_archive();
    if zip.len() > limits.max_arrays {
        return Err(fault("", format!("{} entries: expected at most {}", zip.len(), limits.max_arrays)));
    }
    let (mut arrays, mut left) = (BTreeMap::new(), limits.max_bytes);
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|e| fault("", format!("entry {index}: {e}")))?;
        let Some(name) = npyz::npz::array_name_from_file_name(entry.name()).map(str::to_owned) else {
            let name: String = entry.name().chars().take(80).collect();
            return Err(fault(&name, "is no array: expected names that end in .npy"));
        };
        let raw = read_bounded(&name, &mut entry, left)?;
        left -= raw.len();
        let tensor = parse_npy(&name, &raw)?;
        if arrays.insert(name.clone(), tensor).is_some() {
            return Err(fault(&name, "comes twice: expected once"));
        }
    }
    Ok(arrays)
}

/// Decompresses an entry, but never more than `left` bytes, whatever its header claims.
fn read_bounded(name: &str, entry: &mut impl Read, left: usize) -> Result<Vec<u8>, DomainError> {
    let mut raw = Vec::new();
    entry.take(left as u64 + 1).read_to_end(&mut raw).map_err(|e| fault(name, format!("cannot be decompressed: {e}")))?;
    if raw.len() > left {
        return Err(fault(name, format!("more than {left} bytes decompressed: expected no more")));
    }
    Ok(raw)
}

fn parse_npy(name: &str, raw: &[u8]) -> Result<Tensor, DomainError> {
    let header = match raw.get(6..12) {
        Some(&[1, _, a, b, ..]) => usize::from(u16::from_le_bytes([a, b])),
        Some(&[_, _, a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => return Err(fault(name, format!("{} bytes: expected a .npy array", raw.len()))),
    };
    if header > MAX_HEADER_BYTES {
        return Err(fault(name, format!("header of {header} bytes: expected at most {MAX_HEADER_BYTES}")));
    }
    let file = NpyFile::new(raw).map_err(|e| fault(name, format!("{e}: expected a .npy array")))?;
    let shape = file.shape().iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let Some(shape) = shape.ok().filter(|s| s.len() <= MAX_RANK) else {
        return Err(fault(name, format!("shape {:?}: expected at most {MAX_RANK} axes", file.shape())));
    };
    if file.order() != Order::C && shape.len() > 1 {
        return Err(fault(name, "Fortran order: expected C order (numpy.ascontiguousarray)"));
    }
    let data = parse_elements(name, file, raw.len())?;
    Tensor::new(shape, data).map_err(|e| fault(name, e.to_string()))
}

fn parse_elements(name: &str, file: NpyFile<&[u8]>, available: usize) -> Result<Element, DomainError> {
    let DType::Plain(kind) = file.dtype() else {
        return Err(fault(name, "structured type: expected numbers"));
    };
    let size = kind.size_field();
    if file.len().checked_mul(size).is_none_or(|n| n > available as u64) {
        return Err(fault(name, format!("{} elements of {size} bytes in {available} bytes: truncated", file.len())));
    }
    let kind_text = kind.to_string();
    let data = match (kind.type_char(), size) {
        (TypeChar::Float, 4) => file.into_vec().map(Element::Fp32),
        (TypeChar::Float, 8) => file.into_vec().map(Element::Fp64),
        (TypeChar::Int, 8) => file.into_vec().map(Element::Int64),
        (TypeChar::Int, 4) => file.into_vec().map(Element::Int32),
        (TypeChar::Uint, 1) => file.into_vec().map(Element::Uint8),
        (TypeChar::Bool, 1) => file.into_vec::<bool>().map(|v| Element::Bool(v.into_iter().map(u8::from).collect())),
        _ => return Err(fault(name, format!("type {kind_text}: expected f4, f8, i8, i4, u1 or bool"))),
    };
    data.map_err(|e| fault(name, format!("elements cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_header_that_claims_gigabytes() {
        let mut raw = b"\x93NUMPY\x02\x00".to_vec();
        raw.extend(u32::MAX.to_le_bytes());
        assert!(parse_npy("x", &raw).unwrap_err().to_string().contains("header of 4294967295 bytes"));
    }
}
