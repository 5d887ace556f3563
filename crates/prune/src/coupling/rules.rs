//! The operator table: how each operator's axes follow from its inputs.
//!
//! Rules follow the ONNX operator specification (ai.onnx 7 to 25).

mod attention;
mod contrib;
mod elementwise;
mod helper;
mod layer;
mod normalization;
mod reduction;
mod shape;
mod slicing;
mod space;

use std::collections::HashMap;

use pleach_onnx::{Model, Node, NodeId, Shapes};

use super::Place;
use super::axes::{AtomId, Atoms, Axis};
use super::layouts::Layouts;
use elementwise::{BROADCAST, UNARY};
use helper::Element;
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
    /// Nodes that hold graphs or a recurrence of their own, with the reason why what they touch stays.
    pub(super) closed: Vec<(NodeId, String)>,
    /// Elements of tensors that are computed from lengths.
    elements: HashMap<String, Vec<Element>>,
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
            closed: Vec::new(),
            elements: HashMap::new(),
        };
        for input in model.inputs() {
            let axes = trace.new_axes(&input.name, &format!("graph input `{}`", input.name));
            trace.tensors.insert(input.name, axes);
        }
        for node in model.nodes() {
            if trace.helper(node).is_some() {
                continue;
            }
            if trace.rule(node).is_none() {
                trace.give_up(node, "has no rule for this form");
            }
            trace.read_lengths(node);
            trace.stiffen(node);
        }
        for output in model.outputs() {
            let reason = format!("graph output `{}`", output.name);
            trace.freeze_tensor(&output.name, &reason);
            let sources = trace.elements.get(&output.name).map(|list| list.iter().flat_map(Element::sources).collect::<Vec<_>>());
            trace.freeze_sources(&sources.unwrap_or_default(), &reason);
        }
        for alias in
            model.nodes().filter(|n| n.is("Identity") || trace.is_stored(*n)).collect::<Vec<_>>().into_iter().filter_map(|n| n.output(0))
        {
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
                self.reshape(node)?;
                let axes = self.tensors.get(node.output(0)?)?.clone();
                self.follow(node, 1, &axes.into_iter().enumerate().collect::<Vec<_>>());
                Some(())
            }
            "ConvTranspose" => self.conv_transpose(node),
            "InstanceNormalization" => self.instance_norm(node),
            "GroupNormalization" => self.group_norm(node),
            "LRN" => self.along(node, &[1]),
            "LpNormalization" => self.along(node, &[node.int("axis").unwrap_or(-1)]),
            "MeanVarianceNormalization" => self.along(node, node.ints("axes").unwrap_or(&[0, 2, 3])),
            "CumSum" => self.cumulate(node),
            "ArgMax" | "ArgMin" | "TopK" => self.pick_along(node),
            "QuantizeLinear" | "DequantizeLinear" => self.quantize_linear(node),
            "Slice" => self.slice(node),
            "Split" => self.split(node),
            "Gather" if self.root(node.input(0)?).is_none() => self.gather(node),
            "Resize" | "Upsample" => self.resize(node),
            "Pad" => self.pad(node),
            "DepthToSpace" => self.depth_to_space(node),
            "SpaceToDepth" => self.space_to_depth(node),
            "Expand" => self.expand(node),
            "Tile" => self.tile(node),
            "ConstantOfShape" => self.constant_of_shape(node),
            "CastLike" => self.unary(node),
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
        if !node.captured().is_empty() || matches!(node.op_type(), "If" | "Loop" | "Scan" | "LSTM" | "GRU" | "RNN") {
            self.closed.push((node.id, reason.clone()));
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

    /// Lets the elements of a shape that a node reads follow the axes it makes, given by element. Where an element is no literal, no
    /// 0 or -1 and not the axis's own length, nor a literal that a Concat joins for this node alone, the axis is frozen.
    fn follow(&mut self, node: Node<'a>, input: usize, axes: &[(usize, Axis)]) {
        let Some(name) = node.input(input) else { return };
        if let Some(lengths) = self.model.ints(name) {
            for (index, axis) in axes {
                let Some(&dense) = lengths.get(*index).filter(|length| **length > 1) else { continue };
                self.counts.push(Counted { node: node.id, place: Place::Input(input), index: *index, dense, axis: axis.clone() });
            }
            return;
        }
        let reason = format!("{} has a computed target", place(node));
        let elements = self.elements.get(name).cloned().unwrap_or_default();
        for (index, axis) in axes {
            let element = elements.get(*index);
            if let Some(&Element::Written { node, input, index, value }) = element.filter(|element| !self.follows(element, axis)) {
                self.counts.push(Counted { node, place: Place::Input(input), index, dense: value, axis: axis.clone() });
                continue;
            }
            if !element.is_some_and(|element| self.follows(element, axis)) {
                self.atoms.freeze(axis, &reason);
                self.freeze_sources(&element.map(Element::sources).unwrap_or_default(), &reason);
            }
        }
    }

    /// The constant behind a name, through Identity nodes; `None` for activations.
    pub(super) fn root(&self, name: &str) -> Option<String> {
        let mut name = name;
        while let Some(node) = self.model.producer(name).filter(|n| n.is("Identity") || self.is_stored(*n)) {
            name = node.input(0)?;
        }
        self.model.constant_dims(name).map(|_| name.to_owned())
    }

    /// Whether a node only decodes a constant: DequantizeLinear around zero.
    fn is_stored(&self, node: Node<'_>) -> bool {
        let constant = |name: &str| self.model.constant_dims(name).is_some();
        let zero = |name: &str| self.model.ints(name).is_some_and(|values| values.iter().all(|&v| v == 0));
        node.is("DequantizeLinear") && node.input(0).is_some_and(constant) && node.input(2).is_none_or(zero)
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
