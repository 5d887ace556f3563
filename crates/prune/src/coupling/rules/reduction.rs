//! Pools and reductions.

use pleach_onnx::Node;

use super::{SPATIAL, Trace, axis_index, place};

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
        let named = match (node.ints("axes"), node.input(1)) {
            (Some(list), _) => list.to_vec(),
            (None, Some(name)) => self.model.ints(name)?,
            (None, None) => vec![],
        };
        if named.is_empty() && node.int("noop_with_empty_axes").unwrap_or(0) != 0 {
            return self.set(node, axes);
        }
        let all = || (0..axes.len()).collect();
        let reduced = if named.is_empty() {
            all()
        } else {
            named.into_iter().map(|axis| axis_index(axis, axes.len())).collect::<Option<Vec<_>>>()?
        };
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

    /// ArgMax, ArgMin and TopK: one axis is searched.
    pub(super) fn pick_along(&mut self, node: Node<'a>) -> Option<()> {
        let mut axes = self.axes(node.input(0)?)?;
        let at = axis_index(node.int("axis").unwrap_or(if node.is("TopK") { -1 } else { 0 }), axes.len())?;
        self.keep_whole(node, &[axes.get(at)?.clone()]);
        let lengths = self.dims(node.output(0)?)?;
        if lengths.len() < axes.len() {
            axes.remove(at);
        } else {
            *axes.get_mut(at)? = self.atoms.frozen(*lengths.get(at)?, SPATIAL);
        }
        for name in node.outputs() {
            self.tensors.insert(name.to_owned(), axes.clone());
        }
        Some(())
    }
}
