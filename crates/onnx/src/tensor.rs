//! Constants: how ONNX stores them, whatever the storage, and how Pleach writes them back.

use std::borrow::Cow;

use half::{bf16, f16};
use prost::bytes::Bytes;

use crate::error::OnnxError;
use crate::proto::TensorProto;
use crate::proto::tensor_proto::{DataLocation, DataType};
use crate::validate::Limits;

/// A constant's elements, row-major, decoded from any storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Axis lengths; empty for a scalar.
    pub dims: Vec<usize>,
    /// The elements.
    pub data: ConstantData,
}

/// Elements by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstantData {
    /// FLOAT, FLOAT16, BFLOAT16 and DOUBLE, as single precision.
    Floats(Vec<f32>),
    /// Integers and booleans of up to 64 bits.
    Ints(Vec<i64>),
    /// Everything Pleach does not compute with: strings, complex numbers, sub-byte and 8-bit floats.
    Other,
}

impl Constant {
    /// The elements as floats, when they are.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            ConstantData::Floats(values) => Some(values),
            ConstantData::Ints(_) | ConstantData::Other => None,
        }
    }

    /// The elements as integers, when they are.
    pub fn ints(&self) -> Option<&[i64]> {
        match &self.data {
            ConstantData::Ints(values) => Some(values),
            ConstantData::Floats(_) | ConstantData::Other => None,
        }
    }
}

/// The element type, `UNDEFINED` when it is not one of the schema.
pub(crate) fn data_type(tensor: &TensorProto) -> DataType {
    DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined)
}

/// Axis lengths, checked: none negative, no overflow.
pub(crate) fn dims(tensor: &TensorProto) -> Result<Vec<usize>, OnnxError> {
    let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let dims = dims.ok_or_else(|| wrong(tensor, format!("dimensions {:?}: expected none negative", tensor.dims)))?;
    if element_count(&dims).is_none() {
        return Err(wrong(tensor, format!("dimensions {:?} overflow", tensor.dims)));
    }
    Ok(dims)
}

/// Number of elements, `None` on overflow.
pub(crate) fn element_count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |a, &d| a.checked_mul(d))
}

/// Bits of one element in `raw_data`, `None` for types that have none there.
pub(crate) fn element_bits(kind: DataType) -> Option<usize> {
    match kind {
        DataType::Undefined | DataType::String => None,
        DataType::Uint2 | DataType::Int2 => Some(2),
        DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => Some(4),
        DataType::Float6e2m3 | DataType::Float6e3m2 => Some(6),
        DataType::Uint8
        | DataType::Int8
        | DataType::Bool
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0 => Some(8),
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => Some(16),
        DataType::Float | DataType::Int32 | DataType::Uint32 => Some(32),
        DataType::Double | DataType::Int64 | DataType::Uint64 | DataType::Complex64 => Some(64),
        DataType::Complex128 => Some(128),
    }
}

/// Checks that dimensions, type and data agree.
pub(crate) fn check(tensor: &TensorProto, limits: &Limits) -> Result<(), OnnxError> {
    let dims = dims(tensor)?;
    if dims.len() > limits.max_rank {
        return Err(wrong(tensor, format!("rank {}: expected at most {}", dims.len(), limits.max_rank)));
    }
    // An empty tensor costs nothing to store, yet its other axes may be of any length.
    let others = dims.iter().filter(|&&d| d > 0).try_fold(1usize, |a, &d| a.checked_mul(d));
    if dims.contains(&0) && others.is_none_or(|count| count > limits.max_elements) {
        return Err(wrong(tensor, format!("dimensions {dims:?}: expected axes of at most {} elements", limits.max_elements)));
    }
    if tensor.data_location() == DataLocation::External || !tensor.external_data.is_empty() {
        let reason = "expected its data inside the model".to_owned();
        return Err(OnnxError::ExternalData { name: tensor.name().to_owned(), reason });
    }
    let kind = data_type(tensor);
    let count = element_count(&dims).unwrap_or(usize::MAX);
    if kind == DataType::Undefined {
        return Err(wrong(tensor, format!("element type {}: expected one of the ONNX schema", tensor.data_type())));
    }
    let (got, expected) = match (&tensor.raw_data, element_bits(kind)) {
        (Some(raw), Some(bits)) if !raw.is_empty() => (raw.len(), count.checked_mul(bits).map(|b| b.div_ceil(8))),
        _ => typed_length(tensor, kind, count),
    };
    if expected == Some(got) {
        return Ok(());
    }
    let expected = expected.map_or_else(|| "less".to_owned(), |e| e.to_string());
    Err(wrong(tensor, format!("dimensions {dims:?} of {} need {expected} bytes or elements, got {got}", kind.as_str_name())))
}

/// Elements in the typed list of a kind, and how many there must be.
fn typed_length(tensor: &TensorProto, kind: DataType, count: usize) -> (usize, Option<usize>) {
    match kind {
        DataType::Float => (tensor.float_data.len(), Some(count)),
        DataType::Complex64 => (tensor.float_data.len(), count.checked_mul(2)),
        DataType::Double => (tensor.double_data.len(), Some(count)),
        DataType::Complex128 => (tensor.double_data.len(), count.checked_mul(2)),
        DataType::Int64 => (tensor.int64_data.len(), Some(count)),
        DataType::Uint32 | DataType::Uint64 => (tensor.uint64_data.len(), Some(count)),
        DataType::String => (tensor.string_data.len(), Some(count)),
        DataType::Uint2 | DataType::Int2 => (tensor.int32_data.len(), Some(count.div_ceil(4))),
        DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => (tensor.int32_data.len(), Some(count.div_ceil(2))),
        DataType::Undefined
        | DataType::Uint8
        | DataType::Int8
        | DataType::Uint16
        | DataType::Int16
        | DataType::Int32
        | DataType::Bool
        | DataType::Float16
        | DataType::Bfloat16
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0
        | DataType::Float6e2m3
        | DataType::Float6e3m2 => (tensor.int32_data.len(), Some(count)),
    }
}

/// Least bytes of a typed list that is moved to `raw_data`.
const SETTLED_BYTES: usize = 1024;

/// Moves the elements of a large typed list to `raw_data`, where copies of the tensor share them.
pub(crate) fn settle(tensor: &mut TensorProto) {
    let whole_bytes = element_bits(data_type(tensor)).is_some_and(|bits| bits.is_multiple_of(8));
    let raw = if whole_bytes { raw(tensor) } else { None };
    if let Some(Cow::Owned(raw)) = raw.filter(|raw| raw.len() >= SETTLED_BYTES) {
        tensor.float_data = Vec::new();
        tensor.int32_data = Vec::new();
        tensor.int64_data = Vec::new();
        tensor.double_data = Vec::new();
        tensor.uint64_data = Vec::new();
        tensor.raw_data = Some(Bytes::from(raw));
    }
}

/// A tensor's elements as little-endian row-major bytes, whatever list holds them; `None` for strings.
fn raw(tensor: &TensorProto) -> Option<Cow<'_, [u8]>> {
    if let Some(raw) = tensor.raw_data.as_deref().filter(|raw| !raw.is_empty()) {
        return Some(Cow::Borrowed(raw));
    }
    Some(Cow::Owned(match data_type(tensor) {
        DataType::Undefined | DataType::String => return None,
        DataType::Float | DataType::Complex64 => bytes(&tensor.float_data, |v| v.to_le_bytes()),
        DataType::Double | DataType::Complex128 => bytes(&tensor.double_data, |v| v.to_le_bytes()),
        DataType::Int64 => bytes(&tensor.int64_data, |v| v.to_le_bytes()),
        DataType::Uint64 => bytes(&tensor.uint64_data, |v| v.to_le_bytes()),
        DataType::Uint32 => bytes(&tensor.uint64_data, |v| (v as u32).to_le_bytes()),
        DataType::Int32 => bytes(&tensor.int32_data, |v| v.to_le_bytes()),
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => {
            bytes(&tensor.int32_data, |v| (v as u16).to_le_bytes())
        }
        DataType::Uint8
        | DataType::Int8
        | DataType::Bool
        | DataType::Uint2
        | DataType::Int2
        | DataType::Uint4
        | DataType::Int4
        | DataType::Float4e2m1
        | DataType::Float6e2m3
        | DataType::Float6e3m2
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0 => bytes(&tensor.int32_data, |v| [v as u8]),
    }))
}

/// Decodes a checked tensor.
pub(crate) fn decode(tensor: &TensorProto) -> Result<Constant, OnnxError> {
    let dims = dims(tensor)?;
    let raw = raw(tensor).unwrap_or_default();
    let data = match data_type(tensor) {
        DataType::Float => ConstantData::Floats(map(&raw, f32::from_le_bytes)),
        DataType::Float16 => ConstantData::Floats(map(&raw, |b| f16::from_le_bytes(b).to_f32())),
        DataType::Bfloat16 => ConstantData::Floats(map(&raw, |b| bf16::from_le_bytes(b).to_f32())),
        DataType::Double => ConstantData::Floats(map(&raw, |b| f64::from_le_bytes(b) as f32)),
        DataType::Int64 => ConstantData::Ints(map(&raw, i64::from_le_bytes)),
        DataType::Uint64 => ConstantData::Ints(map(&raw, |b| u64::from_le_bytes(b) as i64)),
        DataType::Uint32 => ConstantData::Ints(map(&raw, |b| i64::from(u32::from_le_bytes(b)))),
        DataType::Int32 => ConstantData::Ints(map(&raw, |b| i64::from(i32::from_le_bytes(b)))),
        DataType::Int16 => ConstantData::Ints(map(&raw, |b| i64::from(i16::from_le_bytes(b)))),
        DataType::Uint16 => ConstantData::Ints(map(&raw, |b| i64::from(u16::from_le_bytes(b)))),
        DataType::Int8 => ConstantData::Ints(map(&raw, |b| i64::from(i8::from_le_bytes(b)))),
        DataType::Uint8 | DataType::Bool => ConstantData::Ints(map(&raw, |b| i64::from(u8::from_le_bytes(b)))),
        _ => ConstantData::Other,
    };
    Ok(Constant { dims, data })
}

/// A copy of a tensor that holds, along one axis, the given indices in the given order. Cost: one copy of the result.
///
/// # Errors
/// [`OnnxError::Tensor`] when the axis or an index is not there, or elements are no whole bytes.
pub fn select(tensor: &TensorProto, axis: usize, indices: &[usize]) -> Result<TensorProto, OnnxError> {
    along(tensor, axis, |row, index_bytes, length| {
        let mut out = Vec::with_capacity(indices.len() * index_bytes);
        for &index in indices.iter().filter(|&&i| i < length) {
            out.extend_from_slice(row.get(index * index_bytes..(index + 1) * index_bytes)?);
        }
        (out.len() == indices.len() * index_bytes).then_some(out)
    })
    .map(|mut selected| {
        if let Some(dim) = selected.dims.get_mut(axis) {
            *dim = i64::try_from(indices.len()).unwrap_or(i64::MAX);
        }
        selected
    })
}

/// A copy of a tensor with zeros, along one axis, at the given indices.
///
/// # Errors
/// As [`select`].
pub fn zero(tensor: &TensorProto, axis: usize, indices: &[usize]) -> Result<TensorProto, OnnxError> {
    along(tensor, axis, |row, index_bytes, _| {
        let mut out = row.to_vec();
        for &index in indices {
            out.get_mut(index * index_bytes..(index + 1) * index_bytes)?.fill(0);
        }
        Some(out)
    })
}

/// Rewrites each run of one axis: `rewrite(bytes of the axis, bytes of one index, length)`.
fn along(tensor: &TensorProto, axis: usize, rewrite: impl Fn(&[u8], usize, usize) -> Option<Vec<u8>>) -> Result<TensorProto, OnnxError> {
    let dims = dims(tensor)?;
    let bytes = element_bits(data_type(tensor)).filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8);
    let (Some(bytes), Some(&length), Some(raw)) = (bytes, dims.get(axis), raw(tensor)) else {
        return Err(wrong(tensor, format!("axis {axis} of dimensions {dims:?} cannot be cut")));
    };
    let index_bytes = dims.iter().skip(axis + 1).product::<usize>() * bytes;
    let mut out = Vec::with_capacity(raw.len());
    if index_bytes * length > 0 {
        for row in raw.chunks_exact(index_bytes * length) {
            let row = rewrite(row, index_bytes, length);
            out.extend(row.ok_or_else(|| wrong(tensor, format!("an index is outside axis {axis} of length {length}")))?);
        }
    }
    Ok(TensorProto {
        name: tensor.name.clone(),
        doc_string: tensor.doc_string.clone(),
        metadata_props: tensor.metadata_props.clone(),
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        raw_data: Some(Bytes::from(out)),
        ..TensorProto::default()
    })
}

/// A tensor of one element, repeated; `None` when that is no whole number of bytes.
pub(crate) fn fill(dims: &[usize], value: &TensorProto) -> Option<TensorProto> {
    let bits = element_bits(data_type(value)).filter(|bits| bits.is_multiple_of(8))?;
    let element = raw(value).filter(|raw| raw.len() == bits / 8)?;
    let raw = element.repeat(element_count(dims)?);
    Some(TensorProto {
        dims: dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
        data_type: value.data_type,
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    })
}

/// The one element that a tensor repeats; `None` when elements differ, or are no whole bytes.
pub(crate) fn repeated(tensor: &TensorProto) -> Option<TensorProto> {
    let bits = element_bits(data_type(tensor)).filter(|bits| bits.is_multiple_of(8))?;
    let all = raw(tensor)?;
    let one = all.get(..bits / 8)?;
    let value =
        || TensorProto { dims: vec![1], data_type: tensor.data_type, raw_data: Some(one.to_vec().into()), ..TensorProto::default() };
    all.chunks(one.len()).all(|element| element == one).then(value)
}

/// A tensor of floats in the storage type of `like` (FLOAT when that is not a float type), as `raw_data`.
pub fn encode_floats(name: &str, dims: &[usize], values: &[f32], kind: DataType) -> Result<TensorProto, OnnxError> {
    let raw: Vec<u8> = match kind {
        DataType::Float16 => bytes(values, |v| f16::from_f32(v).to_le_bytes()),
        DataType::Bfloat16 => bytes(values, |v| bf16::from_f32(v).to_le_bytes()),
        DataType::Double => bytes(values, |v| f64::from(v).to_le_bytes()),
        _ => bytes(values, f32::to_le_bytes),
    };
    let kind = match kind {
        DataType::Float16 | DataType::Bfloat16 | DataType::Double => kind,
        _ => DataType::Float,
    };
    encode_raw(name, dims, values.len(), raw, kind)
}

/// An INT64 tensor as `raw_data`.
pub fn encode_ints(name: &str, dims: &[usize], values: &[i64]) -> Result<TensorProto, OnnxError> {
    encode_raw(name, dims, values.len(), bytes(values, i64::to_le_bytes), DataType::Int64)
}

fn encode_raw(name: &str, dims: &[usize], count: usize, raw: Vec<u8>, kind: DataType) -> Result<TensorProto, OnnxError> {
    if element_count(dims) != Some(count) {
        return Err(OnnxError::Tensor { name: name.to_owned(), reason: format!("dimensions {dims:?} cannot hold {count} elements") });
    }
    let dims = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
    Ok(TensorProto {
        name: Some(name.to_owned()),
        dims,
        data_type: Some(kind.into()),
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    })
}

fn bytes<T: Copy, const N: usize>(values: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * N);
    values.iter().for_each(|&v| out.extend_from_slice(&of(v)));
    out
}

fn map<const N: usize, T>(raw: &[u8], parse: impl Fn([u8; N]) -> T) -> Vec<T> {
    raw.as_chunks::<N>().0.iter().map(|chunk| parse(*chunk)).collect()
}

fn wrong(tensor: &TensorProto, reason: String) -> OnnxError {
    OnnxError::Tensor { name: tensor.name().to_owned(), reason }
}
