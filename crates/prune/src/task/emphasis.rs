//! Which places in a row matter: positions that hold something, and the surroundings of what a detector sees.

use pleach_domain::{Element, Tensor};
use serde::{Deserialize, Serialize};

use super::{Mask, Task, TaskKind};
use crate::linear::Rows;
use crate::run::Inputs;

/// Cells of a heat map along each side.
const SIDE: usize = 24;
/// Weight of a place where the teacher sees nothing; a sure object adds 1.
const BACKGROUND: f32 = 0.1;
/// Score below which an anchor warms nothing.
const FAINT: f32 = 0.02;

/// Weights of places in rows, at least 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Emphasis {
    /// Cells of one row; empty: every place weighs 1.
    cells: Cells,
    /// Row by row.
    weights: Vec<f32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Cells {
    #[default]
    Even,
    /// One for each position of a sequence.
    Positions(usize),
    /// A square map of [`SIDE`] by [`SIDE`] over the image.
    Map,
}

impl Emphasis {
    /// Weight of a place in a row of a tensor whose rows have `space` places, height by width (a sequence has its positions along
    /// one of them); 1 where the tensor has other places than are known of.
    pub(crate) fn of(&self, row: usize, space: [usize; 2], place: usize) -> f32 {
        match self.cells {
            Cells::Even => 1.0,
            Cells::Positions(positions) if positions == space[0] * space[1] => {
                self.weights.get(row * positions + place).copied().unwrap_or(1.0)
            }
            Cells::Positions(_) => 1.0,
            Cells::Map if space[0] * space[1] <= 1 => 1.0,
            Cells::Map => {
                let [height, width] = space;
                let map = self.weights.get(row * SIDE * SIDE..).unwrap_or_default();
                let span = |at: usize, of: usize| at * SIDE / of..((at + 1) * SIDE).div_ceil(of);
                let columns = span(place % width, width);
                let cells = span(place / width, height).flat_map(|y| columns.clone().map(move |x| y * SIDE + x));
                cells.filter_map(|i| map.get(i)).fold(BACKGROUND, |m, &w| m.max(w))
            }
        }
    }

    /// Appends the weights of more rows of the same task.
    pub(crate) fn extend(&mut self, more: Self) {
        self.cells = more.cells;
        self.weights.extend(more.weights);
    }

    /// The weights of rows `start..end`.
    pub(crate) fn part(&self, start: usize, end: usize) -> Self {
        let each = match self.cells {
            Cells::Even => 0,
            Cells::Positions(positions) => positions,
            Cells::Map => SIDE * SIDE,
        };
        let end = (end * each).min(self.weights.len());
        Self { cells: self.cells, weights: self.weights.get((start * each).min(end)..end).unwrap_or_default().to_vec() }
    }
}

impl Task {
    /// Weights of the places in a batch's rows, from its inputs and the teacher's answers `[rows, width]`.
    pub(crate) fn emphasis(&self, inputs: &Inputs<'_>, answers: &Rows) -> Emphasis {
        if self.kind == TaskKind::Detection {
            let weights = (0..answers.rows).flat_map(|row| self.heat(answers.row(row))).collect();
            return Emphasis { cells: Cells::Map, weights };
        }
        let masked = match &self.mask {
            Mask::None => None,
            Mask::Input(name) => inputs.get(name.as_str()).map(|t| (*t, None)),
            Mask::Padding { input, id } => inputs.get(input.as_str()).map(|t| (*t, Some(*id))),
        };
        let Some((tensor, padding)) = masked else { return Emphasis::default() };
        let positions = tensor.shape().get(1).copied().unwrap_or(1);
        let held = |filler: bool| if filler { 0.0 } else { 1.0 };
        Emphasis { cells: Cells::Positions(positions), weights: fillers(tensor, padding.unwrap_or(0)).into_iter().map(held).collect() }
    }

    /// Weights of a [`SIDE`] by [`SIDE`] map over one image: [`BACKGROUND`], and inside each box the score of what it holds.
    fn heat(&self, answer: &[f32]) -> Vec<f32> {
        let (anchors, classes) = self.layout();
        let at = |row: usize, anchor: usize| answer.get(row * anchors + anchor).copied().unwrap_or(0.0);
        let mut map = vec![BACKGROUND; SIDE * SIDE];
        for anchor in 0..anchors {
            let score = (4..4 + classes).fold(0.0f32, |m, row| m.max(at(row, anchor)));
            if score < FAINT {
                continue;
            }
            let [x1, y1, x2, y2] = self.corners(answer, anchor);
            // A box outside the image, or none at all, warms the nearest cell.
            let cell = |x: f32, extent: f32| ((x / extent * SIDE as f32).max(0.0) as usize).min(SIDE - 1);
            let columns = cell(x1, self.image[0])..=cell(x2, self.image[0]);
            for y in cell(y1, self.image[1])..=cell(y2, self.image[1]) {
                for x in columns.clone() {
                    let warm = &mut map[y * SIDE + x];
                    *warm = warm.max(BACKGROUND + score);
                }
            }
        }
        map
    }
}

/// Which elements are the filler.
fn fillers(tensor: &Tensor, filler: i64) -> Vec<bool> {
    match tensor.data() {
        Element::Int64(v) => v.iter().map(|&x| x == filler).collect(),
        Element::Int32(v) => v.iter().map(|&x| i64::from(x) == filler).collect(),
        Element::Uint8(v) | Element::Bool(v) => v.iter().map(|&x| i64::from(x) == filler).collect(),
        Element::Fp32(v) => v.iter().map(|&x| f64::from(x) == filler as f64).collect(),
        Element::Fp64(v) => v.iter().map(|&x| x == filler as f64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BoxFormat, Output};
    use super::*;

    fn task(kind: TaskKind, shape: &[usize], mask: Mask) -> Task {
        let outputs = vec![Output { name: "y".to_owned(), shape: shape.to_vec() }];
        Task { kind, outputs, boxes: BoxFormat::Centre, mask, image: [48.0, 24.0], threshold: 0.5 }
    }

    #[test]
    fn positions_without_anything_weigh_nothing() {
        let ids = Tensor::int64(vec![2, 3], vec![7, 8, 0, 9, 0, 0]).unwrap();
        let inputs = Inputs::from([("ids", &ids)]);
        let padded = Mask::Padding { input: "ids".to_owned(), id: 0 };
        let mut found = task(TaskKind::Tagging, &[3, 2], padded).emphasis(&inputs, &Rows::new(2, 6, vec![0.0; 12]));
        let weights = |e: &Emphasis, row| [0, 1, 2].map(|p| e.of(row, [3, 1], p));
        assert_eq!((weights(&found, 0), weights(&found, 1)), ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0]));
        assert!((found.of(1, [1, 1], 0) - 1.0).abs() < 1e-9, "a pooled row counts");
        assert_eq!(weights(&found.part(1, 2), 0), [1.0, 0.0, 0.0]);
        found.extend(found.clone());
        assert_eq!(weights(&found, 3), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn surroundings_of_an_object_weigh_by_its_score() {
        // centre (36, 12), 12 wide, 6 high: columns 15 to 21 and rows 9 to 15 of 24
        let answer = Rows::new(1, 5, vec![36.0, 12.0, 12.0, 6.0, 0.9]);
        let found = task(TaskKind::Detection, &[5, 1], Mask::None).emphasis(&Inputs::new(), &answer);
        let at = |space: [usize; 2], y: usize, x: usize| found.of(0, space, y * space[1] + x);
        assert!((at([24, 24], 12, 18) - 1.0).abs() < 1e-6 && (at([24, 24], 12, 14) - 0.1).abs() < 1e-6);
        assert!((at([2, 4], 1, 3) - 1.0).abs() < 1e-6 && (at([2, 4], 1, 0) - 0.1).abs() < 1e-6);
        assert!((at([48, 96], 24, 72) - 1.0).abs() < 1e-6 && (at([48, 96], 24, 0) - 0.1).abs() < 1e-6);
    }
}
