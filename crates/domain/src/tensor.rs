//! Dense tensors as they cross Pleach's edges: datasets, known-answer tests, inference requests.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::DomainError;

/// Most dimensions a tensor may have.
pub const MAX_RANK: usize = 8;

/// The element types Pleach moves; the names are those of the Open Inference Protocol v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ElementType {
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// Signed 64-bit integer.
    Int64,
    /// Signed 32-bit integer.
    Int32,
    /// Unsigned 8-bit integer.
    Uint8,
    /// One byte, 0 or 1.
    Bool,
}

impl ElementType {
    /// Size of one element in bytes.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Fp64 | Self::Int64 => 8,
            Self::Fp32 | Self::Int32 => 4,
            Self::Uint8 | Self::Bool => 1,
        }
    }

    /// The Open Inference Protocol name, e.g. `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Int64 => "INT64",
            Self::Int32 => "INT32",
            Self::Uint8 => "UINT8",
            Self::Bool => "BOOL",
        }
    }

    /// Parses an Open Inference Protocol name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Fp32, Self::Fp64, Self::Int64, Self::Int32, Self::Uint8, Self::Bool].into_iter().find(|t| t.name() == name)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Element {
    /// Single precision floats.
    Fp32(Vec<f32>),
    /// Double precision floats.
    Fp64(Vec<f64>),
    /// 64-bit integers.
    Int64(Vec<i64>),
    /// 32-bit integers.
    Int32(Vec<i32>),
    /// Bytes.
    Uint8(Vec<u8>),
    /// Booleans, one byte each, 0 or 1.
    Bool(Vec<u8>),
}

/// A dense row-major tensor whose shape and number of elements agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Element,
}

impl Tensor {
    /// Builds a tensor.
    ///
    /// # Errors
    /// [`DomainError::TensorShape`] when the shape has more than [`MAX_RANK`] axes, overflows, or does not hold exactly the given elements.
    pub fn new(shape: Vec<usize>, data: Element) -> Result<Self, DomainError> {
        let len = element_count(&data);
        let expected = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
        if shape.len() > MAX_RANK || expected != Some(len) {
            return Err(DomainError::TensorShape { shape, elements: len });
        }
        Ok(Self { shape, data })
    }

    /// A single-precision tensor. See [`Tensor::new`] for the errors.
    pub fn fp32(shape: Vec<usize>, data: Vec<f32>) -> Result<Self, DomainError> {
        Self::new(shape, Element::Fp32(data))
    }

    /// A 64-bit integer tensor. See [`Tensor::new`] for the errors.
    pub fn int64(shape: Vec<usize>, data: Vec<i64>) -> Result<Self, DomainError> {
        Self::new(shape, Element::Int64(data))
    }

    /// Parses little-endian row-major bytes (the raw form of the Open Inference Protocol and of ONNX).
    ///
    /// # Errors
    /// [`DomainError::TensorShape`] when the bytes are not exactly as many as the shape needs.
    pub fn from_le_bytes(kind: ElementType, shape: Vec<usize>, bytes: &[u8]) -> Result<Self, DomainError> {
        let size = kind.size_bytes();
        if !bytes.len().is_multiple_of(size) {
            return Err(DomainError::TensorShape { shape, elements: bytes.len() / size });
        }
        let data = match kind {
            ElementType::Fp32 => Element::Fp32(chunks(bytes, f32::from_le_bytes)),
            ElementType::Fp64 => Element::Fp64(chunks(bytes, f64::from_le_bytes)),
            ElementType::Int64 => Element::Int64(chunks(bytes, i64::from_le_bytes)),
            ElementType::Int32 => Element::Int32(chunks(bytes, i32::from_le_bytes)),
            ElementType::Uint8 => Element::Uint8(bytes.to_vec()),
            ElementType::Bool => Element::Bool(bytes.iter().map(|&b| u8::from(b != 0)).collect()),
        };
        Self::new(shape, data)
    }

    /// The elements as little-endian row-major bytes.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match &self.data {
            Element::Fp32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Fp64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Int64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Int32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Uint8(v) | Element::Bool(v) => v.clone(),
        }
    }

    /// Axis lengths; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Element {
        &self.data
    }

    /// The element type.
    pub fn element_type(&self) -> ElementType {
        match self.data {
            Element::Fp32(_) => ElementType::Fp32,
            Element::Fp64(_) => ElementType::Fp64,
            Element::Int64(_) => ElementType::Int64,
            Element::Int32(_) => ElementType::Int32,
            Element::Uint8(_) => ElementType::Uint8,
            Element::Bool(_) => ElementType::Bool,
        }
    }

    /// The elements as single-precision floats, when that is their type.
    pub fn as_fp32(&self) -> Option<&[f32]> {
        match &self.data {
            Element::Fp32(v) => Some(v),
            Element::Fp64(_) | Element::Int64(_) | Element::Int32(_) | Element::Uint8(_) | Element::Bool(_) => None,
        }
    }

    /// The elements as 64-bit integers, when that is their type.
    pub fn as_int64(&self) -> Option<&[i64]> {
        match &self.data {
            Element::Int64(v) => Some(v),
            Element::Fp32(_) | Element::Fp64(_) | Element::Int32(_) | Element::Uint8(_) | Element::Bool(_) => None,
        }
    }

    /// Length of the first axis; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Rows `start..end` along the first axis, clamped to what is there.
    pub fn slice_rows(&self, start: usize, end: usize) -> Self {
        let rows = self.rows();
        let (start, end) = (start.min(rows), end.min(rows).max(start.min(rows)));
        let row = element_count(&self.data).checked_div(rows).unwrap_or(0);
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = end - start;
        }
        let range = start * row..end * row;
        let data = match &self.data {
            Element::Fp32(v) => Element::Fp32(part(v, range)),
            Element::Fp64(v) => Element::Fp64(part(v, range)),
            Element::Int64(v) => Element::Int64(part(v, range)),
            Element::Int32(v) => Element::Int32(part(v, range)),
            Element::Uint8(v) => Element::Uint8(part(v, range)),
            Element::Bool(v) => Element::Bool(part(v, range)),
        };
        Self { shape, data }
    }

    /// This tensor's rows and those of others behind them. Others that differ in more than rows are left out.
    pub fn with_rows(&self, others: &[&Self]) -> Self {
        let mut whole = self.clone();
        for other in others.iter().filter(|o| o.shape.len() == self.shape.len() && o.shape.get(1..) == self.shape.get(1..)) {
            let appended = match (&mut whole.data, &other.data) {
                (Element::Fp32(v), Element::Fp32(more)) => append(v, more),
                (Element::Fp64(v), Element::Fp64(more)) => append(v, more),
                (Element::Int64(v), Element::Int64(more)) => append(v, more),
                (Element::Int32(v), Element::Int32(more)) => append(v, more),
                (Element::Uint8(v), Element::Uint8(more)) | (Element::Bool(v), Element::Bool(more)) => append(v, more),
                _ => false,
            };
            if let Some(rows) = whole.shape.first_mut().filter(|_| appended) {
                *rows += other.rows();
            }
        }
        whole
    }
}

fn append<T: Clone>(values: &mut Vec<T>, more: &[T]) -> bool {
    values.extend_from_slice(more);
    true
}

fn part<T: Clone>(values: &[T], range: std::ops::Range<usize>) -> Vec<T> {
    values.get(range).map(<[T]>::to_vec).unwrap_or_default()
}

fn element_count(data: &Element) -> usize {
    match data {
        Element::Fp32(v) => v.len(),
        Element::Fp64(v) => v.len(),
        Element::Int64(v) => v.len(),
        Element::Int32(v) => v.len(),
        Element::Uint8(v) | Element::Bool(v) => v.len(),
    }
}

fn chunks<const N: usize, T>(bytes: &[u8], parse: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|c| parse(*c)).collect()
}
