//! Free speed: rewritten models compute the same in fewer nodes, whatever the batch, the length and the padding.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests fail by panicking

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use pleach_domain::Tensor;
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};
use pleach_onnx::{Limits, Model};
use pleach_prune::simplify::Rewriter;
use pleach_prune::{coupling, fold, proof};

fn runtime() -> OrtRuntime {
    let options = OrtOptions { library: None, threads: NonZeroUsize::MIN };
    OrtRuntime::new(options).expect("these tests run models: set ORT_DYLIB_PATH to libonnxruntime.so 1.28.0")
}

fn fixture(path: &str) -> Model {
    let bytes = std::fs::read(format!("{}/../../tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    Model::decode(&bytes, &Limits::default()).unwrap()
}

/// Pseudo-random numbers in 0..1 (xorshift).
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// Token ids, and a mask with less padding in each row than in the one before it.
fn sentences(rows: usize, length: usize, masked: bool) -> Vec<(&'static str, Tensor)> {
    let ids = noise(rows * length, 3).into_iter().map(|x| 1 + (x * 70.0) as i64).collect();
    let mask = (0..rows * length).map(|i| i64::from(i % length < length / 2 + i / length)).collect();
    let mut inputs = vec![("input_ids", Tensor::int64(vec![rows, length], ids).unwrap())];
    if masked {
        inputs.push(("attention_mask", Tensor::int64(vec![rows, length], mask).unwrap()));
    }
    inputs
}

fn by_name<'a>(inputs: &'a [(&'static str, Tensor)]) -> Vec<(&'static str, &'a Tensor)> {
    inputs.iter().map(|(n, t)| (*n, t)).collect()
}

fn rewrite(model: &Model, examples: &[(&str, &Tensor)]) -> Model {
    let lengths = examples.iter().map(|(n, t)| ((*n).to_owned(), t.shape()[1..].to_vec()));
    let shapes = coupling::measure_shapes(model, &runtime(), &lengths.collect()).unwrap();
    Rewriter::find(model, &shapes, examples, &runtime()).apply(model, &shapes).unwrap()
}

fn operators(model: &Model) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    model.nodes().for_each(|n| *counts.entry(n.op_type()).or_default() += 1);
    counts
}

#[test]
fn transformers_compute_the_same_in_fused_nodes_at_any_batch_length_and_padding() {
    for (name, layers, masked) in [("conll-bert", 4, true), ("spam-bert", 3, true), ("austen-gpt", 4, false)] {
        let model = fold::fold(&fixture(&format!("{name}/model.onnx"))).unwrap();
        let examples = sentences(3, 40, masked);
        let fused = rewrite(&model, &by_name(&examples));
        let found = operators(&fused);
        assert_eq!((found.get("Attention"), found.get("BiasGelu")), (Some(&layers), Some(&layers)), "{name}: {found:?}");
        assert_eq!(found.get("SkipLayerNormalization"), Some(&(2 * layers + 1)), "{name}: {found:?}");
        assert!(!["Softmax", "Erf", "Transpose", "Reshape"].iter().any(|op| found.contains_key(op)), "{name}: {found:?}");
        for (rows, length) in [(1, 9), (5, 61)] {
            let inputs = sentences(rows, length, masked);
            let gap = proof::equality(&runtime(), &model, &fused, &by_name(&inputs)).unwrap();
            assert!(gap <= proof::BAR, "{name} at {rows} x {length}: {gap}");
        }
    }
}

#[test]
fn convolutional_networks_compute_the_same() {
    let cases = [
        (
            "input",
            vec![2, 1, 28, 28],
            &["fm-resnet/model", "fm-resnet/model_dynamo", "fm-resnet/model_folded", "fm-vgg/model", "fm-mbv2/model"][..],
        ),
        ("images", vec![2, 1, 96, 96], &["fm-yolo/model", "fm-yolo/model_chunk", "fm-yolo/model_dynamo", "fm-yolo/model_folded"][..]),
    ];
    for (input, shape, files) in cases {
        let inputs = [(input, Tensor::fp32(shape.clone(), noise(shape.iter().product(), 5)).unwrap())];
        for file in files {
            let model = fixture(&format!("{file}.onnx"));
            let rewritten = rewrite(&fold::fold(&model).unwrap(), &by_name(&inputs));
            let gap = proof::equality(&runtime(), &model, &rewritten, &by_name(&inputs)).unwrap();
            assert!(gap <= proof::BAR, "{file}: {gap}");
        }
    }
}

/// A graph over `x [rows, 5, 8]`, its rewritten form, and the largest difference between the two.
fn rewritten(build: impl Fn(&mut GraphBuilder, &str) -> String) -> (Model, f64) {
    let mut graph = GraphBuilder::new("spelling");
    let x = graph.input("x", ElementKind::Float, &[Dim::Free("rows".to_owned()), Dim::Fixed(5), Dim::Fixed(8)]);
    let y = build(&mut graph, &x);
    graph.output(&y);
    let model = graph.build().unwrap();
    let inputs = [("x", Tensor::fp32(vec![2, 5, 8], noise(80, 9).into_iter().map(|v| 4.0 * v - 2.0).collect()).unwrap())];
    let fused = rewrite(&model, &by_name(&inputs));
    let gap = proof::equality(&runtime(), &model, &fused, &by_name(&inputs)).unwrap();
    (fused, gap)
}

fn scalar(graph: &mut GraphBuilder, value: f32) -> String {
    let name = graph.free_name("c");
    graph.floats(&name, &[], &[value])
}

fn linear(graph: &mut GraphBuilder, x: &str, inputs: usize, outputs: usize, seed: u64) -> String {
    let (weight, bias) = (graph.free_name("w"), graph.free_name("b"));
    let weight = graph.floats(&weight, &[inputs, outputs], &noise(inputs * outputs, seed).iter().map(|v| v - 0.5).collect::<Vec<_>>());
    let bias = graph.floats(&bias, &[outputs], &noise(outputs, seed + 1));
    let y = graph.node("MatMul", &[x, &weight], vec![]);
    graph.node("Add", &[&y, &bias], vec![])
}

#[test]
fn activations_are_known_by_value_and_not_by_spelling() {
    type Spelling = fn(&mut GraphBuilder, &str) -> String;
    let halved_first: Spelling = |g, x| {
        let (half, root, one) = (scalar(g, 0.5), scalar(g, std::f32::consts::FRAC_1_SQRT_2), scalar(g, 1.0));
        let h = g.node("Mul", &[x, &half], vec![]);
        let e = g.node("Mul", &[x, &root], vec![]);
        let e = g.node("Erf", &[&e], vec![]);
        let e = g.node("Add", &[&one, &e], vec![]);
        g.node("Mul", &[&h, &e], vec![])
    };
    let tanh: Spelling = |g, x| {
        let (half, three, k, c, one) = (scalar(g, 0.5), scalar(g, 3.0), scalar(g, 0.044_715), scalar(g, 0.797_884_6), scalar(g, 1.0));
        let t = g.node("Pow", &[x, &three], vec![]);
        let t = g.node("Mul", &[&t, &k], vec![]);
        let t = g.node("Add", &[x, &t], vec![]);
        let t = g.node("Mul", &[&t, &c], vec![]);
        let t = g.node("Tanh", &[&t], vec![]);
        let t = g.node("Add", &[&t, &one], vec![]);
        let t = g.node("Mul", &[x, &t], vec![]);
        g.node("Mul", &[&t, &half], vec![])
    };
    let swish: Spelling = |g, x| {
        let s = g.node("Sigmoid", &[x], vec![]);
        g.node("Mul", &[x, &s], vec![])
    };
    for (spelling, op) in [(halved_first, "BiasGelu"), (tanh, "FastGelu"), (swish, "QuickGelu")] {
        let (model, gap) = rewritten(|g, x| {
            let y = linear(g, x, 8, 8, 1);
            spelling(g, &y)
        });
        assert!(operators(&model).contains_key(op) && gap <= proof::BAR, "{op}: {:?} {gap}", operators(&model));
    }
}

#[test]
fn activation_with_other_constants_stays_as_it_is() {
    let (model, _) = rewritten(|g, x| {
        let (half, root, one) = (scalar(g, 0.5), scalar(g, 0.7), scalar(g, 1.0));
        let e = g.node("Mul", &[x, &root], vec![]);
        let e = g.node("Erf", &[&e], vec![]);
        let e = g.node("Add", &[&one, &e], vec![]);
        let e = g.node("Mul", &[x, &e], vec![]);
        g.node("Mul", &[&half, &e], vec![])
    });
    assert!(operators(&model).contains_key("Erf"));
}

fn spelled_out_norm(g: &mut GraphBuilder, x: &str, centred: bool) -> String {
    let axes = vec![attribute("axes", vec![-1i64])];
    let (two, epsilon) = (scalar(g, 2.0), scalar(g, 1e-5));
    let gamma = g.floats("gamma", &[8], &noise(8, 21));
    let beta = g.floats("beta", &[8], &noise(8, 22));
    let d = if centred {
        let mean = g.node("ReduceMean", &[x], axes.clone());
        g.node("Sub", &[x, &mean], vec![])
    } else {
        x.to_owned()
    };
    let square = g.node("Pow", &[&d, &two], vec![]);
    let variance = g.node("ReduceMean", &[&square], axes);
    let variance = g.node("Add", &[&variance, &epsilon], vec![]);
    let root = g.node("Sqrt", &[&variance], vec![]);
    let y = g.node("Div", &[&d, &root], vec![]);
    let y = g.node("Mul", &[&y, &gamma], vec![]);
    if centred { g.node("Add", &[&y, &beta], vec![]) } else { y }
}

#[test]
fn normalisations_take_the_sum_and_the_bias_before_them() {
    for (centred, op) in [(true, "SkipLayerNormalization"), (false, "SkipSimplifiedLayerNormalization")] {
        // The sum is read again, as in a decoder that normalises first.
        let (model, gap) = rewritten(|g, x| {
            let y = linear(g, x, 8, 8, 4);
            let sum = g.node("Add", &[x, &y], vec![]);
            let norm = spelled_out_norm(g, &sum, centred);
            g.node("Add", &[&sum, &norm], vec![])
        });
        let found = operators(&model);
        assert_eq!((found.get(op), found.get("Add"), model.nodes().count()), (Some(&1), Some(&1), 3), "{found:?}");
        assert!(gap <= proof::BAR, "{op}: {gap}");
        let (alone, gap) = rewritten(|g, x| spelled_out_norm(g, x, centred));
        assert_eq!(alone.nodes().count(), 1);
        assert!(gap <= proof::BAR, "{op} alone: {gap}");
    }
}

/// Attention of 2 heads over `x`, keys transposed twice and both sides scaled, with an optional mask `[5, 5]`.
fn attention(g: &mut GraphBuilder, x: &str, mask: Option<&[f32]>) -> String {
    let split = g.ints("split", &[4], &[0, 0, 2, 4]);
    let join = g.ints("join", &[3], &[0, 0, 8]);
    let perm = |p: &[i64]| vec![attribute("perm", p.to_vec())];
    let heads = |g: &mut GraphBuilder, seed| {
        let y = linear(g, x, 8, 8, seed);
        let y = g.node("Reshape", &[&y, &split], vec![]);
        g.node("Transpose", &[&y], perm(&[0, 2, 1, 3]))
    };
    let (q, k, v) = (heads(g, 31), heads(g, 33), heads(g, 35));
    let root = scalar(g, 0.5f32.sqrt());
    let k = g.node("Transpose", &[&k], perm(&[0, 1, 3, 2]));
    let (q, k) = (g.node("Mul", &[&q, &root], vec![]), g.node("Mul", &[&k, &root], vec![]));
    let mut scores = g.node("MatMul", &[&q, &k], vec![]);
    if let Some(mask) = mask {
        let mask = g.floats("mask", &[5, 5], mask);
        scores = g.node("Add", &[&scores, &mask], vec![]);
    }
    let p = g.node("Softmax", &[&scores], vec![attribute("axis", -1i64)]);
    let y = g.node("MatMul", &[&p, &v], vec![]);
    let y = g.node("Transpose", &[&y], perm(&[0, 2, 1, 3]));
    g.node("Reshape", &[&y, &join], vec![])
}

#[test]
fn attention_is_found_with_other_transposes_scales_and_masks() {
    let causal: Vec<f32> = (0..25).map(|i| if i % 5 > i / 5 { -1e9 } else { 0.0 }).collect();
    let banded: Vec<f32> = (0..25).map(|i: usize| if (i % 5).abs_diff(i / 5) > 1 { -1e9 } else { 0.0 }).collect();
    for (mask, fused) in [(None, true), (Some(causal), true), (Some(banded), false)] {
        let (model, gap) = rewritten(|g, x| attention(g, x, mask.as_deref()));
        let found = operators(&model);
        assert_eq!(found.contains_key("Attention"), fused, "{mask:?}: {found:?}");
        assert!(gap <= proof::BAR, "{mask:?}: {gap}");
    }
}
