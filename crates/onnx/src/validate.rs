//! What a model must hold before anything reads it: known versions, sound constants, one definition a name, sorted nodes.

use std::collections::HashSet;

use crate::error::OnnxError;
use crate::proto::{GraphProto, ModelProto, NodeProto};
use crate::tensor;

/// Bounds on what is accepted from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the encoded model.
    pub max_bytes: usize,
    /// Length-delimited protobuf fields; each costs up to a few hundred bytes of memory.
    pub max_fields: u64,
    /// Nodes, subgraphs included.
    pub max_nodes: usize,
    /// Axes of a tensor.
    pub max_rank: usize,
    /// Graphs nested in attributes.
    pub max_depth: usize,
}

impl Default for Limits {
    /// 1 GiB, 4 million fields, 100,000 nodes, rank 8, graphs nested 8 deep.
    fn default() -> Self {
        Self { max_bytes: 1 << 30, max_fields: 4_000_000, max_nodes: 100_000, max_rank: 8, max_depth: 8 }
    }
}

/// Oldest and newest format version.
const IR_VERSIONS: (i64, i64) = (3, 13);
/// Known operator sets: domain, oldest and newest version.
const OPERATOR_SETS: [(&str, i64, i64); 3] = [("", 7, 25), ("ai.onnx.ml", 1, 5), ("com.microsoft", 1, 1)];
const EXPECTED_SETS: &str = "ai.onnx 7 to 25, ai.onnx.ml 1 to 5 or com.microsoft 1";

/// `ai.onnx` and the empty domain are one.
pub(crate) fn canonical_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn shown_domain(domain: &str) -> String {
    if domain.is_empty() { "ai.onnx".to_owned() } else { domain.to_owned() }
}

/// A node's name, or what stands for it.
pub(crate) fn label(node: &NodeProto) -> String {
    match (node.name(), node.output.first()) {
        ("", Some(output)) => format!("{} -> {output}", node.op_type()),
        ("", None) => node.op_type().to_owned(),
        (name, _) => name.to_owned(),
    }
}

/// Checks a decoded model against [`Limits`] and the ONNX rules Pleach relies on.
pub(crate) fn check(model: &ModelProto, limits: &Limits) -> Result<(), OnnxError> {
    let got = model.ir_version();
    if got < IR_VERSIONS.0 || got > IR_VERSIONS.1 {
        return Err(OnnxError::IrVersion { got, min: IR_VERSIONS.0, max: IR_VERSIONS.1 });
    }
    let Some(graph) = &model.graph else {
        return Err(OnnxError::NotOnnx { reason: "expected a graph, found none".to_owned() });
    };
    let domains = check_operator_sets(model)?;
    let mut scope = Scope { limits, domains: &domains, nodes: 0 };
    scope.graph(graph, &HashSet::new(), 0)
}

/// Checks the imported operator sets and returns the domains nodes may use.
fn check_operator_sets(model: &ModelProto) -> Result<HashSet<&str>, OnnxError> {
    let own: HashSet<&str> = model.functions.iter().map(|f| canonical_domain(f.domain())).collect();
    let mut domains = HashSet::new();
    for set in &model.opset_import {
        let domain = canonical_domain(set.domain());
        let known = OPERATOR_SETS.iter().any(|&(name, min, max)| name == domain && (min..=max).contains(&set.version()));
        if !known && (domain.is_empty() || !own.contains(domain)) {
            return Err(OnnxError::UnknownOperatorSet { domain: shown_domain(domain), version: set.version(), expected: EXPECTED_SETS });
        }
        domains.insert(domain);
    }
    if !domains.contains("") && model.graph.as_ref().is_some_and(|g| g.node.iter().any(|n| canonical_domain(n.domain()).is_empty())) {
        return Err(OnnxError::UnknownOperatorSet { domain: shown_domain(""), version: 0, expected: EXPECTED_SETS });
    }
    Ok(domains)
}

struct Scope<'a> {
    limits: &'a Limits,
    domains: &'a HashSet<&'a str>,
    nodes: usize,
}

impl<'a> Scope<'a> {
    /// Checks one graph; `outer` are the tensors of the graphs around it.
    fn graph(&mut self, graph: &'a GraphProto, outer: &HashSet<&'a str>, depth: usize) -> Result<(), OnnxError> {
        self.nodes += graph.node.len();
        limit("nodes", self.nodes, self.limits.max_nodes)?;
        limit("nested graphs", depth, self.limits.max_depth)?;
        let mut defined = self.sources(graph)?;
        let produced: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        for node in &graph.node {
            self.node(node)?;
            for name in node.input.iter().map(String::as_str).filter(|n| !n.is_empty()) {
                if !defined.contains(name) && !outer.contains(name) {
                    let (node, name) = (label(node), name.to_owned());
                    return Err(if produced.contains(name.as_str()) {
                        OnnxError::Unsorted { node, name }
                    } else {
                        OnnxError::Undefined { user: format!("node `{node}`"), name }
                    });
                }
            }
            self.subgraphs(node, &defined, outer, depth)?;
            for name in node.output.iter().map(String::as_str).filter(|n| !n.is_empty()) {
                define(&mut defined, name, || format!("node `{}`", label(node)))?;
            }
        }
        for output in &graph.output {
            if !defined.contains(output.name()) && !outer.contains(output.name()) {
                return Err(OnnxError::Undefined { user: "graph output".to_owned(), name: output.name().to_owned() });
            }
        }
        Ok(())
    }

    /// Graph inputs and constants; a constant may give an input its default.
    fn sources(&self, graph: &'a GraphProto) -> Result<HashSet<&'a str>, OnnxError> {
        let mut inputs = HashSet::new();
        for input in &graph.input {
            define(&mut inputs, input.name(), || "a graph input".to_owned())?;
        }
        let mut constants = HashSet::new();
        for tensor in &graph.initializer {
            tensor::check(tensor, self.limits.max_rank)?;
            define(&mut constants, tensor.name(), || "an initializer".to_owned())?;
        }
        for sparse in &graph.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            define(&mut constants, name, || "a sparse initializer".to_owned())?;
        }
        inputs.extend(constants);
        Ok(inputs)
    }

    fn node(&self, node: &NodeProto) -> Result<(), OnnxError> {
        if node.op_type().is_empty() {
            return Err(OnnxError::Node { node: label(node), reason: "it names no operator".to_owned() });
        }
        let domain = canonical_domain(node.domain());
        if !self.domains.contains(domain) {
            return Err(OnnxError::UndeclaredOperatorSet { node: label(node), domain: shown_domain(domain) });
        }
        for tensor in node.attribute.iter().flat_map(|a| a.t.iter().chain(&a.tensors)) {
            tensor::check(tensor, self.limits.max_rank)?;
        }
        Ok(())
    }

    fn subgraphs(
        &mut self,
        node: &'a NodeProto,
        defined: &HashSet<&'a str>,
        outer: &HashSet<&'a str>,
        depth: usize,
    ) -> Result<(), OnnxError> {
        let mut graphs = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).peekable();
        if graphs.peek().is_none() {
            return Ok(());
        }
        let visible: HashSet<&str> = defined.union(outer).copied().collect();
        graphs.try_for_each(|graph| self.graph(graph, &visible, depth + 1))
    }
}

fn define<'a>(names: &mut HashSet<&'a str>, name: &'a str, by: impl Fn() -> String) -> Result<(), OnnxError> {
    if name.is_empty() {
        return Err(OnnxError::Undefined { user: by(), name: String::new() });
    }
    if names.insert(name) { Ok(()) } else { Err(OnnxError::Duplicate { name: name.to_owned(), by: by() }) }
}

fn limit(what: &'static str, got: usize, limit: usize) -> Result<(), OnnxError> {
    if got <= limit { Ok(()) } else { Err(OnnxError::TooLarge { what, got: got as u64, limit: limit as u64 }) }
}
