//! The engine's view of a folded graph: layers that sum over channels, in graph order, as matrices of columns and outputs.
//!
//! A layer is a Conv or Gemm with a weight and a bias of its own. Column `i * k + t` of its matrix is tap `t` of input channel
//! `i` (k taps a channel; 1 for a Gemm). Everything else in the graph is left to the runtime; layers of forms not understood
//! here are only sliced, never solved.

use faer::Mat;
use pleach_domain::runtime::RuntimeError;
use pleach_onnx::{Model, Node, NodeId, OnnxError, Patch, Shapes};

use crate::coupling::{Coupling, Group, Keep, Units};
use crate::error::PruneError;
use crate::linear::Rows;

/// How a convolution walks its input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) pads: [usize; 4],
    pub(crate) dilations: [usize; 2],
}

/// What a layer computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Conv(Window),
    Depthwise(Window),
    /// `true` where the weight is `[outputs, columns]`.
    Gemm {
        transposed: bool,
    },
}

/// What follows a layer's sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    None,
    /// Values are held within the bounds; Relu is `0..inf`.
    Clip(f32, f32),
}

impl Activation {
    pub(crate) fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Clip(low, high) => x.clamp(low, high),
        }
    }
}

/// A Conv or Gemm that can be solved anew.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) node: NodeId,
    pub(crate) kind: Kind,
    pub(crate) weight: String,
    pub(crate) bias: String,
    pub(crate) input: String,
    pub(crate) output: String,
    /// Columns of the matrix per input channel.
    pub(crate) taps: usize,
    /// Channels of the input.
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// The other summand of an Add behind the layer, when it is known before the layer runs.
    pub(crate) partner: Option<String>,
    /// The tensor before the activation: the Add's output, or the layer's.
    pub(crate) sum: String,
    pub(crate) activation: Activation,
    /// Output positions a row: height and width, 1 for a Gemm.
    pub(crate) positions: [usize; 2],
    /// Height and width of the input, 1 for a Gemm.
    pub(crate) image: [usize; 2],
}

impl Layer {
    pub(crate) fn columns(&self) -> usize {
        match self.kind {
            Kind::Depthwise(_) => self.taps,
            Kind::Conv(_) | Kind::Gemm { .. } => self.inputs * self.taps,
        }
    }

    pub(crate) fn window(&self) -> Option<&Window> {
        match &self.kind {
            Kind::Conv(window) | Kind::Depthwise(window) => Some(window),
            Kind::Gemm { .. } => None,
        }
    }

    /// Columns of the matrix that the given input channels feed.
    pub(crate) fn columns_of(&self, channels: &[usize]) -> Vec<usize> {
        channels.iter().flat_map(|&c| c * self.taps..(c + 1) * self.taps).collect()
    }
}

/// A folded model with everything that does not depend on data.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) model: Model,
    pub(crate) shapes: Shapes,
    pub(crate) coupling: Coupling,
    pub(crate) layers: Vec<Layer>,
}

/// Which groups narrow an axis of a layer, with the places of their units.
pub(crate) type Narrowing<'a> = Vec<(&'a Group, &'a Units)>;

impl Network {
    pub(crate) fn new(model: Model, shapes: Shapes, coupling: Coupling) -> Self {
        let layers = model.nodes().filter_map(|node| layer(&model, &shapes, node)).collect();
        Self { model, shapes, coupling, layers }
    }

    /// Groups that narrow a layer's input channels.
    pub(crate) fn input_groups(&self, layer: &Layer) -> Narrowing<'_> {
        let of = |group: &'_ Group| group.tensors.iter().position(|t| t.tensor == layer.input && t.axis == 1);
        self.coupling.groups.iter().filter_map(|g| of(g).map(|i| (g, &g.tensors[i].units))).collect()
    }

    /// Groups that narrow a layer's outputs.
    pub(crate) fn output_groups(&self, layer: &Layer) -> Narrowing<'_> {
        let of = |group: &'_ Group| group.tensors.iter().position(|t| t.tensor == layer.output && t.axis == 1);
        self.coupling.groups.iter().filter_map(|g| of(g).map(|i| (g, &g.tensors[i].units))).collect()
    }

    /// Channels of a tensor's axis 1 that stay under `keep`.
    pub(crate) fn staying(&self, tensor: &str, channels: usize, keep: &Keep) -> Vec<usize> {
        let removed = self.coupling.removed(tensor, keep).remove(&1).unwrap_or_default();
        (0..channels).filter(|c| removed.binary_search(c).is_err()).collect()
    }

    /// A layer's weights as `[columns, outputs]`, and its bias; of the dense model.
    pub(crate) fn weights(&self, layer: &Layer) -> Result<(Mat<f64>, Vec<f64>), PruneError> {
        weights_of(&self.model, layer)
    }
}

/// A layer's weights in a model (the dense one or a cut one) as `[columns, outputs]`, and its bias.
pub(crate) fn weights_of(model: &Model, layer: &Layer) -> Result<(Mat<f64>, Vec<f64>), PruneError> {
    let floats = |name: &str| model.floats(name).ok_or_else(|| PruneError::Model(format!("constant `{name}` is gone").into()));
    let ((dims, w), (_, b)) = (floats(&layer.weight)?, floats(&layer.bias)?);
    let transposed = !matches!(layer.kind, Kind::Gemm { transposed: false });
    let outputs = if transposed { dims.first() } else { dims.last() }.copied().unwrap_or(0).max(1);
    let columns = w.len() / outputs;
    let at = |c: usize, o: usize| if transposed { o * columns + c } else { c * outputs + o };
    let matrix = Mat::from_fn(columns, outputs, |c, o| f64::from(w[at(c, o)]));
    Ok((matrix, b.into_iter().map(f64::from).collect()))
}

/// The inverse of [`weights_of`]: elements in the layer's storage order.
pub(crate) fn stored(layer: &Layer, weights: &Mat<f64>) -> Vec<f32> {
    let (columns, outputs) = (weights.nrows(), weights.ncols());
    match layer.kind {
        Kind::Gemm { transposed: false } => (0..columns).flat_map(|c| (0..outputs).map(move |o| weights[(c, o)] as f32)).collect(),
        Kind::Gemm { transposed: true } | Kind::Conv(_) | Kind::Depthwise(_) => {
            (0..outputs).flat_map(|o| (0..columns).map(move |c| weights[(c, o)] as f32)).collect()
        }
    }
}

/// Gives every Conv and Gemm that has none a bias of zeros, so that solving can move it.
pub(crate) fn with_biases(model: &Model) -> Result<Model, OnnxError> {
    let mut patch = Patch::new();
    for node in model.nodes().filter(|n| (n.is("Conv") || n.is("Gemm")) && n.input(2).is_none()) {
        let Some(dims) = node.input(1).and_then(|w| model.constant_dims(w)) else { continue };
        let axis = usize::from(node.is("Gemm") && node.int("transB").unwrap_or(0) == 0);
        let Some(&outputs) = dims.get(axis) else { continue };
        let name = model.free_name(&format!("{}.bias", node.output(0).unwrap_or_default()));
        patch.set_floats(model, &name, &[outputs], &vec![0.0; outputs])?;
        let mut proto = node.proto.clone();
        proto.input.truncate(2);
        proto.input.push(name);
        patch.replace_node(node.id, vec![proto]);
    }
    model.apply(&patch)
}

fn layer(model: &Model, shapes: &Shapes, node: Node<'_>) -> Option<Layer> {
    let (weight, bias) = (own_constant(model, node.input(1)?)?, own_constant(model, node.input(2)?)?);
    let (input, output) = (node.input(0)?, node.output(0)?);
    let (dims, bias_dims) = (model.constant_dims(&weight)?, model.constant_dims(&bias)?);
    model.floats(&weight)?;
    let (in_shape, out_shape) = (shapes.at(input, 1)?, shapes.at(output, 1)?);
    let (kind, taps, inputs, outputs) = if node.is("Conv") {
        let (kind, taps) = conv(node, &dims, in_shape.get(1).copied()?)?;
        (kind, taps, in_shape.get(1).copied()?, *dims.first()?)
    } else {
        let transposed = gemm(node, &in_shape, &dims)?;
        let (columns, outputs) = if transposed { (dims[1], dims[0]) } else { (dims[0], dims[1]) };
        (Kind::Gemm { transposed }, 1, columns, outputs)
    };
    if bias_dims != [outputs] || model.is_output(output) && !model.consumers(output).is_empty() {
        return None;
    }
    let space = |shape: &[usize]| [shape.get(2).copied().unwrap_or(1), shape.get(3).copied().unwrap_or(1)];
    let (partner, sum) = sum(model, node, output);
    let activation = activation(model, &sum);
    let (positions, image) = (space(&out_shape), space(&in_shape));
    let (input, output) = (input.to_owned(), output.to_owned());
    Some(Layer { node: node.id, kind, weight, bias, input, output, taps, inputs, outputs, partner, sum, activation, positions, image })
}

/// The constant's name, when only one node reads it.
fn own_constant(model: &Model, name: &str) -> Option<String> {
    model.constant_dims(name)?;
    (model.consumers(name).len() == 1).then(|| name.to_owned())
}

fn conv(node: Node<'_>, weight: &[usize], channels: usize) -> Option<(Kind, usize)> {
    let &[outputs, per_group, height, width] = weight else { return None };
    if !matches!(node.string("auto_pad"), None | Some("" | "NOTSET")) {
        return None;
    }
    let list = |name: &str, default: &[usize]| -> Option<Vec<usize>> {
        node.ints(name).map_or(Some(default.to_vec()), |v| v.iter().map(|&i| usize::try_from(i).ok()).collect())
    };
    let window = Window {
        kernel: [height, width],
        strides: list("strides", &[1, 1])?.try_into().ok()?,
        pads: list("pads", &[0; 4])?.try_into().ok()?,
        dilations: list("dilations", &[1, 1])?.try_into().ok()?,
    };
    let groups = usize::try_from(node.int("group").unwrap_or(1)).ok()?;
    let taps = height * width;
    match groups {
        1 if per_group == channels => Some((Kind::Conv(window), taps)),
        n if n == channels && per_group == 1 && outputs == channels => Some((Kind::Depthwise(window), taps)),
        _ => None,
    }
}

/// Whether the weight is `[outputs, columns]`; `None` for forms that are not solved.
fn gemm(node: Node<'_>, input: &[usize], weight: &[usize]) -> Option<bool> {
    let unit = |name: &str| node.float(name).is_none_or(|v| v == 1.0);
    let plain = node.is("Gemm") && node.int("transA").unwrap_or(0) == 0 && unit("alpha") && unit("beta");
    (plain && input.len() == 2 && weight.len() == 2).then(|| node.int("transB").unwrap_or(0) != 0)
}

/// The partner and the output of an Add that alone reads the layer's output and whose partner comes from an earlier node.
fn sum(model: &Model, node: Node<'_>, output: &str) -> (Option<String>, String) {
    let found = || {
        let &[only] = model.consumers(output) else { return None };
        let add = model.node(only.node).filter(|n| n.is("Add"))?;
        let other = add.inputs().find(|i| *i != output)?;
        let earlier = model.producer(other).is_some_and(|p| p.id < node.id);
        let through = earlier && !model.is_output(output) && model.constant_dims(other).is_none();
        through.then(|| Some((other.to_owned(), add.output(0)?.to_owned()))).flatten()
    };
    match found() {
        Some((partner, sum)) => (Some(partner), sum),
        None => (None, output.to_owned()),
    }
}

/// The activation that every reader of a tensor applies.
fn activation(model: &Model, tensor: &str) -> Activation {
    let read = |node: Node<'_>| -> Option<Activation> {
        if node.is("Relu") {
            return Some(Activation::Clip(0.0, f32::INFINITY));
        }
        let bound = |index: usize, free: f32| node.input(index).map_or(Some(free), |name| model.floats(name)?.1.first().copied());
        (node.is("Clip") && node.attribute("min").is_none() && node.attribute("max").is_none())
            .then(|| Some(Activation::Clip(bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?)))
            .flatten()
    };
    let mut all = model.consumers(tensor).iter().map(|u| model.node(u.node).and_then(read));
    let first = all.next().flatten();
    match first {
        Some(activation) if !model.is_output(tensor) && all.all(|a| a == first) => activation,
        Some(_) | None => Activation::None,
    }
}

/// Draws a layer's input patches at positions of each image: rows in image order, `[images * positions, columns]`
/// (`[.., inputs * taps]` for a depthwise layer, too).
pub(crate) fn patches(layer: &Layer, input: &[f32], channels: usize, at: &Positions) -> Rows {
    let Some(window) = layer.window() else {
        return Rows::new(input.len() / channels.max(1), channels, input.to_vec());
    };
    use rayon::prelude::*;
    let [height, width] = layer.image;
    let (area, cols) = (height * width, channels * layer.taps);
    let images = input.len() / (channels * area).max(1);
    let mut data = vec![0.0f32; images * at.per_image * cols];
    data.par_chunks_mut((at.per_image * cols).max(1)).enumerate().for_each(|(image, out)| {
        let planes = &input[image * channels * area..(image + 1) * channels * area];
        for (row, &position) in out.chunks_mut(cols).zip(at.of(image)) {
            let (y, x) = (position / layer.positions[1], position % layer.positions[1]);
            for ky in 0..window.kernel[0] {
                let iy = (y * window.strides[0] + ky * window.dilations[0]).wrapping_sub(window.pads[0]);
                for kx in 0..window.kernel[1] {
                    let ix = (x * window.strides[1] + kx * window.dilations[1]).wrapping_sub(window.pads[1]);
                    if iy < height && ix < width {
                        let tap = ky * window.kernel[1] + kx;
                        let source = planes[iy * width + ix..].iter().step_by(area);
                        row[tap..].iter_mut().step_by(layer.taps).zip(source).for_each(|(o, &v)| *o = v);
                    }
                }
            }
        }
    });
    Rows::new(images * at.per_image, cols, data)
}

/// Draws a layer's output (or any tensor of its shape) at positions of each image: `[images * positions, channels]`.
pub(crate) fn points(layer: &Layer, output: &[f32], channels: usize, at: &Positions) -> Rows {
    let area = layer.positions[0] * layer.positions[1];
    let images = output.len() / (channels * area).max(1);
    let mut data = Vec::with_capacity(images * at.per_image * channels);
    for (image, planes) in output.chunks((channels * area).max(1)).enumerate() {
        for &position in at.of(image) {
            data.extend(planes.iter().skip(position).step_by(area));
        }
    }
    Rows::new(images * at.per_image, channels, data)
}

/// The output positions of a layer that are looked at, for each image.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    pub(crate) per_image: usize,
    chosen: Vec<usize>,
}

impl Positions {
    /// One pseudo-random position in each of `per_image` equal stretches of the plane; the same for the same seed.
    pub(crate) fn draw(area: usize, per_image: usize, images: usize, seed: u64) -> Self {
        let per_image = per_image.min(area).max(1);
        let mut s = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut chosen = Vec::with_capacity(images * per_image);
        for _ in 0..images {
            for part in 0..per_image {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                let (start, end) = (part * area / per_image, (part + 1) * area / per_image);
                chosen.push(start + (s >> 33) as usize % (end - start).max(1));
            }
        }
        Self { per_image, chosen }
    }

    /// The positions of images `start..start + images`.
    pub(crate) fn slice(&self, start: usize, images: usize) -> Self {
        let chosen = self.chosen.get(start * self.per_image..(start + images) * self.per_image).unwrap_or_default().to_vec();
        Self { per_image: self.per_image, chosen }
    }

    fn of(&self, image: usize) -> &[usize] {
        self.chosen.get(image * self.per_image..(image + 1) * self.per_image).unwrap_or_default()
    }
}

/// A failed run, as an engine error.
pub(crate) fn runtime(stage: crate::progress::Stage) -> impl Fn(RuntimeError) -> PruneError {
    move |source| PruneError::Runtime { stage, source }
}

/// An unusable model, as an engine error.
pub(crate) fn model_error(error: impl std::error::Error + Send + Sync + 'static) -> PruneError {
    PruneError::Model(Box::new(error))
}
