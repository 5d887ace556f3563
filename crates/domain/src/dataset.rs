//! Calibration and validation data: arrays named after a model's inputs, and labels, parsed from NumPy's `.npz`.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use npyz::npz::NpzArchive;
use npyz::{DType, NpyFile, Order, TypeChar};

use crate::error::DomainError;
use crate::runtime::TensorSpec;
use crate::tensor::{Element, MAX_RANK, Tensor};

/// Name of the array that holds the labels.
pub const LABELS: &str = "labels";
/// Longest `.npy` header that is read; NumPy writes 128 bytes.
const MAX_HEADER_BYTES: usize = 4096;

/// Bounds on a dataset file, checked before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetLimits {
    /// Most arrays in the archive.
    pub max_arrays: usize,
    /// Most bytes of all arrays together, decompressed.
    pub max_bytes: usize,
}

impl Default for DatasetLimits {
    /// 32 arrays, 1 GiB.
    fn default() -> Self {
        Self { max_arrays: 32, max_bytes: 1 << 30 }
    }
}

/// Rows of model inputs, with their labels where they have any: at least one row, the same number in every array, no NaN or infinity.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    inputs: BTreeMap<String, Tensor>,
    labels: Option<Vec<i64>>,
    rows: usize,
}

impl Dataset {
    /// Joins inputs by name, each `[rows, ...]`, and one label a row.
    ///
    /// # Errors
    /// [`DomainError::Dataset`] when there is no input or no row, when the numbers of rows differ, or when a float is not finite.
    pub fn new(inputs: BTreeMap<String, Tensor>, labels: Option<Vec<i64>>) -> Result<Self, DomainError> {
        let Some((first, rows)) = inputs.iter().next().map(|(name, tensor)| (name.clone(), tensor.rows())) else {
            return Err(fault("", "no input array: expected at least one, named after the model's inputs"));
        };
        for (name, tensor) in &inputs {
            if tensor.shape().is_empty() || tensor.rows() == 0 {
                return Err(fault(name, format!("shape {:?}: expected at least one row", tensor.shape())));
            }
            if tensor.rows() != rows {
                return Err(fault(name, format!("{} rows: expected {rows}, as many as {first:?}", tensor.rows())));
            }
            if let Some(at) = not_finite(tensor.data()) {
                let row = at / (element_count(tensor.shape()) / rows).max(1);
                return Err(fault(name, format!("NaN or infinity in row {row}: expected finite values")));
            }
        }
        if let Some(got) = labels.as_ref().map(Vec::len).filter(|&n| n != rows) {
            return Err(fault(LABELS, format!("{got} labels: expected {rows}, as many as {first:?} has rows")));
        }
        Ok(Self { inputs, labels, rows })
    }

    /// Parses an `.npz` archive: `labels` (integers, `[rows]`, optional) and arrays named after the model's inputs.
    ///
    /// # Errors
    /// [`DomainError::Dataset`] for anything that is no such archive, is larger than `limits`, or that [`Dataset::new`] refuses.
    pub fn parse_npz(bytes: &[u8], limits: &DatasetLimits) -> Result<Self, DomainError> {
        let mut archive = NpzArchive::new(Cursor::new(bytes)).map_err(|e| fault("", format!("{e}: expected an .npz archive")))?;
        let zip = archive.zip_archive();
        if zip.len() > limits.max_arrays {
            return Err(fault("", format!("{} entries: expected at most {}", zip.len(), limits.max_arrays)));
        }
        let (mut inputs, mut labels, mut left) = (BTreeMap::new(), None, limits.max_bytes);
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).map_err(|e| fault("", format!("entry {index}: {e}")))?;
            let Some(name) = npyz::npz::array_name_from_file_name(entry.name()).map(str::to_owned) else {
                let name: String = entry.name().chars().take(80).collect();
                return Err(fault(&name, "is no array: expected names that end in .npy"));
            };
            let raw = read_bounded(&name, &mut entry, left)?;
            left -= raw.len();
            let tensor = parse_npy(&name, &raw)?;
            if name == LABELS {
                labels = Some(parse_labels(&tensor)?);
            } else if inputs.insert(name.clone(), tensor).is_some() {
                return Err(fault(&name, "comes twice: expected once"));
            }
        }
        Self::new(inputs, labels)
    }

    /// Checks that the arrays are exactly a model's inputs: names, element types, and every fixed axis but the first.
    ///
    /// # Errors
    /// [`DomainError::Dataset`] that names the array, what the model expects and what came.
    pub fn check_against(&self, specs: &[TensorSpec]) -> Result<(), DomainError> {
        for spec in specs {
            let Some(tensor) = self.inputs.get(&spec.name) else {
                let names: Vec<_> = self.inputs.keys().collect();
                return Err(fault(&spec.name, format!("missing: the model takes it, the data have {names:?}")));
            };
            if tensor.element_type() != spec.element_type {
                return Err(fault(&spec.name, format!("type {}: expected {}", tensor.element_type(), spec.element_type)));
            }
            let fits = tensor.shape().len() == spec.shape.len()
                && tensor.shape().iter().zip(&spec.shape).skip(1).all(|(&got, want)| want.is_none_or(|want| want == got));
            if !fits {
                return Err(fault(&spec.name, format!("shape {:?}: expected {}", tensor.shape(), shape_text(&spec.shape))));
            }
        }
        match self.inputs.keys().find(|name| specs.iter().all(|spec| spec.name != **name)) {
            Some(name) => {
                Err(fault(name, format!("is no input of the model: expected {:?}", specs.iter().map(|s| &s.name).collect::<Vec<_>>())))
            }
            None => Ok(()),
        }
    }

    /// Number of rows, at least 1.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The inputs by name, each `[rows, ...]`, in the order of their names.
    pub fn inputs(&self) -> &BTreeMap<String, Tensor> {
        &self.inputs
    }

    /// One label a row; below zero means unlabelled.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// Rows `start..end`, clamped to what is there; `None` when that leaves no row.
    pub fn slice_rows(&self, start: usize, end: usize) -> Option<Self> {
        let end = end.min(self.rows);
        if start >= end {
            return None;
        }
        let inputs = self.inputs.iter().map(|(name, tensor)| (name.clone(), tensor.slice_rows(start, end))).collect();
        let labels = self.labels.as_ref().and_then(|l| l.get(start..end)).map(<[i64]>::to_vec);
        Some(Self { inputs, labels, rows: end - start })
    }

    /// Consecutive pieces of at most `size` rows.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Self> + '_ {
        let size = size.max(1);
        (0..self.rows.div_ceil(size)).filter_map(move |i| self.slice_rows(i * size, (i + 1) * size))
    }
}

fn fault(array: &str, reason: impl Into<String>) -> DomainError {
    DomainError::Dataset { array: array.to_owned(), reason: reason.into() }
}

fn element_count(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn shape_text(shape: &[Option<usize>]) -> String {
    let axes: Vec<_> = shape
        .iter()
        .enumerate()
        .map(|(i, d)| if i == 0 { "rows".to_owned() } else { d.map_or("any".to_owned(), |d| d.to_string()) })
        .collect();
    format!("[{}]", axes.join(", "))
}

fn not_finite(data: &Element) -> Option<usize> {
    match data {
        Element::Fp32(v) => v.iter().position(|x| !x.is_finite()),
        Element::Fp64(v) => v.iter().position(|x| !x.is_finite()),
        Element::Int64(_) | Element::Int32(_) | Element::Uint8(_) | Element::Bool(_) => None,
    }
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

fn parse_labels(tensor: &Tensor) -> Result<Vec<i64>, DomainError> {
    let labels = match tensor.data() {
        Element::Int64(v) => v.clone(),
        Element::Int32(v) => v.iter().map(|&x| i64::from(x)).collect(),
        Element::Uint8(v) => v.iter().map(|&x| i64::from(x)).collect(),
        Element::Fp32(_) | Element::Fp64(_) | Element::Bool(_) => {
            return Err(fault(LABELS, format!("type {}: expected integers", tensor.element_type())));
        }
    };
    if tensor.shape().len() != 1 {
        return Err(fault(LABELS, format!("shape {:?}: expected [rows]", tensor.shape())));
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::ElementType;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn set(values: Vec<f32>) -> Result<Dataset, DomainError> {
        let rows = values.len() / 2;
        Dataset::new(BTreeMap::from([("x".to_owned(), Tensor::fp32(vec![rows, 2], values).unwrap())]), None)
    }

    fn spec(name: &str, element_type: ElementType, shape: &[Option<usize>]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), element_type, shape: shape.to_vec() }
    }

    #[test]
    fn parses_calibration_fixture() {
        let data = Dataset::parse_npz(&fixture("fashion-calibration.npz"), &DatasetLimits::default()).unwrap();
        assert_eq!(data.rows(), 2_000);
        assert_eq!(data.inputs()["input"].shape(), [2_000, 1, 28, 28]);
        assert_eq!(data.labels().unwrap().len(), 2_000);
        data.check_against(&[spec("input", ElementType::Fp32, &[None, Some(1), Some(28), Some(28)])]).unwrap();
        assert_eq!(data.batches(300).map(|b| b.rows()).sum::<usize>(), 2_000);
    }

    #[test]
    fn refuses_wrong_name_type_and_shape_in_words() {
        let data = set(vec![1.0; 4]).unwrap();
        let refusal = |s| data.check_against(&[s]).unwrap_err().to_string();
        assert_eq!(
            refusal(spec("y", ElementType::Fp32, &[None, Some(2)])),
            r#"dataset array "y": missing: the model takes it, the data have ["x"]"#
        );
        assert_eq!(refusal(spec("x", ElementType::Int64, &[None, Some(2)])), r#"dataset array "x": type FP32: expected INT64"#);
        assert_eq!(refusal(spec("x", ElementType::Fp32, &[None, Some(3)])), r#"dataset array "x": shape [2, 2]: expected [rows, 3]"#);
        assert_eq!(data.check_against(&[]).unwrap_err().to_string(), r#"dataset array "x": is no input of the model: expected []"#);
    }

    #[test]
    fn refuses_nan_no_rows_and_uneven_rows() {
        assert!(set(vec![1.0, 2.0, 3.0, f32::NAN]).unwrap_err().to_string().contains("NaN or infinity in row 1"));
        assert!(set(vec![]).unwrap_err().to_string().contains("at least one row"));
        let x = Tensor::fp32(vec![2, 1], vec![1.0; 2]).unwrap();
        let error = Dataset::new(BTreeMap::from([("x".to_owned(), x)]), Some(vec![1])).unwrap_err();
        assert!(error.to_string().contains("1 labels: expected 2"));
    }

    #[test]
    fn refuses_archives_beyond_their_bounds_and_garbage() {
        let bytes = fixture("fashion-calibration.npz");
        let small = DatasetLimits { max_arrays: 32, max_bytes: 1 << 20 };
        assert!(Dataset::parse_npz(&bytes, &small).unwrap_err().to_string().contains("bytes decompressed"));
        let few = DatasetLimits { max_arrays: 1, max_bytes: 1 << 30 };
        assert!(Dataset::parse_npz(&bytes, &few).unwrap_err().to_string().contains("entries: expected at most 1"));
        assert!(Dataset::parse_npz(&bytes[..bytes.len() / 2], &DatasetLimits::default()).is_err());
        assert!(Dataset::parse_npz(b"no archive", &DatasetLimits::default()).is_err());
    }

    #[test]
    fn refuses_header_that_claims_gigabytes() {
        let mut raw = b"\x93NUMPY\x02\x00".to_vec();
        raw.extend(u32::MAX.to_le_bytes());
        assert!(parse_npy("x", &raw).unwrap_err().to_string().contains("header of 4294967295 bytes"));
    }
}
