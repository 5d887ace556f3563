//! Operators that take part of an axis: Slice, Split, Gather along channels.
//!
//! A part is the same indices seen on another axis, so each follows its own channels.

use pleach_onnx::Node;

use super::{Axis, Counted, Place, Trace, axis_index, place};

/// One axis of a Slice.
struct Bounds {
    axis: usize,
    start: i64,
    end: i64,
    step: i64,
    /// Where it stands among the bounds.
    index: usize,
}

impl<'a> Trace<'a> {
    pub(super) fn slice(&mut self, node: Node<'a>) -> Option<()> {
        let mut axes = self.axes(node.input(0)?)?;
        let dims = self.dims(node.input(0)?)?;
        let lengths = self.dims(node.output(0)?)?;
        let Some(bounds) = self.bounds(node, dims.len()) else { return self.slice_by_computed(node, axes, &dims, &lengths) };
        for bounds in bounds {
            let (own, &length, &left) = (axes.get_mut(bounds.axis)?, dims.get(bounds.axis)?, lengths.get(bounds.axis)?);
            *own = self.slice_axis(node, &own.clone(), (length, left), &bounds)?;
        }
        self.set(node, axes)
    }

    fn slice_axis(&mut self, node: Node<'a>, axis: &Axis, (length, left): (usize, usize), bounds: &Bounds) -> Option<Axis> {
        if length == left {
            // A reversed axis is no longer what it was.
            return if bounds.step == 1 { Some(axis.clone()) } else { self.rest(node, axis, left) };
        }
        let clamp = |bound: i64| usize::try_from(if bound < 0 { bound + length as i64 } else { bound }).unwrap_or(0).min(length);
        let (start, end) = (clamp(bounds.start), clamp(bounds.end));
        if bounds.step != 1 || end.checked_sub(start) != Some(left) {
            return self.rest(node, axis, left);
        }
        let Some(out) = self.atoms.slice(axis, start..end) else { return self.rest(node, axis, left) };
        for (which, bound, at) in [("starts", bounds.start, start), ("ends", bounds.end, end)] {
            let counted = if bound < 0 { at..length } else { 0..at };
            if counted.is_empty() || at == length {
                continue; // beyond every index, whatever their number
            }
            let Some(axis) = self.atoms.slice(axis, counted) else { return self.rest(node, axis, left) };
            let place = match (node.ints("starts"), which) {
                (Some(_), _) => Place::Attribute(which),
                (None, "starts") => Place::Input(1),
                (None, _) => Place::Input(2),
            };
            self.counts.push(Counted { node: node.id, place, index: bounds.index, dense: bound, axis });
        }
        Some(out)
    }

    /// An axis of which a part is taken in a way that does not follow: it stays whole.
    fn rest(&mut self, node: Node<'a>, axis: &Axis, length: usize) -> Option<Axis> {
        let reason = format!("{} takes a part of it that cannot follow", place(node));
        self.atoms.freeze(axis, &reason);
        Some(self.atoms.frozen(length, &reason))
    }

    /// The literal bounds of a Slice: attributes up to opset 9, inputs since. 32-bit ones are not literal, since the type of all
    /// must stay the same; folding widens them.
    fn bounds(&self, node: Node<'a>, rank: usize) -> Option<Vec<Bounds>> {
        let read = |name: &str, input: usize| match node.ints(name) {
            Some(list) => Some(list.to_vec()),
            None => node.input(input).and_then(|name| self.literals(name)),
        };
        let (starts, ends) = (read("starts", 1)?, read("ends", 2)?);
        let all = || (0..starts.len() as i64).collect();
        let axes = if node.input(3).is_some() { read("axes", 3)? } else { node.ints("axes").map_or_else(all, <[i64]>::to_vec) };
        let steps = if node.input(4).is_some() { read("steps", 4)? } else { vec![1; starts.len()] };
        let mut bounds = Vec::with_capacity(starts.len());
        for (index, (((&start, &end), &axis), &step)) in starts.iter().zip(&ends).zip(&axes).zip(&steps).enumerate() {
            bounds.push(Bounds { axis: axis_index(axis, rank)?, start, end, step, index });
        }
        Some(bounds)
    }

    fn literals(&self, name: &str) -> Option<Vec<i64>> {
        let wide =
            self.model.constant_proto(name).is_none_or(|t| t.data_type == Some(pleach_onnx::proto::tensor_proto::DataType::Int64.into()));
        self.model.ints(name).filter(|_| wide)
    }

    /// Bounds that are computed: axes whose length stays pass, the others are never cut.
    fn slice_by_computed(&mut self, node: Node<'a>, axes: Vec<Axis>, dims: &[usize], lengths: &[usize]) -> Option<()> {
        let sliced: Vec<usize> = match node.input(3) {
            Some(name) => self.model.ints(name)?.into_iter().map(|axis| axis_index(axis, dims.len())).collect::<Option<_>>()?,
            None => (0..dims.len()).collect(),
        };
        let mut outs = Vec::with_capacity(axes.len());
        for (i, axis) in axes.into_iter().enumerate() {
            outs.push(if sliced.contains(&i) { self.rest(node, &axis, *lengths.get(i)?)? } else { axis });
        }
        self.set(node, outs)
    }

    pub(super) fn split(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let at = axis_index(node.int("axis").unwrap_or(0), axes.len())?;
        let outputs: Vec<&str> = node.outputs().collect();
        let lengths: Vec<usize> = outputs.iter().map(|name| self.dims(name)?.get(at).copied()).collect::<Option<_>>()?;
        let whole = axes.get(at)?.clone();
        if lengths.iter().sum::<usize>() != self.atoms.axis_length(&whole) || node.proto.output.len() != outputs.len() {
            return None;
        }
        let literal = if node.ints("split").is_some() {
            Some(Place::Attribute("split"))
        } else if let Some(name) = node.input(1) {
            Some(self.model.ints(name).map(|_| Place::Input(1))?)
        } else {
            None
        };
        let (mut offset, mut parts) = (0, Vec::with_capacity(lengths.len()));
        for &length in &lengths {
            parts.push(self.atoms.slice(&whole, offset..offset + length)?);
            offset += length;
        }
        match literal {
            Some(place) => {
                for (index, (axis, &length)) in parts.iter().zip(&lengths).enumerate() {
                    let dense = i64::try_from(length).ok()?;
                    self.counts.push(Counted { node: node.id, place, index, dense, axis: axis.clone() });
                }
            }
            // Equal parts stay equal only when they lose the same indices.
            None => {
                let first = parts.first()?.clone();
                if lengths.iter().any(|length| lengths.first() != Some(length)) {
                    return None;
                }
                for part in parts.iter().skip(1) {
                    self.atoms.unify(&first, part, &place(node));
                }
            }
        }
        for (name, part) in outputs.into_iter().zip(parts) {
            let mut own = axes.clone();
            *own.get_mut(at)? = part;
            self.tensors.insert(name.to_owned(), own);
        }
        Some(())
    }

    /// Gather of constant indices from an activation.
    pub(super) fn gather(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let at = axis_index(node.int("axis").unwrap_or(0), axes.len())?;
        let (whole, lengths) = (axes.get(at)?.clone(), self.dims(node.output(0)?)?);
        let places = self.dims(node.input(1)?)?;
        let new = match (self.root(node.input(1)?), places.as_slice()) {
            (Some(indices), &[_]) if self.model.consumers(&indices).len() == 1 => vec![self.gathered(node, &indices, &whole)?],
            (_, [] | &[1]) => {
                self.atoms.freeze(&whole, &format!("{} takes one index of it", place(node)));
                places.iter().map(|_| self.atoms.frozen(1, super::SPATIAL)).collect()
            }
            _ => {
                self.atoms.freeze(&whole, &format!("{} picks indices of it", place(node)));
                self.axes(node.input(1)?)?
            }
        };
        let mut outs = axes;
        outs.splice(at..=at, new);
        self.dims(node.output(0)?).filter(|_| lengths.len() == outs.len())?;
        self.set(node, outs)
    }

    fn gathered(&mut self, node: Node<'a>, indices: &str, whole: &Axis) -> Option<Axis> {
        let length = self.atoms.axis_length(whole) as i64;
        let picked = self.model.ints(indices)?.into_iter().map(|i| usize::try_from(if i < 0 { i + length } else { i }).ok());
        let picked: Vec<usize> = picked.collect::<Option<_>>()?;
        let Some(out) = self.atoms.pick(whole, &picked) else { return self.rest(node, whole, picked.len()) };
        self.bind(indices, 0, &out, node)?;
        self.indices.push((indices.to_owned(), whole.clone()));
        Some(out)
    }
}
