//! Normalisations by channel or over channels, and quantisation.

use pleach_onnx::Node;

use super::{Axis, Counted, Place, Trace, axis_index, place};

impl<'a> Trace<'a> {
    /// InstanceNormalization: each channel by itself.
    pub(super) fn instance_norm(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        for input in 1..3 {
            self.bind_or_unify(node.input(input)?, 0, axes.get(1)?, node)?;
        }
        self.keep_whole(node, axes.get(2..)?);
        self.set(node, axes)
    }

    /// GroupNormalization: channels `[groups][C / groups]`, each group by itself.
    pub(super) fn group_norm(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let channels = axes.get(1)?.clone();
        let groups = usize::try_from(node.int("num_groups")?).ok().filter(|&g| g > 0)?;
        self.keep_whole(node, axes.get(2..)?);
        let length = self.atoms.axis_length(&channels);
        let over = match self.atoms.regroup(std::slice::from_ref(&channels), &[groups, length / groups]).map(<[Axis; 2]>::try_from) {
            Some(Ok([outer, inner])) => {
                let dense = i64::try_from(groups).ok()?;
                self.counts.push(Counted { node: node.id, place: Place::Attribute("num_groups"), index: 0, dense, axis: outer.clone() });
                self.group_parameters(node, &channels, &outer)?;
                inner
            }
            _ => {
                self.group_parameters(node, &channels, &Axis::default())?;
                channels
            }
        };
        self.keep_whole(node, &[over]);
        self.set(node, axes)
    }

    /// Scale and bias by channel, or by group as up to opset 20.
    fn group_parameters(&mut self, node: Node<'a>, channels: &Axis, groups: &Axis) -> Option<()> {
        for input in 1..3 {
            let name = node.input(input)?;
            let by_channel = self.dims(name)?.first() == Some(&self.atoms.axis_length(channels));
            if by_channel {
                self.bind_or_unify(name, 0, channels, node)?;
            } else if !groups.0.is_empty() {
                self.bind_or_unify(name, 0, groups, node)?;
            }
        }
        Some(())
    }

    /// An operator that passes its first input's shape on, with the given axes whole.
    pub(super) fn along(&mut self, node: Node<'a>, whole: &[i64]) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        for &axis in whole {
            let own = axes.get(axis_index(axis, axes.len())?)?.clone();
            self.keep_whole(node, &[own]);
        }
        self.set(node, axes)
    }

    /// CumSum: over the axis that its second input names.
    pub(super) fn cumulate(&mut self, node: Node<'a>) -> Option<()> {
        let axis = self.model.ints(node.input(1)?)?;
        self.along(node, &axis)
    }

    pub(super) fn keep_whole(&mut self, node: Node<'a>, axes: &[Axis]) {
        let reason = format!("{} works over it", place(node));
        for axis in axes {
            self.atoms.freeze(axis, &reason);
        }
    }

    /// QuantizeLinear and DequantizeLinear: scale and zero point for all, or by index of an axis.
    pub(super) fn quantize_linear(&mut self, node: Node<'a>) -> Option<()> {
        if node.int("block_size").unwrap_or(0) != 0 {
            return None;
        }
        let axes = self.axes(node.input(0)?)?;
        let axis = axis_index(node.int("axis").unwrap_or(1), axes.len().max(1));
        for name in [node.input(1), node.input(2)].into_iter().flatten() {
            let dims = self.dims(name)?;
            if dims.iter().product::<usize>() > 1 {
                self.bind_or_unify(name, 0, axes.get(axis?)?, node)?;
            }
        }
        if self.root(node.output(0)?).is_some() {
            return Some(()); // a weight
        }
        self.set(node, axes)
    }
}
