//! Calibration and validation data: arrays named after a model's inputs, and what the rows should give, parsed from NumPy's `.npz`.

mod npz;
mod targets;

use std::collections::BTreeMap;

use crate::error::DomainError;
use crate::runtime::TensorSpec;
use crate::tensor::{Element, Tensor};

pub use targets::{BOXES, INDEX, LABELS, Object, Targets};

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

/// Rows of model inputs, with what they should give where that is known: at least one row, the same number in every array, no NaN or infinity.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    inputs: BTreeMap<String, Tensor>,
    targets: Option<Targets>,
    rows: usize,
}

impl Dataset {
    /// Joins inputs by name, each `[rows, ...]`, and what the rows should give.
    ///
    /// # Errors
    /// [`DomainError::Dataset`] when there is no input or no row, when the numbers of rows differ, or when a float is not finite.
    pub fn new(inputs: BTreeMap<String, Tensor>, targets: Option<Targets>) -> Result<Self, DomainError> {
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
        if let Some(targets) = &targets {
            targets.check_rows(rows, &first)?;
        }
        Ok(Self { inputs, targets, rows })
    }

    /// Parses an `.npz` archive: arrays named after the model's inputs, and optionally what the rows should give: `labels`
    /// (integers, `[rows]` or `[rows, positions]`), or `boxes` (numbers, `[objects, 5]`: class, x1, y1, x2, y2) with `index`
    /// (integers, `[rows + 1]`: the objects of row `i` are `index[i]..index[i + 1]`).
    ///
    /// # Errors
    /// [`DomainError::Dataset`] for anything that is no such archive, is larger than `limits`, or that [`Dataset::new`] refuses.
    pub fn parse_npz(bytes: &[u8], limits: &DatasetLimits) -> Result<Self, DomainError> {
        let mut arrays = npz::parse(bytes, limits)?;
        let targets = Targets::take(&mut arrays)?;
        Self::new(arrays, targets)
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

    /// What the rows should give, where it is known.
    pub fn targets(&self) -> Option<&Targets> {
        self.targets.as_ref()
    }

    /// The labels when there is one a row; below zero means unlabelled.
    pub fn labels(&self) -> Option<&[i64]> {
        match &self.targets {
            Some(Targets::Labels { positions: None, classes }) => Some(classes),
            Some(Targets::Labels { positions: Some(_), .. } | Targets::Objects(_)) | None => None,
        }
    }

    /// Rows `start..end`, clamped to what is there; `None` when that leaves no row.
    pub fn slice_rows(&self, start: usize, end: usize) -> Option<Self> {
        let end = end.min(self.rows);
        if start >= end {
            return None;
        }
        let inputs = self.inputs.iter().map(|(name, tensor)| (name.clone(), tensor.slice_rows(start, end))).collect();
        let targets = self.targets.as_ref().map(|t| t.slice_rows(start, end));
        Some(Self { inputs, targets, rows: end - start })
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
        let error = Dataset::new(BTreeMap::from([("x".to_owned(), x)]), Some(Targets::labels(vec![1]))).unwrap_err();
        assert!(error.to_string().contains("1 rows of targets: expected 2"));
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
}
