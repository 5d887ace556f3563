//! Pools and reductions.

use pleach_onnx::Node;

use super::{Trace, axis_index, place};

/// Operators whose first two axes pass and whose others are pooled.
pub(super) const POOLS: [&str; 6] = ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"];

pub(super) const REDUCTIONS: [&str; 10] = [
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
];

impl<'a> Trace<'a> {
    pub(super) fn pool(&mut self, node: Node<'a>) -> Option<()> {
        if node.outputs().count() > 1 {
            return None; // the indices count channels
        }
        let mut axes = self.axes(node.input(0)?)?;
        axes.truncate(2);
        self.spatial(node, &mut axes)
    }

    pub(super) fn reduce(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let reduced = match (node.ints("axes"), node.input(1)) {
            (Some(list), _) => list.to_vec(),
            (None, Some(name)) => self.model.ints(name)?,
            (None, None) => return None, // over everything, or over nothing
        };
        let reduced: Vec<usize> = reduced.into_iter().map(|axis| axis_index(axis, axes.len())).collect::<Option<_>>()?;
        if reduced.is_empty() {
            return None;
        }
        let keep_dims = node.int("keepdims").unwrap_or(1) != 0;
        let mut outs = Vec::new();
        for (i, axis) in axes.into_iter().enumerate() {
            if !reduced.contains(&i) {
                outs.push(axis);
                continue;
            }
            self.atoms.freeze(&axis, &format!("{} reduces over it", place(node)));
            if keep_dims {
                outs.push(self.atoms.frozen(1, "reduced axis"));
            }
        }
        self.set(node, outs)
    }
}
