//! Coupling over transformers: attention as exporters write it and as one operator, proved by running.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests, which clippy does not know for tests

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use pleach_domain::{Element, Tensor};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
use pleach_onnx::proto::{AttributeProto, NodeProto, TensorProto};
use pleach_onnx::{AxisLength, Limits, Model, Shapes, ValueInfo};
use pleach_prune::coupling::{Block, Coupling, Group, Rotation, measure_shapes};
use pleach_prune::progress::Silent;
use pleach_prune::{fold, proof, surgery};

const WIDTH: usize = 12;
const HEADS: usize = 3;
const DIM: usize = 4;
const POSITIONS: usize = 5;

fn runtime() -> OrtRuntime {
    let options = OrtOptions { library: None, threads: NonZeroUsize::MIN };
    OrtRuntime::new(options).expect("these tests run models: set ORT_DYLIB_PATH to libonnxruntime.so 1.28.0")
}

/// Reproducible numbers in -1..1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

/// A graph of layers over `x`, `[batch, POSITIONS, WIDTH]`.
struct Layers {
    graph: GraphBuilder,
    noise: Noise,
}

impl Layers {
    fn new() -> Self {
        Self::at(17)
    }

    fn at(opset: i64) -> Self {
        let mut graph = GraphBuilder::new("attention").opset(opset);
        graph.input("x", ElementKind::Float, &[Dim::Free("batch".to_owned()), Dim::Fixed(POSITIONS), Dim::Fixed(WIDTH)]);
        Self { graph, noise: Noise(3) }
    }

    fn weight(&mut self, dims: &[usize]) -> String {
        let scale = 1.5 / (dims.first().copied().unwrap_or(1) as f32).sqrt();
        let values = self.noise.floats(dims.iter().product(), if dims.len() > 1 { scale } else { 0.3 });
        let name = self.graph.free_name("w");
        self.graph.floats(&name, dims, &values)
    }

    fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.graph.node(op, inputs, attributes)
    }

    /// A node of ONNX Runtime's own domain, with the given output.
    fn contrib(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> String {
        let proto = node(op, output, inputs, output, attributes);
        self.graph.push(NodeProto { domain: Some("com.microsoft".to_owned()), ..proto });
        output.to_owned()
    }

    /// MatMul and Add, as exporters write a linear layer.
    fn linear(&mut self, x: &str, inputs: usize, outputs: usize) -> String {
        let (w, b) = (self.weight(&[inputs, outputs]), self.weight(&[outputs]));
        let y = self.op("MatMul", &[x, &w], vec![]);
        self.op("Add", &[&b, &y], vec![])
    }

    fn reshape(&mut self, x: &str, target: &[i64]) -> String {
        let name = self.graph.free_name("shape");
        let shape = self.graph.ints(&name, &[target.len()], target);
        self.op("Reshape", &[x, &shape], vec![])
    }

    fn transpose(&mut self, x: &str, perm: &[i64]) -> String {
        self.op("Transpose", &[x], vec![attribute("perm", perm.to_vec())])
    }

    fn scalar(&mut self, value: f32) -> String {
        let name = self.graph.free_name("s");
        self.graph.floats(&name, &[], &[value])
    }

    fn norm(&mut self, x: &str) -> String {
        let (scale, bias) = (self.weight(&[WIDTH]), self.weight(&[WIDTH]));
        self.op("LayerNormalization", &[x, &scale, &bias], vec![attribute("axis", -1i64)])
    }

    /// `[B, S, heads * dim]` to `[B, heads, S, dim]`.
    fn split_heads(&mut self, x: &str, heads: usize, dim: usize) -> String {
        let y = self.reshape(x, &[0, 0, heads as i64, dim as i64]);
        self.transpose(&y, &[0, 2, 1, 3])
    }

    fn join_heads(&mut self, x: &str, width: usize) -> String {
        let y = self.transpose(x, &[0, 2, 1, 3]);
        self.reshape(&y, &[0, 0, width as i64])
    }

    /// Softmax of scaled scores, times values: `[B, heads, S, dim]` each.
    fn attend(&mut self, q: &str, k: &str, v: &str) -> String {
        let k = self.transpose(k, &[0, 1, 3, 2]);
        let scores = self.op("MatMul", &[q, &k], vec![]);
        let scale = self.scalar((DIM as f32).sqrt());
        let scores = self.op("Div", &[&scores, &scale], vec![]);
        let weights = self.op("Softmax", &[&scores], vec![attribute("axis", -1i64)]);
        self.op("MatMul", &[&weights, v], vec![])
    }

    fn finish(mut self, y: &str) -> Case {
        self.graph.output(y);
        Case::new(self.graph.build().unwrap())
    }

    /// Residual, normalisation and a last layer.
    fn end(mut self, y: &str) -> Case {
        let sum = self.op("Add", &["x", y], vec![]);
        let normed = self.norm(&sum);
        let y = self.linear(&normed, WIDTH, 2);
        self.finish(&y)
    }
}

struct Case {
    model: Model,
    shapes: Shapes,
    coupling: Coupling,
}

impl Case {
    fn new(model: Model) -> Self {
        Self::with(model, &BTreeMap::new())
    }

    fn with(model: Model, examples: &BTreeMap<String, Vec<usize>>) -> Self {
        let shapes = measure_shapes(&model, &runtime(), examples).unwrap();
        let coupling = Coupling::find(&model, &shapes);
        Self { model, shapes, coupling }
    }

    fn inputs(&self) -> Vec<(String, Tensor)> {
        let mut noise = Noise(7);
        let input = |info: ValueInfo| {
            let dims = self.shapes.at(&info.name, 3).unwrap();
            let count: usize = dims.iter().product();
            let floats = noise.floats(count, 1.0);
            let data = match info.element_type {
                1 => Element::Fp32(floats),
                7 if info.name.contains("mask") => {
                    Element::Int64(floats.iter().enumerate().map(|(i, &v)| i64::from(i % 5 == 0 || v < 0.4)).collect())
                }
                7 => Element::Int64(floats.iter().map(|v| (v.abs() * 60.0) as i64).collect()),
                6 => Element::Int32(vec![1; count]),
                other => panic!("element type {other}"),
            };
            (info.name, Tensor::new(dims, data).unwrap())
        };
        self.model.inputs().into_iter().map(input).collect()
    }

    fn prunable(&self) -> f64 {
        let macs = self.coupling.prunable_macs(&self.model, &self.shapes);
        macs.prunable as f64 / macs.total as f64
    }

    /// Sizes of the groups in order, with what they may do.
    fn found(&self) -> Vec<(usize, char)> {
        let kind = |group: &Group| match group.rotation {
            Rotation::None => '-',
            Rotation::Bilinear { .. } => 'b',
            Rotation::Linear { .. } => 'l',
        };
        self.coupling.groups.iter().map(|g| (g.size, kind(g))).collect()
    }

    fn sizes(&self) -> Vec<usize> {
        self.coupling.groups.iter().map(|g| g.size).collect()
    }

    fn reasons(&self) -> String {
        self.coupling.frozen.iter().map(|f| format!("{}: {}\n", f.name, f.reason)).collect()
    }

    /// Every proof, and that a change of basis of each group that allows it changes nothing.
    fn prove(&self) {
        let (runtime, named) = (runtime(), self.inputs());
        let inputs: Vec<(&str, &Tensor)> = named.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let subject =
            proof::Subject { runtime: &runtime, model: &self.model, coupling: &self.coupling, shapes: &self.shapes, inputs: &inputs };
        proof::prove(&subject, 11, &Silent).unwrap_or_else(|error| {
            let causes: Vec<String> =
                std::iter::successors(std::error::Error::source(&error), |e| e.source()).map(ToString::to_string).collect();
            panic!("{error}: {causes:?}\n{:#?}", self.coupling.groups)
        });
        let mut turned = self.model.clone();
        for group in &self.coupling.groups {
            turned = turn(&turned, group);
        }
        let gap = proof::equality(&runtime, &self.model, &turned, &inputs).unwrap();
        assert!(gap <= 1e-4, "rotation: {gap:e}");
    }
}

/// Changes the basis of a group at random, a head at a time.
fn turn(model: &Model, group: &Group) -> Model {
    let (near, far) = match &group.rotation {
        Rotation::None => return model.clone(),
        Rotation::Bilinear { left, right } => (left, right),
        Rotation::Linear { made, read } => (made, read),
    };
    let heads = 1 + near.iter().chain(far).map(|b| b.head).max().unwrap();
    let mut noise = Noise(group.size as u64);
    // Lower triangular matrices, whose inverses substitution gives.
    let n = group.size;
    let entry = |i: usize, noise: &mut Noise| match (i / n).cmp(&(i % n)) {
        std::cmp::Ordering::Greater => f64::from(noise.next()) * 0.3,
        std::cmp::Ordering::Equal => 1.25,
        std::cmp::Ordering::Less => 0.0,
    };
    let first: Vec<Vec<f64>> = (0..heads).map(|_| (0..n * n).map(|i| entry(i, &mut noise)).collect()).collect();
    let second: Vec<Vec<f64>> = first.iter().map(|lower| transpose(&inverse_of_lower(lower, n), n)).collect();
    let model = surgery::change_basis(model, near, &first).unwrap();
    surgery::change_basis(&model, far, &second).unwrap()
}

fn transpose(matrix: &[f64], n: usize) -> Vec<f64> {
    (0..n * n).map(|i| matrix[i % n * n + i / n]).collect()
}

fn inverse_of_lower(lower: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    for column in 0..n {
        for row in 0..n {
            let sum: f64 = (0..row).map(|k| lower[row * n + k] * inverse[k * n + column]).sum();
            inverse[row * n + column] = (f64::from(u8::from(row == column)) - sum) / lower[row * n + row];
        }
    }
    inverse
}

fn heads_of(blocks: &[Block]) -> usize {
    let mut heads: Vec<usize> = blocks.iter().map(|b| b.head).collect();
    heads.sort_unstable();
    heads.dedup();
    heads.len()
}

#[test]
fn attention_is_heads_and_the_dims_of_keys_and_of_values() {
    let mut layers = Layers::new();
    let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
    let [q, k, v] = [q, k, v].map(|x| layers.split_heads(&x, HEADS, DIM));
    let mixed = layers.attend(&q, &k, &v);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    let mut found = case.found();
    found.sort_unstable();
    assert_eq!(found, [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
    assert!(case.prunable() > 0.9, "{}", case.prunable());
    let heads = case.coupling.groups.iter().find(|g| g.size == HEADS).unwrap();
    assert_eq!((heads.producers.len(), heads.consumers.len()), (3, 1));
    assert_eq!(heads.consumers[0].units.of(1), [4, 5, 6, 7]);
    for group in &case.coupling.groups {
        match &group.rotation {
            Rotation::Bilinear { left, right } => assert_eq!((left.len(), right.len(), heads_of(left)), (6, 6, HEADS)),
            Rotation::Linear { made, read } => assert_eq!((made.len(), read.len(), heads_of(read)), (6, 3, HEADS)),
            Rotation::None => (),
        }
    }
    case.prove();
}

#[test]
fn a_gelu_layer_narrows_and_does_not_rotate() {
    let mut layers = Layers::new();
    let hidden = layers.linear("x", WIDTH, 20);
    let (root, one, half) = (layers.scalar(2f32.sqrt()), layers.scalar(1.0), layers.scalar(0.5));
    let inner = layers.op("Div", &[&hidden, &root], vec![]);
    let inner = layers.op("Erf", &[&inner], vec![]);
    let inner = layers.op("Add", &[&inner, &one], vec![]);
    let gated = layers.op("Mul", &[&hidden, &inner], vec![]);
    let gated = layers.op("Mul", &[&gated, &half], vec![]);
    let y = layers.linear(&gated, 20, WIDTH);
    let case = layers.end(&y);
    assert_eq!(case.found(), [(20, '-')], "{}", case.reasons());
    case.prove();
}

#[test]
fn layers_without_anything_between_them_rotate() {
    let mut layers = Layers::new();
    let hidden = layers.linear("x", WIDTH, 6);
    let y = layers.linear(&hidden, 6, WIDTH);
    let case = layers.end(&y);
    assert_eq!(case.found(), [(6, 'l')], "{}", case.reasons());
    case.prove();
}

#[test]
fn only_the_normalised_axis_is_frozen() {
    let mut layers = Layers::new();
    let y = layers.norm("x");
    let hidden = layers.linear(&y, WIDTH, 8);
    let normed = {
        // LayerNormalization written out.
        let mean = layers.op("ReduceMean", &[&hidden], vec![attribute("axes", vec![-1i64])]);
        let centred = layers.op("Sub", &[&hidden, &mean], vec![]);
        let two = layers.scalar(2.0);
        let square = layers.op("Pow", &[&centred, &two], vec![]);
        let variance = layers.op("ReduceMean", &[&square], vec![attribute("axes", vec![-1i64])]);
        let epsilon = layers.scalar(1e-5);
        let variance = layers.op("Add", &[&variance, &epsilon], vec![]);
        let deviation = layers.op("Sqrt", &[&variance], vec![]);
        layers.op("Div", &[&centred, &deviation], vec![])
    };
    let wide = layers.linear(&normed, 8, 10);
    let wide = layers.op("Relu", &[&wide], vec![]);
    let y = layers.linear(&wide, 10, WIDTH);
    let case = layers.end(&y);
    assert_eq!(case.found(), [(10, '-')]);
    assert!(case.reasons().contains("(ReduceMean) reduces over it"), "{}", case.reasons());
    case.prove();
}

#[test]
fn attention_as_einsum_has_the_same_groups() {
    let mut layers = Layers::new();
    let einsum =
        |layers: &mut Layers, equation: &str, a: &str, b: &str| layers.op("Einsum", &[a, b], vec![attribute("equation", equation)]);
    let [q, k, v] = [(); 3].map(|()| {
        let (w, b) = (layers.weight(&[WIDTH, HEADS, DIM]), layers.weight(&[HEADS, DIM]));
        let y = einsum(&mut layers, "abc,cde->abde", "x", &w);
        layers.op("Add", &[&y, &b], vec![])
    });
    let scores = einsum(&mut layers, "aecd,abcd->acbe", &k, &q);
    let weights = layers.op("Softmax", &[&scores], vec![attribute("axis", -1i64)]);
    let mixed = einsum(&mut layers, "acbe,aecd->abcd", &weights, &v);
    let w = layers.weight(&[HEADS, DIM, WIDTH]);
    let y = einsum(&mut layers, "abcd,cde->abe", &mixed, &w);
    let case = layers.end(&y);
    let mut sizes = case.sizes();
    sizes.sort_unstable();
    assert_eq!(sizes, [3, 4, 4], "{}", case.reasons());
    case.prove();
}

#[test]
fn heads_by_batches_of_matrices_as_older_exporters_write_them() {
    let mut layers = Layers::new();
    let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
    let [q, k, v] = [q, k, v].map(|x| {
        let x = layers.split_heads(&x, HEADS, DIM);
        layers.reshape(&x, &[-1, POSITIONS as i64, DIM as i64])
    });
    let k = layers.transpose(&k, &[0, 2, 1]);
    let scores = layers.op("MatMul", &[&q, &k], vec![]);
    let weights = layers.op("Softmax", &[&scores], vec![attribute("axis", 2i64)]);
    let mixed = layers.op("MatMul", &[&weights, &v], vec![]);
    let mixed = layers.reshape(&mixed, &[-1, HEADS as i64, POSITIONS as i64, DIM as i64]);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    let mut found = case.found();
    found.sort_unstable();
    assert_eq!(found, [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
    case.prove();
}

#[test]
fn literals_among_computed_lengths_follow() {
    let mut net = Layers::new();
    // [B * S, width] in between, as the layers of some exporters have it: the way back names two free lengths and the width.
    let shape = net.op("Shape", &["x"], vec![]);
    let indices = net.graph.ints("two", &[2], &[0, 1]);
    let free = net.op("Gather", &[&shape, &indices], vec![attribute("axis", 0i64)]);
    let rows = net.reshape("x", &[-1, WIDTH as i64]);
    let rows = net.linear(&rows, WIDTH, 8);
    let parts = net.graph.ints("parts", &[2], &[2, 4]);
    let target = net.op("Concat", &[&free, &parts], vec![attribute("axis", 0i64)]);
    let y = net.op("Reshape", &[&rows, &target], vec![]);
    let y = net.op("Sigmoid", &[&y], vec![]);
    let flat = net.graph.ints("flat", &[1], &[8]);
    let target = net.op("Concat", &[&free, &flat], vec![attribute("axis", 0i64)]);
    let y = net.op("Reshape", &[&y, &target], vec![]);
    let y = net.linear(&y, 8, 2);
    let case = net.finish(&y);
    let mut sizes = case.sizes();
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 4], "{}", case.reasons());
    case.prove();
}

#[test]
fn an_embedding_makes_channels() {
    let mut graph = GraphBuilder::new("embedding");
    graph.input("ids", ElementKind::Int64, &[Dim::Free("batch".to_owned()), Dim::Fixed(POSITIONS)]);
    let mut layers = Layers { graph, noise: Noise(4) };
    let table = layers.weight(&[64, 9]);
    let rows = layers.op("Gather", &[&table, "ids"], vec![]);
    let rows = layers.op("Tanh", &[&rows], vec![]);
    let y = layers.linear(&rows, 9, 3);
    let case = layers.finish(&y);
    assert_eq!(case.found(), [(9, '-')], "{}", case.reasons());
    case.prove();
}

#[test]
fn a_cache_of_keys_freezes_heads_and_their_dims() {
    let mut layers = Layers::new();
    let dims = [Dim::Free("batch".to_owned()), Dim::Fixed(HEADS), Dim::Fixed(2), Dim::Fixed(DIM)];
    layers.graph.input("past", ElementKind::Float, &dims);
    let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
    let [q, k, v] = [q, k, v].map(|x| layers.split_heads(&x, HEADS, DIM));
    let k = layers.op("Concat", &["past", &k], vec![attribute("axis", 2i64)]);
    let v = layers.op("Concat", &["past", &v], vec![attribute("axis", 2i64)]);
    let mixed = layers.attend(&q, &k, &v);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    assert!(case.found().is_empty());
    assert!(case.reasons().contains("graph input `past`"), "{}", case.reasons());
}

/// Sizes of the groups and what they may do, sorted.
fn sorted(case: &Case) -> Vec<(usize, char)> {
    let mut found = case.found();
    found.sort_unstable();
    found
}

#[test]
fn attention_of_the_runtime_keeps_its_attributes_right() {
    for sizes in [None, Some(vec![12i64, 12, 6])] {
        let mut layers = Layers::new();
        let values = sizes.as_ref().map_or(WIDTH, |sizes| sizes[2] as usize);
        let (w, b) = (layers.weight(&[WIDTH, 2 * WIDTH + values]), layers.weight(&[2 * WIDTH + values]));
        let mut attributes = vec![attribute("num_heads", HEADS as i64)];
        attributes.extend(sizes.map(|sizes| attribute("qkv_hidden_sizes", sizes)));
        let mixed = layers.contrib("Attention", &["x", &w, &b], "mixed", attributes);
        let y = layers.linear(&mixed, values, WIDTH);
        let case = layers.end(&y);
        let mut wanted = [(3, '-'), (4, 'b'), (values / HEADS, 'l')];
        wanted.sort_unstable();
        assert_eq!(sorted(&case), wanted, "{}", case.reasons());
        case.prove();
    }
}

#[test]
fn multi_head_attention_with_and_without_its_own_bias() {
    for own_bias in [false, true] {
        let mut layers = Layers::new();
        let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
        let bias = if own_bias { layers.weight(&[3 * WIDTH]) } else { String::new() };
        let mixed = layers.contrib("MultiHeadAttention", &[&q, &k, &v, &bias], "mixed", vec![attribute("num_heads", HEADS as i64)]);
        let y = layers.linear(&mixed, WIDTH, WIDTH);
        let case = layers.end(&y);
        assert_eq!(sorted(&case), [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
        case.prove();
    }
}

#[test]
fn skip_normalisation_and_gelu_with_a_bias() {
    let mut layers = Layers::new();
    let (gamma, beta, bias) = (layers.weight(&[WIDTH]), layers.weight(&[WIDTH]), layers.weight(&[WIDTH]));
    let first = layers.linear("x", WIDTH, WIDTH);
    let normed = layers.contrib("SkipLayerNormalization", &["x", &first, &gamma, &beta, &bias], "normed", vec![]);
    let (w, b) = (layers.weight(&[WIDTH, 16]), layers.weight(&[16]));
    let hidden = layers.op("MatMul", &[&normed, &w], vec![]);
    let hidden = layers.contrib("BiasGelu", &[&hidden, &b], "gelu", vec![]);
    let w = layers.weight(&[16, 10]);
    let hidden = layers.contrib("FusedMatMul", &[&hidden, &w], "fused", vec![attribute("alpha", 0.5f32)]);
    let hidden = layers.contrib("QuickGelu", &[&hidden], "quick", vec![]);
    let y = layers.linear(&hidden, 10, WIDTH);
    let case = layers.end(&y);
    assert_eq!(case.found(), [(16, '-'), (10, '-')], "{}", case.reasons());
    assert!(case.reasons().contains("(SkipLayerNormalization) normalises over it"));
    case.prove();
}

#[test]
fn a_fused_product_of_activations_honours_its_transposition() {
    let mut layers = Layers::new();
    let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
    let [q, k, v] = [q, k, v].map(|x| layers.split_heads(&x, HEADS, DIM));
    let scores = layers.contrib("FusedMatMul", &[&q, &k], "scores", vec![attribute("transB", 1i64), attribute("alpha", 0.5f32)]);
    let weights = layers.op("Softmax", &[&scores], vec![attribute("axis", -1i64)]);
    let mixed = layers.op("MatMul", &[&weights, &v], vec![]);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    assert_eq!(sorted(&case), [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
    case.prove();
}

#[test]
fn the_standard_attention_operator_in_both_of_its_forms() {
    for flat in [true, false] {
        let mut layers = Layers::at(23);
        let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
        let y = if flat {
            let heads = vec![attribute("q_num_heads", HEADS as i64), attribute("kv_num_heads", HEADS as i64)];
            layers.op("Attention", &[&q, &k, &v], heads)
        } else {
            let [q, k, v] = [q, k, v].map(|x| layers.split_heads(&x, HEADS, DIM));
            let mixed = layers.op("Attention", &[&q, &k, &v], vec![]);
            layers.join_heads(&mixed, WIDTH)
        };
        let y = layers.linear(&y, WIDTH, WIDTH);
        let case = layers.end(&y);
        assert_eq!(sorted(&case), [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
        case.prove();
    }
}

#[test]
fn rotated_dims_stay_and_their_heads_go() {
    let mut layers = Layers::new();
    let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
    let positions = layers.graph.ints("positions", &[1], &[0]);
    let tables = ["cos", "sin"].map(|name| {
        let values = layers.noise.floats(8 * DIM / 2, 1.0);
        layers.graph.floats(name, &[8, DIM / 2], &values)
    });
    let [q, k] = [(q, "rotated_q"), (k, "rotated_k")].map(|(x, name)| {
        let x = layers.split_heads(&x, HEADS, DIM);
        layers.contrib("RotaryEmbedding", &[&x, &positions, &tables[0], &tables[1]], name, vec![])
    });
    let v = layers.split_heads(&v, HEADS, DIM);
    let mixed = layers.attend(&q, &k, &v);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    assert_eq!(sorted(&case), [(3, '-'), (4, 'l')], "{}", case.reasons());
    assert!(case.reasons().contains("(RotaryEmbedding) rotates it by position"));
    case.prove();
}

#[test]
fn an_operator_of_the_runtime_without_a_rule_freezes_and_is_named() {
    let mut layers = Layers::new();
    let hidden = layers.linear("x", WIDTH, 8);
    let hidden = layers.contrib("BiasSplitGelu", &[&hidden], "halves", vec![]);
    layers.op("Identity", &[&hidden], vec![]);
    let normed = layers.norm("x");
    let coupling = {
        layers.graph.output(&normed);
        let model = layers.graph.build().unwrap();
        let mut shapes = Shapes::default();
        let axes = |dims: &[i64]| dims.iter().map(|&base| AxisLength { base, per_row: 0 }).collect();
        for (name, dims) in [("x", [2, 5, 12]), ("MatMul_0", [2, 5, 8]), ("Add_1", [2, 5, 8]), ("halves", [2, 5, 4])] {
            shapes.insert(name, axes(&dims));
        }
        Coupling::find(&model, &shapes)
    };
    assert!(coupling.frozen.iter().any(|f| f.reason.contains("node `halves` (BiasSplitGelu) has no rule for this form")), "{coupling:#?}");
}

#[test]
fn products_with_integer_weights_are_cut_with_their_scales() {
    let mut layers = Layers::new();
    let hidden = layers.linear("x", WIDTH, 8);
    let hidden = layers.op("Relu", &[&hidden], vec![]);
    let bytes: Vec<u8> = (0..8 * 6).map(|i| (i * 37 % 251) as u8).collect();
    let weight = layers.graph.tensor(bytes_tensor("weight", &[8, 6], 2, bytes));
    let zero = layers.graph.tensor(bytes_tensor("zero", &[1], 2, vec![120]));
    let scales = layers.graph.floats("scales", &[6], &[0.01, 0.02, 0.015, 0.01, 0.03, 0.01]);
    let bias = layers.weight(&[6]);
    let hidden = layers.contrib("DynamicQuantizeMatMul", &[&hidden, &weight, &scales, "", &bias], "quantized", vec![]);
    let hidden = layers.op("Tanh", &[&hidden], vec![]);
    let parts = node("DynamicQuantizeLinear", "quantize", &[&hidden], "bytes", vec![]);
    layers.graph.push(NodeProto { output: ["bytes", "scale", "point"].map(str::to_owned).to_vec(), ..parts });
    let second: Vec<u8> = (0..6 * WIDTH).map(|i| (i * 41 % 253) as u8).collect();
    let second = layers.graph.tensor(bytes_tensor("second", &[6, WIDTH], 2, second));
    let y = layers.op("MatMulInteger", &["bytes", &second, "point", &zero], vec![]);
    let y = layers.op("Cast", &[&y], vec![attribute("to", 1i64)]);
    let y = layers.op("Mul", &[&y, "scale"], vec![]);
    let small = layers.scalar(0.01);
    let y = layers.op("Mul", &[&y, &small], vec![]);
    let case = layers.end(&y);
    assert_eq!(case.found(), [(8, '-'), (6, '-')], "{}", case.reasons());
    case.prove();
}

/// A tensor of single bytes: element type 2 is UINT8, 3 is INT8.
fn bytes_tensor(name: &str, dims: &[usize], element_type: i32, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(element_type),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}
#[test]
fn a_fused_projection_is_cut_by_its_split_and_a_causal_mask_passes() {
    let mut layers = Layers::new();
    let qkv = layers.linear("x", WIDTH, 3 * WIDTH);
    let sizes = layers.graph.ints("sizes", &[3], &[WIDTH as i64; 3]);
    let outputs: Vec<String> = ["q", "k", "v"].map(str::to_owned).to_vec();
    let split = node("Split", "split", &[&qkv, &sizes], "q", vec![attribute("axis", 2i64)]);
    layers.graph.push(NodeProto { output: outputs, ..split });
    let [q, k, v] = ["q", "k", "v"].map(|x| layers.split_heads(x, HEADS, DIM));
    let k = layers.transpose(&k, &[0, 1, 3, 2]);
    let scores = layers.op("MatMul", &[&q, &k], vec![]);
    let mask: Vec<f32> = (0..POSITIONS * POSITIONS).map(|i| if i % POSITIONS > i / POSITIONS { -1e4 } else { 0.0 }).collect();
    let mask = layers.graph.floats("causal", &[POSITIONS, POSITIONS], &mask);
    let scores = layers.op("Add", &[&scores, &mask], vec![]);
    let weights = layers.op("Softmax", &[&scores], vec![attribute("axis", -1i64)]);
    let mixed = layers.op("MatMul", &[&weights, &v], vec![]);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    let mut found = case.found();
    found.sort_unstable();
    assert_eq!(found, [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
    case.prove();
}

#[test]
fn heads_that_share_keys_go_evenly_and_keys_go_with_their_heads() {
    // Four query heads on two key heads, repeated by Expand as exporters do.
    let mut layers = Layers::new();
    let q = layers.linear("x", WIDTH, 4 * DIM);
    let [k, v] = [(); 2].map(|()| layers.linear("x", WIDTH, 2 * DIM));
    let q = layers.split_heads(&q, 4, DIM);
    let [k, v] = [k, v].map(|x| {
        let x = layers.split_heads(&x, 2, DIM);
        let axis = {
            let name = layers.graph.free_name("axis");
            layers.graph.ints(&name, &[1], &[2])
        };
        let x = layers.op("Unsqueeze", &[&x, &axis], vec![]);
        let size = {
            let name = layers.graph.free_name("size");
            layers.graph.ints(&name, &[5], &[1, 1, 2, 1, 1])
        };
        let x = layers.op("Expand", &[&x, &size], vec![]);
        layers.reshape(&x, &[-1, 4, POSITIONS as i64, DIM as i64])
    });
    let mixed = layers.attend(&q, &k, &v);
    let joined = layers.join_heads(&mixed, 4 * DIM);
    let y = layers.linear(&joined, 4 * DIM, WIDTH);
    let case = layers.end(&y);
    assert!(case.found().contains(&(4, 'b')) && case.found().contains(&(4, 'l')), "{:?}\n{}", case.found(), case.reasons());
    case.prove();
}

fn fixture(name: &str, inputs: &[(&str, usize)]) -> Case {
    let path = format!("{}/../../tests/fixtures/{name}/model.onnx", env!("CARGO_MANIFEST_DIR"));
    let examples = inputs.iter().map(|&(input, length)| (input.to_owned(), vec![length])).collect();
    let model = Model::decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap();
    Case::with(fold::prepare(&model, &runtime(), &examples).unwrap(), &examples)
}

/// Sizes of the groups with how often each was found.
fn tally(case: &Case) -> BTreeMap<(usize, char), usize> {
    let mut tally = BTreeMap::new();
    for found in case.found() {
        *tally.entry(found).or_default() += 1;
    }
    tally
}

#[test]
fn the_taggers_layers_have_heads_dims_and_a_hidden_width_each() {
    let case = fixture("conll-bert", &[("input_ids", 16), ("attention_mask", 16)]);
    assert_eq!(tally(&case), BTreeMap::from([((4, '-'), 4), ((32, 'b'), 4), ((32, 'l'), 4), ((512, '-'), 4)]), "{}", case.reasons());
    assert!(case.prunable() >= 0.95, "{}", case.prunable());
    case.prove();
}

#[test]
fn the_classifiers_layers_have_heads_dims_and_a_hidden_width_each() {
    let case = fixture("spam-bert", &[("input_ids", 12), ("attention_mask", 12)]);
    assert_eq!(tally(&case), BTreeMap::from([((4, '-'), 3), ((32, 'b'), 3), ((32, 'l'), 3), ((512, '-'), 3)]), "{}", case.reasons());
    assert!(case.prunable() >= 0.95, "{}", case.prunable());
    case.prove();
}

#[test]
fn the_decoders_fused_projections_have_heads_dims_and_a_hidden_width_each() {
    let case = fixture("austen-gpt", &[("input_ids", 16)]);
    assert_eq!(tally(&case), BTreeMap::from([((4, '-'), 4), ((32, 'b'), 4), ((32, 'l'), 4), ((512, '-'), 4)]), "{}", case.reasons());
    assert!(case.prunable() >= 0.95, "{}", case.prunable());
    case.prove();
}

#[test]
fn group_query_attention_loses_heads_and_keeps_their_dims() {
    let mut layers = Layers::new();
    layers.graph.input("lengths", ElementKind::Int32, &[Dim::Free("batch".to_owned())]);
    let total = TensorProto { dims: vec![], ..bytes_tensor("total", &[], 6, 5i32.to_le_bytes().to_vec()) };
    let total = layers.graph.tensor(total);
    let q = layers.linear("x", WIDTH, 4 * 8);
    let [k, v] = [(); 2].map(|()| layers.linear("x", WIDTH, 2 * 8));
    let attributes = vec![attribute("num_heads", 4i64), attribute("kv_num_heads", 2i64)];
    let proto = node("GroupQueryAttention", "mixed", &[&q, &k, &v, "", "", "lengths", &total], "mixed", attributes);
    let outputs = ["mixed", "present_k", "present_v"].map(str::to_owned).to_vec();
    layers.graph.push(NodeProto { domain: Some("com.microsoft".to_owned()), output: outputs, ..proto });
    let y = layers.linear("mixed", 4 * 8, WIDTH);
    let case = layers.end(&y);
    assert_eq!(sorted(&case), [(2, '-'), (2, '-')], "{}", case.reasons());
    assert!(case.reasons().contains("takes heads of multiples of 8 dims alone"), "{}", case.reasons());
    case.prove();
}

#[test]
fn rotations_by_halves_as_exporters_write_them_stay_exact() {
    let mut layers = Layers::new();
    let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
    let [q, k, v] = [q, k, v].map(|x| layers.split_heads(&x, HEADS, DIM));
    let tables = ["cos", "sin"].map(|name| {
        let half = layers.noise.floats(POSITIONS * DIM / 2, 1.0);
        let values: Vec<f32> = half.chunks(DIM / 2).flat_map(|row| [row, row].concat()).collect();
        layers.graph.floats(name, &[1, 1, POSITIONS, DIM], &values)
    });
    let [q, k] = [q, k].map(|x| {
        let [first, second] = [(0, 2), (2, i64::MAX)].map(|(start, end)| {
            let bounds = [start, end, 3].map(|value| {
                let name = layers.graph.free_name("bound");
                layers.graph.ints(&name, &[1], &[value])
            });
            layers.op("Slice", &[&x, &bounds[0], &bounds[1], &bounds[2]], vec![])
        });
        let second = layers.op("Neg", &[&second], vec![]);
        let turned = layers.op("Concat", &[&second, &first], vec![attribute("axis", -1i64)]);
        let (near, far) = (layers.op("Mul", &[&x, &tables[0]], vec![]), layers.op("Mul", &[&turned, &tables[1]], vec![]));
        layers.op("Add", &[&near, &far], vec![])
    });
    let mixed = layers.attend(&q, &k, &v);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    // The dims of queries and keys go in pairs, each with its columns of the tables.
    assert_eq!(sorted(&case), [(2, '-'), (3, '-'), (4, 'l')], "{}", case.reasons());
    case.prove();
}

#[test]
fn three_in_one_reshape_keeps_its_three() {
    let mut layers = Layers::new();
    let qkv = layers.linear("x", WIDTH, 3 * WIDTH);
    let qkv = layers.reshape(&qkv, &[0, 0, 3, HEADS as i64, DIM as i64]);
    let qkv = layers.transpose(&qkv, &[2, 0, 3, 1, 4]);
    let [q, k, v] = [0, 1, 2].map(|i| {
        let name = layers.graph.free_name("which");
        let which = layers.graph.ints(&name, &[], &[i]);
        layers.op("Gather", &[&qkv, &which], vec![attribute("axis", 0i64)])
    });
    let mixed = layers.attend(&q, &k, &v);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let case = layers.end(&y);
    assert_eq!(sorted(&case), [(3, '-'), (4, '-')], "{}", case.reasons());
    case.prove();
}

#[test]
fn a_scale_computed_from_the_shape_stays_that_of_the_dense_graph() {
    let mut layers = Layers::new();
    let [q, k, v] = [(); 3].map(|()| layers.linear("x", WIDTH, WIDTH));
    let [q, k, v] = [q, k, v].map(|x| layers.split_heads(&x, HEADS, DIM));
    let shape = layers.op("Shape", &[&q], vec![]);
    let last = layers.graph.ints("last", &[], &[3]);
    let length = layers.op("Gather", &[&shape, &last], vec![]);
    let length = layers.op("Cast", &[&length], vec![attribute("to", 1i64)]);
    let root = layers.op("Sqrt", &[&length], vec![]);
    let k = layers.transpose(&k, &[0, 1, 3, 2]);
    let scores = layers.op("MatMul", &[&q, &k], vec![]);
    let scores = layers.op("Div", &[&scores, &root], vec![]);
    let weights = layers.op("Softmax", &[&scores], vec![attribute("axis", -1i64)]);
    let mixed = layers.op("MatMul", &[&weights, &v], vec![]);
    let joined = layers.join_heads(&mixed, WIDTH);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let raw = layers.end(&y);
    raw.prove();
    let case = Case::new(fold::prepare(&raw.model, &runtime(), &BTreeMap::new()).unwrap());
    assert_eq!(sorted(&case), [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
    case.prove();
}

#[test]
fn rows_in_two_axes_as_tensorflow_writes_them() {
    // Dense layers on [batch * positions, width], heads from there.
    let mut layers = Layers::new();
    let rows = layers.reshape("x", &[-1, WIDTH as i64]);
    let [q, k, v] = [(); 3].map(|()| layers.linear(&rows, WIDTH, WIDTH));
    let [q, k, v] = [q, k, v].map(|x| {
        let x = layers.reshape(&x, &[-1, POSITIONS as i64, HEADS as i64, DIM as i64]);
        layers.transpose(&x, &[0, 2, 1, 3])
    });
    let mixed = layers.attend(&q, &k, &v);
    let mixed = layers.transpose(&mixed, &[0, 2, 1, 3]);
    let joined = layers.reshape(&mixed, &[-1, WIDTH as i64]);
    let y = layers.linear(&joined, WIDTH, WIDTH);
    let y = layers.reshape(&y, &[-1, POSITIONS as i64, WIDTH as i64]);
    let case = layers.end(&y);
    assert_eq!(sorted(&case), [(3, '-'), (4, 'b'), (4, 'l')], "{}", case.reasons());
    case.prove();
}
