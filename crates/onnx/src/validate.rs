//! What a model must hold before anything reads it: known versions, sound constants, one definition a name, sorted nodes.

use std::collections::{HashMap, HashSet};

use crate::error::OnnxError;
use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::tensor;

/// Bounds on what is accepted from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the encoded model.
    pub max_bytes: usize,
    /// Bytes of weights in files beside it.
    pub max_external_bytes: u64,
    /// Length-delimited protobuf fields; each costs up to a few hundred bytes of memory.
    pub max_fields: u64,
    /// Bytes that lists of numbers take once decoded: eight where the file may spend one.
    pub max_list_bytes: u64,
    /// Nodes, those of nested graphs and functions included, before and after functions are expanded.
    pub max_nodes: usize,
    /// Inputs, outputs or attributes of one node.
    pub max_arity: usize,
    /// Bytes of a name.
    pub max_name_bytes: usize,
    /// Axes of a tensor.
    pub max_rank: usize,
    /// Elements of a constant that the file gives by its shape alone (`ConstantOfShape`), and of an empty one without its zeros.
    pub max_elements: usize,
    /// Graphs nested in attributes, and functions nested in functions.
    pub max_depth: usize,
}

impl Default for Limits {
    /// 2 GiB less one byte (the most that protobuf allows) and 16 GiB beside it, 4 million fields, 2 GiB of lists, 100,000 nodes
    /// of at most 16,384 inputs, outputs or attributes, names of 4 KiB, rank 8, 2^28 elements by shape, 8 levels.
    fn default() -> Self {
        Self {
            max_bytes: i32::MAX as usize,
            max_external_bytes: 16 << 30,
            max_fields: 4_000_000,
            max_list_bytes: 2 << 30,
            max_nodes: 100_000,
            max_arity: 16_384,
            max_name_bytes: 4096,
            max_rank: 8,
            max_elements: MAX_ELEMENTS,
            max_depth: 8,
        }
    }
}

impl Limits {
    /// For what is ours: a patched model has no size but that of its parts.
    pub(crate) fn unlimited() -> Self {
        Self {
            max_bytes: usize::MAX,
            max_external_bytes: u64::MAX,
            max_fields: u64::MAX,
            max_list_bytes: u64::MAX,
            max_nodes: usize::MAX,
            max_arity: usize::MAX,
            max_name_bytes: usize::MAX,
            ..Self::default()
        }
    }
}

/// Most elements of a constant that is given by its shape alone.
pub(crate) const MAX_ELEMENTS: usize = 1 << 28;

/// Oldest and newest format version.
const IR_VERSIONS: (i64, i64) = (3, 13);
/// Operator sets of ONNX Runtime: domain, oldest and newest version.
const OPERATOR_SETS: [(&str, i64, i64); 8] = [
    ("", 7, 26),
    ("ai.onnx.ml", 1, 5),
    ("ai.onnx.preview.training", 1, 1),
    ("ai.onnx.training", 1, 1),
    ("com.microsoft", 1, 1),
    ("com.microsoft.experimental", 1, 1),
    ("com.microsoft.nchwc", 1, 1),
    ("com.ms.internal.nhwc", 7, 26),
];
const EXPECTED_SETS: &str = "ai.onnx 7 to 26, ai.onnx.ml 1 to 5, com.microsoft 1, or functions of the model's own";

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
    let own: HashSet<&str> = model.functions.iter().map(|f| canonical_domain(f.domain())).collect();
    let (imports, none) = (imports(&model.opset_import), HashMap::new());
    let mut scope = Scope { limits, own: &own, outer: &none, imports, nodes: 0, names: Vec::new() };
    scope.graph(graph)?;
    let mut seen = HashSet::new();
    let Scope { imports: outer, mut nodes, .. } = scope;
    for function in &model.functions {
        let key = (canonical_domain(function.domain()), function.name(), function.overload());
        if !seen.insert(key) {
            let name = format!("{}::{}", shown_domain(function.domain()), function.name());
            return Err(OnnxError::Duplicate { name, by: "a function".to_owned() });
        }
        let imports = self::imports(&function.opset_import);
        let mut scope = Scope { limits, own: &own, outer: &outer, imports, nodes, names: Vec::new() };
        scope.function(function)?;
        nodes = scope.nodes;
    }
    Ok(())
}

/// Version by domain; a later import of a domain takes the place of an earlier.
fn imports(sets: &[OperatorSetIdProto]) -> HashMap<&str, i64> {
    sets.iter().map(|set| (canonical_domain(set.domain()), set.version())).collect()
}

struct Scope<'a, 's> {
    limits: &'s Limits,
    /// Domains of the model's own functions.
    own: &'s HashSet<&'a str>,
    /// Operator sets of the model, when this is a function of it.
    outer: &'s HashMap<&'a str, i64>,
    /// Operator sets imported here.
    imports: HashMap<&'a str, i64>,
    /// Nodes so far.
    nodes: usize,
    /// Tensors that are defined, by graph, outermost first.
    names: Vec<HashSet<&'a str>>,
}

impl<'a> Scope<'a, '_> {
    fn graph(&mut self, graph: &'a GraphProto) -> Result<(), OnnxError> {
        limit("nested graphs", self.names.len(), self.limits.max_depth)?;
        let sources = self.sources(graph)?;
        self.body(sources, &graph.node, || graph.output.iter().map(|o| o.name()))?;
        graph.value_info.iter().try_for_each(|info| self.name(info.name()))
    }

    fn function(&mut self, function: &'a FunctionProto) -> Result<(), OnnxError> {
        let mut inputs = HashSet::new();
        for input in &function.input {
            self.name(input)?;
            define(&mut inputs, input, || format!("an input of function `{}`", function.name()))?;
        }
        self.body(inputs, &function.node, || function.output.iter().map(String::as_str))
    }

    /// Checks nodes in order, and that they make the outputs.
    fn body<O: Iterator<Item = &'a str>>(
        &mut self,
        sources: HashSet<&'a str>,
        nodes: &'a [NodeProto],
        outputs: impl Fn() -> O,
    ) -> Result<(), OnnxError> {
        self.nodes = self.nodes.saturating_add(nodes.len());
        limit("nodes", self.nodes, self.limits.max_nodes)?;
        self.names.push(sources);
        for (place, node) in nodes.iter().enumerate() {
            self.node(node)?;
            if let Some(name) = node.input.iter().find(|name| !name.is_empty() && !self.is_defined(name)) {
                let (later, node, name) = (nodes.get(place..).unwrap_or_default(), label(node), name.clone());
                return Err(if later.iter().flat_map(|n| &n.output).any(|output| *output == name) {
                    OnnxError::Unsorted { node, name }
                } else {
                    OnnxError::Undefined { user: format!("node `{node}`"), name }
                });
            }
            for graph in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
                self.graph(graph)?;
            }
            if let Some(defined) = self.names.last_mut() {
                for name in node.output.iter().map(String::as_str).filter(|n| !n.is_empty()) {
                    define(defined, name, || format!("node `{}`", label(node)))?;
                }
            }
        }
        if let Some(name) = outputs().find(|name| !self.is_defined(name)) {
            return Err(OnnxError::Undefined { user: "graph output".to_owned(), name: name.to_owned() });
        }
        self.names.pop();
        Ok(())
    }

    fn is_defined(&self, name: &str) -> bool {
        self.names.iter().rev().any(|names| names.contains(name))
    }

    /// Graph inputs and constants; a constant may give an input its default.
    fn sources(&self, graph: &'a GraphProto) -> Result<HashSet<&'a str>, OnnxError> {
        let mut inputs = HashSet::new();
        for input in &graph.input {
            self.name(input.name())?;
            define(&mut inputs, input.name(), || "a graph input".to_owned())?;
        }
        let mut constants = HashSet::new();
        for tensor in &graph.initializer {
            self.name(tensor.name())?;
            tensor::check(tensor, self.limits)?;
            define(&mut constants, tensor.name(), || "an initializer".to_owned())?;
        }
        for sparse in &graph.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            self.name(name)?;
            sparse.values.iter().chain(&sparse.indices).try_for_each(|tensor| tensor::check(tensor, self.limits))?;
            define(&mut constants, name, || "a sparse initializer".to_owned())?;
        }
        inputs.extend(constants);
        Ok(inputs)
    }

    fn node(&self, node: &NodeProto) -> Result<(), OnnxError> {
        let names = [&node.input, &node.output].into_iter().flatten().map(String::as_str);
        names.chain([node.name(), node.op_type(), node.domain()]).try_for_each(|name| self.name(name))?;
        for (what, got) in [
            ("inputs of a node", node.input.len()),
            ("outputs of a node", node.output.len()),
            ("attributes of a node", node.attribute.len()),
        ] {
            limit(what, got, self.limits.max_arity)?;
        }
        if node.op_type().is_empty() {
            return Err(OnnxError::Node { node: label(node), reason: "it names no operator".to_owned() });
        }
        self.domain(node)?;
        let mut attributes = HashSet::new();
        for attribute in &node.attribute {
            self.name(attribute.name())?;
            if !attributes.insert(attribute.name()) {
                return Err(OnnxError::Node { node: label(node), reason: format!("attribute `{}` is given twice", attribute.name()) });
            }
            attribute.t.iter().chain(&attribute.tensors).try_for_each(|tensor| tensor::check(tensor, self.limits))?;
        }
        Ok(())
    }

    /// Whether a node's operator set is imported, in a version that is known.
    fn domain(&self, node: &NodeProto) -> Result<(), OnnxError> {
        let domain = canonical_domain(node.domain());
        let unknown = |version| OnnxError::UnknownOperatorSet { domain: shown_domain(domain), version, expected: EXPECTED_SETS };
        let known = |version| OPERATOR_SETS.iter().any(|&(name, min, max)| name == domain && (min..=max).contains(&version));
        match self.imports.get(domain).or_else(|| self.outer.get(domain)) {
            Some(&version) if known(version) || (!domain.is_empty() && self.own.contains(domain)) => Ok(()),
            Some(&version) => Err(unknown(version)),
            None if domain.is_empty() => Err(unknown(0)),
            None => Err(OnnxError::UndeclaredOperatorSet { node: label(node), domain: domain.to_owned() }),
        }
    }

    fn name(&self, name: &str) -> Result<(), OnnxError> {
        limit("bytes in a name", name.len(), self.limits.max_name_bytes)
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
