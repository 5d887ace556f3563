//! Coupling groups: which channels of which tensors must be removed together, or the reason why they stay.
//!
//! Every axis of every tensor is a list of pieces (Concat), each a product of atoms (Flatten, Reshape); every index of an atom
//! is a node of a union-find. A walk over the graph in order gives each output axis the atoms of the inputs it comes from,
//! makes a new atom where a layer makes new channels, and unifies indices where an operator lets them meet (an Add). What is
//! connected is a group, and each class of unified indices is one *unit* of it: the least that can be removed. An operator
//! without a rule freezes every axis it touches; it never fails and never guesses.
//!
//! The method is that of dependency graphs (Fang et al., "DepGraph", CVPR 2023), on indices instead of layers.
//! This module reads a model and its shapes; it changes nothing: see [`crate::surgery`].

mod axes;
mod groups;
mod layouts;
mod rotation;
mod rules;
mod shapes;

use std::collections::BTreeMap;

use pleach_domain::DomainError;
use pleach_domain::runtime::RuntimeError;
use pleach_onnx::{Model, NodeId, OnnxError, Shapes, node_macs};
use thiserror::Error;

pub(crate) use shapes::feed;
pub use shapes::{Feed, LoadedProbe, PROBE_ROWS, measure_shapes};

/// Which group; numbered from 0 in the order of the first producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct GroupId(pub usize);

/// Which units each group keeps: sorted, without repetition. A group that is not named keeps all.
pub type Keep = BTreeMap<GroupId, Vec<usize>>;

/// Where the units of a group lie on one axis: for each unit its indices, ascending; empty where the axis does not hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units(Vec<Vec<usize>>);

impl Units {
    /// Indices of one unit on the axis.
    pub fn of(&self, unit: usize) -> &[usize] {
        self.0.get(unit).map_or(&[], Vec::as_slice)
    }

    /// Number of units of the group.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the group has no units; never true for a group that was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All units in order.
    pub fn iter(&self) -> impl Iterator<Item = &[usize]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Indices of the given units on the axis, ascending.
    pub fn indices(&self, units: &[usize]) -> Vec<usize> {
        let mut indices: Vec<usize> = units.iter().flat_map(|&u| self.of(u)).copied().collect();
        indices.sort_unstable();
        indices
    }

    /// Indices of each unit when all have the same number, e.g. `H * W` behind a Flatten.
    pub fn repeat(&self) -> Option<usize> {
        let first = self.0.first()?.len();
        self.0.iter().all(|indices| indices.len() == first).then_some(first)
    }
}

/// A constant that is cut with the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the initializer, or the output of its `Constant` node.
    pub constant: String,
    /// The axis that is cut.
    pub axis: usize,
    /// Where the units lie on it.
    pub units: Units,
}

/// An axis of an activation that gets shorter with the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorAxis {
    /// Tensor name.
    pub tensor: String,
    /// The axis.
    pub axis: usize,
    /// Where the units lie on it.
    pub units: Units,
}

/// A Conv, Gemm or MatMul that makes the group's channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Producer {
    /// The node.
    pub node: NodeId,
    /// Its weight.
    pub weight: String,
    /// The weight's output axis.
    pub axis: usize,
    /// Its bias, when it has one.
    pub bias: Option<String>,
    /// The node's output tensor.
    pub output: String,
    /// Where the units lie on the weight's output axis.
    pub units: Units,
}

/// A Conv, Gemm or MatMul that sums over the group's channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// The node.
    pub node: NodeId,
    /// Its weight.
    pub weight: String,
    /// The weight's contracted axis.
    pub axis: usize,
    /// The activation it reads.
    pub input: String,
    /// The activation's contracted axis.
    pub input_axis: usize,
    /// Its bias, when it has one.
    pub bias: Option<String>,
    /// The node's output tensor.
    pub output: String,
    /// Where the units lie on the contracted axis (of weight and activation alike).
    pub units: Units,
}

/// Everything that must be removed together, unit by unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub id: GroupId,
    /// Label of its first producer.
    pub name: String,
    /// Number of units.
    pub size: usize,
    /// Constants cut with it, weights of producers and consumers among them.
    pub members: Vec<Member>,
    /// Layers that make its channels, in graph order.
    pub producers: Vec<Producer>,
    /// Layers that sum over its channels, in graph order.
    pub consumers: Vec<Consumer>,
    /// Depthwise convolutions its channels pass.
    pub depthwise: Vec<NodeId>,
    /// Products of activations that sum over its units: attention scores, over the dims of queries and keys.
    pub contractions: Vec<Contraction>,
    /// How its units may be mixed with each other.
    pub rotation: Rotation,
    /// Activations that get shorter with it.
    pub tensors: Vec<TensorAxis>,
}

/// A product of two activations that sums over a group's units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contraction {
    /// The node.
    pub node: NodeId,
    /// Zeros that, put at all of these places, leave a unit out of the sum.
    pub zeros: Vec<Zeros>,
}

/// A place where zeros leave units of a group out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// An axis of an activation that a node reads.
    Input {
        /// The node.
        node: NodeId,
        /// Which of its inputs.
        input: usize,
        /// Length of the axis.
        length: usize,
        /// Number of axes behind it.
        inner: usize,
        /// Where the units lie on it.
        units: Units,
    },
    /// An axis of a constant.
    Constant {
        /// Its name.
        name: String,
        /// The axis.
        axis: usize,
        /// Where the units lie on it.
        units: Units,
    },
}

/// Changes of basis of a group's units that leave every output as it is, up to rounding.
///
/// Between the layers that make the units and those that sum over them nothing treats one index of the axis unlike another and nothing
/// is nonlinear in it, so an invertible matrix may be put in by one side and taken out by the other. Each head has its own: `T_h`, of as many
/// rows and columns as the group has units, is applied to all [`Block`]s of head `h` of the first list, and the transpose of its
/// inverse to those of the second. Applying `T` to a block replaces its slice at unit `u` by the sum over `v` of `T[v][u]` times the slice at
/// `v`; see [`crate::surgery::change_basis`]. The lists hold every constant that lies on the group's units, biases included. Afterwards units may be
/// removed as of any other group. All heads keep the same units, so a reduction of rank sorts the basis of each head by what it is worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rotation {
    /// None is known to be exact: units may go or change places, no more.
    #[default]
    None,
    /// The units are summed over in a product of two activations, as are the dims of queries and keys. No layer reads them.
    Bilinear {
        /// Constants of the one factor: weights and biases of the queries, say.
        left: Vec<Block>,
        /// Constants of the other.
        right: Vec<Block>,
    },
    /// Layers read what other layers make, with at most a mixing of rows between, as are the dims of values.
    Linear {
        /// Weights and biases that make the units.
        made: Vec<Block>,
        /// Weights that sum over them.
        read: Vec<Block>,
    },
}

/// One copy of a group's units on an axis of a constant, e.g. the columns of one head in the weight of the queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Which head: blocks of one head change basis together. Numbered from 0.
    pub head: usize,
    /// Name of the constant.
    pub constant: String,
    /// The axis.
    pub axis: usize,
    /// Index of each unit on the axis.
    pub indices: Vec<usize>,
}

/// Where a node keeps a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// An integer attribute, or an element of a list of integers.
    Attribute(&'static str),
    /// An element of a constant input.
    Input(usize),
}

/// A number that counts the indices of an axis, e.g. a Reshape's target or a depthwise convolution's `group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) node: NodeId,
    pub(crate) place: Place,
    /// Which element, where there are several.
    pub(crate) index: usize,
    /// The number in the dense graph.
    pub(crate) dense: i64,
    /// Groups that narrow the axis, with the places of their units on it.
    pub(crate) groups: Vec<(GroupId, Units)>,
}

/// A constant whose values are indices of an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Indices {
    pub(crate) constant: String,
    /// Length of the axis in the dense graph.
    pub(crate) length: usize,
    /// Groups that narrow the axis, with the places of their units on it.
    pub(crate) groups: Vec<(GroupId, Units)>,
}

/// An attention operator's scale, which the length of an axis gives unless it is written down.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) node: NodeId,
    /// The scale of the dense graph.
    pub(crate) value: f32,
    /// Groups that narrow the axis, with the places of their units on it.
    pub(crate) groups: Vec<(GroupId, Units)>,
}

/// Channels that are never removed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The layer that makes the channels, or the constant that holds them.
    pub name: String,
    /// Why, naming node and operator.
    pub reason: String,
    /// Constants and axes concerned.
    pub members: Vec<(String, usize)>,
}

/// What couples with what in one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coupling {
    /// Groups that may be narrowed, by id.
    pub groups: Vec<Group>,
    /// Channels that may not.
    pub frozen: Vec<Frozen>,
    /// Numbers in the graph that count channels.
    pub(crate) counts: Vec<Count>,
    /// Scales of attention operators.
    pub(crate) scales: Vec<Scale>,
    /// Constants whose values are indices of an axis.
    pub(crate) indices: Vec<Indices>,
}

/// Multiply-accumulates that can shrink, of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrunableMacs {
    /// In layers and products of which a group can narrow an input or the output.
    pub prunable: u64,
    /// In all layers.
    pub total: u64,
}

/// Why shapes could not be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CouplingError {
    /// The probe could not be built or read.
    #[error("shape probe")]
    Probe(#[from] OnnxError),
    /// The runtime refused the probe.
    #[error("running the shape probe")]
    Runtime(#[source] RuntimeError),
    /// An input axis whose length neither the model nor the caller gives.
    #[error("input `{input}`: axis {axis} is free and no example gives its length")]
    FreeAxis {
        /// Graph input.
        input: String,
        /// Which axis.
        axis: usize,
    },
    /// An input of a type that cannot be probed.
    #[error("input `{input}` has ONNX element type {element_type}: expected float, double, int32, int64, uint8 or bool with a shape")]
    InputType {
        /// Graph input.
        input: String,
        /// ONNX element type number.
        element_type: i32,
    },
    /// A probe input too large to be made.
    #[error("shape probe input")]
    Input(#[from] DomainError),
}

impl Coupling {
    /// Finds the groups of a model from its graph and measured shapes. Deterministic; no numbers are run.
    pub fn find(model: &Model, shapes: &Shapes) -> Self {
        groups::collect(rules::Trace::run(model, shapes))
    }

    /// A group by id.
    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(id.0)
    }

    /// Removed indices of each axis of a tensor or constant under `keep`, by axis; axes that stay whole are absent.
    pub fn removed(&self, name: &str, keep: &Keep) -> BTreeMap<usize, Vec<usize>> {
        let mut removed: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (id, kept) in keep {
            let Some(group) = self.group(*id) else { continue };
            let gone = complement(group.size, kept);
            let members = group.members.iter().map(|m| (&m.constant, m.axis, &m.units));
            let tensors = group.tensors.iter().map(|t| (&t.tensor, t.axis, &t.units));
            for (_, axis, units) in members.chain(tensors).filter(|(n, ..)| *n == name) {
                removed.entry(axis).or_default().extend(units.indices(&gone));
            }
        }
        for indices in removed.values_mut() {
            indices.sort_unstable();
            indices.dedup();
        }
        removed.retain(|_, indices| !indices.is_empty());
        removed
    }

    /// Axis lengths of a tensor or constant under `keep`, from its dense lengths.
    pub fn lengths(&self, name: &str, dense: &[usize], keep: &Keep) -> Vec<usize> {
        let removed = self.removed(name, keep);
        dense.iter().enumerate().map(|(axis, &length)| length.saturating_sub(removed.get(&axis).map_or(0, Vec::len))).collect()
    }

    /// How much of the work can shrink, at batch 1.
    pub fn prunable_macs(&self, model: &Model, shapes: &Shapes) -> PrunableMacs {
        let narrowed: std::collections::HashSet<&str> = (self.groups.iter())
            .flat_map(|g| g.tensors.iter().map(|t| t.tensor.as_str()).chain(g.members.iter().map(|m| m.constant.as_str())))
            .collect();
        let mut macs = PrunableMacs { prunable: 0, total: 0 };
        for node in model.nodes() {
            let count = node_macs(model, node, shapes, 1);
            macs.total += count;
            if node.inputs().chain(node.outputs()).any(|name| narrowed.contains(name)) {
                macs.prunable += count;
            }
        }
        macs
    }
}

/// The units of `0..size` that are not in `kept` (sorted).
pub(crate) fn complement(size: usize, kept: &[usize]) -> Vec<usize> {
    (0..size).filter(|unit| kept.binary_search(unit).is_err()).collect()
}
