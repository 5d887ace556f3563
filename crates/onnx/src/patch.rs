//! The only way to change a graph.
//!
//! A patch collects edits against one model; [`Model::apply`] makes them all and validates the result, or fails and leaves the
//! model as it was. Node ids always mean the model the patch is applied to, whatever other edits the patch holds.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::OnnxError;
use crate::model::{Model, NodeId};
use crate::proto::tensor_proto::DataType;
use crate::proto::tensor_shape_proto::Dimension;
use crate::proto::tensor_shape_proto::dimension::Value as DimValue;
use crate::proto::type_proto::Value as TypeValue;
use crate::proto::{AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use crate::tensor;

/// Ends the names of shapes that patches write for constants given by their shape.
const SHAPE_SUFFIX: &str = ".pleach.shape";

/// A set of edits to one model.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    constants: BTreeMap<String, TensorProto>,
    removed_initializers: HashSet<String>,
    nodes: BTreeMap<usize, Edit>,
    appended: Vec<NodeProto>,
    renames: HashMap<String, String>,
    outputs: Option<Vec<ValueInfoProto>>,
    added_outputs: Vec<ValueInfoProto>,
    lengths: BTreeMap<(String, usize), usize>,
    imports: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, Default)]
struct Edit {
    before: Vec<NodeProto>,
    replacement: Option<Vec<NodeProto>>,
    attributes: Vec<AttributeProto>,
    inputs: BTreeMap<usize, String>,
    outputs: BTreeMap<usize, String>,
}

impl Patch {
    /// An empty patch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it would change nothing.
    pub fn is_empty(&self) -> bool {
        self.constants.is_empty()
            && self.removed_initializers.is_empty()
            && self.nodes.is_empty()
            && self.appended.is_empty()
            && self.renames.is_empty()
            && self.outputs.is_none()
            && self.added_outputs.is_empty()
            && self.lengths.is_empty()
            && self.imports.is_empty()
    }

    /// Replaces the constant of the tensor's name (initializer or `Constant` node), or adds an initializer.
    pub fn set_constant(&mut self, tensor: TensorProto) -> &mut Self {
        self.constants.insert(tensor.name().to_owned(), tensor);
        self
    }

    /// Like [`Patch::set_constant`] with floats, stored in the element type the constant has in `model` (FLOAT for new ones).
    ///
    /// # Errors
    /// [`OnnxError::Tensor`] when dimensions and elements disagree.
    pub fn set_floats(&mut self, model: &Model, name: &str, dims: &[usize], values: &[f32]) -> Result<&mut Self, OnnxError> {
        let kind = model.constant_type(name).and_then(|kind| DataType::try_from(kind).ok()).unwrap_or(DataType::Float);
        Ok(self.set_constant(tensor::encode_floats(name, dims, values, kind)?))
    }

    /// Like [`Patch::set_constant`] with 64-bit integers.
    ///
    /// # Errors
    /// [`OnnxError::Tensor`] when dimensions and elements disagree.
    pub fn set_ints(&mut self, name: &str, dims: &[usize], values: &[i64]) -> Result<&mut Self, OnnxError> {
        Ok(self.set_constant(tensor::encode_ints(name, dims, values)?))
    }

    /// Removes an initializer (and the graph input that lists it).
    pub fn remove_initializer(&mut self, name: &str) -> &mut Self {
        self.removed_initializers.insert(name.to_owned());
        self
    }

    /// Removes a node.
    pub fn remove_node(&mut self, id: NodeId) -> &mut Self {
        self.replace_node(id, vec![])
    }

    /// Puts nodes in the place of one.
    pub fn replace_node(&mut self, id: NodeId, nodes: Vec<NodeProto>) -> &mut Self {
        self.edit(id).replacement = Some(nodes);
        self
    }

    /// Inserts a node before another.
    pub fn insert_before(&mut self, id: NodeId, node: NodeProto) -> &mut Self {
        self.edit(id).before.push(node);
        self
    }

    /// Adds a node behind all others.
    pub fn append_node(&mut self, node: NodeProto) -> &mut Self {
        self.appended.push(node);
        self
    }

    /// Sets an attribute of a node.
    pub fn set_attribute(&mut self, id: NodeId, attribute: AttributeProto) -> &mut Self {
        self.edit(id).attributes.push(attribute);
        self
    }

    /// Lets one input of a node read another tensor.
    pub fn set_input(&mut self, id: NodeId, index: usize, tensor: &str) -> &mut Self {
        self.edit(id).inputs.insert(index, tensor.to_owned());
        self
    }

    /// Gives one output of a node another name.
    pub fn set_output(&mut self, id: NodeId, index: usize, tensor: &str) -> &mut Self {
        self.edit(id).outputs.insert(index, tensor.to_owned());
        self
    }

    /// Lets every node input that reads `from`, in nested graphs too, read `to`. Applied after all other node edits.
    pub fn rename_uses(&mut self, from: &str, to: &str) -> &mut Self {
        self.renames.insert(from.to_owned(), to.to_owned());
        self
    }

    /// Makes a tensor a graph output behind the others; element type and shape may be left to the runtime.
    pub fn add_output(&mut self, info: ValueInfoProto) -> &mut Self {
        self.added_outputs.push(info);
        self
    }

    /// Replaces all graph outputs.
    pub fn set_outputs(&mut self, outputs: Vec<ValueInfoProto>) -> &mut Self {
        self.outputs = Some(outputs);
        self
    }

    /// Corrects a literal axis length in a tensor's value info; free axes and tensors without value info stay as they are.
    pub fn set_axis_length(&mut self, tensor: &str, axis: usize, length: usize) -> &mut Self {
        self.lengths.insert((tensor.to_owned(), axis), length);
        self
    }

    /// Declares an operator set that nodes put in use; one that the model imports already keeps its version.
    pub fn import(&mut self, domain: &str, version: i64) -> &mut Self {
        self.imports.insert(domain.to_owned(), version);
        self
    }

    fn removes(&self, index: usize) -> bool {
        self.nodes.get(&index).is_some_and(|edit| edit.replacement.is_some())
    }

    fn edit(&mut self, id: NodeId) -> &mut Edit {
        self.nodes.entry(id.0).or_default()
    }
}

impl Model {
    /// A copy of the model with a patch applied and validated again. An empty patch gives back the same model, bytes included.
    ///
    /// # Errors
    /// [`OnnxError::NoSuchNode`], or what validation finds in the patched graph.
    pub fn apply(&self, patch: &Patch) -> Result<Self, OnnxError> {
        if patch.is_empty() {
            return Ok(self.clone());
        }
        let mut proto = self.to_proto();
        for (domain, &version) in patch.imports.iter().filter(|(domain, _)| self.opset(domain).is_none()) {
            proto.opset_import.push(OperatorSetIdProto { domain: Some(domain.clone()), version: Some(version) });
        }
        let graph = proto.graph.get_or_insert_default();
        if let Some((&id, _)) = patch.nodes.range(graph.node.len()..).next() {
            return Err(OnnxError::NoSuchNode(NodeId(id)));
        }
        set_constants(graph, patch);
        edit_nodes(graph, patch);
        if !patch.renames.is_empty() {
            rename(graph, &patch.renames);
        }
        edit_values(graph, patch);
        self.changed_to(proto)
    }
}

fn set_constants(graph: &mut GraphProto, patch: &Patch) {
    graph.initializer.retain(|t| !patch.removed_initializers.contains(t.name()));
    graph.input.retain(|i| !patch.removed_initializers.contains(i.name()));
    if patch.constants.is_empty() {
        return;
    }
    let places = |names: &mut dyn Iterator<Item = String>| -> HashMap<String, usize> { names.enumerate().map(|(i, n)| (n, i)).collect() };
    let initializers = places(&mut graph.initializer.iter().map(|t| t.name().to_owned()));
    let inputs = places(&mut graph.input.iter().map(|i| i.name().to_owned()));
    let nodes = places(&mut graph.node.iter().map(|n| n.output.first().cloned().unwrap_or_default()));
    let mut orphans: HashSet<String> = HashSet::new(); // shapes that earlier patches wrote; a runtime refuses constants nobody reads
    for (name, tensor) in &patch.constants {
        let node = nodes.get(name).filter(|&&i| !patch.removes(i)).and_then(|&i| graph.node.get_mut(i));
        if let Some(old) = initializers.get(name).and_then(|&i| graph.initializer.get_mut(i)) {
            *old = TensorProto {
                doc_string: old.doc_string.take(),
                metadata_props: std::mem::take(&mut old.metadata_props),
                ..tensor.clone()
            };
        } else if let Some(node) = node.filter(|n| matches!(n.op_type(), "Constant" | "ConstantOfShape")) {
            let read = node.input.first().cloned().filter(|name| name.ends_with(SHAPE_SUFFIX));
            let shape = set_node(node, tensor);
            orphans.extend(read.filter(|_| node.input.is_empty()));
            // A shape that an earlier patch wrote is replaced.
            match shape.as_ref().and_then(|shape| initializers.get(shape.name())).and_then(|&i| graph.initializer.get_mut(i)) {
                Some(old) => *old = shape.unwrap_or_default(),
                None => graph.initializer.extend(shape),
            }
        } else {
            graph.initializer.push(tensor.clone());
        }
        if let Some(info) = inputs.get(name).and_then(|&i| graph.input.get_mut(i)) {
            for (axis, &length) in tensor.dims.iter().enumerate() {
                set_length(info, axis, length);
            }
        }
    }
    graph.initializer.retain(|t| !orphans.contains(t.name()));
}

/// Lets a node give a constant. One that gave its shape alone still does where all elements are the same; the shape it needs is
/// the result.
fn set_node(node: &mut NodeProto, tensor: &TensorProto) -> Option<TensorProto> {
    if node.op_type() == "ConstantOfShape" {
        if let Some(value) = tensor::repeated(tensor) {
            let shape = format!("{}{SHAPE_SUFFIX}", tensor.name());
            node.input = vec![shape.clone()];
            node.attribute = vec![crate::builder::attribute("value", value)];
            return tensor::encode_ints(&shape, &[tensor.dims.len()], &tensor.dims).ok();
        }
        node.op_type = Some("Constant".to_owned());
        node.input.clear();
    }
    node.attribute = vec![crate::builder::attribute("value", tensor.clone())];
    None
}

fn edit_nodes(graph: &mut GraphProto, patch: &Patch) {
    let old = std::mem::take(&mut graph.node);
    for (i, mut node) in old.into_iter().enumerate() {
        let Some(edit) = patch.nodes.get(&i) else {
            graph.node.push(node);
            continue;
        };
        graph.node.extend(edit.before.iter().cloned());
        if let Some(replacement) = &edit.replacement {
            graph.node.extend(replacement.iter().cloned());
            continue;
        }
        for attribute in &edit.attributes {
            match node.attribute.iter_mut().find(|a| a.name() == attribute.name()) {
                Some(old) => *old = attribute.clone(),
                None => node.attribute.push(attribute.clone()),
            }
        }
        set_names(&mut node.input, &edit.inputs);
        set_names(&mut node.output, &edit.outputs);
        graph.node.push(node);
    }
    graph.node.extend(patch.appended.iter().cloned());
}

fn set_names(names: &mut Vec<String>, edits: &BTreeMap<usize, String>) {
    for (&index, name) in edits {
        if names.len() <= index {
            names.resize(index + 1, String::new());
        }
        if let Some(slot) = names.get_mut(index) {
            slot.clone_from(name);
        }
    }
}

fn rename(graph: &mut GraphProto, renames: &HashMap<String, String>) {
    for node in &mut graph.node {
        for name in &mut node.input {
            if let Some(new) = renames.get(name) {
                name.clone_from(new);
            }
        }
        for nested in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            rename(nested, renames);
        }
    }
}

fn edit_values(graph: &mut GraphProto, patch: &Patch) {
    if let Some(outputs) = &patch.outputs {
        graph.output.clone_from(outputs);
    }
    graph.output.extend(patch.added_outputs.iter().cloned());
    if !patch.lengths.is_empty() {
        for info in graph.value_info.iter_mut().chain(&mut graph.output) {
            let name = info.name().to_owned();
            for (&(_, axis), &length) in patch.lengths.range((name.clone(), 0)..=(name, usize::MAX)) {
                set_length(info, axis, i64::try_from(length).unwrap_or(i64::MAX));
            }
        }
    }
    let defined: HashSet<&str> = (graph.node.iter().flat_map(|n| &n.output).map(String::as_str))
        .chain(graph.initializer.iter().map(|t| t.name()))
        .chain(graph.input.iter().map(|i| i.name()))
        .collect();
    graph.value_info.retain(|info| defined.contains(info.name()));
}

fn set_length(info: &mut ValueInfoProto, axis: usize, length: i64) {
    let shape = match info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        Some(TypeValue::TensorType(tensor)) => tensor.shape.as_mut(),
        _ => None,
    };
    if let Some(Dimension { value: Some(DimValue::DimValue(old)), .. }) = shape.and_then(|s| s.dim.get_mut(axis)) {
        *old = length;
    }
}
