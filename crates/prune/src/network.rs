//! The engine's view of a folded graph: layers that sum over channels, in graph order, as matrices of columns and outputs.
//!
//! A layer is a Conv, Gemm or MatMul with a constant weight of its own. Column `i * k + t` of its matrix is tap `t` of input
//! channel `i` (k taps a channel; 1 where there is no kernel); a convolution in groups has one such matrix a group. Everything
//! else in the graph is left to the runtime; layers of forms not understood here are only sliced, never solved.

use std::collections::BTreeSet;

use faer::Mat;
use pleach_domain::runtime::RuntimeError;
use pleach_onnx::{AxisLength, Model, Node, NodeId, OnnxError, Patch, Shapes};
use rayon::prelude::*;

use crate::activation::{Activation, activation};
use crate::coupling::{Coupling, Group, Keep, Units};
use crate::error::PruneError;
use crate::linear::Rows;
use crate::positions::Positions;
use crate::run::Overrides;

/// How a convolution walks its input; one spatial axis is a height of 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) pads: [usize; 4],
    pub(crate) dilations: [usize; 2],
}

impl Window {
    /// Height and width of what comes of an image.
    pub(crate) fn over(&self, image: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|i| {
            let reach = self.dilations[i] * (self.kernel[i] - 1);
            (image[i] + self.pads[i] + self.pads[i + 2]).saturating_sub(reach + 1) / self.strides[i].max(1) + 1
        })
    }
}

/// What a layer computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Channels on axis 1; depthwise where there are as many groups as input channels.
    Conv { window: Window, groups: usize },
    /// A Gemm or MatMul over the last axis; `transposed` where the weight is `[outputs, columns]`.
    Linear { transposed: bool },
}

/// A layer that can be solved anew.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) node: NodeId,
    pub(crate) kind: Kind,
    pub(crate) weight: String,
    /// Its own bias, which of a MatMul is that of an Add behind it.
    pub(crate) bias: Option<String>,
    pub(crate) input: String,
    /// The sum with the bias.
    pub(crate) output: String,
    /// Columns of the matrix per input channel.
    pub(crate) taps: usize,
    /// Channels of the input.
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Channel axis of input and output.
    pub(crate) axes: [usize; 2],
    /// The other summand of an Add behind the layer, when it is known before the layer runs.
    pub(crate) partner: Option<String>,
    /// The tensor before the activation: the Add's output, or the layer's.
    pub(crate) sum: String,
    pub(crate) activation: Activation,
    /// Output positions a row: height and width; of a sequence its length and 1.
    pub(crate) positions: [usize; 2],
    /// Height and width of the input; of a sequence its length and 1.
    pub(crate) image: [usize; 2],
}

impl Layer {
    /// Groups of the dense layer.
    pub(crate) fn groups(&self) -> usize {
        match self.kind {
            Kind::Conv { groups, .. } => groups,
            Kind::Linear { .. } => 1,
        }
    }

    /// Whether each channel is its own group: nothing is summed over channels.
    pub(crate) fn depthwise(&self) -> bool {
        self.groups() > 1 && self.groups() == self.inputs
    }

    /// Columns of one group's matrix.
    pub(crate) fn columns(&self) -> usize {
        self.inputs / self.groups() * self.taps
    }

    pub(crate) fn window(&self) -> Option<&Window> {
        match &self.kind {
            Kind::Conv { window, .. } => Some(window),
            Kind::Linear { .. } => None,
        }
    }

    /// Columns that the given input channels feed, those of all groups side by side.
    pub(crate) fn columns_of(&self, channels: &[usize]) -> Vec<usize> {
        channels.iter().flat_map(|&c| c * self.taps..(c + 1) * self.taps).collect()
    }

    /// Height and width of the kernel; 1 where there is none.
    pub(crate) fn kernel(&self) -> [usize; 2] {
        self.window().map_or([1, 1], |w| w.kernel)
    }

    /// Groups of the layer in a model that was cut.
    pub(crate) fn groups_in(&self, cut: &Model) -> usize {
        let declared = cut.node(self.node).and_then(|n| n.int("group")).and_then(|g| usize::try_from(g).ok());
        if self.groups() > 1 { declared.unwrap_or(1).max(1) } else { 1 }
    }

    fn area(&self) -> usize {
        self.positions[0] * self.positions[1]
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
        let of = |group: &'_ Group| group.tensors.iter().position(|t| t.tensor == layer.input && t.axis == layer.axes[0]);
        self.coupling.groups.iter().filter_map(|g| of(g).map(|i| (g, &g.tensors[i].units))).collect()
    }

    /// Groups that narrow a layer's outputs.
    pub(crate) fn output_groups(&self, layer: &Layer) -> Narrowing<'_> {
        let of = |group: &'_ Group| group.tensors.iter().position(|t| t.tensor == layer.output && t.axis == layer.axes[1]);
        self.coupling.groups.iter().filter_map(|g| of(g).map(|i| (g, &g.tensors[i].units))).collect()
    }

    /// Input channels of a layer that stay under `keep`.
    pub(crate) fn inputs_staying(&self, layer: &Layer, keep: &Keep) -> Vec<usize> {
        self.staying(&layer.input, layer.axes[0], layer.inputs, keep)
    }

    /// Outputs of a layer that stay under `keep`.
    pub(crate) fn outputs_staying(&self, layer: &Layer, keep: &Keep) -> Vec<usize> {
        self.staying(&layer.output, layer.axes[1], layer.outputs, keep)
    }

    fn staying(&self, tensor: &str, axis: usize, channels: usize, keep: &Keep) -> Vec<usize> {
        let removed = self.coupling.removed(tensor, keep).remove(&axis).unwrap_or_default();
        (0..channels).filter(|c| removed.binary_search(c).is_err()).collect()
    }

    /// Shapes of the tensors under `keep`.
    pub(crate) fn shapes_under(&self, keep: &Keep) -> Shapes {
        let mut shapes = self.shapes.clone();
        let narrowed = keep.keys().filter_map(|id| self.coupling.group(*id)).flat_map(|g| &g.tensors);
        let names: BTreeSet<&str> = narrowed.map(|t| t.tensor.as_str()).collect();
        for name in names {
            let Some(mut axes) = self.shapes.axes(name).map(<[AxisLength]>::to_vec) else { continue };
            for (axis, removed) in self.coupling.removed(name, keep) {
                if let Some(length) = axes.get_mut(axis) {
                    length.base -= i64::try_from(removed.len()).unwrap_or(0);
                }
            }
            shapes.insert(name, axes);
        }
        shapes
    }

    /// A layer's weights as `[columns, outputs]`, and its bias; of the dense model.
    pub(crate) fn weights(&self, layer: &Layer) -> Result<(Mat<f64>, Vec<f64>), PruneError> {
        weights_of(&self.model, layer)
    }
}

/// A layer's weights in a model (the dense one or a cut one) as `[columns, outputs]`, and its bias (zeros where it has none). Of a
/// layer in groups, an output's column of the matrix belongs to its group's input channels.
pub(crate) fn weights_of(model: &Model, layer: &Layer) -> Result<(Mat<f64>, Vec<f64>), PruneError> {
    let floats = |name: &str| model.floats(name).ok_or_else(|| PruneError::Model(format!("constant `{name}` is gone").into()));
    let (dims, w) = floats(&layer.weight)?;
    let by_output = layer.kind != Kind::Linear { transposed: false };
    let outputs = if by_output { dims.first() } else { dims.last() }.copied().unwrap_or(0).max(1);
    let columns = w.len() / outputs;
    let at = |c: usize, o: usize| if by_output { o * columns + c } else { c * outputs + o };
    let matrix = Mat::from_fn(columns, outputs, |c, o| f64::from(w[at(c, o)]));
    let bias = layer.bias.as_deref().map(floats).transpose()?;
    Ok((matrix, bias.map_or(vec![0.0; outputs], |(_, b)| b.into_iter().map(f64::from).collect())))
}

/// What a layer's constants in `model` become when it has these weights and this bias.
pub(crate) fn constants_of(model: &Model, layer: &Layer, weights: &Mat<f64>, bias: &[f64]) -> Overrides {
    let dims = |name: &str| model.constant_dims(name).unwrap_or_default();
    let bias = layer.bias.iter().map(|name| (name.clone(), (dims(name), bias.iter().map(|&b| b as f32).collect())));
    bias.chain([(layer.weight.clone(), (dims(&layer.weight), stored(layer, weights)))]).collect()
}

/// The inverse of [`weights_of`]: elements in the layer's storage order.
pub(crate) fn stored(layer: &Layer, weights: &Mat<f64>) -> Vec<f32> {
    let (columns, outputs) = (weights.nrows(), weights.ncols());
    match layer.kind {
        Kind::Linear { transposed: false } => (0..columns).flat_map(|c| (0..outputs).map(move |o| weights[(c, o)] as f32)).collect(),
        Kind::Linear { transposed: true } | Kind::Conv { .. } => {
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
    let weight = own_constant(model, node.input(1)?)?;
    let dims = model.constant_dims(&weight)?;
    model.floats(&weight)?;
    let input = node.input(0)?;
    let (in_shape, out_shape) = (shapes.at(input, 1)?, shapes.at(node.output(0)?, 1)?);
    let form = if node.is("Conv") { conv(node, &dims, &in_shape, &out_shape)? } else { linear(model, shapes, node, &dims)? };
    let (bias, output) = if node.is("MatMul") { bias_behind(model, node, form.outputs) } else { (own_bias(model, node)?, None) };
    let output = output.unwrap_or_else(|| node.output(0).unwrap_or_default().to_owned());
    let of_outputs = |name: &String| model.constant_dims(name).is_some_and(|d| d.iter().product::<usize>() == form.outputs);
    if !bias.iter().all(of_outputs) || model.is_output(&output) && !model.consumers(&output).is_empty() {
        return None;
    }
    let (partner, sum) = sum(model, shapes, node, &output);
    let Form { kind, taps, inputs, outputs, axes, positions, image } = form;
    let (input, activation) = (input.to_owned(), activation(model, &sum));
    Some(Layer {
        node: node.id,
        kind,
        weight,
        bias,
        input,
        output,
        taps,
        inputs,
        outputs,
        axes,
        partner,
        sum,
        activation,
        positions,
        image,
    })
}

/// The constant's name, when only one node reads it.
fn own_constant(model: &Model, name: &str) -> Option<String> {
    model.constant_dims(name)?;
    (model.consumers(name).len() == 1 && !model.is_output(name)).then(|| name.to_owned())
}

/// The bias of a Conv or Gemm, if it has one; `None` when it has one that is not its own.
fn own_bias(model: &Model, node: Node<'_>) -> Option<Option<String>> {
    match node.input(2) {
        None => Some(None),
        Some(name) => own_constant(model, name).map(Some),
    }
}

/// The bias that an Add behind a MatMul adds, and that Add's output.
fn bias_behind(model: &Model, node: Node<'_>, outputs: usize) -> (Option<String>, Option<String>) {
    let found = || {
        let output = node.output(0)?;
        let &[only] = model.consumers(output) else { return None };
        let add = model.node(only.node).filter(|n| n.is("Add") && !model.is_output(output))?;
        let bias = own_constant(model, add.inputs().find(|i| *i != output)?)?;
        let dims = model.constant_dims(&bias).filter(|d| d.last() == Some(&outputs) && d.iter().product::<usize>() == outputs)?;
        model.floats(&bias).filter(|_| dims.len() <= 3)?;
        Some((bias, add.output(0)?.to_owned()))
    };
    found().map_or((None, None), |(bias, output)| (Some(bias), Some(output)))
}

/// What a node says of itself.
struct Form {
    kind: Kind,
    taps: usize,
    inputs: usize,
    outputs: usize,
    axes: [usize; 2],
    positions: [usize; 2],
    image: [usize; 2],
}

fn conv(node: Node<'_>, weight: &[usize], input: &[usize], output: &[usize]) -> Option<Form> {
    let (&outputs, &per_group, kernel) = (weight.first()?, weight.get(1)?, weight.get(2..)?);
    let rank = kernel.len();
    if !matches!(node.string("auto_pad"), None | Some("" | "NOTSET")) || !(1..=2).contains(&rank) {
        return None;
    }
    let list = |name: &str, default: Vec<usize>| -> Option<Vec<usize>> {
        node.ints(name).map_or(Some(default), |v| v.iter().map(|&i| usize::try_from(i).ok()).collect())
    };
    // A missing height is 1.
    let plane = |v: &[usize]| match *v {
        [width] => Some([1, width]),
        [height, width] => Some([height, width]),
        _ => None,
    };
    let pads = match *list("pads", vec![0; 2 * rank])?.as_slice() {
        [left, right] => [0, left, 0, right],
        [top, left, bottom, right] => [top, left, bottom, right],
        _ => return None,
    };
    let window = Window {
        kernel: plane(kernel)?,
        strides: plane(&list("strides", vec![1; rank])?)?,
        pads,
        dilations: plane(&list("dilations", vec![1; rank])?)?,
    };
    let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| g > 0)?;
    let inputs = *input.get(1)?;
    if per_group * groups != inputs || !outputs.is_multiple_of(groups) {
        return None;
    }
    let (positions, image) = (plane(output.get(2..)?)?, plane(input.get(2..)?)?);
    Some(Form { kind: Kind::Conv { window, groups }, taps: kernel.iter().product(), inputs, outputs, axes: [1, 1], positions, image })
}

/// A Gemm, or a MatMul with a matrix, over the last axis of rows that grow with the batch.
fn linear(model: &Model, shapes: &Shapes, node: Node<'_>, weight: &[usize]) -> Option<Form> {
    let unit = |name: &str| node.float(name).is_none_or(|v| v == 1.0);
    let gemm = node.is("Gemm") && node.int("transA").unwrap_or(0) == 0 && unit("alpha") && unit("beta");
    let &[rows, columns] = weight else { return None };
    if !gemm && !node.is("MatMul") {
        return None;
    }
    let transposed = gemm && node.int("transB").unwrap_or(0) != 0;
    let (inputs, outputs) = if transposed { (columns, rows) } else { (rows, columns) };
    let places = |rows: usize| -> Option<usize> {
        let shape = shapes.at(node.input(0)?, rows)?;
        let (last, leading) = shape.split_last()?;
        (*last == inputs && !leading.is_empty()).then(|| leading.iter().product())
    };
    let length = match model.inputs().first()?.dims.as_deref() {
        Some([pleach_onnx::builder::Dim::Fixed(rows), ..]) => places(1)?.checked_div(*rows)?,
        _ => places(1).filter(|&one| places(2) == Some(2 * one))?,
    };
    let last = shapes.axes(node.input(0)?)?.len() - 1;
    let space = [length.max(1), 1];
    Some(Form { kind: Kind::Linear { transposed }, taps: 1, inputs, outputs, axes: [last, last], positions: space, image: space })
}

/// The partner and the output of an Add that alone reads the layer's output and whose partner, of the same shape, comes from an
/// earlier node.
fn sum(model: &Model, shapes: &Shapes, node: Node<'_>, output: &str) -> (Option<String>, String) {
    let found = || {
        let &[only] = model.consumers(output) else { return None };
        let add = model.node(only.node).filter(|n| n.is("Add"))?;
        let other = add.inputs().find(|i| *i != output)?;
        let earlier = model.producer(other).is_some_and(|p| p.id < node.id);
        let alike = shapes.at(other, 1) == shapes.at(output, 1);
        let through = earlier && alike && !model.is_output(output) && model.constant_dims(other).is_none();
        through.then(|| Some((other.to_owned(), add.output(0)?.to_owned()))).flatten()
    };
    match found() {
        Some((partner, sum)) => (Some(partner), sum),
        None => (None, output.to_owned()),
    }
}

/// Draws a layer's input patches at positions of each row: rows in order, `[samples, channels * taps]`.
pub(crate) fn patches(layer: &Layer, input: &[f32], channels: usize, at: &Positions) -> Rows {
    let (area, cols) = (layer.image[0] * layer.image[1], channels * layer.taps);
    let mut data = vec![0.0f32; at.samples() * cols];
    let mut parts = Vec::with_capacity(at.rows());
    let mut rest = data.as_mut_slice();
    for row in 0..at.rows() {
        let (part, behind) = rest.split_at_mut(at.of(row).len() * cols);
        parts.push(part);
        rest = behind;
    }
    parts.into_par_iter().enumerate().for_each(|(row, out)| {
        let values = input.get(row * channels * area..(row + 1) * channels * area).unwrap_or_default();
        for (sample, &position) in out.chunks_mut(cols.max(1)).zip(at.of(row)) {
            match layer.window() {
                Some(window) => patch(layer, window, values, position, sample),
                None => sample.copy_from_slice(&values[position * channels..(position + 1) * channels]),
            }
        }
    });
    Rows::new(at.samples(), cols, data)
}

/// The patch of planes `[channels, height, width]` that makes one output position.
fn patch(layer: &Layer, window: &Window, planes: &[f32], position: usize, sample: &mut [f32]) {
    let [height, width] = layer.image;
    let (y, x) = (position / layer.positions[1], position % layer.positions[1]);
    for ky in 0..window.kernel[0] {
        let iy = (y * window.strides[0] + ky * window.dilations[0]).wrapping_sub(window.pads[0]);
        for kx in 0..window.kernel[1] {
            let ix = (x * window.strides[1] + kx * window.dilations[1]).wrapping_sub(window.pads[1]);
            if iy < height && ix < width {
                let tap = ky * window.kernel[1] + kx;
                let source = planes[iy * width + ix..].iter().step_by(height * width);
                sample[tap..].iter_mut().step_by(layer.taps).zip(source).for_each(|(o, &v)| *o = v);
            }
        }
    }
}

/// Draws a layer's output (or any tensor of its shape) at positions of each row: `[samples, channels]`.
pub(crate) fn points(layer: &Layer, output: &[f32], channels: usize, at: &Positions) -> Rows {
    let area = layer.area();
    let mut data = Vec::with_capacity(at.samples() * channels);
    for row in 0..at.rows() {
        let values = output.get(row * channels * area..(row + 1) * channels * area).unwrap_or_default();
        for &position in at.of(row) {
            match layer.kind {
                Kind::Conv { .. } => data.extend(values.iter().skip(position).step_by(area)),
                Kind::Linear { .. } => data.extend(&values[position * channels..(position + 1) * channels]),
            }
        }
    }
    Rows::new(at.samples(), channels, data)
}

/// A failed run, as an engine error.
pub(crate) fn runtime(stage: crate::progress::Stage) -> impl Fn(RuntimeError) -> PruneError {
    move |source| PruneError::Runtime { stage, source }
}

/// An unusable model, as an engine error.
pub(crate) fn model_error(error: impl std::error::Error + Send + Sync + 'static) -> PruneError {
    PruneError::Model(Box::new(error))
}
