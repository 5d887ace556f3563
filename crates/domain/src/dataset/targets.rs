//! What the rows of a dataset should give: class numbers, or objects in images.

use std::collections::BTreeMap;

use super::{fault, shape_text};
use crate::error::DomainError;
use crate::tensor::{Element, Tensor};

/// Name of the array that holds the labels.
pub const LABELS: &str = "labels";
/// Name of the array that holds the objects of all rows.
pub const BOXES: &str = "boxes";
/// Name of the array that says where each row's objects begin.
pub const INDEX: &str = "index";

/// What the rows should give.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class numbers, row by row; below zero means unlabelled.
    Labels {
        /// Labels in each row, at least 1; `None` where the array was `[rows]`.
        positions: Option<usize>,
        /// The class numbers.
        classes: Vec<i64>,
    },
    /// The objects of each row.
    Objects(Vec<Vec<Object>>),
}

/// An object in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Its class.
    pub class: usize,
    /// Left, top, right and bottom, in pixels.
    pub corners: [f32; 4],
}

impl Targets {
    /// One label a row.
    pub fn labels(classes: Vec<i64>) -> Self {
        Self::Labels { positions: None, classes }
    }

    /// Takes what the rows should give out of the arrays of a file; what is left are inputs. A model may have inputs of these
    /// names, too: `boxes` and `index` are targets only together.
    ///
    /// # Errors
    /// [`DomainError::Dataset`] for arrays of a wrong type or shape, and values out of range.
    pub(super) fn take(arrays: &mut BTreeMap<String, Tensor>) -> Result<Option<Self>, DomainError> {
        if arrays.contains_key(BOXES) && arrays.contains_key(INDEX) {
            let (Some(boxes), Some(index)) = (arrays.remove(BOXES), arrays.remove(INDEX)) else { return Ok(None) };
            if arrays.contains_key(LABELS) {
                return Err(fault(LABELS, "comes with `boxes` and `index`: expected one kind of targets"));
            }
            return Ok(Some(Self::Objects(objects(&boxes, &integers(INDEX, &index)?, index.shape())?)));
        }
        let Some(labels) = arrays.remove(LABELS) else { return Ok(None) };
        let classes = integers(LABELS, &labels)?;
        match *labels.shape() {
            [_] => Ok(Some(Self::labels(classes))),
            [_, positions] if positions > 0 => Ok(Some(Self::Labels { positions: Some(positions), classes })),
            _ => Err(fault(LABELS, format!("shape {:?}: expected [rows] or [rows, positions]", labels.shape()))),
        }
    }

    pub(super) fn check_rows(&self, rows: usize, first: &str) -> Result<(), DomainError> {
        let (array, got) = match self {
            Self::Labels { positions, classes } => (LABELS, classes.len() / positions.unwrap_or(1).max(1)),
            Self::Objects(of) => (INDEX, of.len()),
        };
        let whole = matches!(self, Self::Objects(_))
            || matches!(self, Self::Labels { positions, classes } if classes.len() == rows * positions.unwrap_or(1));
        if got == rows && whole {
            return Ok(());
        }
        Err(fault(array, format!("{got} rows of targets: expected {rows}, as many as {first:?} has rows")))
    }

    /// Rows `start..end`, clamped to what is there.
    pub(super) fn slice_rows(&self, start: usize, end: usize) -> Self {
        match self {
            Self::Labels { positions, classes } => {
                let each = positions.unwrap_or(1);
                Self::Labels { positions: *positions, classes: classes.get(start * each..end * each).unwrap_or_default().to_vec() }
            }
            Self::Objects(of) => Self::Objects(of.get(start..end).unwrap_or_default().to_vec()),
        }
    }
}

fn integers(name: &str, tensor: &Tensor) -> Result<Vec<i64>, DomainError> {
    match tensor.data() {
        Element::Int64(v) => Ok(v.clone()),
        Element::Int32(v) => Ok(v.iter().map(|&x| i64::from(x)).collect()),
        Element::Uint8(v) => Ok(v.iter().map(|&x| i64::from(x)).collect()),
        Element::Fp32(_) | Element::Fp64(_) | Element::Bool(_) => {
            Err(fault(name, format!("type {}: expected integers", tensor.element_type())))
        }
    }
}

fn objects(boxes: &Tensor, index: &[i64], index_shape: &[usize]) -> Result<Vec<Vec<Object>>, DomainError> {
    if index_shape.len() != 1 || index.len() < 2 {
        return Err(fault(
            INDEX,
            format!("shape {}: expected [rows + 1]", shape_text(&index_shape.iter().map(|&d| Some(d)).collect::<Vec<_>>())),
        ));
    }
    let values: Vec<f32> = match boxes.data() {
        Element::Fp32(v) => v.clone(),
        Element::Fp64(v) => v.iter().map(|&x| x as f32).collect(),
        Element::Int64(_) | Element::Int32(_) | Element::Uint8(_) | Element::Bool(_) => {
            integers(BOXES, boxes)?.into_iter().map(|x| x as f32).collect()
        }
    };
    if !matches!(boxes.shape(), [_, 5]) {
        return Err(fault(BOXES, format!("shape {:?}: expected [objects, 5], class, x1, y1, x2 and y2", boxes.shape())));
    }
    let all = values.chunks_exact(5).enumerate().map(|(at, row)| object(at, row)).collect::<Result<Vec<_>, _>>()?;
    let of = |pair: &[i64]| -> Option<Vec<Object>> {
        let &[start, end] = pair else { return None };
        Some(all.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?.to_vec())
    };
    let found: Option<Vec<_>> = index.windows(2).map(of).collect();
    let covers = index.first() == Some(&0) && index.last().is_some_and(|&n| usize::try_from(n) == Ok(all.len()));
    let wrong = || {
        fault(
            INDEX,
            format!("does not lead from 0 to {} without going back: expected the first object of each row, then their number", all.len()),
        )
    };
    found.filter(|_| covers).ok_or_else(wrong)
}

fn object(at: usize, row: &[f32]) -> Result<Object, DomainError> {
    let &[class, x1, y1, x2, y2] = row else { return Err(fault(BOXES, format!("object {at} has {} values: expected 5", row.len()))) };
    let corners = [x1, y1, x2, y2];
    if !(class >= 0.0 && class.fract() == 0.0 && class < 65_536.0 && corners.iter().all(|c| c.is_finite()) && x1 <= x2 && y1 <= y2) {
        return Err(fault(BOXES, format!("object {at} is {row:?}: expected a class number, and corners left to right and top to bottom")));
    }
    Ok(Object { class: class as usize, corners })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(boxes: Vec<f32>, index: Vec<i64>) -> Result<Option<Targets>, DomainError> {
        let boxes = Tensor::fp32(vec![boxes.len() / 5, 5], boxes).unwrap();
        let index = Tensor::int64(vec![index.len()], index).unwrap();
        Targets::take(&mut BTreeMap::from([(BOXES.to_owned(), boxes), (INDEX.to_owned(), index)]))
    }

    #[test]
    fn objects_go_to_their_rows() {
        let found = taken(vec![5.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 9.0, 9.0], vec![0, 0, 2]).unwrap().unwrap();
        let Targets::Objects(of) = &found else { panic!("{found:?}") };
        assert_eq!(of.iter().map(Vec::len).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(of[1][0], Object { class: 5, corners: [1.0, 2.0, 3.0, 4.0] });
        assert_eq!(found.slice_rows(1, 2), Targets::Objects(vec![of[1].clone()]));
        found.check_rows(2, "x").unwrap();
        assert!(found.check_rows(3, "x").unwrap_err().to_string().contains("2 rows of targets: expected 3"));
    }

    #[test]
    fn rejects_boxes_and_indices_that_make_no_sense() {
        let good = vec![0.0, 1.0, 2.0, 3.0, 4.0];
        for index in [vec![0, 2], vec![1, 1], vec![0, 1, 0], vec![0, -1, 1], vec![0]] {
            assert!(taken(good.clone(), index.clone()).unwrap_err().to_string().contains("\"index\""), "{index:?}");
        }
        for bad in [[0.5, 1.0, 2.0, 3.0, 4.0], [-1.0, 1.0, 2.0, 3.0, 4.0], [0.0, 3.0, 2.0, 1.0, 4.0], [0.0, f32::NAN, 2.0, 3.0, 4.0]] {
            assert!(taken(bad.to_vec(), vec![0, 1]).unwrap_err().to_string().contains("\"boxes\""), "{bad:?}");
        }
    }

    #[test]
    fn labels_may_be_one_a_row_or_one_a_position() {
        let take = |shape: Vec<usize>| {
            let labels = Tensor::int64(shape.clone(), vec![0; shape.iter().product()]).unwrap();
            Targets::take(&mut BTreeMap::from([(LABELS.to_owned(), labels)]))
        };
        assert_eq!(take(vec![2]).unwrap(), Some(Targets::labels(vec![0, 0])));
        assert_eq!(take(vec![2, 3]).unwrap(), Some(Targets::Labels { positions: Some(3), classes: vec![0; 6] }));
        assert!(take(vec![2, 3, 1]).unwrap_err().to_string().contains("expected [rows] or [rows, positions]"));
        assert!(take(vec![2, 0]).is_err());
    }
}
