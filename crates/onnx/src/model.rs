//! A validated model and the tables through which it is read.

mod constants;
mod node;

use std::collections::{HashMap, HashSet};

use prost::Message;
use prost::bytes::Bytes;

use crate::error::OnnxError;
use crate::external::{self, ReadFile};
use crate::proto::tensor_shape_proto::dimension::Value as DimValue;
use crate::proto::type_proto::Value as TypeValue;
use crate::proto::{GraphProto, ModelProto, ValueInfoProto};
use crate::validate::{self, Limits};
use crate::{encode, tensor, wire};
use node::captured;
pub use node::{Node, NodeId};

/// One use of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The node that uses it.
    pub node: NodeId,
    /// Which of the node's inputs; `None` when a graph nested in the node captures the tensor.
    pub input: Option<usize>,
}

/// One axis length of a graph input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A literal length.
    Fixed(usize),
    /// A free length, with its symbol (empty when it has none).
    Free(String),
}

/// Name, element type and shape of a graph input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// Tensor name.
    pub name: String,
    /// ONNX element type number, 0 when unknown or no tensor.
    pub element_type: i32,
    /// Axes, `None` when the shape is not given.
    pub dims: Option<Vec<Dim>>,
}

/// A model that passed validation. Cloning is cheap where it matters: weights are shared.
#[derive(Clone, Debug)]
pub struct Model {
    proto: ModelProto,
    graph: GraphProto,
    /// The bytes it was read from, itself or, when `changed`, what it was patched from.
    original: Option<Bytes>,
    changed: bool,
    tables: Tables,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    producers: HashMap<String, NodeId>,
    consumers: HashMap<String, Vec<Use>>,
    initializers: HashMap<String, usize>,
    /// Names of graph inputs and sparse initializers.
    sources: HashSet<String>,
    outputs: HashSet<String>,
}

impl Model {
    /// Decodes and validates an ONNX file that holds all its weights.
    ///
    /// # Errors
    /// Any [`OnnxError`] but those of patches and probes: the file is no model, truncated, over a limit, of an unknown version
    /// or operator set, inconsistent, or has weights in other files.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, OnnxError> {
        Self::decode_bytes(Bytes::copy_from_slice(bytes), limits)
    }

    /// Like [`Model::decode`], without a copy: weights stay where they are in `bytes`.
    ///
    /// # Errors
    /// As [`Model::decode`].
    pub fn decode_bytes(bytes: Bytes, limits: &Limits) -> Result<Self, OnnxError> {
        let proto = parse(&bytes, limits)?;
        let mut model = Self::from_proto(proto, limits)?;
        model.original = Some(bytes);
        Ok(model)
    }

    /// Decodes and validates an ONNX file with weights in other files, which `read` gives by their location: a relative path of
    /// plain names that stays in the model's folder. Each is asked for once and kept whole, so it may well be mapped memory.
    ///
    /// # Errors
    /// As [`Model::decode`], and [`OnnxError::ExternalData`] for a file that cannot be read or does not hold what the model says.
    pub fn decode_external(bytes: Bytes, limits: &Limits, read: &mut ReadFile<'_>) -> Result<Self, OnnxError> {
        let mut proto = parse(&bytes, limits)?;
        let resolved = external::resolve(&mut proto, limits, read)?;
        let mut model = Self::from_proto(proto, limits)?;
        model.original = Some(bytes);
        model.changed = resolved > 0;
        Ok(model)
    }

    /// Validates a model built in memory.
    ///
    /// # Errors
    /// As [`Model::decode`].
    pub fn from_proto(proto: ModelProto, limits: &Limits) -> Result<Self, OnnxError> {
        validate::check(&proto, limits)?;
        let mut proto = proto;
        let mut graph = proto.graph.take().unwrap_or_default();
        graph.initializer.iter_mut().for_each(tensor::settle);
        let tables = Tables::new(&graph);
        Ok(Self { proto, graph, original: None, changed: false, tables })
    }

    /// This model, changed to `proto`: what is the same there keeps its bytes.
    pub(crate) fn changed_to(&self, proto: ModelProto) -> Result<Self, OnnxError> {
        let mut model = Self::from_proto(proto, &Limits::unlimited())?;
        model.original.clone_from(&self.original);
        model.changed = true;
        Ok(model)
    }

    /// Encodes the model with all its weights: the very bytes it was decoded from unless it was patched or its weights lay in
    /// other files; else everything that did not change keeps its bytes. Beyond 2 GiB use [`Model::encode_external`].
    pub fn encode(&self) -> Vec<u8> {
        match &self.original {
            Some(bytes) if !self.changed => bytes.to_vec(),
            Some(bytes) => encode::splice(bytes, &self.proto, &self.graph).unwrap_or_else(|| self.to_proto().encode_to_vec()),
            None => self.to_proto().encode_to_vec(),
        }
    }

    /// The bytes the model was decoded from, or those of the model it was patched from.
    pub fn original(&self) -> Option<&Bytes> {
        self.original.as_ref()
    }

    /// Whether it differs from [`Model::original`].
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Encodes the model with its weights of at least `min_bytes` in another file, to be stored at `location` in its folder.
    ///
    /// # Errors
    /// [`OnnxError::ExternalData`] when the location leaves the folder.
    pub fn encode_external(&self, location: &str, min_bytes: usize) -> Result<external::Split, OnnxError> {
        let mut graph = self.graph.clone();
        let data = external::split(&mut graph, location, min_bytes)?;
        let plain = || ModelProto { graph: Some(graph.clone()), ..self.proto.clone() }.encode_to_vec();
        let model = self.original.as_ref().and_then(|bytes| encode::splice(bytes, &self.proto, &graph));
        Ok(external::Split { model: model.unwrap_or_else(plain), data })
    }

    /// The model as a protobuf message.
    pub fn to_proto(&self) -> ModelProto {
        ModelProto { graph: Some(self.graph.clone()), ..self.proto.clone() }
    }

    /// The graph as a protobuf message.
    pub fn graph(&self) -> &GraphProto {
        &self.graph
    }

    /// Version of an operator set the model imports; `""` is ai.onnx.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let domain = validate::canonical_domain(domain);
        self.proto.opset_import.iter().find(|set| validate::canonical_domain(set.domain()) == domain).map(|set| set.version())
    }

    /// All nodes in topological order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        self.graph.node.iter().enumerate().map(|(i, proto)| Node { id: NodeId(i), proto })
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Option<Node<'_>> {
        self.graph.node.get(id.0).map(|proto| Node { id, proto })
    }

    /// The node that produces a tensor; `None` for graph inputs, initializers and unknown names.
    pub fn producer(&self, tensor: &str) -> Option<Node<'_>> {
        self.tables.producers.get(tensor).and_then(|&id| self.node(id))
    }

    /// Every use of a tensor by nodes, in order. Graph outputs are not among them: see [`Model::is_output`].
    pub fn consumers(&self, tensor: &str) -> &[Use] {
        self.tables.consumers.get(tensor).map_or(&[], Vec::as_slice)
    }

    /// Whether a tensor is a graph output.
    pub fn is_output(&self, tensor: &str) -> bool {
        self.tables.outputs.contains(tensor)
    }

    /// Whether the graph holds a tensor of that name in any role.
    pub fn is_defined(&self, tensor: &str) -> bool {
        self.tables.producers.contains_key(tensor) || self.tables.initializers.contains_key(tensor) || self.tables.sources.contains(tensor)
    }

    /// A name like `wanted` that the graph does not use yet.
    pub fn free_name(&self, wanted: &str) -> String {
        if !self.is_defined(wanted) {
            return wanted.to_owned();
        }
        (1..).map(|i| format!("{wanted}.{i}")).find(|name| !self.is_defined(name)).unwrap_or_default()
    }

    /// Inputs the caller must give: graph inputs without a default value.
    pub fn inputs(&self) -> Vec<ValueInfo> {
        self.graph.input.iter().filter(|i| !self.tables.initializers.contains_key(i.name())).map(value_info).collect()
    }

    /// Graph outputs.
    pub fn outputs(&self) -> Vec<ValueInfo> {
        self.graph.output.iter().map(value_info).collect()
    }

    /// What the graph says of tensors: inputs, outputs and others.
    pub fn declared(&self) -> Vec<ValueInfo> {
        self.graph.input.iter().chain(&self.graph.output).chain(&self.graph.value_info).map(value_info).collect()
    }

    /// Names of all initializers, in order.
    pub fn initializers(&self) -> impl Iterator<Item = &str> {
        self.graph.initializer.iter().map(|t| t.name())
    }
}

impl Tables {
    fn new(graph: &GraphProto) -> Self {
        let mut tables = Self::default();
        for (i, node) in graph.node.iter().enumerate() {
            let id = NodeId(i);
            for (slot, name) in node.input.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                tables.consumers.entry(name.clone()).or_default().push(Use { node: id, input: Some(slot) });
            }
            for name in captured(node) {
                tables.consumers.entry(name.to_owned()).or_default().push(Use { node: id, input: None });
            }
            for name in node.output.iter().filter(|n| !n.is_empty()) {
                tables.producers.insert(name.clone(), id);
            }
        }
        let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name());
        tables.sources = graph.input.iter().map(|i| i.name()).chain(sparse).map(str::to_owned).collect();
        tables.outputs = graph.output.iter().map(|o| o.name().to_owned()).collect();
        tables.initializers = graph.initializer.iter().enumerate().map(|(i, t)| (t.name().to_owned(), i)).collect();
        tables
    }
}

fn parse(bytes: &Bytes, limits: &Limits) -> Result<ModelProto, OnnxError> {
    if bytes.len() > limits.max_bytes {
        return Err(OnnxError::TooLarge { what: "bytes", got: bytes.len() as u64, limit: limits.max_bytes as u64 });
    }
    wire::check(bytes, limits)?;
    ModelProto::decode(bytes.clone()).map_err(OnnxError::Malformed)
}

/// ONNX element type number of a tensor; 0 when unknown or no tensor.
pub(crate) fn element_type(info: &ValueInfoProto) -> i32 {
    match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => tensor.elem_type(),
        _ => 0,
    }
}

fn value_info(info: &ValueInfoProto) -> ValueInfo {
    let tensor = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => Some(tensor),
        _ => None,
    };
    let dims = tensor.and_then(|t| t.shape.as_ref()).map(|shape| {
        let axis = |value: &Option<DimValue>| match value {
            Some(DimValue::DimValue(length)) => {
                usize::try_from(*length).ok().filter(|&l| l > 0).map_or_else(|| Dim::Free(String::new()), Dim::Fixed)
            }
            Some(DimValue::DimParam(symbol)) => Dim::Free(symbol.clone()),
            None => Dim::Free(String::new()),
        };
        shape.dim.iter().map(|d| axis(&d.value)).collect()
    });
    ValueInfo { name: info.name().to_owned(), element_type: element_type(info), dims }
}
