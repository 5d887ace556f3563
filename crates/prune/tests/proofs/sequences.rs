//! Random graphs over sequences `[N, T, D]`: linear layers, attention, normalisation and what stands between them.

use pleach_onnx::Model;
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
use proptest::prelude::*;

use super::{Noise, prove_raw_and_prepared};

const LENGTH: usize = 5;

struct Sequences {
    graph: GraphBuilder,
    noise: Noise,
    /// Tensors with their widths.
    made: Vec<(String, usize)>,
}

impl Sequences {
    fn new() -> Self {
        let mut graph = GraphBuilder::new("sequences");
        let x = graph.input("x", ElementKind::Float, &[Dim::Free("batch".to_owned()), Dim::Fixed(LENGTH), Dim::Fixed(6)]);
        Self { graph, noise: Noise(9), made: vec![(x, 6)] }
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

    fn linear(&mut self, x: &str, from: usize, to: usize) -> String {
        let (w, bias) = (self.constant(&[from, to], 1.5 / (from as f32).sqrt(), 0.0), self.constant(&[to], 0.3, 0.0));
        let y = self.op("MatMul", &[x, &w]);
        self.op("Add", &[&bias, &y])
    }

    /// One step, chosen by `kind`; `pick` chooses among widths and earlier tensors.
    fn step(&mut self, kind: u8, pick: u8) {
        let (x, width) = self.made.last().cloned().unwrap();
        let pick = usize::from(pick);
        let made = match kind {
            0 | 1 => {
                let to = 2 + pick % 9;
                (self.linear(&x, width, to), to)
            }
            2 => (self.op(["Relu", "Tanh", "Sigmoid", "Erf"][pick % 4], &[&x]), width),
            3 => (self.gelu(&x), width),
            4 => {
                let alike: Vec<String> = self.made.iter().filter(|m| m.1 == width).map(|m| m.0.clone()).collect();
                (self.op(["Add", "Mul", "Sub"][pick % 3], &[&x, &alike[pick % alike.len()]]), width)
            }
            5 => (self.norm(pick, &x, width), width),
            6 => {
                let inner = 2 + pick % 9;
                let y = self.linear(&x, width, inner);
                let y = self.gelu(&y);
                let y = self.linear(&y, inner, width);
                (self.op("Add", &[&x, &y]), width)
            }
            7 | 8 => {
                let y = self.attention(&x, width, 1 + pick % 3, 2 + pick / 3 % 3, pick);
                (self.op("Add", &[&y, &x]), width)
            }
            9 => {
                // The gate of gated linear units: one layer, two halves.
                let half = 2 + pick % 4;
                let y = self.linear(&x, width, 2 * half);
                let (a, b) = self.split(&y, half);
                let gate = self.op("Sigmoid", &[&b]);
                (self.op("Mul", &[&a, &gate]), half)
            }
            10 => {
                let near: Vec<(String, usize)> = self.made.iter().filter(|m| m.1 < 10).cloned().collect();
                let (other, own) = near.get(pick % near.len().max(1)).cloned().unwrap_or((x.clone(), width));
                (self.graph.node("Concat", &[&x, &other], vec![attribute("axis", -1i64)]), width + own)
            }
            _ => match pick % 2 {
                0 => (self.graph.node("Softmax", &[&x], vec![attribute("axis", -1i64)]), width),
                _ => {
                    let axis = self.ints(&[2]);
                    (self.op("CumSum", &[&x, &axis]), width)
                }
            },
        };
        if made.1 <= 20 {
            self.made.push(made);
        }
    }

    fn split(&mut self, x: &str, half: usize) -> (String, String) {
        let lengths = self.ints(&[half as i64; 2]);
        let name = format!("{x}.a");
        let mut split = node("Split", &name, &[x, &lengths], &name, vec![attribute("axis", -1i64)]);
        split.output.push(format!("{x}.b"));
        self.graph.push(split);
        (name, format!("{x}.b"))
    }

    /// GELU as exported: 0.5 x (1 + erf(x / sqrt 2)).
    fn gelu(&mut self, x: &str) -> String {
        let (root, one, half) = (self.constant(&[], 0.0, 2f32.sqrt()), self.constant(&[], 0.0, 1.0), self.constant(&[], 0.0, 0.5));
        let y = self.op("Div", &[x, &root]);
        let y = self.op("Erf", &[&y]);
        let y = self.op("Add", &[&y, &one]);
        let y = self.op("Mul", &[x, &y]);
        self.op("Mul", &[&y, &half])
    }

    /// LayerNormalization as one operator, as exported before opset 17, or root mean square alone.
    fn norm(&mut self, pick: usize, x: &str, width: usize) -> String {
        let (scale, shift) = (self.constant(&[width], 0.3, 1.0), self.constant(&[width], 0.3, 0.0));
        if pick.is_multiple_of(3) {
            return self.graph.node("LayerNormalization", &[x, &scale, &shift], vec![attribute("axis", -1i64)]);
        }
        let mean = |graph: &mut GraphBuilder, x: &str| graph.node("ReduceMean", &[x], vec![attribute("axes", vec![-1i64])]);
        let centred = if pick % 3 == 1 {
            let m = mean(&mut self.graph, x);
            self.op("Sub", &[x, &m])
        } else {
            x.to_owned()
        };
        let (two, epsilon) = (self.constant(&[], 0.0, 2.0), self.constant(&[], 0.0, 1e-3));
        let y = self.op("Pow", &[&centred, &two]);
        let y = mean(&mut self.graph, &y);
        let y = self.op("Add", &[&y, &epsilon]);
        let y = self.op("Sqrt", &[&y]);
        let y = self.op("Div", &[&centred, &y]);
        let y = self.op("Mul", &[&y, &scale]);
        self.op("Add", &[&y, &shift])
    }

    /// Attention of `heads` x `size`, by three layers or one, with or without a causal mask.
    fn attention(&mut self, x: &str, width: usize, heads: usize, size: usize, pick: usize) -> String {
        let inner = heads * size;
        let [q, k, v] = if pick.is_multiple_of(2) {
            [0; 3].map(|_| self.linear(x, width, inner))
        } else {
            let y = self.linear(x, width, 3 * inner);
            let lengths = self.ints(&[inner as i64; 3]);
            let names = ["q", "k", "v"].map(|part| format!("{y}.{part}"));
            let mut split = node("Split", &names[0], &[&y, &lengths], &names[0], vec![attribute("axis", -1i64)]);
            split.output = names.to_vec();
            self.graph.push(split);
            names
        };
        let shape = self.ints(&[0, LENGTH as i64, heads as i64, size as i64]);
        let mut by_head = |x: &str, perm: [i64; 4]| {
            let y = self.op("Reshape", &[x, &shape]);
            self.graph.node("Transpose", &[&y], vec![attribute("perm", perm.to_vec())])
        };
        let (q, k, v) = (by_head(&q, [0, 2, 1, 3]), by_head(&k, [0, 2, 3, 1]), by_head(&v, [0, 2, 1, 3]));
        let scores = self.op("MatMul", &[&q, &k]);
        let root = self.constant(&[], 0.0, (size as f32).sqrt());
        let mut scores = self.op("Div", &[&scores, &root]);
        if pick % 4 < 2 {
            let causal: Vec<f32> = (0..LENGTH * LENGTH).map(|i| if i % LENGTH > i / LENGTH { -1e4 } else { 0.0 }).collect();
            let name = self.graph.free_name("causal");
            let causal = self.graph.floats(&name, &[1, 1, LENGTH, LENGTH], &causal);
            scores = self.op("Add", &[&scores, &causal]);
        }
        let weights = self.graph.node("Softmax", &[&scores], vec![attribute("axis", -1i64)]);
        let y = self.op("MatMul", &[&weights, &v]);
        let y = self.graph.node("Transpose", &[&y], vec![attribute("perm", vec![0i64, 2, 1, 3])]);
        let joined = self.ints(&[0, LENGTH as i64, inner as i64]);
        let y = self.op("Reshape", &[&y, &joined]);
        self.linear(&y, inner, width)
    }

    fn finish(mut self, head: u8) -> Model {
        let (x, width) = self.made.last().cloned().unwrap();
        let y = match head % 3 {
            0 => self.graph.node("ReduceMean", &[&x], vec![attribute("axes", vec![1i64]), attribute("keepdims", 0i64)]),
            1 => {
                let first = self.graph.free_name("first");
                let first = self.graph.ints(&first, &[], &[0]);
                self.graph.node("Gather", &[&x, &first], vec![attribute("axis", 1i64)])
            }
            _ => x,
        };
        let y = self.linear(&y, width, 3);
        self.graph.output(&y);
        self.graph.build().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_over_sequences_hold_every_proof(
        steps in prop::collection::vec((0u8..12, any::<u8>()), 1..8),
        head in 0u8..3,
    ) {
        let mut sequences = Sequences::new();
        steps.iter().for_each(|&(kind, pick)| sequences.step(kind, pick));
        prove_raw_and_prepared(sequences.finish(head));
    }
}
