//! Low rank: a layer as two smaller ones.
//!
//! W `[columns, outputs]` with the centred Gram matrix S of its columns puts out W'S W. *Pointwise*: with U the leading eigenvectors of
//! that, the product (W U) Uᵀ is the matrix of that rank whose output is nearest (principal components of the responses, Zhang et al.
//! 2015); its first factor keeps the kernel, the second is 1 x 1. *Separable*: a kernel of h x w becomes h x 1 and 1 x w (Jaderberg et
//! al. 2014). W is read as V `[inputs * h, w * outputs]`, S summed over the columns of the kernel is the Gram matrix of V's rows, and the
//! same eigenvectors give the first factor; the second is then solved by least squares under S itself.

use faer::Mat;
use pleach_onnx::builder::{attribute, node};
use pleach_onnx::proto::AttributeProto;
use pleach_onnx::{Model, OnnxError, Patch};
use serde::{Deserialize, Serialize};

use crate::error::PruneError;
use crate::linear::{Factor, add_product, leading_eigenvectors, mean_diagonal};
use crate::network::{Kind, Layer, Window, stored};

/// Ridges of the second factor's solve, as shares of the mean diagonal: the least that makes a few samples' matrix positive definite.
const RIDGES: [f64; 4] = [1e-6, 1e-4, 1e-2, 1.0];

/// How a layer becomes two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// The whole kernel, then 1 x 1.
    Pointwise,
    /// The kernel's height, then its width.
    Separable,
}

/// What lies between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rank {
    pub(crate) split: Split,
    pub(crate) channels: usize,
}

impl Rank {
    /// Multiply-accumulates of the two layers, as a share of the one they stand for.
    pub(crate) fn work(self, window: &Window, inputs: f64, outputs: f64) -> f64 {
        let [height, width] = window.kernel.map(|k| k as f64);
        // Between the two the image is narrowed along one axis only.
        let (first, second) = match self.split {
            Split::Pointwise => (height * width * inputs, outputs),
            Split::Separable => (height * inputs * window.strides[1] as f64, width * outputs),
        };
        self.channels as f64 * (first + second) / (height * width * inputs * outputs)
    }

    /// Whether two layers are less than the one.
    pub(crate) fn pays(self, window: &Window, inputs: f64, outputs: f64) -> bool {
        self.work(window, inputs, outputs) < 1.0 && (self.split == Split::Separable || (self.channels as f64) < outputs)
    }
}

/// A window's two halves, and the height and width of what lies between them.
pub(crate) fn halves(window: &Window, image: [usize; 2]) -> ([Window; 2], [usize; 2]) {
    let half = |axis: usize| {
        let pick = |values: [usize; 2], other: usize| if axis == 0 { [values[0], other] } else { [other, values[1]] };
        let [top, left, bottom, right] = window.pads;
        let pads = if axis == 0 { [top, 0, bottom, 0] } else { [0, left, 0, right] };
        Window { kernel: pick(window.kernel, 1), strides: pick(window.strides, 1), pads, dilations: pick(window.dilations, 1) }
    };
    let halves = [half(0), half(1)];
    let between = halves[0].over(image);
    (halves, between)
}

/// Two factors: of the pointwise split `[columns, rank]` and `[rank, outputs]`, of the separable one `[inputs * height, rank]` and
/// `[rank * width, outputs]`.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    split: Split,
    /// Height and width of the kernel.
    kernel: [usize; 2],
    first: Mat<f64>,
    second: Mat<f64>,
}

impl Factors {
    /// The nearest product of a rank, under a Gram matrix of the columns.
    ///
    /// # Errors
    /// [`PruneError::Numerics`] when the responses hold no finite numbers.
    pub(crate) fn of(weights: &Mat<f64>, gram: &Mat<f64>, rank: Rank, kernel: [usize; 2]) -> Result<Self, PruneError> {
        match rank.split {
            Split::Pointwise => {
                let basis = basis(weights, gram, rank.channels)?;
                let mut first = Mat::zeros(weights.nrows(), basis.ncols());
                add_product(&mut first, 1.0, weights, &basis);
                Ok(Self { split: rank.split, kernel, first, second: basis.transpose().to_owned() })
            }
            Split::Separable => Self::separable(weights, gram, rank.channels, kernel),
        }
    }

    fn separable(weights: &Mat<f64>, gram: &Mat<f64>, rank: usize, kernel: [usize; 2]) -> Result<Self, PruneError> {
        let [height, width] = kernel;
        let rows = weights.nrows() / width;
        let read = Mat::from_fn(rows, width * weights.ncols(), |r, c| weights[(r * width + c % width, c / width)]);
        let rows_gram = Mat::from_fn(rows, rows, |i, j| (0..width).map(|x| gram[(i * width + x, j * width + x)]).sum::<f64>());
        let basis = basis(&read, &rows_gram, rank)?;
        let mut first = Mat::zeros(rows, basis.ncols());
        add_product(&mut first, 1.0, &read, &basis);
        // What the second factor reads, in terms of the columns.
        let spread = spread(&first, [height, width]);
        let mut reached = Mat::zeros(gram.nrows(), spread.ncols());
        add_product(&mut reached, 1.0, gram, &spread);
        let (across, mut inner) = (spread.transpose().to_owned(), Mat::zeros(spread.ncols(), spread.ncols()));
        add_product(&mut inner, 1.0, &across, &reached);
        let mut second = Mat::zeros(spread.ncols(), weights.ncols());
        add_product(&mut second, 1.0, &reached.transpose().to_owned(), weights);
        let scale = mean_diagonal(&inner) + f64::MIN_POSITIVE.sqrt();
        let factor = RIDGES.iter().find_map(|ridge| Factor::new(inner.clone(), ridge * scale).ok());
        factor.ok_or_else(|| PruneError::Numerics("the rows of a kernel hold no finite numbers".to_owned()))?.solve(&mut second);
        Ok(Self { split: Split::Separable, kernel, first, second })
    }

    /// Factors of the right shapes, whatever they make: the first columns, and what mixes them evenly.
    pub(crate) fn leading(weights: &Mat<f64>, rank: Rank, kernel: [usize; 2]) -> Self {
        let Rank { split, channels } = rank;
        let (outputs, width) = (weights.ncols(), if split == Split::Separable { kernel[1] } else { 1 });
        let first = Mat::from_fn(weights.nrows() / width, channels, |r, c| weights[(r * width, c % outputs)]);
        let inner = channels * width;
        Self { split, kernel, first, second: Mat::from_fn(inner, outputs, |_, _| 1.0 / inner.max(1) as f64) }
    }

    /// The matrix they stand for.
    pub(crate) fn product(&self) -> Mat<f64> {
        let first = match self.split {
            Split::Pointwise => &self.first,
            Split::Separable => &spread(&self.first, self.kernel),
        };
        let mut product = Mat::zeros(first.nrows(), self.second.ncols());
        add_product(&mut product, 1.0, first, &self.second);
        product
    }

    /// Channels between the two.
    fn channels(&self) -> usize {
        self.first.ncols()
    }
}

/// The directions in which the responses of weights move most, `[outputs, rank]`.
fn basis(weights: &Mat<f64>, gram: &Mat<f64>, rank: usize) -> Result<Mat<f64>, PruneError> {
    let outputs = weights.ncols();
    let mut moved = Mat::zeros(weights.nrows(), outputs);
    add_product(&mut moved, 1.0, gram, weights);
    let mut responses = Mat::zeros(outputs, outputs);
    add_product(&mut responses, 1.0, &weights.transpose().to_owned(), &moved);
    leading_eigenvectors(&responses, rank)
}

/// A first factor `[inputs * height, rank]` at each column of the kernel: `[columns, rank * width]`.
fn spread(first: &Mat<f64>, [_, width]: [usize; 2]) -> Mat<f64> {
    let at = |column: usize, c: usize| if column % width == c % width { first[(column / width, c / width)] } else { 0.0 };
    Mat::from_fn(first.nrows() * width, first.ncols() * width, at)
}

/// Puts two layers in the place of one, in a patch to a model whose node ids are the network's.
///
/// # Errors
/// [`OnnxError`] when the model is not the network's.
pub(crate) fn split(model: &Model, layer: &Layer, factors: &Factors, patch: &mut Patch) -> Result<(), OnnxError> {
    let old = model.node(layer.node).ok_or(OnnxError::NoSuchNode(layer.node))?;
    let (rank, output) = (factors.channels(), old.output(0).unwrap_or_default());
    let between = model.free_name(&format!("{output}.factor"));
    let second = model.free_name(&format!("{}.factor", layer.weight));
    let dims = model.constant_dims(&layer.weight).unwrap_or_default();
    if let (Split::Separable, Some(window)) = (factors.split, layer.window()) {
        let ([tall, wide], _) = halves(window, layer.image);
        let inputs = dims.get(1).copied().unwrap_or_default();
        patch.set_floats(model, &layer.weight, &[rank, inputs, tall.kernel[0], 1], &stored(layer, &factors.first))?;
        patch.set_floats(model, &second, &[factors.second.ncols(), rank, 1, wide.kernel[1]], &stored(layer, &factors.second))?;
        let one = node("Conv", &format!("{between}.first"), &[old.input(0).unwrap_or_default(), &layer.weight], &between, walk(&tall));
        let inputs: Vec<&str> = [between.as_str(), second.as_str()].into_iter().chain(old.input(2)).collect();
        let two = node("Conv", &format!("{between}.second"), &inputs, output, walk(&wide));
        patch.replace_node(layer.node, vec![one, two]);
        return Ok(());
    }
    let (mut first_dims, second_dims, outputs) = match layer.kind {
        Kind::Conv { .. } => (dims.clone(), [&[factors.second.ncols(), rank][..], &vec![1; dims.len() - 2]].concat(), 0),
        Kind::Linear { transposed: true } => (dims.clone(), vec![factors.second.ncols(), rank], 0),
        Kind::Linear { transposed: false } => (dims.clone(), vec![rank, factors.second.ncols()], 1),
    };
    if let Some(length) = first_dims.get_mut(outputs) {
        *length = rank;
    }
    patch.set_floats(model, &layer.weight, &first_dims, &stored(layer, &factors.first))?;
    patch.set_floats(model, &second, &second_dims, &stored(layer, &factors.second))?;
    let mut one = old.proto.clone();
    one.input.truncate(2);
    one.output = vec![between.clone()];
    let mut inputs = vec![between.as_str(), second.as_str()];
    inputs.extend(old.input(2));
    let kernel = || attribute("kernel_shape", vec![1i64; dims.len() - 2]);
    let attributes = match layer.kind {
        Kind::Conv { .. } => vec![kernel()],
        Kind::Linear { transposed } if old.is("Gemm") => vec![attribute("transB", i64::from(transposed))],
        Kind::Linear { .. } => vec![],
    };
    let two = node(old.op_type(), &format!("{between}.second"), &inputs, output, attributes);
    patch.replace_node(layer.node, vec![one, two]);
    Ok(())
}

/// A window as a Conv's attributes.
fn walk(window: &Window) -> Vec<AttributeProto> {
    let ints = |values: &[usize]| values.iter().map(|&v| i64::try_from(v).unwrap_or(i64::MAX)).collect::<Vec<i64>>();
    vec![
        attribute("kernel_shape", ints(&window.kernel)),
        attribute("strides", ints(&window.strides)),
        attribute("pads", ints(&window.pads)),
        attribute("dilations", ints(&window.dilations)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;

    use pleach_domain::Tensor;
    use pleach_domain::dataset::Dataset;
    use pleach_domain::runtime::{Optimization, Runtime};
    use pleach_inference::{OrtOptions, OrtRuntime};
    use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder};

    use super::*;
    use crate::analysis::ready;
    use crate::linear::gram;
    use crate::linear::tests::noise;
    use crate::network::constants_of;
    use crate::progress::Silent;
    use crate::reconstruct::with_constants;

    #[test]
    fn keeps_the_directions_in_which_the_outputs_move() {
        // Column 0 hardly moves: rank 1 keeps what column 1 does although its weights are smaller.
        let mut x = noise(500, 2, 3);
        x.data.chunks_mut(2).for_each(|row| row[0] *= 1e-3);
        let w = Mat::from_fn(2, 2, |i, j| if i == j { [5.0, 1.0][i] } else { 0.0 });
        let rank = Rank { split: Split::Pointwise, channels: 1 };
        let product = Factors::of(&w, &gram(x.view(), None), rank, [1, 1]).unwrap().product();
        assert!(product[(0, 0)].abs() < 0.1 && (product[(1, 1)] - 1.0).abs() < 1e-3, "{product:?}");
    }

    #[test]
    fn a_separable_kernel_is_found_again() {
        // two inputs, kernel 3 x 2, four outputs: columns (input, y, x)
        let (tall, wide) = (noise(6, 2, 1), noise(4, 4, 2));
        let made = |c: usize, o: usize| (0..2).map(|r| f64::from(tall.row(c / 2)[r]) * f64::from(wide.row(r * 2 + c % 2)[o])).sum::<f64>();
        let w = Mat::from_fn(12, 4, made);
        let g = gram(noise(300, 12, 3).view(), None);
        let far = |channels: usize| {
            let product = Factors::of(&w, &g, Rank { split: Split::Separable, channels }, [3, 2]).unwrap().product();
            (0..12).flat_map(|c| (0..4).map(move |o| (c, o))).map(|at| (product[at] - w[at]).abs()).fold(0.0, f64::max)
        };
        assert!(far(2) < 1e-3 && far(1) > 0.05, "{} {}", far(2), far(1));
    }

    #[test]
    fn samples_fewer_than_columns_give_finite_factors() {
        // 4 samples of 90 columns, of a Gram matrix whose digits are those of single precision
        let g = gram(noise(4, 90, 3).view(), None);
        let w = noise(90, 16, 4);
        let w = Mat::from_fn(90, 16, |c, o| f64::from(w.row(c)[o]));
        let product = Factors::of(&w, &g, Rank { split: Split::Separable, channels: 16 }, [3, 3]).unwrap().product();
        assert!((0..90).all(|c| (0..16).all(|o| product[(c, o)].is_finite())));
    }

    #[test]
    fn halves_of_a_strided_window_meet() {
        let window = Window { kernel: [3, 5], strides: [2, 1], pads: [1, 2, 0, 2], dilations: [1, 1] };
        let ([tall, wide], between) = halves(&window, [8, 9]);
        assert_eq!((tall.kernel, tall.strides, tall.pads), ([3, 1], [2, 1], [1, 0, 0, 0]));
        assert_eq!((wide.kernel, wide.strides, wide.pads), ([1, 5], [1, 1], [0, 2, 0, 2]));
        assert_eq!(between, [4, 9]);
    }

    /// The outputs of one convolution of 3 channels to 6 on 2 images of 11 x 13, with the product of its factors and with both.
    fn whole_and_split(window: &Window, rank: Rank) -> [Vec<f32>; 2] {
        let runtime = OrtRuntime::new(OrtOptions { library: None, threads: NonZeroUsize::MIN }).expect("ORT_DYLIB_PATH");
        let mut graph = GraphBuilder::new("window");
        let dims = [Dim::Free("n".to_owned()), Dim::Fixed(3), Dim::Fixed(11), Dim::Fixed(13)];
        let x = graph.input("x", ElementKind::Float, &dims);
        let taps = window.kernel[0] * window.kernel[1];
        let w = graph.floats("w", &[6, 3, window.kernel[0], window.kernel[1]], &noise(6, 3 * taps, 5).data);
        let b = graph.floats("b", &[6], &noise(1, 6, 6).data);
        let y = graph.node("Conv", &[&x, &w, &b], walk(window));
        graph.output(&y);
        let data = Tensor::fp32(vec![2, 3, 11, 13], noise(2, 429, 7).data).unwrap();
        let set = Dataset::new(BTreeMap::from([(x, data.clone())]), None).unwrap();
        let network = ready(&graph.build().unwrap().encode(), &set, &runtime, &Silent).unwrap().network;
        let layer = &network.layers[0];
        let (weights, bias) = network.weights(layer).unwrap();
        let factors = Factors::of(&weights, &gram(noise(300, 3 * taps, 8).view(), None), rank, layer.kernel()).unwrap();
        let whole = with_constants(&network.model, &constants_of(&network.model, layer, &factors.product(), &bias)).unwrap();
        let mut patch = Patch::new();
        split(&network.model, layer, &factors, &mut patch).unwrap();
        let parts = network.model.apply(&patch).unwrap();
        assert_eq!(parts.nodes().filter(|n| n.is("Conv")).count(), 2);
        [whole, parts].map(|model| {
            let mut loaded = runtime.load(&model.encode(), Optimization::All).unwrap();
            loaded.run(&[("x", &data)]).unwrap().remove(0).as_fp32().unwrap().to_vec()
        })
    }

    #[test]
    fn two_layers_equal_the_product_of_their_factors_in_any_window() {
        let plain = Window { kernel: [3, 3], strides: [1, 1], pads: [1; 4], dilations: [1, 1] };
        let windows = [
            plain.clone(),
            Window { pads: [0; 4], ..plain.clone() },
            Window { strides: [2, 3], ..plain.clone() },
            Window { dilations: [2, 3], pads: [2, 0, 1, 3], ..plain },
            Window { kernel: [2, 5], strides: [2, 1], pads: [1, 2, 0, 2], dilations: [3, 2] },
        ];
        for window in &windows {
            for split in [Split::Pointwise, Split::Separable] {
                let [whole, parts] = whole_and_split(window, Rank { split, channels: 2 });
                let scale = whole.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                assert_eq!(whole.len(), parts.len());
                assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-5 * scale), "{split:?} {window:?}");
            }
        }
    }
}
