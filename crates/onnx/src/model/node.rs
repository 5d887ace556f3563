//! Nodes, read.

use std::collections::HashSet;
use std::fmt;

use crate::proto::{AttributeProto, GraphProto, NodeProto};
use crate::validate;

/// A node's place in the graph's order, from 0. Patches that remove or insert nodes shift those behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
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

/// Outer tensors that the graphs nested in a node use, in name order.
pub(super) fn captured(node: &NodeProto) -> Vec<&str> {
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
