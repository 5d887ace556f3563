//! Operators that move axes and cut or join them.

use pleach_onnx::Node;

use super::{Axis, Trace, axis_index, place};

impl<'a> Trace<'a> {
    pub(super) fn concat(&mut self, node: Node<'a>) -> Option<()> {
        let rank = self.dims(node.output(0)?)?.len();
        let at = axis_index(node.int("axis")?, rank)?;
        let inputs: Vec<Vec<Axis>> = node.inputs().map(|name| self.axes(name)).collect::<Option<_>>()?;
        let mut outs = inputs.first()?.clone();
        let mut joined = Axis::default();
        for axes in &inputs {
            joined.0.extend(axes.get(at)?.0.iter().cloned());
            for (axis, (out, own)) in outs.iter().zip(axes).enumerate() {
                if axis != at {
                    self.atoms.unify(out, own, &place(node));
                }
            }
        }
        *outs.get_mut(at)? = joined;
        self.set(node, outs)
    }

    pub(super) fn transpose(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let outs = match node.ints("perm") {
            Some(perm) => perm.iter().map(|&p| axes.get(usize::try_from(p).ok()?).cloned()).collect::<Option<_>>()?,
            None => axes.into_iter().rev().collect(),
        };
        self.set(node, outs)
    }

    /// Reshape and its kin: blocks of axes of equal product are regrouped.
    pub(super) fn reshape(&mut self, node: Node<'a>) -> Option<()> {
        let (x, y) = (node.input(0)?, node.output(0)?);
        let (from, to, axes) = (self.dims(x)?, self.dims(y)?, self.axes(x)?);
        let mut outs = Vec::new();
        for (ins, lengths) in blocks(&from, &to)? {
            let block: Vec<Axis> = axes.get(ins)?.to_vec();
            let lengths = to.get(lengths)?;
            if let Some(regrouped) = self.atoms.regroup(&block, lengths) {
                outs.extend(regrouped);
                continue;
            }
            let reason = format!("{} cuts through it", place(node));
            for axis in &block {
                self.atoms.freeze(axis, &reason);
            }
            for &length in lengths {
                outs.push(self.atoms.frozen(length, &reason));
            }
        }
        self.set(node, outs)
    }
}

type Block = (std::ops::Range<usize>, std::ops::Range<usize>);

/// Splits two shapes of equal product into the smallest blocks of equal product; `None` for empty tensors.
fn blocks(from: &[usize], to: &[usize]) -> Option<Vec<Block>> {
    let (mut blocks, mut i, mut j) = (Vec::new(), 0, 0);
    while i < from.len() || j < to.len() {
        let (i0, j0) = (i, j);
        let (mut a, mut b) = (1usize, 1usize);
        if i < from.len() {
            a = *from.get(i)?;
            i += 1;
        }
        if j < to.len() && (a != 1 || to.get(j) == Some(&1) || i0 == from.len()) {
            b = *to.get(j)?;
            j += 1;
        }
        while a != b {
            if a == 0 || b == 0 {
                return None;
            }
            if a < b {
                a = a.checked_mul(*from.get(i)?)?;
                i += 1;
            } else {
                b = b.checked_mul(*to.get(j)?)?;
                j += 1;
            }
        }
        blocks.push((i0..i, j0..j));
    }
    Some(blocks)
}
