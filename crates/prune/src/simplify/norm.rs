//! Normalisations: LayerNormalization and RMSNormalization, as operators or spelled out, become
//! LayerNormalization and SkipLayerNormalization (simplified or not) nodes that also add the residual and the bias before it.
//!
//! Where nothing is added the node adds its input to itself: norm(2x, 4ε) = norm(x, ε), exactly. ONNX Runtime's kernel of the
//! fused node is several times faster than that of the plain one.

use std::collections::BTreeSet;

use pleach_onnx::builder::attribute;
use pleach_onnx::{Model, Node, NodeId, OnnxError, Patch, Shapes};

use super::cone::Cone;
use super::{MICROSOFT, biased, contrib};

/// Largest relative difference at which two functions are one.
const SAME: f64 = 1e-6;

/// A normalisation over the last axis, with its weights.
struct Norm<'a> {
    last: Node<'a>,
    /// Nodes that it consists of, besides the last.
    inner: Vec<NodeId>,
    source: String,
    gamma: String,
    beta: Option<String>,
    epsilon: f64,
    /// Whether the mean is subtracted.
    centred: bool,
}

/// Fuses every normalisation.
pub(super) fn fuse(model: &Model, shapes: &Shapes) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    let mut taken = BTreeSet::new();
    for node in model.nodes() {
        if let Some(norm) = operator(model, shapes, node).or_else(|| spelled_out(model, node)) {
            replace(model, shapes, &norm, &mut patch, &mut taken)?;
        }
    }
    model.apply(&patch)
}

fn operator<'a>(model: &Model, shapes: &Shapes, node: Node<'a>) -> Option<Norm<'a>> {
    let centred = node.is("LayerNormalization");
    if !centred && !node.is("RMSNormalization") && !node.is("SimplifiedLayerNormalization") {
        return None;
    }
    let rank = i64::try_from(shapes.axes(node.input(0)?)?.len()).ok()?;
    let axis = node.int("axis").unwrap_or(-1);
    let plain = (axis == -1 || axis == rank - 1) && node.outputs().count() == 1 && node.int("stash_type").unwrap_or(1) == 1;
    model.floats(node.input(1)?)?;
    plain.then_some(Norm {
        last: node,
        inner: Vec::new(),
        source: node.input(0)?.to_owned(),
        gamma: node.input(1)?.to_owned(),
        beta: node.input(2).map(str::to_owned),
        epsilon: f64::from(node.float("epsilon").unwrap_or(1e-5)),
        centred,
    })
}

/// The normalisation that a Mul by weights, or the Add of a bias behind it, ends.
fn spelled_out<'a>(model: &Model, node: Node<'a>) -> Option<Norm<'a>> {
    let with_vector = |node: Node<'a>| -> Option<(&'a str, &'a str)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        match (model.floats(a), model.floats(b)) {
            (Some(_), None) => Some((b, a)),
            (None, Some(_)) => Some((a, b)),
            _ => None,
        }
    };
    let (scaled, beta, mut inner) = if node.is("Add") {
        let (scaled, beta) = with_vector(node)?;
        let mul = model.producer(scaled).filter(|m| m.is("Mul") && model.consumers(scaled).len() == 1)?;
        (mul.id, Some(beta), vec![mul.id])
    } else {
        (node.id, None, vec![])
    };
    let mul = model.node(scaled).filter(|n| n.is("Mul"))?;
    let (normalised, gamma) = match (mul.input(0)?, mul.input(1)?) {
        (a, b) if model.floats(b).is_some() => (a, b),
        (a, b) if model.floats(a).is_some() => (b, a),
        _ => return None,
    };
    // The Add behind this Mul takes both.
    let next = model.consumers(mul.output(0)?);
    if beta.is_none() && matches!(next, [only] if model.node(only.node).is_some_and(|n| n.is("Add") && spelled_out(model, n).is_some())) {
        return None;
    }
    let cones = Cone::behind(model, normalised);
    let known = |cone: &Cone| -> Option<(f64, bool)> {
        let epsilon = cone.added.iter().copied().find(|e| (0.0..0.1).contains(e)).unwrap_or(0.0);
        // Small values show the epsilon, large ones the rest.
        let is = |centred: bool| [1e-3, 1.0].iter().all(|scale| same(model, cone, normalised, epsilon, centred, *scale));
        cone.has("ReduceMean").then(|| [true, false].into_iter().find(|&centred| is(centred))).flatten().map(|centred| (epsilon, centred))
    };
    let (cone, (epsilon, centred)) = cones.iter().find_map(|cone| Some((cone, known(cone)?)))?;
    if !centred && beta.is_some() {
        return None;
    }
    inner.extend(&cone.nodes);
    let (gamma, beta) = (gamma.to_owned(), beta.map(str::to_owned));
    Some(Norm { last: node, inner, source: cone.source.clone(), gamma, beta, epsilon, centred })
}

fn same(model: &Model, cone: &Cone, result: &str, epsilon: f64, centred: bool, scale: f64) -> bool {
    let points: Vec<f64> = [0.3, -1.2, 2.5, 0.9, -0.4, 1.7, 0.05].iter().map(|x| x * scale).collect();
    let n = points.len() as f64;
    let mean = if centred { points.iter().sum::<f64>() / n } else { 0.0 };
    let square = points.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let want = points.iter().map(|x| (x - mean) / (square + epsilon).sqrt());
    let Some(got) = cone.values(model, result, &points) else { return false };
    got.len() == points.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() <= SAME * w.abs().max(1.0))
}

fn replace(model: &Model, shapes: &Shapes, norm: &Norm<'_>, patch: &mut Patch, taken: &mut BTreeSet<NodeId>) -> Result<(), OnnxError> {
    let Some(output) = norm.last.output(0) else { return Ok(()) };
    let Some(&length) = shapes.at(&norm.source, 1).filter(|dims| matches!(dims.len(), 2 | 3)).as_deref().and_then(<[usize]>::last) else {
        return Ok(());
    };
    let mut vector = |name: &str| -> Result<Option<String>, OnnxError> {
        let Some((dims, values)) = model.floats(name).filter(|(_, values)| values.len() == length) else { return Ok(None) };
        if dims.len() == 1 {
            return Ok(Some(name.to_owned()));
        }
        let flat = model.free_name(&format!("{name}.flat"));
        patch.set_floats(model, &flat, &[length], &values)?;
        Ok(Some(flat))
    };
    let Some(gamma) = vector(&norm.gamma)? else { return Ok(()) };
    let beta = match &norm.beta {
        Some(name) => match vector(name)? {
            Some(name) => name,
            None => return Ok(()),
        },
        None => String::new(),
    };
    let sum = summands(model, shapes, norm).filter(|sum| !taken.contains(&sum.add));
    let (mut inputs, mut outputs, epsilon) = match &sum {
        Some(sum) => (vec![sum.input.clone(), sum.skip.clone()], vec![output.to_owned()], norm.epsilon),
        None => (vec![norm.source.clone(), norm.source.clone()], vec![output.to_owned()], 4.0 * norm.epsilon),
    };
    inputs.push(gamma);
    if norm.centred {
        inputs.push(beta);
    }
    if let Some(sum) = &sum {
        if let Some(bias) = &sum.bias {
            inputs.push(bias.clone());
        }
        if sum.read_on {
            outputs.extend([String::new(), String::new(), norm.source.clone()]);
            taken.insert(sum.add);
            patch.remove_node(sum.add);
            norm.inner.iter().for_each(|&id| {
                patch.remove_node(id);
            });
        }
    }
    let op = if norm.centred { "SkipLayerNormalization" } else { "SkipSimplifiedLayerNormalization" };
    patch.import(MICROSOFT, 1);
    patch.replace_node(norm.last.id, vec![contrib(op, inputs, outputs, vec![attribute("epsilon", epsilon as f32)])]);
    Ok(())
}

/// The sum that a normalisation reads.
struct Sum {
    add: NodeId,
    input: String,
    skip: String,
    bias: Option<String>,
    /// Whether others read the sum, too.
    read_on: bool,
}

fn summands(model: &Model, shapes: &Shapes, norm: &Norm<'_>) -> Option<Sum> {
    let add = model.producer(&norm.source).filter(|n| n.is("Add"))?;
    let (a, b) = (add.input(0)?, add.input(1)?);
    let dims = shapes.at(&norm.source, 7)?;
    let whole = |name: &str| shapes.at(name, 7).is_some_and(|d| d == dims);
    // Only the second summand may be broadcast over the batch.
    let (input, skip) = match (whole(a), whole(b)) {
        (true, _) => (a, b),
        (false, true) => (b, a),
        (false, false) => return None,
    };
    let broadcast = shapes.at(skip, 7)?;
    let rows = dims.get(1..)?;
    if !whole(skip) && broadcast != rows && (broadcast.first() != Some(&1) || broadcast.get(1..) != Some(rows))
        || dims.len() == 2 && !whole(skip)
    {
        return None;
    }
    let inside = |id: NodeId| id == norm.last.id || norm.inner.contains(&id);
    let others: Vec<NodeId> = model.consumers(&norm.source).iter().map(|u| u.node).filter(|&id| !inside(id)).collect();
    let read_on = !others.is_empty() || model.is_output(&norm.source);
    let leaks = |id: &NodeId| {
        model.node(*id).is_some_and(|n| n.outputs().any(|o| model.is_output(o) || model.consumers(o).iter().any(|u| !inside(u.node))))
    };
    if read_on && (others.iter().any(|&id| id < norm.last.id) || norm.inner.iter().any(leaks)) {
        return None;
    }
    // The bias of a layer whose output nobody else reads joins the sum; it must not be the broadcast summand.
    let own = |name: &str| model.consumers(name).len() == 1 && !model.is_output(name) && whole(name);
    let biased = |name: &str| own(name).then(|| biased(model, name)).flatten();
    let (input, skip, bias) = match (biased(input), biased(skip)) {
        (Some((x, bias)), _) => (x, skip, Some(bias.to_owned())),
        (None, Some((x, bias))) => (x, input, Some(bias.to_owned())),
        (None, None) => (input, skip, None),
    };
    Some(Sum { add: add.id, input: input.to_owned(), skip: skip.to_owned(), bias, read_on })
}
