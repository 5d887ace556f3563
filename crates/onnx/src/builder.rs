//! Small graphs by hand: tests, kernels to be timed, probes.
//!
//! ```
//! use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};
//!
//! let mut graph = GraphBuilder::new("conv+relu");
//! let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(3), Dim::Fixed(8), Dim::Fixed(8)]);
//! let w = graph.floats("w", &[4, 3, 3, 3], &[0.1; 108]);
//! let y = graph.node("Conv", &[&x, &w], vec![attribute("pads", vec![1i64; 4])]);
//! let y = graph.node("Relu", &[&y], vec![]);
//! graph.output(&y);
//! let model = graph.build()?;
//! assert_eq!(model.nodes().count(), 2);
//! # Ok::<(), pleach_onnx::OnnxError>(())
//! ```

use crate::error::OnnxError;
pub use crate::model::Dim;
use crate::model::Model;
use crate::proto::attribute_proto::AttributeType;
use crate::proto::tensor_proto::DataType;
use crate::proto::tensor_shape_proto::Dimension;
use crate::proto::tensor_shape_proto::dimension::Value as DimValue;
use crate::proto::type_proto::{Tensor, Value as TypeValue};
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
};
use crate::tensor;
use crate::validate::Limits;

/// Element types a builder declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementKind {
    /// Single precision.
    Float,
    /// Half precision.
    Float16,
    /// 64-bit integers.
    Int64,
    /// 32-bit integers.
    Int32,
    /// Bytes.
    Uint8,
    /// Booleans.
    Bool,
    /// Left to the runtime.
    Unknown,
}

impl ElementKind {
    fn data_type(self) -> DataType {
        match self {
            Self::Float => DataType::Float,
            Self::Float16 => DataType::Float16,
            Self::Int64 => DataType::Int64,
            Self::Int32 => DataType::Int32,
            Self::Uint8 => DataType::Uint8,
            Self::Bool => DataType::Bool,
            Self::Unknown => DataType::Undefined,
        }
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A string.
    Text(String),
    /// A tensor.
    Tensor(Box<TensorProto>),
    /// A nested graph.
    Graph(Box<GraphProto>),
    /// Floats.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
}

macro_rules! attribute_from {
    ($($from:ty => $make:expr),* $(,)?) => {
        $(impl From<$from> for AttributeValue {
            fn from(value: $from) -> Self {
                $make(value)
            }
        })*
    };
}

attribute_from! {
    f32 => Self::Float,
    i64 => Self::Int,
    &str => |v: &str| Self::Text(v.to_owned()),
    TensorProto => |v| Self::Tensor(Box::new(v)),
    GraphProto => |v| Self::Graph(Box::new(v)),
    Vec<f32> => Self::Floats,
    Vec<i64> => Self::Ints,
}

/// An attribute, e.g. `attribute("pads", vec![1i64; 4])`.
pub fn attribute(name: &str, value: impl Into<AttributeValue>) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let kind = match value.into() {
        AttributeValue::Float(v) => {
            proto.f = Some(v);
            AttributeType::Float
        }
        AttributeValue::Int(v) => {
            proto.i = Some(v);
            AttributeType::Int
        }
        AttributeValue::Text(v) => {
            proto.s = Some(v.into_bytes());
            AttributeType::String
        }
        AttributeValue::Tensor(v) => {
            proto.t = Some(*v);
            AttributeType::Tensor
        }
        AttributeValue::Graph(v) => {
            proto.g = Some(*v);
            AttributeType::Graph
        }
        AttributeValue::Floats(v) => {
            proto.floats = v;
            AttributeType::Floats
        }
        AttributeValue::Ints(v) => {
            proto.ints = v;
            AttributeType::Ints
        }
    };
    proto.r#type = Some(kind.into());
    proto
}

/// A value info; `None` leaves the shape to the runtime.
pub fn value_info(name: &str, kind: ElementKind, dims: Option<&[Dim]>) -> ValueInfoProto {
    let dimension = |dim: &Dim| {
        let value = match dim {
            Dim::Fixed(length) => DimValue::DimValue(i64::try_from(*length).unwrap_or(i64::MAX)),
            Dim::Free(symbol) => DimValue::DimParam(symbol.clone()),
        };
        Dimension { value: Some(value), denotation: None }
    };
    let shape = dims.map(|dims| TensorShapeProto { dim: dims.iter().map(dimension).collect() });
    let tensor = Tensor { elem_type: Some(kind.data_type().into()), shape };
    let r#type = (kind != ElementKind::Unknown).then_some(TypeProto { value: Some(TypeValue::TensorType(tensor)), denotation: None });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// A node with one output.
pub fn node(op: &str, name: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(name.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: attributes,
        ..NodeProto::default()
    }
}

/// Builds a model node by node. Mistakes are reported by [`GraphBuilder::build`].
#[derive(Debug)]
pub struct GraphBuilder {
    graph: GraphProto,
    opset: i64,
    error: Option<OnnxError>,
}

impl GraphBuilder {
    /// An empty graph over ai.onnx 17.
    pub fn new(name: &str) -> Self {
        Self { graph: GraphProto { name: Some(name.to_owned()), ..GraphProto::default() }, opset: 17, error: None }
    }

    /// Chooses another version of ai.onnx.
    #[must_use]
    pub fn opset(mut self, version: i64) -> Self {
        self.opset = version;
        self
    }

    /// Adds a graph input and returns its name.
    pub fn input(&mut self, name: &str, kind: ElementKind, dims: &[Dim]) -> String {
        self.graph.input.push(value_info(name, kind, Some(dims)));
        name.to_owned()
    }

    /// Adds a float constant and returns its name.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        self.constant(name, tensor::encode_floats(name, dims, values, DataType::Float))
    }

    /// Adds a 64-bit integer constant and returns its name.
    pub fn ints(&mut self, name: &str, dims: &[usize], values: &[i64]) -> String {
        self.constant(name, tensor::encode_ints(name, dims, values))
    }

    /// Adds a constant as stored and returns its name.
    pub fn tensor(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name().to_owned();
        self.graph.initializer.push(tensor);
        name
    }

    /// Adds a node with one output and returns the output's name, made of the operator and the node's place. An empty input
    /// name is an absent input.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = format!("{op}_{}", self.graph.node.len());
        self.graph.node.push(node(op, &output, inputs, &output, attributes));
        output
    }

    /// A name like `wanted` that no input or constant has yet.
    pub fn free_name(&self, wanted: &str) -> String {
        let taken =
            |name: &str| self.graph.initializer.iter().any(|t| t.name() == name) || self.graph.input.iter().any(|i| i.name() == name);
        (0..).map(|i| format!("{wanted}{i}")).find(|name| !taken(name)).unwrap_or_default()
    }

    /// Adds a node as stored.
    pub fn push(&mut self, node: NodeProto) {
        self.graph.node.push(node);
    }

    /// Makes a tensor a float graph output whose shape is left to the runtime.
    pub fn output(&mut self, name: &str) {
        self.graph.output.push(value_info(name, ElementKind::Float, None));
    }

    /// Makes a tensor a graph output with a declared type and shape.
    pub fn output_of(&mut self, name: &str, kind: ElementKind, dims: &[Dim]) {
        self.graph.output.push(value_info(name, kind, Some(dims)));
    }

    /// Finishes and validates the model.
    ///
    /// # Errors
    /// The first mistake made while building, or what validation finds.
    pub fn build(mut self) -> Result<Model, OnnxError> {
        match self.error.take() {
            Some(error) => Err(error),
            None => Model::from_proto(self.into_proto(), &Limits::default()),
        }
    }

    /// The model as it stands, not validated: for more than a builder says, e.g. other operator sets and functions. It imports
    /// ONNX Runtime's own operators where nodes name their domain.
    pub fn into_proto(self) -> ModelProto {
        let import = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
        let mut opset_import = vec![import("", self.opset)];
        if self.graph.node.iter().any(|n| n.domain() == "com.microsoft") {
            opset_import.push(import("com.microsoft", 1));
        }
        ModelProto {
            ir_version: Some(8),
            producer_name: Some("pleach".to_owned()),
            graph: Some(self.graph),
            opset_import,
            ..ModelProto::default()
        }
    }

    fn constant(&mut self, name: &str, tensor: Result<TensorProto, OnnxError>) -> String {
        match tensor {
            Ok(tensor) => self.graph.initializer.push(tensor),
            Err(error) => self.error = self.error.take().or(Some(error)),
        }
        name.to_owned()
    }
}
