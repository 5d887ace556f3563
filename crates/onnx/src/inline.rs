//! Puts the bodies of a model's own functions in the place of their calls, so that what they are made of can be read and cut.
//!
//! Exporters that keep module structure (PyTorch's dynamo exporter, onnxscript) write layers as functions; every operator rule
//! then works on the nodes inside. Semantics are those of the ONNX specification (IR, Functions): inputs and outputs are bound by
//! position, attributes by name with the function's defaults, and each call has names of its own.

use std::collections::{HashMap, HashSet};

use crate::error::OnnxError;
use crate::model::Model;
use crate::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::validate::{Limits, canonical_domain, label};

/// Longest name that keeps the path of calls in it.
const MAX_PATH: usize = 256;

impl Model {
    /// A copy without calls of its own functions, and without the functions themselves. A function whose operator sets are of
    /// other versions than the model's stays, and so do its calls. A model without functions is given back as it is.
    ///
    /// # Errors
    /// [`OnnxError::Function`] for functions that call themselves, [`OnnxError::TooLarge`] when the bodies exceed `limits`.
    pub fn inline(&self, limits: &Limits) -> Result<Self, OnnxError> {
        let mut proto = self.to_proto();
        if proto.functions.is_empty() {
            return Ok(self.clone());
        }
        let functions = std::mem::take(&mut proto.functions);
        let mut graph = proto.graph.take().unwrap_or_default();
        let (fit, stay): (Vec<_>, Vec<_>) = functions.into_iter().partition(|function| import(&mut proto, function));
        let mut names = HashSet::new();
        collect_names(&graph, &mut names);
        let functions = fit.iter().map(|f| (key(f.domain(), f.name(), f.overload()), f)).collect();
        let mut inliner = Inliner { functions, names, steps: 0, limits };
        graph.node = inliner.nodes(graph.node, 0)?;
        // A function that stays may call one that was expanded elsewhere.
        proto.functions = if stay.is_empty() { stay } else { stay.into_iter().chain(fit).collect() };
        proto.graph = Some(graph);
        self.changed_to(proto)
    }
}

fn key<'a>(domain: &'a str, name: &'a str, overload: &'a str) -> (&'a str, &'a str, &'a str) {
    (canonical_domain(domain), name, overload)
}

/// Whether a function's operator sets are the model's; those the model lacks are imported.
fn import(model: &mut ModelProto, function: &FunctionProto) -> bool {
    let own = |sets: &[OperatorSetIdProto], domain: &str| {
        sets.iter().rev().find(|set| canonical_domain(set.domain()) == canonical_domain(domain)).map(OperatorSetIdProto::version)
    };
    let differs = |set: &OperatorSetIdProto| own(&model.opset_import, set.domain()).is_some_and(|version| version != set.version());
    if function.opset_import.iter().any(differs) {
        return false;
    }
    for set in &function.opset_import {
        if own(&model.opset_import, set.domain()).is_none() {
            model.opset_import.push(set.clone());
        }
    }
    true
}

/// All names of tensors, nested graphs included.
fn collect_names(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.input.iter().map(|i| i.name().to_owned()));
    names.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
    names.extend(graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name().to_owned()));
    for node in &graph.node {
        names.extend(node.output.iter().cloned());
        node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).for_each(|nested| collect_names(nested, names));
    }
}

struct Inliner<'a> {
    functions: HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    names: HashSet<String>,
    /// Nodes and calls so far.
    steps: usize,
    limits: &'a Limits,
}

/// What the names of a function's body mean at one call.
struct Call<'c> {
    /// Stands before every name of the body.
    path: &'c str,
    names: HashMap<String, String>,
    attributes: &'c HashMap<&'c str, &'c AttributeProto>,
}

impl<'a> Inliner<'a> {
    /// Nodes with all calls among them expanded.
    fn nodes(&mut self, nodes: Vec<NodeProto>, depth: usize) -> Result<Vec<NodeProto>, OnnxError> {
        let mut out = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            self.steps += 1;
            if self.steps > self.limits.max_nodes {
                let (got, limit) = (self.steps as u64, self.limits.max_nodes as u64);
                return Err(OnnxError::TooLarge { what: "nodes in expanded functions", got, limit });
            }
            for attribute in &mut node.attribute {
                for nested in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    nested.node = self.nodes(std::mem::take(&mut nested.node), depth)?;
                }
            }
            let called = self.functions.get(&key(node.domain(), node.op_type(), node.overload())).copied();
            match called {
                Some(function) if depth < self.limits.max_depth => {
                    let body = self.body(&node, function)?;
                    out.extend(self.nodes(body, depth + 1)?);
                }
                Some(function) => {
                    let name = format!("{}::{}", function.domain(), function.name());
                    return Err(OnnxError::Function { name, reason: format!("calls nest deeper than {}", self.limits.max_depth) });
                }
                None => out.push(node),
            }
        }
        Ok(out)
    }

    /// A function's nodes as they stand in the place of a call.
    fn body(&mut self, call: &NodeProto, function: &FunctionProto) -> Result<Vec<NodeProto>, OnnxError> {
        let wrong = |what: &str, got: usize, most: usize| {
            let name = format!("{}::{}", function.domain(), function.name());
            OnnxError::Function { name, reason: format!("node `{}` has {got} {what}: expected at most {most}", label(call)) }
        };
        if call.input.len() > function.input.len() {
            return Err(wrong("inputs", call.input.len(), function.input.len()));
        }
        if call.output.len() > function.output.len() {
            return Err(wrong("outputs", call.output.len(), function.output.len()));
        }
        let defaults = function.attribute_proto.iter().chain(&call.attribute);
        let attributes: HashMap<&str, &AttributeProto> = defaults.map(|a| (a.name(), a)).collect();
        let given = call.input.iter().cloned().chain(std::iter::repeat(String::new()));
        let names: HashMap<String, String> = function.input.iter().cloned().zip(given).collect();
        let path = label(call);
        let mut scope = Call { path: &path, names, attributes: &attributes };
        let mut aliases = Vec::new();
        for (inner, outer) in function.output.iter().zip(&call.output).filter(|(_, outer)| !outer.is_empty()) {
            if scope.names.contains_key(inner) {
                aliases.push((inner, outer)); // an input handed through, or one value given twice
            } else {
                scope.names.insert(inner.clone(), outer.clone());
            }
        }
        let mut nodes = function.node.iter().map(|node| self.rewritten(node, &mut scope)).collect::<Vec<_>>();
        for (inner, outer) in aliases {
            let source = scope.names.get(inner).cloned().unwrap_or_default();
            nodes.push(crate::builder::node("Identity", outer, &[&source], outer, vec![]));
        }
        Ok(nodes)
    }

    /// A node of a body with the names and attributes of a call.
    fn rewritten(&mut self, node: &NodeProto, scope: &mut Call<'_>) -> NodeProto {
        let mut node = node.clone();
        for name in &mut node.input {
            if let Some(outer) = scope.names.get(name) {
                name.clone_from(outer);
            }
        }
        node.attribute = node.attribute.into_iter().filter_map(|attribute| bound(attribute, scope.attributes)).collect();
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|nested| self.nested(nested, scope));
        }
        for name in node.output.iter_mut().filter(|name| !name.is_empty()) {
            self.rename(name, scope);
        }
        node.name = Some(self.path(scope.path, node.name()));
        node
    }

    /// A graph nested in a body: its own names become the call's, and mean nothing behind it.
    fn nested(&mut self, graph: &mut GraphProto, scope: &mut Call<'_>) {
        let sources = graph.input.iter().map(|i| i.name()).chain(graph.initializer.iter().map(|t| t.name()));
        let sources = sources.chain(graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name()));
        let mut hidden = Vec::new();
        for name in sources {
            let fresh = self.fresh(scope.path, name);
            hidden.push((name.to_owned(), scope.names.insert(name.to_owned(), fresh)));
        }
        for name in graph.node.iter().flat_map(|n| &n.output) {
            hidden.push((name.clone(), scope.names.remove(name)));
        }
        graph.node = std::mem::take(&mut graph.node).iter().map(|node| self.rewritten(node, scope)).collect();
        let renamed = |name: &mut Option<String>| {
            if let Some(new) = name.as_ref().and_then(|old| scope.names.get(old)) {
                *name = Some(new.clone());
            }
        };
        graph.initializer.iter_mut().for_each(|tensor| renamed(&mut tensor.name));
        graph.sparse_initializer.iter_mut().filter_map(|s| s.values.as_mut()).for_each(|values| renamed(&mut values.name));
        graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info).for_each(|info| renamed(&mut info.name));
        for (name, outer) in hidden.into_iter().rev() {
            match outer {
                Some(outer) => scope.names.insert(name, outer),
                None => scope.names.remove(&name),
            };
        }
    }

    /// Gives a tensor that a body's node makes its name at this call.
    fn rename(&mut self, name: &mut String, scope: &mut Call<'_>) {
        let new = match scope.names.get(name) {
            Some(new) => new.clone(),
            None => self.fresh(scope.path, name),
        };
        scope.names.insert(std::mem::replace(name, new.clone()), new);
    }

    fn fresh(&mut self, path: &str, name: &str) -> String {
        let wanted = self.path(path, name);
        let free = match self.names.contains(&wanted) {
            false => wanted,
            true => (self.names.len()..).map(|i| format!("{wanted}.{i}")).find(|n| !self.names.contains(n)).unwrap_or_default(),
        };
        self.names.insert(free.clone());
        free
    }

    fn path(&self, path: &str, name: &str) -> String {
        if path.len() + name.len() > MAX_PATH { format!("function.{}", self.names.len()) } else { format!("{path}/{name}") }
    }
}

/// An attribute as it is at a call: one that refers to the call's is that, or absent.
fn bound(attribute: AttributeProto, given: &HashMap<&str, &AttributeProto>) -> Option<AttributeProto> {
    if attribute.ref_attr_name().is_empty() {
        return Some(attribute);
    }
    let value = given.get(attribute.ref_attr_name()).copied()?;
    Some(AttributeProto { name: attribute.name, doc_string: attribute.doc_string, ref_attr_name: None, ..value.clone() })
}
