//! Finding out what a model is for.

use pleach_domain::dataset::{Dataset, Targets};
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_domain::{Element, ElementType, Tensor};
use pleach_onnx::Model;

use super::{BoxFormat, Mask, Output, Task, TaskKind};
use crate::error::PruneError;
use crate::network::runtime as failed;
use crate::progress::Stage;
use crate::run::Batch;

/// Rows that the teacher answers.
const SAMPLE_ROWS: usize = 16;
/// Score from which an anchor is taken for an object.
const CONFIDENT: f32 = 0.3;
/// Words in the name of an output that holds features, not scores.
const FEATURES: [&str; 4] = ["embed", "hidden", "feature", "pool"];

impl Task {
    /// Finds a model's task; `kind` overrides what would be inferred.
    ///
    /// # Errors
    /// [`PruneError::Unsupported`] when no output fits the kind, [`PruneError::Runtime`].
    pub fn find(model: &Model, data: &Dataset, kind: Option<TaskKind>, runtime: &dyn Runtime) -> Result<Self, PruneError> {
        let rows = Batch::of(model, SAMPLE_ROWS.min(data.rows()));
        let sample: Vec<(&str, Tensor)> = data.inputs().iter().map(|(n, t)| (n.as_str(), t.slice_rows(0, rows.rows))).collect();
        let named: Vec<(&str, &Tensor)> = sample.iter().map(|(n, t)| (*n, t)).collect();
        let mut loaded = runtime.load(&model.encode(), Optimization::All).map_err(failed(Stage::Load))?;
        let answers = loaded.run(&named).map_err(failed(Stage::Load))?;
        let outputs: Vec<Seen<'_>> = model.outputs().into_iter().zip(&answers).filter_map(|(o, t)| Seen::new(o.name, t)).collect();
        let positions = token_positions(data);
        let fitting = |kind: TaskKind| outputs.iter().find(|o| o.fits(kind, data, positions));
        let likely = |kind: TaskKind| outputs.iter().find(|o| o.fits(kind, data, positions) && o.is_likely(kind, data, positions));
        let chosen = match kind {
            Some(kind) => kind,
            None => guesses(data).into_iter().find(|&k| likely(k).is_some()).unwrap_or(TaskKind::Values),
        };
        let fit = match (chosen, likely(chosen).or_else(|| fitting(chosen))) {
            (TaskKind::Values, _) => outputs.iter().collect(),
            (TaskKind::Classification | TaskKind::Tagging | TaskKind::LanguageModel | TaskKind::Detection, found) => Vec::from_iter(found),
        };
        let Some(first) = fit.first() else {
            let shapes: Vec<String> =
                model.outputs().into_iter().zip(&answers).map(|(o, t)| format!("{} {:?}", o.name, t.shape())).collect();
            let got = format!("outputs {}, which do not fit {chosen}", shapes.join(", "));
            return Err(PruneError::Unsupported { expected: expected(chosen), got });
        };
        let (boxes, image) = if chosen == TaskKind::Detection { first.boxes(data) } else { (BoxFormat::Corners, [1.0; 2]) };
        let threshold = if first.values.iter().all(|v| (0.0..=1.0).contains(v)) { 0.5 } else { 0.0 };
        let outputs = fit.iter().map(|o| Output { name: o.name.clone(), shape: o.shape.to_vec() }).collect();
        let task = Self { kind: chosen, outputs, boxes, mask: mask(data), image, threshold };
        task.check_targets(data).map_err(|source| PruneError::Data { role: "validation", source })?;
        Ok(task)
    }

    /// Whether the targets of some data are such as this task is judged by; data without targets are.
    pub(crate) fn check_targets(&self, data: &Dataset) -> Result<(), pleach_domain::DomainError> {
        let (got, positions) = match (data.targets(), self.kind) {
            (None, _) => return Ok(()),
            (Some(Targets::Objects(_)), TaskKind::Detection) => return Ok(()),
            (Some(Targets::Objects(_)), _) => ("boxes", None),
            (Some(Targets::Labels { positions, .. }), _) => ("labels", *positions),
        };
        let wanted = match self.kind {
            TaskKind::Classification => None,
            TaskKind::Tagging | TaskKind::LanguageModel => Some(self.layout().0),
            // Whatever such data hold, values are judged by the teacher.
            TaskKind::Values => return Ok(()),
            TaskKind::Detection => Some(usize::MAX),
        };
        if got == "labels" && positions == wanted {
            return Ok(());
        }
        let reason =
            format!("of {}: expected what {} is judged by", positions.map_or("one a row".to_owned(), |p| format!("{p} a row")), self.kind);
        Err(pleach_domain::DomainError::Dataset { array: got.to_owned(), reason })
    }
}

fn expected(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Classification => "an output of scores [rows, classes]",
        TaskKind::Tagging => "an output of scores [rows, positions, classes]",
        TaskKind::LanguageModel => "an output of scores [rows, positions, tokens]",
        TaskKind::Detection => "an output [rows, 4 + classes, anchors]",
        TaskKind::Values => "an output of single precision that grows with the rows",
    }
}

/// Kinds in the order in which they are tried, by what the data say the rows should give.
fn guesses(data: &Dataset) -> Vec<TaskKind> {
    match data.targets() {
        Some(Targets::Objects(_)) => vec![TaskKind::Detection],
        Some(Targets::Labels { positions: None, .. }) => vec![TaskKind::Classification],
        Some(Targets::Labels { positions: Some(_), .. }) if next_tokens(data) => vec![TaskKind::LanguageModel],
        Some(Targets::Labels { positions: Some(_), .. }) => vec![TaskKind::Tagging],
        None => vec![TaskKind::Classification, TaskKind::Tagging, TaskKind::Detection],
    }
}

/// Whether the labels are an input's ids, one position on.
fn next_tokens(data: &Dataset) -> bool {
    let Some(Targets::Labels { positions: Some(positions), classes }) = data.targets() else { return false };
    let follows = |ids: Vec<i64>| {
        let pairs = ids.chunks(*positions).zip(classes.chunks(*positions)).flat_map(|(i, l)| i.iter().skip(1).zip(l));
        let (same, all) = pairs.filter(|(_, l)| **l >= 0).fold((0usize, 0usize), |(s, n), (i, l)| (s + usize::from(i == l), n + 1));
        all > 0 && same * 100 >= all * 99
    };
    data.inputs().values().filter_map(ids).filter(|(_, p)| p == positions).any(|(ids, _)| follows(ids))
}

/// An integer input `[rows, positions]`: its elements and the positions.
fn ids(tensor: &Tensor) -> Option<(Vec<i64>, usize)> {
    let &[_, positions] = tensor.shape() else { return None };
    let ids = match tensor.data() {
        Element::Int64(v) => v.clone(),
        Element::Int32(v) => v.iter().map(|&x| i64::from(x)).collect(),
        Element::Fp32(_) | Element::Fp64(_) | Element::Uint8(_) | Element::Bool(_) => return None,
    };
    (positions > 0).then_some((ids, positions))
}

fn token_positions(data: &Dataset) -> Option<usize> {
    data.inputs().values().find_map(|t| ids(t).map(|(_, positions)| positions))
}

/// An input of zeros and ones whose name says mask; else an id that rows of an input end with, and that comes nowhere else.
fn mask(data: &Dataset) -> Mask {
    let binary = |t: &Tensor| match t.data() {
        Element::Int64(v) => v.iter().all(|x| matches!(x, 0 | 1)),
        Element::Int32(v) => v.iter().all(|x| matches!(x, 0 | 1)),
        Element::Fp32(v) => v.iter().all(|x| *x == 0.0 || *x == 1.0),
        Element::Uint8(_) | Element::Bool(_) => true,
        Element::Fp64(_) => false,
    };
    let named = data.inputs().iter().find(|(n, t)| n.to_lowercase().contains("mask") && t.shape().len() == 2 && binary(t));
    if let Some((name, _)) = named {
        return Mask::Input(name.clone());
    }
    let padded = |(name, tensor): (&String, &Tensor)| {
        let (ids, positions) = ids(tensor)?;
        let id = *ids.chunks(positions).map(|row| row.last()).find(|last| *last == Some(&0))??;
        let ends = |row: &[i64]| !row.iter().rev().skip_while(|&&i| i == id).any(|&i| i == id);
        ids.chunks(positions).all(ends).then(|| Mask::Padding { input: name.clone(), id })
    };
    data.inputs().iter().find_map(padded).unwrap_or(Mask::None)
}

/// An output as the teacher filled it.
struct Seen<'a> {
    name: String,
    /// Its shape in one row.
    shape: &'a [usize],
    values: &'a [f32],
}

impl<'a> Seen<'a> {
    /// `None` for outputs that are not of single precision or have no rows.
    fn new(name: String, tensor: &'a Tensor) -> Option<Self> {
        let Element::Fp32(values) = tensor.data() else { return None };
        debug_assert_eq!(tensor.element_type(), ElementType::Fp32);
        (!values.is_empty()).then_some(Self { name, shape: tensor.shape().get(1..)?, values })
    }

    /// Whether the shape is one that a task of this kind has.
    fn fits(&self, kind: TaskKind, data: &Dataset, positions: Option<usize>) -> bool {
        let labelled = match data.targets() {
            Some(Targets::Labels { positions, .. }) => *positions,
            Some(Targets::Objects(_)) | None => None,
        };
        match (kind, self.shape) {
            (TaskKind::Classification, [_]) | (TaskKind::Values, _) => true,
            (TaskKind::Tagging, &[p, _]) => labelled.is_none_or(|l| l == p),
            (TaskKind::LanguageModel, &[p, _]) => positions == Some(p) && labelled.is_none_or(|l| l == p),
            (TaskKind::Detection, &[rows, anchors]) => rows > 4 && anchors > 0,
            (TaskKind::Classification | TaskKind::Tagging | TaskKind::LanguageModel | TaskKind::Detection, _) => false,
        }
    }

    /// Whether the values are such as such a task has, where the data do not say so.
    fn is_likely(&self, kind: TaskKind, data: &Dataset, positions: Option<usize>) -> bool {
        if data.targets().is_some() {
            return true;
        }
        let last = self.shape.last().copied().unwrap_or(1);
        let sums_to_one =
            || self.values.chunks(last.max(1)).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-2 && row.iter().all(|&x| x >= 0.0));
        let features = || FEATURES.iter().any(|word| self.name.to_lowercase().contains(word)) || self.has_unit_rows(last);
        match (kind, self.shape) {
            (TaskKind::Classification, _) => sums_to_one() || !features(),
            (TaskKind::Tagging, &[p, _]) => sums_to_one() || positions == Some(p) && !features(),
            (TaskKind::Detection, &[rows, anchors]) => {
                let scores = |image: &[f32]| image.iter().skip(4 * anchors).all(|s| (0.0..=1.0).contains(s));
                let boxes = self.values.chunks(rows * anchors).flat_map(|image| image.iter().take(4 * anchors));
                anchors > rows && self.values.chunks(rows * anchors).all(scores) && boxes.fold(0.0f32, |m, &x| m.max(x)) > 1.0
            }
            (TaskKind::Tagging | TaskKind::LanguageModel | TaskKind::Detection | TaskKind::Values, _) => false,
        }
    }

    /// Whether all rows are unit vectors, as embeddings are.
    fn has_unit_rows(&self, width: usize) -> bool {
        width > 1 && self.values.chunks(width).all(|row| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-3)
    }

    /// What a detector's box rows hold, and the extent they are measured in.
    fn boxes(&self, data: &Dataset) -> (BoxFormat, [f32; 2]) {
        let &[rows, anchors] = self.shape else { return (BoxFormat::Corners, [1.0; 2]) };
        let mut corners = true;
        let mut most = 0.0f32;
        for image in self.values.chunks(rows * anchors) {
            let at = |row: usize, anchor: usize| image.get(row * anchors + anchor).copied().unwrap_or(0.0);
            for anchor in (0..anchors).filter(|&a| (4..rows).any(|r| at(r, a) > CONFIDENT)) {
                corners &= at(2, anchor) > at(0, anchor) && at(3, anchor) > at(1, anchor);
                most = (0..4).fold(most, |m, r| m.max(at(r, anchor)));
            }
        }
        let pixels = data.inputs().values().find_map(|t| match *t.shape() {
            [_, _, height, width] => Some([width as f32, height as f32]),
            _ => None,
        });
        let image = if most > 2.0 { pixels.unwrap_or([most; 2]) } else { [1.0; 2] };
        (if corners { BoxFormat::Corners } else { BoxFormat::Centre }, image)
    }
}
