//! What is told of a model.

use std::collections::{BTreeMap, HashMap, HashSet};

use pleach_domain::runtime::Runtime;
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::{Dim, Model, NodeId, Shapes, ValueInfo, activation_bytes, statistics};
use pleach_prune::coupling::Group;
use serde::Serialize;

use super::{InspectError, Subject};

/// A model, its groups and what is frozen.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Bytes of the encoded file.
    pub size_bytes: u64,
    /// Version of the file format.
    pub ir_version: i64,
    /// The program that wrote the file.
    pub producer: String,
    /// Imported operator sets, by domain.
    pub opsets: BTreeMap<String, i64>,
    /// What the model takes.
    pub inputs: Vec<Port>,
    /// What it gives.
    pub outputs: Vec<Port>,
    /// Batch size that all costs are for.
    pub batch: usize,
    /// Nodes of the graph.
    pub nodes: usize,
    /// Operators, the one with the most multiply-accumulates first, then the most frequent.
    pub operators: Vec<OperatorCount>,
    /// Multiply-accumulates of one call.
    pub macs: u64,
    /// Elements of float constants.
    pub parameters: u64,
    /// Most bytes of activations that are alive at once, at four bytes an element.
    pub activation_bytes: u64,
    /// Share, 0 to 1, of the multiply-accumulates that lie in layers which a group can narrow.
    pub prunable_macs_share: f64,
    /// Channels that can be removed, unit by unit, the costliest group first.
    pub groups: Vec<GroupPart>,
    /// Channels that cannot, and why.
    pub frozen: Vec<FrozenPart>,
    /// Multiply-accumulates that no group narrows, by reason, the largest share first.
    pub frozen_by_reason: Vec<ReasonShare>,
    /// The proofs, when they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// A graph input or output.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// Tensor name.
    pub name: String,
    /// Element type, e.g. `float`.
    pub element_type: String,
    /// Axes as declared: a length, or a symbol where it is free.
    pub shape: Option<Vec<Axis>>,
    /// Axes at the batch that costs are for.
    pub measured: Option<Vec<usize>>,
}

/// One declared axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Axis {
    /// A literal length.
    Fixed(usize),
    /// A free length and its symbol, which may be empty.
    Free(String),
}

/// How often an operator occurs.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorCount {
    /// Its name, with its domain where that is not ai.onnx.
    pub operator: String,
    /// Nodes.
    pub count: usize,
    /// Their multiply-accumulates.
    pub macs: u64,
}

/// A coupling group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupPart {
    /// Its number, in graph order.
    pub id: usize,
    /// Label of its first producer.
    pub name: String,
    /// Units that can be removed.
    pub size: usize,
    /// Multiply-accumulates of the layers it narrows; a layer between two groups counts for both.
    pub macs: u64,
    /// Elements of the constants it cuts; a constant between two groups counts for both.
    pub parameters: u64,
    /// Layers that make its channels.
    pub producers: Vec<String>,
    /// Layers that sum over them.
    pub consumers: Vec<String>,
    /// Constants cut with it.
    pub members: Vec<Member>,
}

/// A constant that is cut with a group.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    /// Its name.
    pub constant: String,
    /// Its axis lengths.
    pub shape: Vec<usize>,
    /// The axis that is cut.
    pub axis: usize,
    /// Indices that go with one unit, when all units have the same number.
    pub indices_per_unit: Option<usize>,
}

/// Channels that are never removed.
#[derive(Clone, Debug, Serialize)]
pub struct FrozenPart {
    /// The layer that makes them, or the constant that holds them.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Work that stays, by reason.
#[derive(Clone, Debug, Serialize)]
pub struct ReasonShare {
    /// Why.
    pub reason: String,
    /// Share, 0 to 1, of all multiply-accumulates.
    pub macs_share: f64,
    /// Layers concerned.
    pub layers: usize,
}

/// Worst relative differences of the proofs; each holds when it is at most `bar`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Proof {
    /// Whether nothing removed gives back the very bytes.
    pub identity: bool,
    /// Between the model and one with the units of every group in another order.
    pub permutation: f64,
    /// Between the cut model and the whole one with its consumers reading zeros, at a quarter, half and three quarters of every width.
    pub mask: f64,
    /// Between ONNX Runtime's optimised graph and the graph as written.
    pub optimization: f64,
    /// Between the model as it came and with its constants folded.
    pub folding: f64,
    /// Largest difference at which a proof holds.
    pub bar: f64,
}

impl Proof {
    /// Whether all hold.
    pub fn holds(&self) -> bool {
        self.identity && [self.permutation, self.mask, self.optimization, self.folding].iter().all(|worst| *worst <= self.bar)
    }
}

impl Inspection {
    /// Tells what was found out about a model, and proves it where `prove` lends a runtime.
    ///
    /// # Errors
    /// [`InspectError::Prove`] when a proof cannot be made.
    pub fn of(subject: &Subject, prove: Option<&dyn Runtime>) -> Result<Self, InspectError> {
        let (model, shapes, rows) = (&subject.model, &subject.shapes, subject.batch);
        let cost = statistics(model, shapes, rows);
        let of_node: HashMap<NodeId, u64> = cost.node_macs.iter().copied().collect();
        let prunable = subject.coupling.prunable_macs(model, shapes);
        let file = subject.original.to_proto();
        Ok(Self {
            size_bytes: subject.original.encode().len() as u64,
            ir_version: file.ir_version(),
            producer: [file.producer_name(), file.producer_version()].join(" ").trim().to_owned(),
            opsets: file.opset_import.iter().map(|set| (domain(set.domain()).to_owned(), set.version())).collect(),
            inputs: subject.original.inputs().iter().map(|i| port(i, shapes, rows)).collect(),
            outputs: subject.original.outputs().iter().map(|o| port(o, shapes, rows)).collect(),
            batch: rows,
            nodes: subject.original.nodes().count(),
            operators: operators(&subject.original, model, &of_node),
            macs: cost.macs,
            parameters: cost.parameters,
            activation_bytes: activation_bytes(model, shapes, rows),
            prunable_macs_share: prunable.prunable as f64 / prunable.total.max(1) as f64,
            groups: groups(subject, &of_node),
            frozen: subject.coupling.frozen.iter().map(|f| FrozenPart { name: f.name.clone(), reason: f.reason.clone() }).collect(),
            frozen_by_reason: frozen_by_reason(subject, &cost.node_macs, cost.macs),
            proof: prove.map(|runtime| subject.prove(runtime)).transpose()?,
        })
    }
}

fn domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

fn port(info: &ValueInfo, shapes: &Shapes, rows: usize) -> Port {
    let axis = |dim: &Dim| match dim {
        Dim::Fixed(length) => Axis::Fixed(*length),
        Dim::Free(symbol) => Axis::Free(symbol.clone()),
    };
    let element_type = DataType::try_from(info.element_type).unwrap_or(DataType::Undefined);
    Port {
        name: info.name.clone(),
        element_type: element_type.as_str_name().to_ascii_lowercase(),
        shape: info.dims.as_ref().map(|dims| dims.iter().map(axis).collect()),
        measured: shapes.at(&info.name, rows),
    }
}

/// Counts of the file's own operators, work of the folded graph's.
fn operators(original: &Model, folded: &Model, of_node: &HashMap<NodeId, u64>) -> Vec<OperatorCount> {
    let name = |node: pleach_onnx::Node<'_>| match node.domain() {
        "" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    };
    let mut counts: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for node in original.nodes() {
        counts.entry(name(node)).or_default().0 += 1;
    }
    for node in folded.nodes() {
        let macs = of_node.get(&node.id).copied().unwrap_or(0);
        if macs > 0 {
            counts.entry(name(node)).or_default().1 += macs;
        }
    }
    let mut counts: Vec<OperatorCount> =
        counts.into_iter().map(|(operator, (count, macs))| OperatorCount { operator, count, macs }).collect();
    counts.sort_by(|a, b| (b.macs, b.count).cmp(&(a.macs, a.count)).then_with(|| a.operator.cmp(&b.operator)));
    counts
}

fn groups(subject: &Subject, of_node: &HashMap<NodeId, u64>) -> Vec<GroupPart> {
    let model = &subject.model;
    let label = |id: NodeId| model.node(id).map(|n| n.label()).unwrap_or_default();
    let mut groups: Vec<GroupPart> = (subject.coupling.groups.iter())
        .map(|group| {
            let members: Vec<Member> = (group.members.iter())
                .map(|m| Member {
                    constant: m.constant.clone(),
                    shape: model.constant_dims(&m.constant).unwrap_or_default(),
                    axis: m.axis,
                    indices_per_unit: m.units.repeat(),
                })
                .collect();
            let cut: HashMap<&str, u64> = members.iter().map(|m| (m.constant.as_str(), m.shape.iter().product::<usize>() as u64)).collect();
            GroupPart {
                id: group.id.0,
                name: group.name.clone(),
                size: group.size,
                macs: narrowed(group).iter().filter_map(|id| of_node.get(id)).sum(),
                parameters: cut.values().sum(),
                producers: group.producers.iter().map(|p| label(p.node)).collect(),
                consumers: group.consumers.iter().map(|c| label(c.node)).collect(),
                members,
            }
        })
        .collect();
    groups.sort_by_key(|g| (std::cmp::Reverse(g.macs), g.id));
    groups
}

/// Layers that get less work when a group is cut.
pub(super) fn narrowed(group: &Group) -> HashSet<NodeId> {
    let layers = group.producers.iter().map(|p| p.node).chain(group.consumers.iter().map(|c| c.node));
    layers.chain(group.depthwise.iter().copied()).collect()
}

/// The reason of a layer that no group narrows is that of its own weight's channels.
fn frozen_by_reason(subject: &Subject, node_macs: &[(NodeId, u64)], total: u64) -> Vec<ReasonShare> {
    let narrowed: HashSet<NodeId> = subject.coupling.groups.iter().flat_map(narrowed).collect();
    let mut reasons: HashMap<&str, &str> = HashMap::new();
    for part in &subject.coupling.frozen {
        for (constant, _) in &part.members {
            reasons.entry(constant).or_insert(&part.reason);
        }
    }
    let mut shares: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for (id, macs) in node_macs.iter().filter(|(id, _)| !narrowed.contains(id)) {
        let mut inputs = subject.model.node(*id).into_iter().flat_map(|n| n.inputs());
        let reason = inputs.find_map(|name| reasons.get(name).copied()).unwrap_or("it multiplies activations whose channels are frozen");
        let share = shares.entry(reason).or_default();
        *share = (share.0 + macs, share.1 + 1);
    }
    let mut shares: Vec<ReasonShare> = (shares.into_iter())
        .map(|(reason, (macs, layers))| ReasonShare { reason: reason.to_owned(), macs_share: macs as f64 / total.max(1) as f64, layers })
        .collect();
    shares.sort_by(|a, b| b.macs_share.total_cmp(&a.macs_share));
    shares
}
