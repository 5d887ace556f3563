//! Random graphs over images: every operator of the table that works on `[N, C, H, W]`, in any order.

use pleach_onnx::Model;
use pleach_onnx::builder::{GraphBuilder, attribute, node};
use proptest::prelude::*;

use super::{Noise, conv, image, prove_raw_and_prepared};

/// A tensor of a graph under construction, with channels and side length.
#[derive(Clone)]
struct Made {
    name: String,
    channels: usize,
    side: usize,
}

struct Images {
    graph: GraphBuilder,
    noise: Noise,
    made: Vec<Made>,
}

impl Images {
    fn new() -> Self {
        let mut graph = GraphBuilder::new("images");
        let name = image(&mut graph);
        Self { graph, noise: Noise(5), made: vec![Made { name, channels: 4, side: 6 }] }
    }

    fn constant(&mut self, dims: &[usize], scale: f32, offset: f32) -> String {
        let values: Vec<f32> = self.noise.floats(dims.iter().product(), scale).into_iter().map(|v| v + offset).collect();
        let name = self.graph.free_name("c");
        self.graph.floats(&name, dims, &values)
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = self.graph.free_name("i");
        self.graph.ints(&name, &[values.len()], values)
    }

    fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.graph.node(op, inputs, vec![])
    }

    /// A convolution without padding but what keeps the side.
    fn pointwise(&mut self, x: &str, from: usize, to: usize) -> String {
        let w = self.constant(&[to, from, 1, 1], 1.5 / (from as f32).sqrt(), 0.0);
        self.op("Conv", &[x, &w])
    }

    /// One step, chosen by `kind`; `pick` chooses among widths and earlier tensors. Steps that do not fit are convolutions.
    fn step(&mut self, kind: u8, pick: u8) {
        let Made { name: x, channels, side } = self.made.last().cloned().unwrap();
        let pick = usize::from(pick);
        let same = |name: String| Made { name, channels, side };
        let made = match kind {
            0..=4 => self.layer(kind, pick, &x, channels, side),
            5..=9 => same(self.elementwise(kind, pick, &x, channels, side)),
            10..=16 => self.axes(kind, pick, &x, channels, side),
            17..=19 => self.space(kind, pick, &x, channels, side),
            _ => same(self.block(kind, pick, &x, channels)),
        };
        if made.channels <= 24 {
            self.made.push(made);
        }
    }

    fn layer(&mut self, kind: u8, pick: usize, x: &str, channels: usize, side: usize) -> Made {
        let out = 2 + pick % 7;
        let pads = || attribute("pads", vec![1i64; 4]);
        match kind {
            2 => {
                let m = 1 + pick % 2;
                let w = self.constant(&[channels * m, 1, 3, 3], 0.5, 0.0);
                let name = self.graph.node("Conv", &[x, &w], vec![attribute("group", channels as i64), pads()]);
                Made { name, channels: channels * m, side }
            }
            3 if channels >= 4 && channels.is_multiple_of(2) => {
                let out = 2 * (1 + pick % 4);
                let w = self.constant(&[out, channels / 2, 3, 3], 0.4, 0.0);
                let bias = self.constant(&[out], 0.3, 0.0);
                Made { name: self.graph.node("Conv", &[x, &w, &bias], vec![attribute("group", 2i64), pads()]), channels: out, side }
            }
            4 if side <= 3 => {
                let w = self.constant(&[channels, out, 2, 2], 0.5, 0.0);
                let name = self.graph.node("ConvTranspose", &[x, &w], vec![attribute("strides", vec![2i64, 2])]);
                Made { name, channels: out, side: side * 2 }
            }
            1 => Made { name: self.pointwise(x, channels, out), channels: out, side },
            _ => Made { name: conv(&mut self.graph, &mut self.noise, x, channels, out), channels: out, side },
        }
    }

    fn elementwise(&mut self, kind: u8, pick: usize, x: &str, channels: usize, side: usize) -> String {
        let unary = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Identity", "Neg", "Elu", "Softplus", "Erf"];
        match kind {
            5 => {
                let (scale, bias) = (self.constant(&[channels], 0.3, 1.0), self.constant(&[channels], 0.3, 0.0));
                let (mean, variance) = (self.constant(&[channels], 0.3, 0.0), self.constant(&[channels], 0.3, 1.0));
                self.op("BatchNormalization", &[x, &scale, &bias, &mean, &variance])
            }
            6 => self.op(unary[pick % unary.len()], &[x]),
            7 => {
                let alike: Vec<String> =
                    self.made.iter().filter(|m| (m.channels, m.side) == (channels, side)).map(|m| m.name.clone()).collect();
                self.op(["Add", "Mul", "Sub", "Max"][pick % 4], &[&alike[pick % alike.len()], x])
            }
            8 => {
                let dims: &[&[usize]] = &[&[channels, 1, 1], &[1, channels, 1, 1], &[1], &[], &[1, 1, side, side]];
                let scale = self.constant(dims[pick % 5], 0.3, 1.0);
                let op = ["Mul", "Add", "Div", "Sub"][pick / 5 % 4];
                self.op(op, &[x, &scale])
            }
            _ => match pick % 3 {
                0 => {
                    let slope = self.constant(&[channels, 1, 1], 0.3, 0.2);
                    self.op("PRelu", &[x, &slope])
                }
                1 => {
                    let wide = self.graph.node("Cast", &[x], vec![attribute("to", 11i64)]);
                    self.graph.node("Cast", &[&wide], vec![attribute("to", 1i64)])
                }
                _ => {
                    let (low, high) = (self.constant(&[], 0.0, -1.5), self.constant(&[], 0.0, 1.5));
                    self.op("Clip", &[x, &low, &high])
                }
            },
        }
    }

    /// Operators that join, cut, move and factor axes.
    fn axes(&mut self, kind: u8, pick: usize, x: &str, channels: usize, side: usize) -> Made {
        let same = |name: String| Made { name, channels, side };
        match kind {
            10 => {
                let near: Vec<Made> = self.made.iter().filter(|m| m.side == side && m.channels < 12).cloned().collect();
                let other = near.get(pick % near.len().max(1)).cloned().unwrap_or(same(x.to_owned()));
                let name = self.graph.node("Concat", &[&other.name, x], vec![attribute("axis", 1i64)]);
                Made { name, channels: other.channels + channels, side }
            }
            11 | 12 if channels >= 3 => {
                let first = 1 + pick % (channels - 1);
                let lengths = self.ints(&[first as i64, (channels - first) as i64]);
                let (a, b) = (format!("{lengths}.a"), format!("{lengths}.b"));
                let mut split = node("Split", &a, &[x, &lengths], &a, vec![attribute("axis", 1i64)]);
                split.output.push(b.clone());
                self.graph.push(split);
                if kind == 11 {
                    return Made { name: b, channels: channels - first, side };
                }
                let inner = conv(&mut self.graph, &mut self.noise, &b, channels - first, channels - first);
                let name = self.graph.node("Concat", &[&inner, &a], vec![attribute("axis", 1i64)]);
                same(name)
            }
            13 if channels >= 3 => {
                let start = pick % (channels - 1);
                let end = start + 1 + pick / 7 % (channels - start);
                let [from, to, axis] = [start as i64, end as i64, 1].map(|v| self.ints(&[v]));
                Made { name: self.op("Slice", &[x, &from, &to, &axis]), channels: end - start, side }
            }
            14 if channels >= 4 && channels.is_multiple_of(2) => {
                let (half, side_) = (channels as i64 / 2, side as i64);
                let split = self.ints(&[0, 2, half, side_, side_]);
                let joined = self.ints(&[0, channels as i64, side_, side_]);
                let y = self.op("Reshape", &[x, &split]);
                let y = self.graph.node("Transpose", &[&y], vec![attribute("perm", vec![0i64, 2, 1, 3, 4])]);
                same(self.op("Reshape", &[&y, &joined]))
            }
            15 => {
                let y = self.graph.node("Transpose", &[x], vec![attribute("perm", vec![0i64, 2, 3, 1])]);
                let bias = self.constant(&[channels], 0.4, 0.0);
                let y = self.op("Add", &[&y, &bias]);
                let y = self.op("Relu", &[&y]);
                same(self.graph.node("Transpose", &[&y], vec![attribute("perm", vec![0i64, 3, 1, 2])]))
            }
            16 if side.is_multiple_of(2) && channels <= 5 => {
                let parts: Vec<String> = [(0, 0), (1, 0), (0, 1), (1, 1)]
                    .into_iter()
                    .map(|(row, column)| {
                        let [from, to, axes, steps] = [[row, column], [i64::MAX; 2], [2, 3], [2, 2]].map(|values| self.ints(&values));
                        self.op("Slice", &[x, &from, &to, &axes, &steps])
                    })
                    .collect();
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                Made { name: self.graph.node("Concat", &parts, vec![attribute("axis", 1i64)]), channels: channels * 4, side: side / 2 }
            }
            _ => self.layer(0, pick, x, channels, side),
        }
    }

    /// Operators over space.
    fn space(&mut self, kind: u8, pick: usize, x: &str, channels: usize, side: usize) -> Made {
        let kernel = |k: i64| attribute("kernel_shape", vec![k, k]);
        match kind {
            17 if side >= 4 => {
                let attributes = vec![kernel(2), attribute("strides", vec![2i64, 2])];
                Made { name: self.graph.node(["MaxPool", "AveragePool"][pick % 2], &[x], attributes), channels, side: side / 2 }
            }
            18 if side <= 4 => {
                let scales = self.graph.free_name("scales");
                let scales = self.graph.floats(&scales, &[4], &[1.0, 1.0, 2.0, 2.0]);
                let mode = attribute("mode", ["nearest", "linear"][pick % 2]);
                Made { name: self.graph.node("Resize", &[x, "", &scales], vec![mode]), channels, side: side * 2 }
            }
            _ => {
                let pads = self.ints(&[0, 0, 1, 1, 0, 0, 1, 1]);
                let y = self.op("Pad", &[x, &pads]);
                let name = self.graph.node("AveragePool", &[&y], vec![kernel(3), attribute("strides", vec![1i64, 1])]);
                Made { name, channels, side }
            }
        }
    }

    /// Blocks that keep their shape.
    fn block(&mut self, kind: u8, pick: usize, x: &str, channels: usize) -> String {
        match kind {
            20 => {
                let inner = 1 + pick % 4;
                let pooled = self.op("GlobalAveragePool", &[x]);
                let y = self.pointwise(&pooled, channels, inner);
                let y = self.op("Relu", &[&y]);
                let y = self.pointwise(&y, inner, channels);
                let gate = self.op(["Sigmoid", "HardSigmoid"][pick % 2], &[&y]);
                self.op("Mul", &[x, &gate])
            }
            21 => {
                let gate = self.op("Sigmoid", &[x]);
                self.op("Mul", &[x, &gate])
            }
            22 => {
                let (mean, scale, shift) = (
                    self.constant(&[1, channels, 1, 1], 0.3, 0.0),
                    self.constant(&[channels, 1, 1], 0.3, 1.0),
                    self.constant(&[1, channels, 1, 1], 0.3, 0.0),
                );
                let y = self.op("Sub", &[x, &mean]);
                let y = self.op("Mul", &[&y, &scale]);
                self.op("Add", &[&y, &shift])
            }
            23 => {
                let (scale, bias) = (self.constant(&[channels], 0.3, 1.0), self.constant(&[channels], 0.3, 0.0));
                self.op("InstanceNormalization", &[x, &scale, &bias])
            }
            24 => {
                let axes = vec![attribute("axes", vec![2i64, 3]), attribute("keepdims", 1i64)];
                // Not all of the mean: what pools the rest would compute nothing but rounding.
                let half = self.constant(&[], 0.0, 0.5);
                let mean = self.graph.node("ReduceMean", &[x], axes);
                let mean = self.op("Mul", &[&mean, &half]);
                self.op("Sub", &[x, &mean])
            }
            _ => match pick % 3 {
                0 => self.graph.node("Softmax", &[x], vec![attribute("axis", 1i64)]),
                1 => self.graph.node("LRN", &[x], vec![attribute("size", 3i64)]),
                _ => {
                    let axis = self.ints(&[1]);
                    self.op("CumSum", &[x, &axis])
                }
            },
        }
    }

    /// Ends in one of four heads, and sometimes gives an inner tensor away as well.
    fn finish(mut self, head: u8, tap: Option<u8>) -> Model {
        let Made { name: x, channels, side } = self.made.last().cloned().unwrap();
        let (flat, width) = match head % 4 {
            0 => {
                let pooled = self.op("GlobalAveragePool", &[&x]);
                (self.op("Flatten", &[&pooled]), channels)
            }
            1 => (self.op("Flatten", &[&x]), channels * side * side),
            2 => {
                let width = channels * side * side;
                let shape = self.ints(&[0, width as i64]);
                (self.op("Reshape", &[&x, &shape]), width)
            }
            _ => (self.graph.node("ReduceMean", &[&x], vec![attribute("axes", vec![2i64, 3]), attribute("keepdims", 0i64)]), channels),
        };
        let scale = 1.0 / (width as f32).sqrt();
        let y = if head < 8 {
            let (w, bias) = (self.constant(&[5, width], scale, 0.0), self.constant(&[5], 0.1, 0.0));
            self.graph.node("Gemm", &[&flat, &w, &bias], vec![attribute("transB", 1i64), attribute("alpha", 0.5f32)])
        } else {
            let w = self.constant(&[width, 6], scale, 0.0);
            let hidden = self.op("MatMul", &[&flat, &w]);
            let hidden = self.op("Tanh", &[&hidden]);
            let w = self.constant(&[6, 3], 0.4, 0.0);
            self.op("MatMul", &[&hidden, &w])
        };
        self.graph.output(&y);
        if let Some(tap) = tap {
            let name = self.made[usize::from(tap) % self.made.len()].name.clone();
            if name != "x" {
                self.graph.output(&name);
            }
        }
        self.graph.build().unwrap()
    }
}

/// Builds the graph of the given choices.
pub(super) fn graph(steps: &[(u8, u8)], head: u8, tap: Option<u8>) -> Model {
    let mut images = Images::new();
    steps.iter().for_each(|&(kind, pick)| images.step(kind, pick));
    images.finish(head, tap)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_over_images_hold_every_proof(
        steps in prop::collection::vec((0u8..26, any::<u8>()), 1..14),
        head in 0u8..16,
        tap in prop::option::weighted(0.2, any::<u8>()),
    ) {
        prove_raw_and_prepared(graph(&steps, head, tap));
    }
}
