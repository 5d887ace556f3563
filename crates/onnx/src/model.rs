//! A validated model and the tables through which it is read.

use std::collections::{HashMap, HashSet};
use std::fmt;

use prost::Message;
use prost::bytes::Bytes;

use crate::error::OnnxError;
use crate::proto::tensor_proto::DataType;
use crate::proto::tensor_shape_proto::dimension::Value as DimValue;
use crate::proto::type_proto::Value as TypeValue;
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::tensor::{self, Constant, ConstantData};
use crate::validate::{self, Limits};
use crate::wire;

/// A node's place in the graph's order, from 0. Patches that remove or insert nodes shift those behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

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

/// A model that passed validation. Cloning is cheap where it matters: constants are shared.
#[derive(Clone, Debug)]
pub struct Model {
    proto: ModelProto,
    graph: GraphProto,
    original: Option<Bytes>,
    tables: Tables,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    producers: HashMap<String, NodeId>,
    consumers: HashMap<String, Vec<Use>>,
    initializers: HashMap<String, usize>,
}

impl Model {
    /// Decodes and validates an ONNX file.
    ///
    /// # Errors
    /// Any [`OnnxError`] but those of patches and probes: the file is no model, truncated, over a limit, of an unknown version
    /// or operator set, or inconsistent.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, OnnxError> {
        if bytes.len() > limits.max_bytes {
            return Err(OnnxError::TooLarge { what: "bytes", got: bytes.len() as u64, limit: limits.max_bytes as u64 });
        }
        wire::check(bytes, limits.max_fields)?;
        let original = Bytes::copy_from_slice(bytes);
        let proto = ModelProto::decode(original.clone()).map_err(OnnxError::Malformed)?;
        let mut model = Self::from_proto(proto, limits)?;
        model.original = Some(original);
        Ok(model)
    }

    /// Validates a model built in memory.
    ///
    /// # Errors
    /// As [`Model::decode`].
    pub fn from_proto(proto: ModelProto, limits: &Limits) -> Result<Self, OnnxError> {
        validate::check(&proto, limits)?;
        let mut proto = proto;
        let graph = proto.graph.take().unwrap_or_default();
        let tables = Tables::new(&graph);
        Ok(Self { proto, graph, original: None, tables })
    }

    /// Encodes the model: the very bytes it was decoded from unless it was patched.
    pub fn encode(&self) -> Vec<u8> {
        match &self.original {
            Some(bytes) => bytes.to_vec(),
            None => self.to_proto().encode_to_vec(),
        }
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
        self.graph.output.iter().any(|o| o.name() == tensor)
    }

    /// Whether the graph holds a tensor of that name in any role.
    pub fn is_defined(&self, tensor: &str) -> bool {
        self.tables.producers.contains_key(tensor)
            || self.tables.initializers.contains_key(tensor)
            || self.graph.input.iter().any(|i| i.name() == tensor)
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

    /// Names of all initializers, in order.
    pub fn initializers(&self) -> impl Iterator<Item = &str> {
        self.graph.initializer.iter().map(|t| t.name())
    }

    /// The stored tensor behind a constant: an initializer, or the value of a `Constant` node, named by its output.
    pub fn constant_proto(&self, name: &str) -> Option<&TensorProto> {
        if let Some(&index) = self.tables.initializers.get(name) {
            return self.graph.initializer.get(index);
        }
        let node = self.producer(name).filter(|n| n.is("Constant"))?;
        node.attribute("value").and_then(|a| a.t.as_ref())
    }

    /// A constant as a tensor of its own name, whatever form its node or initializer has.
    pub fn constant_tensor(&self, name: &str) -> Option<TensorProto> {
        if let Some(tensor) = self.constant_proto(name) {
            return Some(TensorProto { name: Some(name.to_owned()), ..tensor.clone() });
        }
        match self.constant(name)? {
            Constant { dims, data: ConstantData::Floats(values) } => tensor::encode_floats(name, &dims, &values, DataType::Float).ok(),
            Constant { dims, data: ConstantData::Ints(values) } => tensor::encode_ints(name, &dims, &values).ok(),
            Constant { data: ConstantData::Other, .. } => None,
        }
    }

    /// Axis lengths of a constant.
    pub fn constant_dims(&self, name: &str) -> Option<Vec<usize>> {
        match self.constant_proto(name) {
            Some(tensor) => tensor::dims(tensor).ok(),
            None => self.constant(name).map(|c| c.dims),
        }
    }

    /// A constant's elements, whatever its storage: initializer or `Constant` node, raw or typed data.
    pub fn constant(&self, name: &str) -> Option<Constant> {
        if let Some(tensor) = self.constant_proto(name) {
            return tensor::decode(tensor).ok();
        }
        let node = self.producer(name).filter(|n| n.is("Constant"))?;
        let list = |data: ConstantData, len: usize| Constant { dims: vec![len], data };
        node.proto.attribute.iter().find_map(|a| match a.name() {
            "value_float" => Some(Constant { dims: vec![], data: ConstantData::Floats(vec![a.f()]) }),
            "value_int" => Some(Constant { dims: vec![], data: ConstantData::Ints(vec![a.i()]) }),
            "value_floats" => Some(list(ConstantData::Floats(a.floats.clone()), a.floats.len())),
            "value_ints" => Some(list(ConstantData::Ints(a.ints.clone()), a.ints.len())),
            _ => None,
        })
    }

    /// A constant's elements as floats, with its axis lengths.
    pub fn floats(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        match self.constant(name)? {
            Constant { dims, data: ConstantData::Floats(values) } => Some((dims, values)),
            Constant { data: ConstantData::Ints(_) | ConstantData::Other, .. } => None,
        }
    }

    /// A constant's elements as integers.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.constant(name)?.data {
            ConstantData::Ints(values) => Some(values),
            ConstantData::Floats(_) | ConstantData::Other => None,
        }
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
        tables.initializers = graph.initializer.iter().enumerate().map(|(i, t)| (t.name().to_owned(), i)).collect();
        tables
    }
}

/// Outer tensors that the graphs nested in a node use, in name order.
fn captured(node: &NodeProto) -> Vec<&str> {
    let mut free: Vec<&str> = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).flat_map(free_names).collect();
    free.sort_unstable();
    free.dedup();
    free
}

fn free_names(graph: &GraphProto) -> Vec<&str> {
    let own: HashSet<&str> = (graph.input.iter().map(|i| i.name()))
        .chain(graph.initializer.iter().map(|t| t.name()))
        .chain(graph.node.iter().flat_map(|n| &n.output).map(String::as_str))
        .collect();
    (graph.node.iter().flat_map(|n| n.input.iter().map(String::as_str).chain(captured(n))))
        .chain(graph.output.iter().map(|o| o.name()))
        .filter(|name| !name.is_empty() && !own.contains(name))
        .collect()
}

/// A node, read.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its place in the graph.
    pub id: NodeId,
    /// The node as stored.
    pub proto: &'a NodeProto,
}

impl<'a> Node<'a> {
    /// Operator name.
    pub fn op_type(&self) -> &'a str {
        self.proto.op_type()
    }

    /// Operator set; `""` is ai.onnx.
    pub fn domain(&self) -> &'a str {
        validate::canonical_domain(self.proto.domain())
    }

    /// Whether this is the ai.onnx operator `op`.
    pub fn is(&self, op: &str) -> bool {
        self.op_type() == op && self.domain().is_empty()
    }

    /// The node's name, or operator and first output when it has none.
    pub fn label(&self) -> String {
        validate::label(self.proto)
    }

    /// Input tensor by position; `None` when absent.
    pub fn input(&self, index: usize) -> Option<&'a str> {
        self.proto.input.get(index).map(String::as_str).filter(|n| !n.is_empty())
    }

    /// Output tensor by position; `None` when absent.
    pub fn output(&self, index: usize) -> Option<&'a str> {
        self.proto.output.get(index).map(String::as_str).filter(|n| !n.is_empty())
    }

    /// Present inputs, in order.
    pub fn inputs(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.proto.input.iter().map(String::as_str).filter(|n| !n.is_empty())
    }

    /// Present outputs, in order.
    pub fn outputs(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.proto.output.iter().map(String::as_str).filter(|n| !n.is_empty())
    }

    /// Outer tensors that graphs nested in this node use.
    pub fn captured(&self) -> Vec<&'a str> {
        captured(self.proto)
    }

    /// An attribute as stored.
    pub fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name() == name)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(|a| a.i())
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).map(|a| a.f())
    }

    /// A string attribute, when it is UTF-8.
    pub fn string(&self, name: &str) -> Option<&'a str> {
        self.attribute(name).and_then(|a| std::str::from_utf8(a.s()).ok())
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
    ValueInfo { name: info.name().to_owned(), element_type: tensor.map_or(0, |t| t.elem_type()), dims }
}
