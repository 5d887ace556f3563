//! The operator table: how each operator's axes follow from its inputs.
//!
//! Rules follow the ONNX operator specification (ai.onnx 7 to 25).

use std::collections::HashMap;

use pleach_onnx::{Model, Node, NodeId, Shapes};

use super::axes::{Atoms, Axis};

/// Batch size at which shapes are read: a prime, so that a factor of it in a Reshape is the batch and nothing else.
const ROWS: usize = 1009;

/// Why spatial axes are frozen: not worth telling.
pub(super) const SPATIAL: &str = "spatial axis";

/// A layer's output channels.
pub(super) struct Made {
    pub(super) node: NodeId,
    pub(super) weight: String,
    pub(super) weight_axis: usize,
    pub(super) bias: Option<String>,
    pub(super) axis: Axis,
}

/// A layer's contraction.
pub(super) struct Summed {
    pub(super) node: NodeId,
    pub(super) weight: String,
    pub(super) weight_axis: usize,
    pub(super) input: String,
    pub(super) input_axis: usize,
    pub(super) bias: Option<String>,
    pub(super) axis: Axis,
}

/// What a walk over the graph found.
pub(super) struct Trace<'a> {
    pub(super) model: &'a Model,
    shapes: &'a Shapes,
    pub(super) atoms: Atoms,
    /// Axes of activations.
    pub(super) tensors: HashMap<String, Vec<Axis>>,
    /// Axes of constants, by root name; `None` where nothing couples yet.
    pub(super) constants: HashMap<String, Vec<Option<Axis>>>,
    pub(super) made: Vec<Made>,
    pub(super) summed: Vec<Summed>,
    pub(super) depthwise: Vec<(NodeId, Axis)>,
    pub(super) reshapes: Vec<NodeId>,
}

/// Operators that work element by element on one tensor.
const UNARY: [&str; 38] = [
    "Abs",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Atan",
];

/// Operators that broadcast their inputs against each other, element by element.
const BROADCAST: [&str; 19] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Mean",
    "Sum",
    "Where",
    "PRelu",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
];

/// Operators whose first two axes pass and whose others are pooled.
const POOLS: [&str; 6] = ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"];

const REDUCTIONS: [&str; 10] = [
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
    /// Walks a model in order.
    pub(super) fn run(model: &'a Model, shapes: &'a Shapes) -> Self {
        let mut trace = Self {
            model,
            shapes,
            atoms: Atoms::default(),
            tensors: HashMap::new(),
            constants: HashMap::new(),
            made: Vec::new(),
            summed: Vec::new(),
            depthwise: Vec::new(),
            reshapes: Vec::new(),
        };
        for input in model.inputs() {
            let axes = trace.new_axes(&input.name, &format!("graph input `{}`", input.name));
            trace.tensors.insert(input.name, axes);
        }
        for node in model.nodes() {
            if trace.rule(node).is_none() {
                trace.give_up(node, "has no rule for this form");
            }
        }
        for output in model.outputs() {
            trace.freeze_tensor(&output.name, &format!("graph output `{}`", output.name));
        }
        for alias in model.nodes().filter(|n| n.is("Identity")).filter_map(|n| n.output(0)) {
            if let Some(axes) = trace.root(alias).and_then(|_| trace.axes(alias)) {
                trace.tensors.insert(alias.to_owned(), axes);
            }
        }
        trace
    }

    /// Applies a node's rule; `None` when the operator, or this form of it, has none.
    fn rule(&mut self, node: Node<'a>) -> Option<()> {
        for name in node.captured() {
            self.freeze_tensor(name, &format!("node `{}` ({}) captures it", node.label(), node.op_type()));
        }
        if !node.domain().is_empty() {
            return None;
        }
        match node.op_type() {
            "Constant" => Some(()),
            "Identity" if self.root(node.input(0)?).is_some() => Some(()),
            "Conv" => self.conv(node),
            "BatchNormalization" => self.batch_norm(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.matmul(node),
            "Concat" => self.concat(node),
            "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(node),
            "Reshape" => {
                self.model.ints(node.input(1)?)?;
                self.reshape(node)?;
                self.reshapes.push(node.id);
                Some(())
            }
            "Transpose" => self.transpose(node),
            op if REDUCTIONS.contains(&op) => self.reduce(node),
            op if POOLS.contains(&op) => self.pool(node),
            op if UNARY.contains(&op) => self.unary(node),
            op if BROADCAST.contains(&op) => self.broadcast(node),
            _ => None,
        }
    }

    /// Freezes every axis a node touches.
    fn give_up(&mut self, node: Node<'a>, why: &str) {
        let reason = format!("node `{}` ({}) {why}", node.label(), node.op_type());
        for name in node.inputs() {
            self.freeze_tensor(name, &reason);
        }
        for name in node.outputs() {
            let axes = self.new_axes(name, &reason);
            self.tensors.insert(name.to_owned(), axes);
        }
    }

    fn conv(&mut self, node: Node<'a>) -> Option<()> {
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
            self.depthwise.push((node.id, channels));
            out
        } else {
            return None;
        };
        let mut outs = vec![axes.first()?.clone(), out];
        self.spatial(node, &mut outs)
    }

    /// Channels of a depthwise convolution with `multiplier` outputs a channel: `[C][multiplier]`.
    fn multiplied(&mut self, channels: &Axis, multiplier: usize) -> Axis {
        if multiplier == 1 {
            return channels.clone();
        }
        let inner = self.atoms.frozen(multiplier, "depth multiplier");
        let mut out = channels.clone();
        for piece in &mut out.0 {
            piece.extend(inner.atoms());
        }
        out
    }

    fn gemm(&mut self, node: Node<'a>) -> Option<()> {
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

    fn matmul(&mut self, node: Node<'a>) -> Option<()> {
        let (x, weight) = (node.input(0)?, self.root(node.input(1)?)?);
        let (mut axes, dims) = (self.axes(x)?, self.dims(&weight)?);
        if dims.len() != 2 || axes.len() < 2 {
            return None;
        }
        let contracted = axes.pop()?;
        let out = self.bound(&weight, 1, dims.get(1).copied()?);
        self.layer(node, x, axes.len(), &weight, (0, &contracted), (1, &out))?;
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

    fn batch_norm(&mut self, node: Node<'a>) -> Option<()> {
        if node.int("training_mode").unwrap_or(0) != 0 || node.outputs().count() > 1 {
            return None;
        }
        let axes = self.axes(node.input(0)?)?;
        for input in 1..5 {
            self.bind_or_unify(node.input(input)?, 0, axes.get(1)?, node)?;
        }
        self.set(node, axes)
    }

    fn unary(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        for name in node.outputs() {
            self.tensors.insert(name.to_owned(), axes.clone());
        }
        Some(())
    }

    fn broadcast(&mut self, node: Node<'a>) -> Option<()> {
        let shape = self.dims(node.output(0)?)?;
        let inputs: Vec<(&str, Vec<usize>)> = node.inputs().map(|name| Some((name, self.dims(name)?))).collect::<Option<_>>()?;
        let mut outs = Vec::with_capacity(shape.len());
        for (axis, &length) in shape.iter().enumerate() {
            let mut out: Option<Axis> = None;
            // Activations first, so that constants take the axes of what they meet.
            for constants in [false, true] {
                for (name, dims) in &inputs {
                    let Some(at) = (axis + dims.len()).checked_sub(shape.len()).filter(|&at| dims.get(at) == Some(&length)) else {
                        continue;
                    };
                    if self.root(name).is_some() != constants {
                        continue;
                    }
                    match &out {
                        Some(out) => self.bind_or_unify(name, at, &out.clone(), node)?,
                        None => out = Some(self.axes(name)?.get(at)?.clone()),
                    }
                }
            }
            outs.push(out?);
        }
        self.set(node, outs)
    }

    fn pool(&mut self, node: Node<'a>) -> Option<()> {
        if node.outputs().count() > 1 {
            return None; // the indices count channels
        }
        let mut axes = self.axes(node.input(0)?)?;
        axes.truncate(2);
        self.spatial(node, &mut axes)
    }

    fn concat(&mut self, node: Node<'a>) -> Option<()> {
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

    fn transpose(&mut self, node: Node<'a>) -> Option<()> {
        let axes = self.axes(node.input(0)?)?;
        let outs = match node.ints("perm") {
            Some(perm) => perm.iter().map(|&p| axes.get(usize::try_from(p).ok()?).cloned()).collect::<Option<_>>()?,
            None => axes.into_iter().rev().collect(),
        };
        self.set(node, outs)
    }

    fn reduce(&mut self, node: Node<'a>) -> Option<()> {
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

    /// Reshape and its kin: blocks of axes of equal product are regrouped.
    fn reshape(&mut self, node: Node<'a>) -> Option<()> {
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

    /// Sets a node's output to the given axes and as many spatial ones as its rank needs.
    fn spatial(&mut self, node: Node<'a>, axes: &mut Vec<Axis>) -> Option<()> {
        let dims = self.dims(node.output(0)?)?;
        for &length in dims.get(axes.len()..)? {
            axes.push(self.atoms.frozen(length, SPATIAL));
        }
        self.set(node, std::mem::take(axes))
    }

    /// Sets the axes of a node's only output, when their lengths are those measured.
    fn set(&mut self, node: Node<'a>, axes: Vec<Axis>) -> Option<()> {
        let name = node.output(0)?;
        let lengths: Vec<usize> = axes.iter().map(|axis| self.atoms.axis_length(axis)).collect();
        if self.dims(name)? != lengths {
            return None;
        }
        self.tensors.insert(name.to_owned(), axes);
        Some(())
    }

    /// The constant behind a name, through Identity nodes; `None` for activations.
    pub(super) fn root(&self, name: &str) -> Option<String> {
        let mut name = name;
        while let Some(node) = self.model.producer(name).filter(|n| n.is("Identity")) {
            name = node.input(0)?;
        }
        self.model.constant_dims(name).map(|_| name.to_owned())
    }

    fn dims(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.at(name, ROWS).or_else(|| self.model.constant_dims(name))
    }

    /// Axes of an activation, or of a constant, whose axes are made when nothing bound them yet.
    fn axes(&mut self, name: &str) -> Option<Vec<Axis>> {
        let Some(root) = self.root(name) else { return self.tensors.get(name).cloned() };
        let dims = self.model.constant_dims(&root)?;
        Some(dims.iter().enumerate().map(|(axis, &length)| self.bound(&root, axis, length)).collect())
    }

    /// The axis a constant is bound to; a new one when it is not yet.
    fn bound(&mut self, root: &str, axis: usize, length: usize) -> Axis {
        if let Some(Some(bound)) = self.constants.get(root).and_then(|axes| axes.get(axis)) {
            return bound.clone();
        }
        let fresh = self.atoms.fresh(length);
        if let Some(slot) = self.slot(root, axis) {
            *slot = Some(fresh.clone());
        }
        fresh
    }

    fn slot(&mut self, root: &str, axis: usize) -> Option<&mut Option<Axis>> {
        let rank = self.model.constant_dims(root)?.len();
        self.constants.entry(root.to_owned()).or_insert_with(|| vec![None; rank]).get_mut(axis)
    }

    /// Binds a constant's axis, or unifies with what it is bound to; `None` when lengths differ.
    fn bind(&mut self, root: &str, axis: usize, to: &Axis, node: Node<'_>) -> Option<()> {
        let length = *self.model.constant_dims(root)?.get(axis)?;
        if length != self.atoms.axis_length(to) {
            return None;
        }
        let slot = self.slot(root, axis)?;
        match slot.clone() {
            Some(bound) => self.atoms.unify(&bound, to, &place(node)),
            None => *slot = Some(to.clone()),
        }
        Some(())
    }

    fn bind_or_unify(&mut self, name: &str, axis: usize, to: &Axis, node: Node<'_>) -> Option<()> {
        if let Some(root) = self.root(name) {
            return self.bind(&root, axis, to, node);
        }
        let own = self.tensors.get(name)?.get(axis)?.clone();
        self.atoms.unify(&own, to, &place(node));
        Some(())
    }

    fn new_axes(&mut self, name: &str, reason: &str) -> Vec<Axis> {
        self.dims(name).unwrap_or_default().into_iter().map(|length| self.atoms.frozen(length, reason)).collect()
    }

    fn freeze_tensor(&mut self, name: &str, reason: &str) {
        for axis in self.axes(name).unwrap_or_default() {
            self.atoms.freeze(&axis, reason);
        }
    }
}

fn place(node: Node<'_>) -> String {
    format!("node `{}` ({})", node.label(), node.op_type())
}

fn axis_index(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    usize::try_from(if axis < 0 { axis + rank } else { axis }).ok().filter(|&a| a < rank as usize)
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
