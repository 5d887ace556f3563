//! The operator table: how each operator's axes follow from its inputs.
//!
//! Rules follow the ONNX operator specification (ai.onnx 7 to 25).

mod attention;
mod contrib;
mod elementwise;
mod layer;
mod reduction;
mod shape;

use std::collections::HashMap;

use pleach_onnx::{Model, Node, NodeId, Shapes};

use super::Place;
use super::axes::{AtomId, Atoms, Axis};
use super::layouts::Layouts;
use elementwise::{BROADCAST, UNARY};
use reduction::{POOLS, REDUCTIONS};

/// Batch size at which shapes are read: a prime, so that a factor of it in a Reshape is the batch and nothing else.
const ROWS: usize = 1009;

/// Most walks over one graph: each makes at least one atom smaller, and what is not done by then stays frozen.
const MAX_WALKS: usize = 32;

/// Why spatial axes are frozen: not worth telling.
pub(super) const SPATIAL: &str = "spatial axis";

/// Operators that are linear in each input and treat all indices of an axis alike; those of attention say themselves what they do not.
const LINEAR: [&str; 22] = [
    "Add",
    "Attention",
    "Cast",
    "Concat",
    "Constant",
    "Dropout",
    "Einsum",
    "Expand",
    "Flatten",
    "FusedMatMul",
    "Gemm",
    "GroupQueryAttention",
    "Identity",
    "MatMul",
    "MultiHeadAttention",
    "Neg",
    "Reshape",
    "Squeeze",
    "Sub",
    "Sum",
    "Transpose",
    "Unsqueeze",
];

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

/// A place where zeros leave indices of a contracted axis out.
#[derive(Clone, Debug)]
pub(super) enum Mask {
    /// An axis of an input.
    Input { node: NodeId, input: usize, axis: usize },
    /// An axis of a constant.
    Constant { name: String, axis: usize },
}

/// An axis that a product of two activations sums over.
pub(super) struct Contracted {
    pub(super) node: NodeId,
    pub(super) masks: Vec<Mask>,
    pub(super) left: Axis,
    pub(super) right: Axis,
}

/// An attention operator's scale, where the length of an axis gives it.
pub(super) struct Scale {
    pub(super) node: NodeId,
    /// The scale of the dense graph.
    pub(super) value: f32,
    pub(super) axis: Axis,
}

/// A number that counts the indices of an axis.
pub(super) struct Counted {
    pub(super) node: NodeId,
    pub(super) place: Place,
    /// Which element, where there are several.
    pub(super) index: usize,
    pub(super) dense: i64,
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
    pub(super) contracted: Vec<Contracted>,
    pub(super) scales: Vec<Scale>,
    pub(super) counts: Vec<Counted>,
    /// Constants whose values are indices of an axis.
    pub(super) indices: Vec<(String, Axis)>,
}

impl<'a> Trace<'a> {
    /// Walks a model in order, again and again while a walk wants smaller atoms than it was given.
    pub(super) fn run(model: &'a Model, shapes: &'a Shapes) -> Self {
        let mut trace = Self::walk(model, shapes, Layouts::default());
        for _ in 1..MAX_WALKS {
            let Some(layouts) = trace.atoms.refined() else { break };
            trace = Self::walk(model, shapes, layouts);
        }
        trace
    }

    fn walk(model: &'a Model, shapes: &'a Shapes, layouts: Layouts) -> Self {
        let mut trace = Self {
            model,
            shapes,
            atoms: Atoms::new(layouts),
            tensors: HashMap::new(),
            constants: HashMap::new(),
            made: Vec::new(),
            summed: Vec::new(),
            depthwise: Vec::new(),
            contracted: Vec::new(),
            scales: Vec::new(),
            counts: Vec::new(),
            indices: Vec::new(),
        };
        for input in model.inputs() {
            let axes = trace.new_axes(&input.name, &format!("graph input `{}`", input.name));
            trace.tensors.insert(input.name, axes);
        }
        for node in model.nodes() {
            if trace.rule(node).is_none() {
                trace.give_up(node, "has no rule for this form");
            }
            trace.stiffen(node);
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
        match node.domain() {
            "" => (),
            "com.microsoft" => return self.contrib(node),
            _ => return None,
        }
        match node.op_type() {
            "Constant" => Some(()),
            "ConstantOfShape" if self.root(node.output(0)?).is_some() => Some(()),
            "Identity" if self.root(node.input(0)?).is_some() => Some(()),
            "Conv" => self.conv(node),
            "BatchNormalization" => self.batch_norm(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.matmul(node),
            "Concat" => self.concat(node),
            "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(node),
            "Reshape" => {
                let target = self.model.ints(node.input(1)?)?;
                self.reshape(node)?;
                self.count_lengths(node, Place::Input(1), &target)
            }
            "Transpose" => self.transpose(node),
            "Einsum" => self.einsum(node),
            "Gather" if self.root(node.input(0)?).is_some() => self.embedding(node),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => self.layer_norm(node, 1),
            "Softmax" | "LogSoftmax" | "Hardmax" => self.softmax(node),
            "Attention" => self.attention(node),
            "RotaryEmbedding" => self.rotary(node),
            "Trilu" => self.trilu(node),
            "DynamicQuantizeLinear" => self.quantize(node),
            "MatMulInteger" => self.quantized_matmul(node, &[3], None),
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

    /// Lets no change of basis mix what a node treats index by index: only operators known to be linear, and to treat all
    /// indices of an axis alike, leave one possible.
    fn stiffen(&mut self, node: Node<'a>) {
        let stiff: Vec<Axis> = match node.op_type() {
            op if LINEAR.contains(&op) => return,
            "Gather" | "Slice" | "Split" => {
                let before: std::collections::HashSet<AtomId> = self.known(node.inputs()).iter().flat_map(Axis::atoms).collect();
                self.known(node.outputs()).into_iter().filter(|axis| axis.atoms().any(|atom| !before.contains(&atom))).collect()
            }
            "Mul" | "Div" => self.scaled(node).unwrap_or_default(),
            _ => self.known(node.inputs().chain(node.outputs())),
        };
        for axis in &stiff {
            self.atoms.stiffen(axis);
        }
    }

    /// Axes of the named tensors that something is bound to already.
    fn known<'n>(&self, names: impl Iterator<Item = &'n str>) -> Vec<Axis> {
        let own = |name: &str| match self.root(name) {
            Some(root) => self.constants.get(&root).map(|axes| axes.iter().flatten().cloned().collect()),
            None => self.tensors.get(name).cloned(),
        };
        names.filter_map(own).flat_map(|axes: Vec<Axis>| axes).collect()
    }

    /// Axes of a product or quotient on which both sides have more than one index, and those of a divisor.
    fn scaled(&mut self, node: Node<'a>) -> Option<Vec<Axis>> {
        let (left, right) = (self.axes(node.input(0)?)?, self.axes(node.input(1)?)?);
        let wide = |axes: &[Axis], behind: usize| {
            let axis = axes.len().checked_sub(behind + 1).and_then(|i| axes.get(i))?;
            (self.atoms.axis_length(axis) > 1).then(|| axis.clone())
        };
        let both = |behind| Some([wide(&left, behind)?, wide(&right, behind)?]);
        let mut stiff: Vec<Axis> = (0..left.len().min(right.len())).filter_map(both).flatten().collect();
        if node.is("Div") {
            stiff.extend(right);
        }
        Some(stiff)
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

    /// Lets literal lengths follow the axes of a node's output; 0 and -1 follow by themselves.
    fn count_lengths(&mut self, node: Node<'a>, place: Place, lengths: &[i64]) -> Option<()> {
        let axes = self.tensors.get(node.output(0)?)?.clone();
        for (index, (&dense, axis)) in lengths.iter().zip(axes).enumerate().filter(|(_, (length, _))| **length > 0) {
            self.counts.push(Counted { node: node.id, place, index, dense, axis });
        }
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
        let fresh = self.atoms.sourced(root, axis, length);
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
