//! Constants, whatever holds them: initializers, every form of `Constant` node, and `ConstantOfShape` of a constant shape.

use std::borrow::Cow;

use super::{Model, Node};
use crate::proto::TensorProto;
use crate::proto::tensor_proto::DataType;
use crate::tensor::{self, Constant, ConstantData};
use crate::validate::MAX_ELEMENTS;

impl Model {
    /// The stored tensor behind a constant: an initializer, or the tensor of a `Constant` node, named by its output.
    pub fn constant_proto(&self, name: &str) -> Option<&TensorProto> {
        if let Some(&index) = self.tables.initializers.get(name) {
            return self.graph.initializer.get(index);
        }
        let node = self.producer(name).filter(|n| n.is("Constant"))?;
        node.attribute("value").and_then(|a| a.t.as_ref())
    }

    /// A constant as a tensor of its own name, whatever holds it. Cost: a copy where it is not stored as such.
    pub fn constant_tensor(&self, name: &str) -> Option<TensorProto> {
        let tensor = self.tensor(name)?.into_owned();
        Some(TensorProto { name: Some(name.to_owned()), ..tensor })
    }

    /// Axis lengths of a constant.
    pub fn constant_dims(&self, name: &str) -> Option<Vec<usize>> {
        if let Some(tensor) = self.constant_proto(name) {
            return tensor::dims(tensor).ok();
        }
        let node = self.producer(name)?;
        match node.op_type() {
            "ConstantOfShape" => self.filled(node).map(|(dims, _)| dims),
            _ => listed(node).and_then(|tensor| tensor::dims(&tensor).ok()),
        }
    }

    /// ONNX element type number of a constant.
    pub fn constant_type(&self, name: &str) -> Option<i32> {
        if let Some(tensor) = self.constant_proto(name) {
            return Some(tensor.data_type());
        }
        let node = self.producer(name)?;
        match node.op_type() {
            "ConstantOfShape" => self.filled(node).map(|(_, value)| value.data_type()),
            _ => listed(node).map(|tensor| tensor.data_type()),
        }
    }

    /// A constant's elements, whatever its storage.
    pub fn constant(&self, name: &str) -> Option<Constant> {
        tensor::decode(&*self.tensor(name)?).ok()
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

    /// Names of all constants: initializers in order, then those of nodes.
    pub fn constants(&self) -> impl Iterator<Item = &str> {
        let made = self.nodes().filter_map(|node| node.output(0)).filter(|name| self.constant_dims(name).is_some());
        self.initializers().chain(made)
    }

    fn tensor(&self, name: &str) -> Option<Cow<'_, TensorProto>> {
        if let Some(tensor) = self.constant_proto(name) {
            return Some(Cow::Borrowed(tensor));
        }
        let node = self.producer(name)?;
        match node.op_type() {
            "ConstantOfShape" => {
                let (dims, value) = self.filled(node)?;
                tensor::fill(&dims, &value).map(Cow::Owned)
            }
            _ => listed(node).map(Cow::Owned),
        }
    }

    /// Axis lengths and the one element of a `ConstantOfShape` whose shape is stored.
    fn filled(&self, node: Node<'_>) -> Option<(Vec<usize>, Cow<'_, TensorProto>)> {
        if !node.is("ConstantOfShape") {
            return None;
        }
        let shape = node.input(0)?;
        let stored = match self.constant_proto(shape) {
            Some(tensor) => Cow::Borrowed(tensor),
            None => Cow::Owned(listed(self.producer(shape)?)?),
        };
        let dims: Vec<usize> = tensor::decode(&stored).ok()?.ints()?.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
        let count = dims.iter().filter(|&&d| d > 0).try_fold(1usize, |a, &d| a.checked_mul(d))?;
        let value = match self.graph.node.get(node.id.0)?.attribute.iter().find(|a| a.name() == "value") {
            Some(attribute) => Cow::Borrowed(attribute.t.as_ref()?),
            None => Cow::Owned(tensor::encode_floats("", &[1], &[0.0], DataType::Float).ok()?),
        };
        (count <= MAX_ELEMENTS).then_some((dims, value))
    }
}

/// The value of a `Constant` node that holds numbers, not a tensor.
fn listed(node: Node<'_>) -> Option<TensorProto> {
    if !node.is("Constant") {
        return None;
    }
    node.proto.attribute.iter().find_map(|a| match a.name() {
        "value_float" => tensor::encode_floats("", &[], &[a.f()], DataType::Float).ok(),
        "value_int" => tensor::encode_ints("", &[], &[a.i()]).ok(),
        "value_floats" => tensor::encode_floats("", &[a.floats.len()], &a.floats, DataType::Float).ok(),
        "value_ints" => tensor::encode_ints("", &[a.ints.len()], &a.ints).ok(),
        _ => None,
    })
}
