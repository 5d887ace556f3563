//! The graph as a person sees it: layers, joins and what crosses graphs are boxes; everything else is part of the box it follows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pleach_onnx::{Node, NodeId};
use pleach_prune::coupling::GroupId;

use crate::inspect::Subject;

/// Most boxes of one picture.
pub(super) const MAX_BOXES: usize = 2_000;

/// What a box stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A graph input.
    Input,
    /// A node that multiplies, or one with graphs or a domain of its own.
    Layer,
    /// A node that reads several boxes.
    Join,
    /// A graph output.
    Output,
}

/// One box.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) kind: Kind,
    /// Operator, or `input` and `output`.
    pub(super) operator: String,
    /// Label of its first node, or a tensor's name.
    pub(super) name: String,
    /// Operators of the nodes behind the first, in order.
    pub(super) then: Vec<String>,
    pub(super) macs: u64,
    /// Shape of what its first node gives.
    pub(super) shape: Vec<usize>,
    /// Shape of its weight.
    pub(super) weight: Vec<usize>,
    /// Groups whose channels it reads.
    pub(super) reads: Vec<GroupId>,
    /// Groups whose channels it makes or passes on.
    pub(super) gives: Vec<GroupId>,
    /// Why what it gives is frozen, when no group is there.
    pub(super) frozen: Option<String>,
}

/// A tensor from one box to another, with the groups whose channels it carries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wire {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) groups: Vec<GroupId>,
}

/// Boxes in graph order, and the tensors between them.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    pub(super) blocks: Vec<Block>,
    pub(super) wires: Vec<Wire>,
    /// Nodes that found no place, when the graph is too large to draw.
    pub(super) left_out: usize,
}

struct Builder<'a> {
    subject: &'a Subject,
    macs: HashMap<NodeId, u64>,
    carried: HashMap<&'a str, Vec<GroupId>>,
    reasons: HashMap<(&'a str, usize), &'a str>,
    place: HashMap<&'a str, usize>,
    helpers: HashSet<&'a str>,
    blocks: Vec<Block>,
    wires: BTreeMap<(usize, usize), BTreeSet<GroupId>>,
    left_out: usize,
}

/// Parts a model into boxes.
pub(super) fn blocks(subject: &Subject, node_macs: &[(NodeId, u64)]) -> Blocks {
    let mut carried: HashMap<&str, Vec<GroupId>> = HashMap::new();
    for group in &subject.coupling.groups {
        for tensor in &group.tensors {
            let groups = carried.entry(&tensor.tensor).or_default();
            if groups.last() != Some(&group.id) {
                groups.push(group.id);
            }
        }
    }
    let reasons = subject.coupling.frozen.iter().flat_map(|f| f.members.iter().map(|(c, axis)| ((c.as_str(), *axis), f.reason.as_str())));
    let mut builder = Builder {
        subject,
        macs: node_macs.iter().copied().collect(),
        carried,
        reasons: reasons.collect(),
        place: HashMap::new(),
        helpers: HashSet::new(),
        blocks: Vec::new(),
        wires: BTreeMap::new(),
        left_out: 0,
    };
    builder.ports();
    for node in subject.model.nodes() {
        builder.node(node);
    }
    builder.outputs();
    let wires = builder.wires.into_iter().map(|((from, to), groups)| Wire { from, to, groups: groups.into_iter().collect() });
    Blocks { wires: wires.collect(), blocks: builder.blocks, left_out: builder.left_out }
}

impl<'a> Builder<'a> {
    fn ports(&mut self) {
        for input in &self.subject.model.graph().input {
            let name = input.name();
            if self.subject.model.constant_dims(name).is_none() {
                let frozen = Some("the model's input keeps its channels".to_owned());
                let block = Block { frozen, ..self.block(Kind::Input, "input", name, name) };
                self.place.insert(name, self.blocks.len());
                self.blocks.push(block);
            }
        }
    }

    fn outputs(&mut self) {
        for output in &self.subject.model.graph().output {
            let Some(&from) = self.place.get(output.name()) else { continue };
            let frozen = Some("the model's output keeps its channels".to_owned());
            let block = Block { frozen, ..self.block(Kind::Output, "output", output.name(), output.name()) };
            self.wires.insert((from, self.blocks.len()), BTreeSet::new());
            self.blocks.push(block);
        }
    }

    fn node(&mut self, node: Node<'a>) {
        let read: Vec<&'a str> = node.inputs().chain(node.captured()).filter(|name| !self.helpers.contains(name)).collect();
        let mut sources: Vec<usize> = read.iter().filter_map(|name| self.place.get(name).copied()).collect();
        sources.sort_unstable();
        sources.dedup();
        if sources.is_empty() || matches!(node.op_type(), "Shape" | "Size") {
            self.helpers.extend(node.outputs()); // computes with shapes and constants only
            return;
        }
        let layer = self.macs.contains_key(&node.id) || !node.domain().is_empty() || has_graphs(node) || recurrent(node);
        let at = match sources.as_slice() {
            [only] if !layer => *only,
            _ if self.blocks.len() >= MAX_BOXES => {
                self.left_out += 1;
                return;
            }
            _ => self.blocks.len(),
        };
        for name in node.outputs() {
            self.place.insert(name, at);
        }
        if let Some(block) = self.blocks.get_mut(at) {
            block.then.push(node.op_type().to_owned());
            if let Some(groups) = node.output(0).and_then(|name| self.carried.get(name)) {
                block.gives.clone_from(groups); // what leaves the box counts
            }
            return;
        }
        self.begin(node, at, if layer { Kind::Layer } else { Kind::Join }, &read);
    }

    /// A new box that begins with a node.
    fn begin(&mut self, node: Node<'a>, at: usize, kind: Kind, read: &[&'a str]) {
        let mut block = self.block(kind, node.op_type(), &node.label(), node.output(0).unwrap_or_default());
        for name in read {
            let groups = self.carried.get(name).map(Vec::as_slice).unwrap_or_default();
            block.reads.extend(groups);
            if let Some(&from) = self.place.get(name).filter(|&&from| from != at) {
                self.wires.entry((from, at)).or_default().extend(groups);
            }
        }
        block.reads.sort_unstable();
        block.reads.dedup();
        // What a join or a product of activations cannot say for itself is what came in.
        let sources = read.iter().filter_map(|name| self.blocks.get(*self.place.get(name)?));
        block.frozen = sources.filter(|source| source.gives.is_empty()).find_map(|source| source.frozen.clone());
        block.macs = self.macs.get(&node.id).copied().unwrap_or(0);
        let weight = node.inputs().find_map(|name| Some((name, self.subject.model.constant_dims(name).filter(|d| d.len() > 1)?)));
        if let Some((name, dims)) = weight.filter(|_| kind == Kind::Layer) {
            let own = made_axis(node, dims.len()).and_then(|axis| self.reasons.get(&(name, axis)));
            block.frozen = own.map(|reason| (*reason).to_owned()).or(block.frozen);
            block.weight = dims;
        }
        self.blocks.push(block);
    }

    fn block(&self, kind: Kind, operator: &str, name: &str, tensor: &str) -> Block {
        Block {
            kind,
            operator: operator.to_owned(),
            name: name.to_owned(),
            then: Vec::new(),
            macs: 0,
            shape: self.subject.shapes.at(tensor, self.subject.batch).unwrap_or_default(),
            weight: Vec::new(),
            reads: Vec::new(),
            gives: self.carried.get(tensor).cloned().unwrap_or_default(),
            frozen: None,
        }
    }
}

fn has_graphs(node: Node<'_>) -> bool {
    node.proto.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty())
}

fn recurrent(node: Node<'_>) -> bool {
    matches!(node.op_type(), "LSTM" | "GRU" | "RNN")
}

/// The axis of a weight that makes channels.
fn made_axis(node: Node<'_>, rank: usize) -> Option<usize> {
    match node.op_type() {
        "Conv" => Some(0),
        "ConvTranspose" => Some(1),
        "Gemm" => Some(usize::from(node.int("transB").unwrap_or(0) == 0)),
        "MatMul" => rank.checked_sub(1),
        _ => None,
    }
}

/// Operators in a row, those that repeat counted: `Relu, Mul ×2`.
pub(super) fn listed(operators: &[String]) -> String {
    let mut parts: Vec<(&str, usize)> = Vec::new();
    for operator in operators {
        match parts.last_mut() {
            Some((last, count)) if last == operator => *count += 1,
            _ => parts.push((operator, 1)),
        }
    }
    let part = |(name, count): (&str, usize)| if count == 1 { name.to_owned() } else { format!("{name} ×{count}") };
    parts.into_iter().map(part).collect::<Vec<_>>().join(", ")
}
