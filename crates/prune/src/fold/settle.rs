//! Numbers that a model computes from the shapes of its tensors become literals where runs at several shapes show that they never move.
//!
//! Exporters compute the targets of Reshape, the bounds of Slice and the sizes of Split and Resize from `Shape` nodes, even where
//! they are static, and keep weights behind Casts and Transposes. Here every tensor that does not depend on the inputs' values is
//! measured in a few runs: one that came out the same is a constant. A target with free axes is written with 0 and -1, sizes as scales
//! where their ratio is fixed. What coupling sees and surgery rewrites then are literals; what could not be made one stays, and freezes.

use std::collections::{BTreeMap, BTreeSet};

use pleach_domain::runtime::{LoadedModel, Optimization, Runtime};
use pleach_domain::{Element, Tensor};
use pleach_onnx::builder::{ElementKind, attribute, value_info};
use pleach_onnx::proto::TensorProto;
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::{Dim, Model, Node, Patch, ShapeProbe, ValueInfo};

use crate::coupling::{CouplingError, Feed, PROBE_ROWS, feed};
use crate::dead;

/// Most elements of a computed tensor that becomes a literal, unless it is made of a constant of that size.
const MAX_ELEMENTS: usize = 1 << 16;

/// What runs at several shapes told.
struct Measured {
    /// Shapes of each tensor, run by run.
    shapes: BTreeMap<String, Vec<Vec<i64>>>,
    /// Tensors that were the same in every run.
    constants: BTreeMap<String, Tensor>,
}

/// A model folded and settled: what coupling is found on. `examples` give the lengths behind the batch axis of each input, where the
/// model leaves them free; whether something moves with these is found out at twice or half of them. Where the model runs at neither,
/// nothing is settled.
///
/// # Errors
/// [`CouplingError`] when an input cannot be made or the runtime does not run the model.
pub fn prepare(model: &Model, runtime: &dyn Runtime, examples: &BTreeMap<String, Vec<usize>>) -> Result<Model, CouplingError> {
    let folded = super::fold(model)?;
    let same = |lengths: &BTreeMap<String, Vec<usize>>, rows| feed(&folded, lengths, rows);
    let mut feeds = vec![same(examples, PROBE_ROWS[0])?, same(examples, PROBE_ROWS[1])?];
    let moves = |input: &ValueInfo| input.dims.iter().flatten().skip(1).any(|dim| matches!(dim, Dim::Free(_)));
    if !folded.inputs().iter().any(moves) {
        return Ok(super::fold(&settle(&folded, runtime, &feeds)?)?);
    }
    for scale in [|length: usize| length * 2, |length: usize| (length / 2).max(1)] {
        let scaled = examples.iter().map(|(name, lengths)| (name.clone(), lengths.iter().map(|&l| scale(l)).collect())).collect();
        feeds.truncate(2);
        feeds.push(same(&scaled, PROBE_ROWS[1])?);
        if let Ok(settled) = settle(&folded, runtime, &feeds) {
            return Ok(super::fold(&settled)?);
        }
    }
    Ok(folded)
}

/// The model with literals in place of what never moves, and without what only computed them. Every axis that is free must have another
/// length in one of the `feeds`; with fewer than two, the lengths of the one are taken for fixed.
///
/// # Errors
/// [`CouplingError`] when the runtime does not run the model on the feeds.
pub fn settle(model: &Model, runtime: &dyn Runtime, feeds: &[Feed]) -> Result<Model, CouplingError> {
    let measured = measure(model, runtime, feeds)?;
    let mut patch = Patch::new();
    for (name, value) in &measured.constants {
        let fresh = model.free_name(&format!("{name}.settled"));
        patch.set_constant(constant(&fresh, value));
        patch.rename_uses(name, &fresh);
    }
    for node in model.nodes().filter(|n| n.domain().is_empty()) {
        settle_node(model, node, &measured, &mut patch)?;
    }
    Ok(dead::sweep(&model.apply(&patch)?)?)
}

fn settle_node(model: &Model, node: Node<'_>, measured: &Measured, patch: &mut Patch) -> Result<(), CouplingError> {
    let computed = |input: usize| {
        let name = node.input(input)?;
        (model.constant_dims(name).is_none() && !measured.constants.contains_key(name)).then_some(())
    };
    let literal = |patch: &mut Patch, input: usize, values: &[i64]| -> Result<(), CouplingError> {
        let name = model.free_name(&format!("{}.{input}", node.output(0).unwrap_or_default()));
        patch.set_ints(&name, &[values.len()], values)?;
        patch.set_input(node.id, input, &name);
        Ok(())
    };
    match node.op_type() {
        "Reshape" if computed(1).is_some() => {
            if let Some(target) = measured.target(node) {
                literal(patch, 1, &target)?;
            }
        }
        "Expand" if computed(1).is_some() => {
            if let Some(target) = measured.expansion(node) {
                literal(patch, 1, &target)?;
            }
        }
        "Resize" if computed(3).is_some() => {
            if let Some(scales) = measured.scales(node) {
                let name = model.free_name(&format!("{}.scales", node.output(0).unwrap_or_default()));
                patch.set_floats(model, &name, &[scales.len()], &scales)?;
                patch.set_input(node.id, 2, &name);
                patch.set_input(node.id, 3, "");
            }
        }
        "Split" if node.input(1).is_none() && node.ints("split").is_none() => {
            if let Some(sizes) = measured.sizes(node) {
                if model.opset("").unwrap_or(0) < 13 {
                    patch.set_attribute(node.id, attribute("split", sizes));
                } else {
                    let name = model.free_name(&format!("{}.split", node.output(0).unwrap_or_default()));
                    patch.set_ints(&name, &[sizes.len()], &sizes)?;
                    let mut explicit = node.proto.clone();
                    explicit.attribute.retain(|a| a.name() != "num_outputs");
                    explicit.input.truncate(1);
                    explicit.input.push(name);
                    patch.replace_node(node.id, vec![explicit]);
                }
            }
        }
        // All bounds have one type, and surgery writes 64 bits.
        "Slice" => {
            for input in 1..5 {
                let narrow = node
                    .input(input)
                    .and_then(|name| model.constant_proto(name))
                    .is_some_and(|t| t.data_type == Some(DataType::Int32.into()));
                if let Some(values) = node.input(input).filter(|_| narrow).and_then(|name| model.ints(name)) {
                    literal(patch, input, &values)?;
                }
            }
        }
        _ => (),
    }
    Ok(())
}

impl Measured {
    fn shapes(&self, tensor: Option<&str>) -> Option<&[Vec<i64>]> {
        self.shapes.get(tensor?).map(Vec::as_slice)
    }

    /// A Reshape's target: lengths that never move, 0 where the input has the same axis, and one -1.
    fn target(&self, node: Node<'_>) -> Option<Vec<i64>> {
        let (from, to) = (self.shapes(node.input(0))?, self.shapes(node.output(0))?);
        let copies = node.int("allowzero").unwrap_or(0) == 0;
        let mut inferred = false;
        let mut target = Vec::with_capacity(to.first()?.len());
        for axis in 0..to.first()?.len() {
            let lengths = along(to, axis)?;
            target.push(if let Some(length) = fixed(&lengths) {
                if length == 0 {
                    return None; // would be taken for a copy
                }
                length
            } else if copies && along(from, axis).as_ref() == Some(&lengths) {
                0
            } else if !std::mem::replace(&mut inferred, true) {
                -1
            } else {
                return None;
            });
        }
        Some(target)
    }

    /// An Expand's target: 1 where the input has the axis, else a length that never moves.
    fn expansion(&self, node: Node<'_>) -> Option<Vec<i64>> {
        let (from, to) = (self.shapes(node.input(0))?, self.shapes(node.output(0))?);
        let (inner, rank) = (from.first()?.len(), to.first()?.len());
        let axis = |i: usize| {
            let lengths = along(to, i)?;
            let own = (i + inner).checked_sub(rank).and_then(|at| along(from, at));
            if own.as_ref() == Some(&lengths) { Some(1) } else { fixed(&lengths) }
        };
        (0..rank).map(axis).collect()
    }

    /// A Resize's scales, where the lengths after are whole multiples or whole parts of those before.
    fn scales(&self, node: Node<'_>) -> Option<Vec<f32>> {
        let plain = node.string("coordinate_transformation_mode") != Some("tf_crop_and_resize")
            && node.string("keep_aspect_ratio_policy").unwrap_or("stretch") == "stretch"
            && node.ints("axes").is_none();
        let (from, to) = (self.shapes(node.input(0))?, self.shapes(node.output(0))?);
        let scale = |axis: usize| {
            let pairs: Vec<(i64, i64)> = along(from, axis)?.into_iter().zip(along(to, axis)?).collect();
            let &(before, after) = pairs.first()?;
            let (times, parts) = (after.checked_div(before)?, before.checked_div(after)?);
            if pairs.iter().all(|(b, a)| b * times == *a) {
                Some(times as f32)
            } else {
                pairs.iter().all(|(b, a)| a * parts == *b).then(|| 1.0 / parts as f32)
            }
        };
        (0..from.first()?.len()).map(scale).collect::<Option<_>>().filter(|_| plain)
    }

    /// The lengths of a Split's outputs along its axis.
    fn sizes(&self, node: Node<'_>) -> Option<Vec<i64>> {
        let axis = node.int("axis").unwrap_or(0);
        let size = |name: &str| {
            let own = self.shapes(Some(name))?;
            let rank = i64::try_from(own.first()?.len()).ok()?;
            fixed(&along(own, usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?)?)
        };
        node.proto.output.iter().map(|name| size(name)).collect()
    }
}

/// An axis's length, run by run.
fn along(shapes: &[Vec<i64>], axis: usize) -> Option<Vec<i64>> {
    shapes.iter().map(|shape| shape.get(axis).copied()).collect()
}

/// The length that all runs had.
fn fixed(lengths: &[i64]) -> Option<i64> {
    lengths.first().copied().filter(|first| lengths.iter().all(|length| length == first))
}

fn measure(model: &Model, runtime: &dyn Runtime, feeds: &[Feed]) -> Result<Measured, CouplingError> {
    let computed = computed(model);
    let probe = ShapeProbe::keeping(model, &sources(model, computed.iter().map(|(name, _)| name.as_str())))?;
    let names: Vec<String> = probe.tensors().map(str::to_owned).collect();
    let mut patch = Patch::new();
    for (name, _) in &computed {
        patch.add_output(value_info(name, ElementKind::Unknown, None));
    }
    let with_values = probe.model.apply(&patch)?;
    let load = |model: &Model| runtime.load(&model.encode(), Optimization::Disabled).map_err(CouplingError::Runtime);
    let runs = run(load(&with_values)?.as_mut(), feeds);
    // Some element types cannot be handed out: then shapes alone must do.
    let runs = match runs {
        Ok(runs) => runs,
        Err(_) => run(load(&probe.model)?.as_mut(), feeds)?,
    };
    let mut measured = Measured { shapes: BTreeMap::new(), constants: BTreeMap::new() };
    for (i, name) in names.iter().enumerate() {
        let shapes = runs.iter().filter_map(|outputs| Some(outputs.get(i)?.as_int64()?.to_vec())).collect();
        measured.shapes.insert(name.clone(), shapes);
    }
    for (i, (name, most)) in computed.into_iter().enumerate() {
        let mut values = runs.iter().filter_map(|outputs| outputs.get(names.len() + i));
        let small = |value: &Tensor| value.shape().iter().product::<usize>() <= most.max(MAX_ELEMENTS);
        if let Some(first) = values.next().filter(|first| small(first) && values.all(|value| value == *first)) {
            measured.constants.insert(name, first.clone());
        }
    }
    Ok(measured)
}

fn run(loaded: &mut dyn LoadedModel, feeds: &[Feed]) -> Result<Vec<Vec<Tensor>>, CouplingError> {
    let one = |feed: &Feed| {
        let inputs: Vec<(&str, &Tensor)> = feed.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        loaded.run(&inputs).map_err(CouplingError::Runtime)
    };
    feeds.iter().map(one).collect()
}

/// Tensors that depend on no input's values and are read by a node that does, in graph order, each with the most elements of a
/// constant that it is made of.
fn computed(model: &Model) -> Vec<(String, usize)> {
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let elements = |known: &BTreeMap<&str, usize>, name: &str| {
        known.get(name).copied().or_else(|| model.constant_dims(name).map(|dims| dims.iter().product()))
    };
    let mut order = Vec::new();
    for node in model.nodes() {
        let made_of: Option<Vec<usize>> = match node.op_type() {
            "Shape" | "Size" if node.domain().is_empty() => Some(vec![0]),
            _ => node.inputs().map(|name| elements(&known, name)).collect(),
        };
        let Some(most) = made_of.filter(|_| settles(node)).and_then(|counts| counts.into_iter().max()) else { continue };
        for name in node.outputs().filter(|name| model.constant_dims(name).is_none()) {
            order.push((name, most));
            known.insert(name, most);
        }
    }
    let read = |name: &str| {
        let outside = |node: Node<'_>| node.outputs().all(|output| !known.contains_key(output));
        model.consumers(name).iter().any(|reader| reader.input.is_none() || model.node(reader.node).is_some_and(outside))
    };
    order.into_iter().filter(|(name, _)| read(name)).map(|(name, most)| (name.to_owned(), most)).collect()
}

/// The named tensors and all that they are computed from, but for what only its shape is read of.
fn sources<'a>(model: &'a Model, names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let (mut open, mut seen): (Vec<&str>, BTreeSet<String>) = (names.collect(), BTreeSet::new());
    while let Some(name) = open.pop() {
        if seen.insert(name.to_owned())
            && let Some(node) = model.producer(name).filter(|n| !matches!(n.op_type(), "Shape" | "Size"))
        {
            open.extend(node.inputs());
        }
    }
    seen
}

/// Whether the same inputs give the same outputs, and nothing is decoded that is better kept as stored.
fn settles(node: Node<'_>) -> bool {
    let random = matches!(
        node.op_type(),
        "RandomNormal"
            | "RandomNormalLike"
            | "RandomUniform"
            | "RandomUniformLike"
            | "Bernoulli"
            | "Multinomial"
            | "Dropout"
            | "DequantizeLinear"
    );
    node.domain().is_empty() && !random && node.captured().is_empty() && node.proto.attribute.iter().all(|a| a.g.is_none())
}

/// A measured tensor as a constant.
fn constant(name: &str, value: &Tensor) -> TensorProto {
    let mut tensor = TensorProto { name: Some(name.to_owned()), ..TensorProto::default() };
    tensor.dims = value.shape().iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
    let kind = match value.data() {
        Element::Fp32(values) => {
            tensor.float_data.clone_from(values);
            DataType::Float
        }
        Element::Fp64(values) => {
            tensor.double_data.clone_from(values);
            DataType::Double
        }
        Element::Int64(values) => {
            tensor.int64_data.clone_from(values);
            DataType::Int64
        }
        Element::Int32(values) => {
            tensor.int32_data.clone_from(values);
            DataType::Int32
        }
        Element::Uint8(values) => {
            tensor.int32_data = values.iter().map(|&v| i32::from(v)).collect();
            DataType::Uint8
        }
        Element::Bool(values) => {
            tensor.int32_data = values.iter().map(|&v| i32::from(v)).collect();
            DataType::Bool
        }
    };
    tensor.data_type = Some(kind.into());
    tensor
}
