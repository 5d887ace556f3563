//! Timing twins: graphs that take as long as the real ones and hold none of their parameters.
//!
//! Weights come from `ConstantOfShape` nodes, which the runtime folds when it loads a graph, so a twin is a few hundred bytes.

use pleach_domain::runtime::TimedModel;
use pleach_domain::{Element, Tensor};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::proto::{AttributeProto, TensorProto};
use pleach_onnx::{Model, OnnxError, Patch, ValueInfo};

use super::PlanItem;
use super::grid::{Form, Shape};
use crate::analysis::Analysis;
use crate::error::PruneError;
use crate::levels::Plan;
use crate::network::{Network, Window, model_error};
use crate::reconstruct::skeleton;

/// Times the same kernel stands in a graph, so that the call and the layout changes at the ends weigh little.
pub(super) const REPEATS: usize = 4;

/// Name of a kernel's graph.
pub(super) fn key(shape: &Shape, inputs: usize, outputs: usize, batch: usize) -> String {
    let relu = if shape.activation { " relu" } else { "" };
    let list = |v: &[usize]| v.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    let walk = |w: &Window| {
        let (k, s, p, d) = (list(&w.kernel), list(&w.strides), list(&w.pads), list(&w.dilations));
        format!("k{k} s{s} p{p} d{d} i{}", list(&shape.image))
    };
    let form = match &shape.form {
        Form::Conv(window, 1) => format!("conv {}", walk(window)),
        Form::Conv(window, groups) => format!("conv g{groups} {}", walk(window)),
        Form::Depthwise(window) => format!("depthwise {}", walk(window)),
        Form::Linear if shape.image == [1, 1] => "gemm".to_owned(),
        Form::Linear => format!("matmul n{}", shape.image[0]),
    };
    format!("{form} {inputs}-{outputs}{relu} b{batch}")
}

/// A kernel's graph: [`REPEATS`] layers that read one input and add up, each with its bias and activation.
pub(super) fn kernel(shape: &Shape, inputs: usize, outputs: usize, batch: usize) -> Result<TimedModel, PruneError> {
    let mut graph = GraphBuilder::new("kernel");
    let dims = match shape.form {
        Form::Conv(..) | Form::Depthwise(_) => vec![batch, inputs, shape.image[0], shape.image[1]],
        Form::Linear if shape.image == [1, 1] => vec![batch, inputs],
        Form::Linear => vec![batch, shape.image[0], inputs],
    };
    let x = graph.input("x", ElementKind::Float, &dims.iter().map(|&d| Dim::Fixed(d)).collect::<Vec<_>>());
    let mut sum: Option<String> = None;
    for i in 0..REPEATS {
        let mut y = layer(&mut graph, shape, &x, inputs, outputs, i);
        if let Some(before) = &sum {
            y = graph.node("Add", &[&y, before], vec![]);
        }
        if shape.activation {
            y = graph.node("Relu", &[&y], vec![]);
        }
        sum = Some(y);
    }
    graph.output(&sum.unwrap_or(x));
    let model = graph.build().map_err(model_error)?;
    let tensor = ones(dims).map_err(model_error)?;
    Ok(TimedModel { model: model.encode(), inputs: vec![("x".to_owned(), tensor)] })
}

/// One layer with its bias, the `index`th of a graph.
fn layer(graph: &mut GraphBuilder, shape: &Shape, x: &str, inputs: usize, outputs: usize, index: usize) -> String {
    let sequence = shape.form == Form::Linear && shape.image != [1, 1];
    let (weight, attributes) = layer_form(shape, inputs, outputs);
    let fan_in: usize = if sequence { inputs } else { weight.iter().skip(1).product() };
    let w = filled(graph, &format!("w{index}"), &weight, fill(fan_in, index));
    let b = filled(graph, &format!("b{index}"), &[outputs], fill(outputs, index));
    match shape.form {
        Form::Conv(..) | Form::Depthwise(_) => graph.node("Conv", &[x, &w, &b], attributes),
        Form::Linear if sequence => {
            let y = graph.node("MatMul", &[x, &w], vec![]);
            graph.node("Add", &[&y, &b], vec![])
        }
        Form::Linear => graph.node("Gemm", &[x, &w, &b], attributes),
    }
}

fn layer_form(shape: &Shape, inputs: usize, outputs: usize) -> (Vec<usize>, Vec<AttributeProto>) {
    let ints = |v: &[usize]| v.iter().map(|&x| i64::try_from(x).unwrap_or(i64::MAX)).collect::<Vec<i64>>();
    let (w, groups) = match &shape.form {
        Form::Linear if shape.image == [1, 1] => return (vec![outputs, inputs], vec![attribute("transB", 1i64)]),
        Form::Linear => return (vec![inputs, outputs], vec![]),
        Form::Conv(window, groups) => (window, *groups),
        Form::Depthwise(window) => (window, inputs),
    };
    let attributes = vec![
        attribute("kernel_shape", ints(&w.kernel)),
        attribute("strides", ints(&w.strides)),
        attribute("pads", ints(&w.pads)),
        attribute("dilations", ints(&w.dilations)),
        attribute("group", i64::try_from(groups).unwrap_or(i64::MAX)),
    ];
    (vec![outputs, inputs / groups, w.kernel[0], w.kernel[1]], attributes)
}

/// The whole network as planned, rewritten, with every parameter replaced.
pub(super) fn whole(analysis: &Analysis, plan: &Plan, batch: usize) -> Result<PlanItem, PruneError> {
    let network = &analysis.network;
    let rewritten = analysis.rewritten(&skeleton(network, plan)?, plan)?;
    item(network, &rewritten, batch)
}

/// The whole network in its own nodes, with every parameter replaced.
pub(super) fn plain(analysis: &Analysis, batch: usize) -> Result<PlanItem, PruneError> {
    item(&analysis.network, &analysis.network.model, batch)
}

fn item(network: &Network, model: &Model, batch: usize) -> Result<PlanItem, PruneError> {
    let model = blanked(model).map_err(model_error)?;
    let mut inputs = Vec::new();
    for input in model.inputs() {
        let dims = network.shapes.at(&input.name, batch).unwrap_or_default();
        inputs.push((input.name.clone(), of_type(&input, dims).map_err(model_error)?));
    }
    let model = model.encode();
    Ok(PlanItem { key: format!("network {:016x} b{batch}", fingerprint(&model)), model: TimedModel { model, inputs } })
}

/// A model whose float initializers of more than one element are constants of the same shape.
fn blanked(model: &Model) -> Result<Model, OnnxError> {
    let Some(first) = model.nodes().next().map(|n| n.id) else { return Ok(model.clone()) };
    let mut patch = Patch::new();
    for (index, name) in model.initializers().enumerate() {
        let Some((dims, values)) = model.floats(name).filter(|(_, v)| v.len() > 1) else { continue };
        // Scales decide shapes.
        if model.consumers(name).iter().filter_map(|u| model.node(u.node)).any(|n| n.is("Resize") || n.is("Upsample")) {
            continue;
        }
        let shape = model.free_name(&format!("{name}.shape"));
        let lengths: Vec<i64> = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        patch.set_ints(&shape, &[lengths.len()], &lengths)?;
        let fan_in = if dims.len() > 1 { values.len() / dims.first().copied().unwrap_or(1).max(1) } else { values.len() };
        let value = attribute("value", scalar(fill(fan_in, index)));
        patch.insert_before(first, node("ConstantOfShape", &shape, &[&shape], name, vec![value]));
        patch.remove_initializer(name);
    }
    model.apply(&patch)
}

/// A small value that is another for each index, so that equal layers are not merged, and keeps sums over `fan_in` near 1.
fn fill(fan_in: usize, index: usize) -> f32 {
    (1.0 + index as f32 / 1024.0) / fan_in.max(1) as f32
}

fn scalar(value: f32) -> TensorProto {
    TensorProto { dims: vec![1], data_type: Some(1), float_data: vec![value], ..TensorProto::default() }
}

fn filled(graph: &mut GraphBuilder, name: &str, dims: &[usize], value: f32) -> String {
    let lengths: Vec<i64> = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
    let shape = graph.ints(&format!("{name}.shape"), &[lengths.len()], &lengths);
    graph.node("ConstantOfShape", &[&shape], vec![attribute("value", scalar(value))])
}

/// An input of the type a model asks for; ones where it asks for integers, so that no mask hides anything.
fn of_type(input: &ValueInfo, dims: Vec<usize>) -> Result<Tensor, pleach_domain::DomainError> {
    let len = dims.iter().product();
    match DataType::try_from(input.element_type) {
        Ok(DataType::Int64) => Tensor::new(dims, Element::Int64(vec![1; len])),
        Ok(DataType::Int32) => Tensor::new(dims, Element::Int32(vec![1; len])),
        Ok(DataType::Uint8) => Tensor::new(dims, Element::Uint8(vec![1; len])),
        Ok(DataType::Bool) => Tensor::new(dims, Element::Bool(vec![1; len])),
        Ok(DataType::Double) => Tensor::new(dims, Element::Fp64(vec![0.5; len])),
        _ => ones(dims),
    }
}

fn ones(dims: Vec<usize>) -> Result<Tensor, pleach_domain::DomainError> {
    let len = dims.iter().product();
    Tensor::fp32(dims, (0..len).map(|i| 0.5 + (i % 7) as f32 / 8.0).collect())
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo): a name, not a protection.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
