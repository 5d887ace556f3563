//! Operators over images that change their rows and columns: Resize, Pad, DepthToSpace; and repetition: Expand, Tile.

use pleach_onnx::Node;

use super::{Axis, SPATIAL, Trace, axis_index, place};

impl<'a> Trace<'a> {
    /// Resize and Upsample: an axis of the same length passes, others are never cut.
    pub(super) fn resize(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let (from, to) = (self.dims(node.input(0)?)?, self.dims(node.output(0)?)?);
        let named = match node.ints("axes") {
            Some(list) => list.iter().map(|&axis| axis_index(axis, from.len())).collect::<Option<_>>()?,
            None => (0..from.len()).collect::<Vec<_>>(),
        };
        let (mut outs, mut sized) = (Vec::with_capacity(axes.len()), Vec::new());
        for (i, axis) in axes.into_iter().enumerate() {
            let index = named.iter().position(|&n| n == i);
            if from.get(i) == to.get(i) && index.is_none_or(|index| self.keeps(node, index)) {
                sized.extend(index.map(|index| (index, axis.clone())));
                outs.push(axis);
                continue;
            }
            self.atoms.freeze(&axis, &format!("{} changes its length", place(node)));
            outs.push(self.atoms.frozen(*to.get(i)?, SPATIAL));
            sized.extend(index.zip(outs.last().cloned()));
        }
        if node.is("Resize") {
            self.follow(node, 3, &sized);
        }
        self.set(node, outs)
    }

    /// Whether a Resize keeps an axis that it names: by scale 1, or by its size, which must follow.
    fn keeps(&self, node: Node<'a>, index: usize) -> bool {
        if node.is("Resize") && node.input(3).is_some() {
            return true;
        }
        let from_input = if node.is("Upsample") || node.proto.input.len() < 3 { 1 } else { 2 };
        let scales = match node.attribute("scales") {
            Some(attribute) => Some(attribute.floats.clone()),
            None => node.input(from_input).and_then(|name| self.model.floats(name)).map(|(_, values)| values),
        };
        scales.and_then(|s| s.get(index).copied()) == Some(1.0)
    }

    /// Pad: an axis without padding passes; zeros around channels are indices of their own that always stay.
    pub(super) fn pad(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let dims = self.dims(node.output(0)?)?;
        let literal = match node.ints("pads").or(node.ints("paddings")) {
            Some(list) => list.to_vec(),
            None => self.model.ints(node.input(1)?)?,
        };
        let named: Vec<usize> = match node.input(3) {
            Some(name) => self.model.ints(name)?.into_iter().map(|axis| axis_index(axis, axes.len())).collect::<Option<_>>()?,
            None => (0..axes.len()).collect(),
        };
        let constant = node.string("mode").unwrap_or("constant") == "constant";
        let mut outs = axes.clone();
        for (i, &axis) in named.iter().enumerate() {
            let (before, after) = (*literal.get(i)?, *literal.get(i + named.len())?);
            let out = outs.get_mut(axis)?;
            match (usize::try_from(before), usize::try_from(after)) {
                (Ok(0), Ok(0)) => (),
                (Ok(before), Ok(after))
                    if constant && dims.get(axis) == Some(&(self.atoms.axis_length(out).saturating_add(before).saturating_add(after))) =>
                {
                    let zeros = |atoms: &mut super::Atoms, n| if n == 0 { vec![] } else { atoms.frozen(n, SPATIAL).0 };
                    let (head, tail) = (zeros(&mut self.atoms, before), zeros(&mut self.atoms, after));
                    out.0.splice(0..0, head);
                    out.0.extend(tail);
                }
                _ => {
                    self.atoms.freeze(out, &format!("{} pads it with its own values", place(node)));
                    *out = self.atoms.frozen(*dims.get(axis)?, SPATIAL);
                }
            }
        }
        self.set(node, outs)
    }

    /// DepthToSpace: channels `[b * b][C]`, or `[C][b * b]` in mode CRD, of which C pass.
    pub(super) fn depth_to_space(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let dims = self.dims(node.output(0)?)?;
        let (square, channels) = (usize::try_from(node.int("blocksize")?).ok()?.checked_pow(2)?, *dims.get(1)?);
        let crd = node.string("mode") == Some("CRD");
        let lengths = if crd { [channels, square] } else { [square, channels] };
        let [outer, inner] = self.factored(node, axes.get(1)?, lengths, !crd)?;
        let (own, blocks) = if crd { (outer, inner) } else { (inner, outer) };
        self.atoms.freeze(&blocks, &format!("{} moves it into rows and columns", place(node)));
        self.spatial(node, &mut vec![axes.first()?.clone(), own])
    }

    /// SpaceToDepth: channels `[b * b][C]`.
    pub(super) fn space_to_depth(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let square = usize::try_from(node.int("blocksize")?).ok()?.checked_pow(2)?;
        let blocks = self.atoms.frozen(square, SPATIAL);
        let own = self.atoms.product(&[blocks, axes.get(1)?.clone()])?;
        self.spatial(node, &mut vec![axes.first()?.clone(), own])
    }

    /// An axis as a product of two. Where it is one run of channels that no other walk may divide, those that differ only in the
    /// part that `inner` says is kept belong together.
    pub(super) fn factored(&mut self, node: Node<'a>, axis: &Axis, lengths: [usize; 2], inner: bool) -> Option<[Axis; 2]> {
        if lengths[0].checked_mul(lengths[1]) != Some(self.atoms.axis_length(axis)) {
            return None;
        }
        let both = self.atoms.regroup(std::slice::from_ref(axis), &lengths).or_else(|| {
            let at = |i: usize, j: usize| if inner { i * lengths[1] + j } else { j * lengths[1] + i };
            let (runs, length) = if inner { (lengths[0], lengths[1]) } else { (lengths[1], lengths[0]) };
            let run = |i: usize| -> Vec<usize> { (0..length).map(|j| at(i, j)).collect() };
            let first = self.atoms.pick(axis, &run(0))?;
            for i in 1..runs {
                let other = self.atoms.pick(axis, &run(i))?;
                self.atoms.unify(&first, &other, &place(node));
            }
            let flat = self.atoms.pick(axis, &(0..lengths[0] * lengths[1]).collect::<Vec<_>>())?;
            self.atoms.regroup(&[flat], &lengths)
        })?;
        <[Axis; 2]>::try_from(both).ok()
    }

    pub(super) fn expand(&mut self, node: Node<'a>) -> Option<()> {
        let (own, from, to) = (self.axes(node.input(0)?)?, self.dims(node.input(0)?)?, self.dims(node.output(0)?)?);
        let shape = node.input(1)?;
        let entries = self.dims(shape)?.first().copied()?;
        let (mut outs, mut made) = (Vec::with_capacity(to.len()), Vec::new());
        for (i, &length) in to.iter().enumerate() {
            let axis = (i + from.len()).checked_sub(to.len()).filter(|&at| from.get(at) == Some(&length)).and_then(|at| own.get(at));
            let entry = (i + entries).checked_sub(to.len());
            let out = match (axis, entry) {
                (Some(axis), _) => axis.clone(),
                (None, Some(entry)) => self.made_by(shape, entry, length),
                (None, None) => return None,
            };
            made.extend(entry.map(|entry| (entry, out.clone())));
            outs.push(out);
        }
        self.follow(node, 1, &made);
        self.set(node, outs)
    }

    pub(super) fn constant_of_shape(&mut self, node: Node<'a>) -> Option<()> {
        let (shape, dims) = (node.input(0)?, self.dims(node.output(0)?)?);
        let outs: Vec<Axis> = dims.iter().enumerate().map(|(i, &length)| self.made_by(shape, i, length)).collect();
        self.follow(node, 0, &outs.iter().cloned().enumerate().collect::<Vec<_>>());
        self.set(node, outs)
    }

    /// An axis that an element of a shape makes: of what follows the element, or never cut.
    fn made_by(&mut self, shape: &str, element: usize, length: usize) -> Axis {
        if self.model.ints(shape).is_some() {
            return self.atoms.fresh(length);
        }
        let named = self.length_of(shape, element).and_then(|(tensor, axis)| self.tensors.get(&tensor)?.get(axis).cloned());
        named.filter(|axis| self.atoms.axis_length(axis) == length).unwrap_or_else(|| self.atoms.frozen(length, SPATIAL))
    }

    /// Tile: what is repeated has a factor in front that counts the copies.
    pub(super) fn tile(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let dims = self.dims(node.output(0)?)?;
        let repeats = self.model.ints(node.input(1)?);
        let mut outs = Vec::with_capacity(axes.len());
        for (i, axis) in axes.into_iter().enumerate() {
            let (length, own) = (*dims.get(i)?, self.atoms.axis_length(&axis));
            let literal = repeats.as_ref().map(|r| r.get(i).copied().unwrap_or(0));
            if literal == Some(1) || length == own && literal.is_none() {
                outs.push(axis);
                continue;
            }
            let copies = self.atoms.frozen(length.checked_div(own)?, SPATIAL);
            outs.push(
                self.atoms.product(&[copies, axis]).filter(|a| !a.0.is_empty()).unwrap_or_else(|| self.atoms.frozen(length, SPATIAL)),
            );
        }
        self.set(node, outs)
    }
}
