//! What is compared of a model that chooses.
//!
//! TopK, NonMaxSuppression and NonZero choose by comparing numbers. Two scores that are equal up to rounding may change places, and what
//! comes out is then another though nothing is wrong. So where no layer lies behind a choice, what it is made from and what it is made among are
//! compared in place of what comes out.

use std::collections::{BTreeSet, HashSet};

use pleach_onnx::builder::{ElementKind, value_info};
use pleach_onnx::{Model, NodeId, OnnxError, Patch};

use crate::coupling::Coupling;

const CHOICES: [&str; 3] = ["TopK", "NonMaxSuppression", "NonZero"];
/// Operators whose results are no numbers, but made of some.
const VERDICTS: [&str; 8] = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Not"];

/// The model with the tensors before its choices as outputs, behind those that no choice touches; `None` where nothing that comes out
/// is chosen, where a layer lies behind a choice, or where a cut shortens what is chosen from.
pub(super) fn before_choices(model: &Model, coupling: &Coupling) -> Result<Option<Model>, OnnxError> {
    let layers: HashSet<NodeId> =
        coupling.groups.iter().flat_map(|g| g.producers.iter().map(|p| p.node).chain(g.consumers.iter().map(|c| c.node))).collect();
    let (mut behind, mut read): (HashSet<&str>, BTreeSet<&str>) = (HashSet::new(), BTreeSet::new());
    for node in model.nodes() {
        let inputs: Vec<&str> = node.inputs().chain(node.captured()).collect();
        let after = inputs.iter().any(|name| behind.contains(name));
        let chooses = node.domain().is_empty() && CHOICES.contains(&node.op_type());
        if !(after || chooses) {
            continue;
        }
        if after && layers.contains(&node.id) {
            return Ok(None);
        }
        read.extend(inputs.into_iter().filter(|name| !behind.contains(name)));
        behind.extend(node.outputs());
    }
    let outputs = &model.graph().output;
    if outputs.iter().all(|output| !behind.contains(output.name())) {
        return Ok(None);
    }
    let mut watched: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = read.into_iter().collect();
    while let Some(name) = open.pop() {
        let made = model.producer(name).filter(|_| model.constant_dims(name).is_none());
        let Some(node) = made.filter(|node| node.op_type() != "Shape") else { continue };
        if watched.insert(name) && VERDICTS.contains(&node.op_type()) {
            open.extend(node.inputs());
        }
    }
    if coupling.groups.iter().flat_map(|g| &g.tensors).any(|own| watched.contains(own.tensor.as_str())) {
        return Ok(None);
    }
    let kept = outputs.iter().filter(|output| !behind.contains(output.name())).cloned();
    let known: HashSet<&str> = outputs.iter().map(|output| output.name()).collect();
    let new = watched.into_iter().filter(|name| !known.contains(name)).map(|name| value_info(name, ElementKind::Unknown, None));
    let mut patch = Patch::new();
    patch.set_outputs(kept.chain(new).collect());
    model.apply(&patch).map(Some)
}
