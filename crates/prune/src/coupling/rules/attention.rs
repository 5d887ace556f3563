//! What attention is exported as: products of activations, embeddings, normalisations; and the operator itself.

use pleach_onnx::Node;

use super::{Axis, Contracted, Made, Mask, Scale, Summed, Trace, axis_index, place};

/// Queries, keys or values by head.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    pub(super) heads: Axis,
    pub(super) dim: Axis,
}

impl<'a> Trace<'a> {
    /// A batched product of two tensors of which the second is no plain weight: `[.., M, K]` and `[.., K, N]`, or with the last
    /// two axes changed in the sides that `transposed` says.
    pub(super) fn product(&mut self, node: Node<'a>, transposed: [bool; 2]) -> Option<()> {
        let (left, right) = (self.axes(node.input(0)?)?, self.axes(node.input(1)?)?);
        let (l, r) = (left.len().checked_sub(2)?, right.len().checked_sub(2)?);
        let (rows, depth) = if transposed[0] { (l + 1, l) } else { (l, l + 1) };
        let (shared, columns) = if transposed[1] { (r + 1, r) } else { (r, r + 1) };
        let mut outs = self.batches(node, left.get(..l)?, right.get(..r)?)?;
        self.contract(node, vec![Mask::Input { node: node.id, input: 0, axis: depth }], left.get(depth)?, right.get(shared)?);
        if let Some(weight) = self.root(node.input(1)?) {
            let axis = right.get(columns)?.clone();
            self.made.push(Made { node: node.id, weight, weight_axis: columns, bias: None, axis });
        }
        outs.push(left.get(rows)?.clone());
        outs.push(right.get(columns)?.clone());
        self.set(node, outs)
    }

    /// The batch axes of a product: those of one length meet, those of length 1 are repeated.
    fn batches(&mut self, node: Node<'a>, left: &[Axis], right: &[Axis]) -> Option<Vec<Axis>> {
        let rank = left.len().max(right.len());
        let at = |axes: &[Axis], i: usize| (i + axes.len()).checked_sub(rank).and_then(|i| axes.get(i)).cloned();
        let mut outs = Vec::with_capacity(rank);
        for i in 0..rank {
            let out = match (at(left, i), at(right, i)) {
                (Some(x), Some(y)) if self.atoms.axis_length(&x) == self.atoms.axis_length(&y) => {
                    self.atoms.unify(&x, &y, &place(node));
                    x
                }
                (Some(x), Some(y)) => {
                    if self.atoms.axis_length(&x) == 1 {
                        y
                    } else {
                        x
                    }
                }
                (x, y) => x.or(y)?,
            };
            self.atoms.stiffen(&out);
            outs.push(out);
        }
        Some(outs)
    }

    /// Lets a node sum over the products of two axes of activations.
    pub(super) fn contract(&mut self, node: Node<'a>, masks: Vec<Mask>, left: &Axis, right: &Axis) {
        self.atoms.unify(left, right, &place(node));
        self.contracted.push(Contracted { node: node.id, masks, left: left.clone(), right: right.clone() });
    }

    /// Gather from a constant table: its rows are chosen by indices, its columns are channels that it makes.
    pub(super) fn embedding(&mut self, node: Node<'a>) -> Option<()> {
        let weight = self.root(node.input(0)?)?;
        let dims = self.dims(&weight)?;
        if axis_index(node.int("axis").unwrap_or(0), dims.len())? != 0 {
            return None;
        }
        let mut outs = self.axes(node.input(1)?)?;
        for (axis, &length) in dims.iter().enumerate().skip(1) {
            let out = self.bound(&weight, axis, length);
            self.made.push(Made { node: node.id, weight: weight.clone(), weight_axis: axis, bias: None, axis: out.clone() });
            outs.push(out);
        }
        self.set(node, outs)
    }

    /// Softmax and its kin: no index of the axis may go, as all count in the sum.
    pub(super) fn softmax(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let one_axis = self.model.opset("").unwrap_or(0) >= 13;
        let axis = axis_index(node.int("axis").unwrap_or(if one_axis { -1 } else { 1 }), axes.len())?;
        let end = if one_axis { axis + 1 } else { axes.len() };
        self.normalize(node, axes.get(axis..end)?);
        self.set(node, axes)
    }

    /// Trilu: which of the last two axes' entries stay depends on their places.
    pub(super) fn trilu(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let reason = format!("{} depends on places", place(node));
        for axis in axes.get(axes.len().checked_sub(2)?..)? {
            self.atoms.freeze(axis, &reason);
        }
        self.set(node, axes)
    }

    fn normalize(&mut self, node: Node<'a>, axes: &[Axis]) {
        let reason = format!("{} normalises over it", place(node));
        for axis in axes {
            self.atoms.freeze(axis, &reason);
        }
    }

    /// LayerNormalization and its kin with `parameters` inputs after the `data` ones: the axes from `axis` on are frozen.
    pub(super) fn layer_norm(&mut self, node: Node<'a>, data: usize) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let from = axis_index(node.int("axis").unwrap_or(-1), axes.len())?;
        self.normalize(node, axes.get(from..)?);
        for name in node.inputs().skip(1) {
            self.meet(node, name, &axes)?;
        }
        for index in 1..4 {
            let Some(name) = node.output(index) else { continue };
            let same = data == 2 && index == 3; // the sum that was normalised
            let own = if same { axes.clone() } else { self.new_axes(name, &format!("{} measures it", place(node))) };
            self.tensors.insert(name.to_owned(), own);
        }
        self.set(node, axes)
    }

    /// Lets a tensor meet `axes` from the last one on, where the lengths are equal.
    pub(super) fn meet(&mut self, node: Node<'a>, name: &str, axes: &[Axis]) -> Option<()> {
        let dims = self.dims(name)?;
        for (i, &length) in dims.iter().enumerate() {
            let axis = axes.get((i + axes.len()).checked_sub(dims.len())?)?;
            if length == self.atoms.axis_length(axis) {
                self.bind_or_unify(name, i, axis, node)?;
            } else if length != 1 {
                return None;
            }
        }
        Some(())
    }

    /// Einsum of one or two tensors: equal letters are one axis, letters that the result lacks are summed over.
    pub(super) fn einsum(&mut self, node: Node<'a>) -> Option<()> {
        let equation: String = node.string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
        let (terms, result) = equation.split_once("->")?;
        let terms: Vec<Vec<char>> = terms.split(',').map(|term| term.chars().collect()).collect();
        let plain = |term: &[char]| term.iter().all(|c| c.is_ascii_alphabetic()) && (1..term.len()).all(|i| !term[..i].contains(&term[i]));
        if terms.len() != node.inputs().count() || terms.len() > 2 || !terms.iter().all(|term| plain(term)) {
            return None;
        }
        let weight = terms
            .get(1)
            .and(node.input(1))
            .and_then(|name| self.root(name))
            .filter(|_| self.root(node.input(0).unwrap_or_default()).is_none());
        let axes: Vec<Vec<Axis>> = node.inputs().map(|name| self.axes(name)).collect::<Option<_>>()?;
        if terms.iter().zip(&axes).any(|(term, axes)| term.len() != axes.len()) {
            return None;
        }
        let find = |term: usize, letter: char| Some((terms.get(term)?.iter().position(|&c| c == letter)?, letter));
        for (at, &letter) in terms.first()?.iter().enumerate() {
            let own = axes.first()?.get(at)?.clone();
            let Some((other_at, _)) = find(1, letter) else {
                if !result.contains(letter) {
                    self.atoms.freeze(&own, &format!("{} sums over it", place(node)));
                }
                continue;
            };
            let other = axes.get(1)?.get(other_at)?.clone();
            if result.contains(letter) {
                self.atoms.unify(&own, &other, &place(node));
                self.atoms.stiffen(&own);
            } else if let Some(weight) = &weight {
                self.atoms.unify(&own, &other, &place(node));
                let (weight, input) = (weight.clone(), node.input(0)?.to_owned());
                self.summed.push(Summed { node: node.id, weight, weight_axis: other_at, input, input_axis: at, bias: None, axis: own });
            } else {
                self.contract(node, vec![Mask::Input { node: node.id, input: 0, axis: at }], &own, &other);
            }
        }
        for (at, &letter) in terms.get(1).into_iter().flatten().enumerate() {
            let axis = axes.get(1)?.get(at)?.clone();
            if find(0, letter).is_some() {
                continue;
            }
            if !result.contains(letter) {
                self.atoms.freeze(&axis, &format!("{} sums over it", place(node)));
            } else if let Some(weight) = &weight {
                self.made.push(Made { node: node.id, weight: weight.clone(), weight_axis: at, bias: None, axis });
            }
        }
        let out = |letter| {
            let (term, at) = (0..terms.len()).find_map(|term| Some((term, find(term, letter)?.0)))?;
            axes.get(term)?.get(at).cloned()
        };
        let outs: Vec<Axis> = result.chars().map(out).collect::<Option<_>>()?;
        self.set(node, outs)
    }

    /// Cuts an axis `[heads * dim]` into its two.
    pub(super) fn heads(&mut self, axis: &Axis, heads: usize) -> Option<Heads> {
        let dim = self.atoms.axis_length(axis).checked_div(heads)?;
        let [heads, dim] = <[Axis; 2]>::try_from(self.atoms.regroup(std::slice::from_ref(axis), &[heads, dim])?).ok()?;
        Some(Heads { heads, dim })
    }

    /// Scaled dot products of queries with keys, and the mixing of values: heads meet, dims of queries and keys are summed over.
    /// Several query heads may share one of the keys and values: `[key heads][repeats]`. Returns the axis `[heads * dim]` of the result and
    /// the query heads.
    pub(super) fn attend(
        &mut self,
        node: Node<'a>,
        masks: Vec<Mask>,
        q: &Axis,
        k: &Heads,
        v: &Heads,
        heads: usize,
    ) -> Option<(Axis, Axis)> {
        let shared = self.atoms.axis_length(&k.heads);
        if shared == 0 || !heads.is_multiple_of(shared) {
            return None;
        }
        let depth = self.atoms.axis_length(q).checked_div(heads)?;
        let [own, repeats, dim] =
            <[Axis; 3]>::try_from(self.atoms.regroup(std::slice::from_ref(q), &[shared, heads / shared, depth])?).ok()?;
        self.atoms.unify(&own, &k.heads, &place(node));
        self.atoms.unify(&own, &v.heads, &place(node));
        self.contract(node, masks, &dim, &k.dim);
        for axis in [&own, &repeats, &k.heads, &v.heads] {
            self.atoms.stiffen(axis);
        }
        if node.float("scale").unwrap_or(0.0) == 0.0 {
            self.scales.push(Scale { node: node.id, value: 1.0 / (depth as f32).sqrt(), axis: dim });
        }
        Some((self.atoms.product(&[own.clone(), repeats.clone(), v.dim.clone()])?, self.atoms.product(&[own, repeats])?))
    }
}
