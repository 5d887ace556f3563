//! What a model is for, as far as the engine must know: which outputs carry its answer, which positions of a row count, how far
//! a student's answer is from its teacher's, and which places in a row matter most.
//!
//! Found from the outputs, from what the data say the rows should give, and from the teacher's answers on a few rows; a caller
//! that knows better names the kind. Labels serve only to tell the kind: nothing here lets them steer pruning.

mod divergence;
mod emphasis;
mod find;

use std::fmt;

use pleach_domain::Tensor;
use pleach_domain::runtime::Runtime;
use pleach_onnx::Model;
use serde::{Deserialize, Serialize};

use crate::error::PruneError;
use crate::linear::Rows;
use crate::progress::Stage;
use crate::run::{Batch, Inputs, Runner, floats};

pub(crate) use divergence::log_distribution;
pub(crate) use emphasis::Emphasis;

/// Rows that a model of free batch takes at once.
const BATCH_ROWS: usize = 64;

/// Kinds of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// One class a row: scores `[rows, classes]`, logits or probabilities.
    Classification,
    /// One class a position: scores `[rows, positions, classes]`.
    Tagging,
    /// The next token at each position: scores `[rows, positions, tokens]`.
    LanguageModel,
    /// Objects in images: `[rows, 4 + classes, anchors]`, four rows of boxes in pixels and one of scores (0 to 1) a class.
    Detection,
    /// Numbers without a known meaning, such as embeddings; of any shape that grows with the rows.
    Values,
}

impl TaskKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Classification, Self::Tagging, Self::LanguageModel, Self::Detection, Self::Values];

    /// Its name in reports and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Tagging => "tagging",
            Self::LanguageModel => "language-model",
            Self::Detection => "detection",
            Self::Values => "values",
        }
    }

    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the four box rows of a detector hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoxFormat {
    /// Left, top, right, bottom.
    Corners,
    /// Centre x, centre y, width, height.
    Centre,
}

impl BoxFormat {
    /// Left, top, right and bottom.
    pub(crate) fn corners(self, [a, b, c, d]: [f32; 4]) -> [f32; 4] {
        match self {
            Self::Corners => [a, b, c, d],
            Self::Centre => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        }
    }
}

/// How positions that only fill a row up are told from the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mask {
    /// Every position counts.
    None,
    /// An input `[rows, positions]` that is 0 where nothing is.
    Input(String),
    /// The id at the end of shorter rows of an input `[rows, positions]`.
    Padding { input: String, id: i64 },
}

/// One output that carries the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Output {
    pub(crate) name: String,
    /// Its shape in one row.
    pub(crate) shape: Vec<usize>,
}

impl Output {
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A model's task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub(crate) kind: TaskKind,
    /// The outputs that carry the answer: one, but of values all.
    pub(crate) outputs: Vec<Output>,
    pub(crate) boxes: BoxFormat,
    pub(crate) mask: Mask,
    /// Width and height that a detector's boxes are measured in.
    pub(crate) image: [f32; 2],
    /// Where a score that is alone says yes: 0.5 for chances, 0 for their logits.
    pub(crate) threshold: f32,
}

impl Task {
    /// Its kind.
    pub fn kind(&self) -> TaskKind {
        self.kind
    }

    /// Names of the outputs that carry the answer.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|o| o.name.as_str())
    }

    /// Numbers in the answer to one row.
    pub(crate) fn width(&self) -> usize {
        self.outputs.iter().map(Output::len).sum()
    }

    /// Positions of a row that are judged one by one, and the classes that each tells apart; of values one position a number.
    pub(crate) fn layout(&self) -> (usize, usize) {
        let shape = self.outputs.first().map_or(&[][..], |o| &o.shape);
        match (self.kind, shape) {
            (TaskKind::Classification | TaskKind::Tagging | TaskKind::LanguageModel, [positions, classes]) => (*positions, *classes),
            (TaskKind::Detection, [rows, anchors]) => (*anchors, rows.saturating_sub(4)),
            (TaskKind::Classification | TaskKind::Tagging | TaskKind::LanguageModel | TaskKind::Detection, _) => (1, self.width()),
            (TaskKind::Values, _) => (self.width(), 1),
        }
    }

    /// Left, top, right and bottom of a detector's box in pixels.
    pub(crate) fn corners(&self, answer: &[f32], anchor: usize) -> [f32; 4] {
        let anchors = self.layout().0;
        self.boxes.corners([0, 1, 2, 3].map(|row| answer.get(row * anchors + anchor).copied().unwrap_or(0.0)))
    }

    /// The answers among a model's outputs for a batch, `[rows, width]`: of each row its outputs one after the other.
    ///
    /// # Errors
    /// [`PruneError::Unsupported`] when an output is missing, is not of single precision or has another shape.
    pub(crate) fn answers<'a>(&self, rows: usize, find: impl Fn(&str) -> Option<&'a Tensor>) -> Result<Rows, PruneError> {
        let mut parts = Vec::with_capacity(self.outputs.len());
        for output in &self.outputs {
            let found = find(&output.name).map(floats).transpose()?.unwrap_or_default();
            if found.len() != rows * output.len() {
                let got = format!("{} numbers in {:?} for {rows} rows", found.len(), output.name);
                return Err(PruneError::Unsupported { expected: "outputs of one shape for every row", got });
            }
            parts.push((output.len(), found));
        }
        if let [(_, only)] = parts.as_slice() {
            return Ok(Rows::new(rows, self.width(), only.to_vec()));
        }
        let row = |r: usize| parts.iter().flat_map(move |(len, data)| data.get(r * len..(r + 1) * len).unwrap_or_default());
        Ok(Rows::new(rows, self.width(), (0..rows).flat_map(row).copied().collect()))
    }

    /// A model's answers to rows, batch by batch and in order, with the number of the batch's first row. Rows behind the last whole
    /// batch of a model of fixed batch are left out.
    ///
    /// # Errors
    /// [`PruneError::Runtime`], those of [`Task::answers`], and what `sink` gives.
    pub(crate) fn for_each_answer(
        &self,
        model: &Model,
        inputs: &Inputs<'_>,
        runtime: &dyn Runtime,
        stage: Stage,
        copies: usize,
        mut sink: impl FnMut(usize, Rows) -> Result<(), PruneError>,
    ) -> Result<(), PruneError> {
        let batch = Batch::of(model, BATCH_ROWS);
        let names: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
        let all = inputs.values().next().map_or(0, |t| t.rows());
        Runner::new(runtime, model, batch.rows, stage, copies)?.for_each(inputs, batch.fixed, |start, outputs| {
            let rows = batch.rows.min(all - start);
            let find = |name: &str| names.iter().position(|n| n == name).and_then(|i| outputs.get(i));
            sink(start, self.answers(rows, find)?)
        })
    }

    /// A model's answers to rows, `[rows, width]`: only for as many rows as memory should hold.
    ///
    /// # Errors
    /// As [`Task::for_each_answer`].
    pub(crate) fn all_answers(
        &self,
        model: &Model,
        inputs: &Inputs<'_>,
        runtime: &dyn Runtime,
        stage: Stage,
        copies: usize,
    ) -> Result<Rows, PruneError> {
        let mut all = Rows::new(0, self.width(), Vec::new());
        self.for_each_answer(model, inputs, runtime, stage, copies, |_, part| {
            all.rows += part.rows;
            all.data.extend(part.data);
            Ok(())
        })?;
        Ok(all)
    }
}
