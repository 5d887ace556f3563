//! Removes what nothing reads.

use std::collections::HashSet;

use pleach_onnx::{Model, OnnxError, Patch};

/// The model without nodes and constants that no output depends on. Graph inputs stay.
pub(crate) fn sweep(model: &Model) -> Result<Model, OnnxError> {
    let mut needed: HashSet<String> = model.outputs().into_iter().map(|o| o.name).collect();
    let mut patch = Patch::new();
    let nodes: Vec<_> = model.nodes().collect();
    for node in nodes.into_iter().rev() {
        if node.outputs().any(|o| needed.contains(o)) {
            needed.extend(node.inputs().chain(node.captured()).map(str::to_owned));
        } else {
            patch.remove_node(node.id);
        }
    }
    let inputs: HashSet<&str> = model.graph().input.iter().map(|i| i.name()).collect();
    for name in model.initializers().filter(|n| !needed.contains(*n) && !inputs.contains(n)) {
        patch.remove_initializer(name);
    }
    model.apply(&patch)
}
