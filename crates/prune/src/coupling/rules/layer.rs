//! Layers: operators with a weight, which make channels or sum over them.

use pleach_onnx::Node;

use super::{Axis, Counted, Made, Place, SPATIAL, Summed, Trace};

impl<'a> Trace<'a> {
    pub(super) fn conv(&mut self, node: Node<'a>) -> Option<()> {
        let (x, weight) = (node.input(0)?, self.root(node.input(1)?)?);
        let (axes, kernel) = (self.axes(x)?, self.dims(&weight)?);
        let (channels, count) = (axes.get(1)?.clone(), self.dims(x)?.get(1).copied()?);
        let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| g > 0)?;
        let out = if groups == 1 {
            let out = self.bound(&weight, 0, kernel.first().copied()?);
            self.layer(node, x, 1, &weight, (1, &channels), (0, &out))?;
            out
        } else if groups == count && kernel.get(1) == Some(&1) {
            let out = self.multiplied(&channels, kernel.first()? / groups);
            self.bind(&weight, 0, &out, node)?;
            if let Some(bias) = node.input(2) {
                self.bind_or_unify(bias, 0, &out, node)?;
            }
            let dense = i64::try_from(groups).ok()?;
            self.counts.push(Counted { node: node.id, place: Place::Attribute("group"), index: 0, dense, axis: channels.clone() });
            self.depthwise.push((node.id, channels));
            out
        } else {
            self.grouped(node, &weight, &channels, groups)?
        };
        let mut outs = vec![axes.first()?.clone(), out];
        self.spatial(node, &mut outs)
    }

    /// A convolution in groups: inputs `[groups][C / groups]`, outputs `[groups][M / groups]`. Whole groups may go, and the same
    /// channels of every group.
    fn grouped(&mut self, node: Node<'a>, weight: &str, channels: &Axis, groups: usize) -> Option<Axis> {
        let dims = self.dims(weight)?;
        let [outer, inner] = self.factored(node, channels, [groups, *dims.get(1)?], true)?;
        let own = self.atoms.sourced(&format!("{weight}, one group"), 0, dims.first()? / groups);
        let out = self.atoms.product(&[outer.clone(), own])?;
        let x = node.input(0)?;
        self.layer(node, x, 1, weight, (1, &inner), (0, &out))?;
        self.counts.push(Counted {
            node: node.id,
            place: Place::Attribute("group"),
            index: 0,
            dense: i64::try_from(groups).ok()?,
            axis: outer,
        });
        Some(out)
    }

    /// A transposed convolution: weight `[C, M / groups, ..]`.
    pub(super) fn conv_transpose(&mut self, node: Node<'a>) -> Option<()> {
        let (x, weight) = (node.input(0)?, self.root(node.input(1)?)?);
        let (axes, kernel) = (self.axes(x)?, self.dims(&weight)?);
        let channels = axes.get(1)?.clone();
        let (count, outputs) = (self.atoms.axis_length(&channels), *kernel.get(1)?);
        let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| g > 0)?;
        let out = if groups == 1 {
            let out = self.bound(&weight, 1, outputs);
            self.layer(node, x, 1, &weight, (0, &channels), (1, &out))?;
            out
        } else {
            let outer =
                if groups == count { channels.clone() } else { self.factored(node, &channels, [groups, count / groups], true)?[0].clone() };
            let own = self.bound(&weight, 1, outputs);
            let out = self.atoms.product(&[outer.clone(), own])?;
            self.bind(&weight, 0, &channels, node)?;
            if let Some(bias) = node.input(2) {
                self.bind_or_unify(bias, 0, &out, node)?;
            }
            self.transposed_groups(node, x, &weight, &channels)?;
            let dense = i64::try_from(groups).ok()?;
            self.counts.push(Counted { node: node.id, place: Place::Attribute("group"), index: 0, dense, axis: outer });
            out
        };
        let mut outs = vec![axes.first()?.clone(), out];
        self.spatial(node, &mut outs)
    }

    /// Records who makes and who sums over the channels of a transposed convolution in groups.
    fn transposed_groups(&mut self, node: Node<'a>, x: &str, weight: &str, channels: &Axis) -> Option<()> {
        if self.dims(weight)?.first() == Some(&usize::try_from(node.int("group").unwrap_or(1)).ok()?) {
            self.depthwise.push((node.id, channels.clone()));
            return Some(());
        }
        let bias = node.input(2).and_then(|b| self.root(b));
        let own = self.bound(weight, 1, *self.dims(weight)?.get(1)?);
        self.made.push(Made { node: node.id, weight: weight.to_owned(), weight_axis: 1, bias: bias.clone(), axis: own });
        let (weight, input, axis) = (weight.to_owned(), x.to_owned(), channels.clone());
        self.summed.push(Summed { node: node.id, weight, weight_axis: 0, input, input_axis: 1, bias, axis });
        Some(())
    }

    /// Channels of a depthwise convolution with `multiplier` outputs a channel: `[C][multiplier]`.
    fn multiplied(&mut self, channels: &Axis, multiplier: usize) -> Axis {
        if multiplier == 1 {
            return channels.clone();
        }
        let inner = self.atoms.frozen(multiplier, SPATIAL);
        let mut out = channels.clone();
        for piece in &mut out.0 {
            piece.extend(inner.atoms());
        }
        out
    }

    pub(super) fn gemm(&mut self, node: Node<'a>) -> Option<()> {
        if node.int("transA").unwrap_or(0) != 0 {
            return None;
        }
        let (x, weight) = (node.input(0)?, self.root(node.input(1)?)?);
        let (axes, dims) = (self.axes(x)?, self.dims(&weight)?);
        let (from, to) = if node.int("transB").unwrap_or(0) == 0 { (0, 1) } else { (1, 0) };
        let out = self.bound(&weight, to, dims.get(to).copied()?);
        self.layer(node, x, 1, &weight, (from, axes.get(1)?), (to, &out))?;
        self.set(node, vec![axes.first()?.clone(), out])
    }

    pub(super) fn matmul(&mut self, node: Node<'a>) -> Option<()> {
        self.matmul_as(node, [false; 2])
    }

    /// A layer where the right side is a plain weight, else a product of two tensors; the last two axes of the sides that
    /// `transposed` says are exchanged.
    pub(super) fn matmul_as(&mut self, node: Node<'a>, transposed: [bool; 2]) -> Option<()> {
        let x = node.input(0)?;
        let weight = self.root(node.input(1)?).filter(|_| !transposed[0] && self.root(x).is_none());
        let Some((weight, dims)) = weight.and_then(|w| self.dims(&w).filter(|d| d.len() == 2).map(|d| (w, d))) else {
            return self.product(node, transposed);
        };
        let mut axes = self.axes(x)?;
        if axes.len() < 2 {
            return None;
        }
        let contracted = axes.pop()?;
        let (from, to) = if transposed[1] { (1, 0) } else { (0, 1) };
        let out = self.bound(&weight, to, dims.get(to).copied()?);
        self.layer(node, x, axes.len(), &weight, (from, &contracted), (to, &out))?;
        axes.push(out);
        self.set(node, axes)
    }

    /// A weight that contracts `from` of `x` and makes `to`, with its bias.
    fn layer(&mut self, node: Node<'a>, x: &str, x_axis: usize, weight: &str, from: (usize, &Axis), to: (usize, &Axis)) -> Option<()> {
        self.bind(weight, from.0, from.1, node)?;
        self.bind(weight, to.0, to.1, node)?;
        let bias = node.input(2).filter(|_| node.op_type() != "MatMul");
        if let Some(bias) = bias {
            let dims = self.dims(bias)?;
            if let Some((axis, _)) = dims.iter().enumerate().next_back().filter(|&(_, &d)| d == self.atoms.axis_length(to.1)) {
                self.bind_or_unify(bias, axis, to.1, node)?;
            }
        }
        let bias = bias.and_then(|b| self.root(b));
        let (weight, input) = (weight.to_owned(), x.to_owned());
        self.made.push(Made { node: node.id, weight: weight.clone(), weight_axis: to.0, bias: bias.clone(), axis: to.1.clone() });
        self.summed.push(Summed { node: node.id, weight, weight_axis: from.0, input, input_axis: x_axis, bias, axis: from.1.clone() });
        Some(())
    }

    pub(super) fn batch_norm(&mut self, node: Node<'a>) -> Option<()> {
        if node.int("training_mode").unwrap_or(0) != 0 || node.outputs().count() > 1 {
            return None;
        }
        let axes = self.axes(node.input(0)?)?;
        for input in 1..5 {
            self.bind_or_unify(node.input(input)?, 0, axes.get(1)?, node)?;
        }
        self.set(node, axes)
    }
}
