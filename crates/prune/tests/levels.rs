//! Levels beside widths, on small graphs with a branch that is dead on the data.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests fail by panicking

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::Duration;

use pleach_domain::Tensor;
use pleach_domain::dataset::{Dataset, Targets};
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::Model;
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};
use pleach_prune::{Atlas, AtlasPlan, Criterion, Outcome, Silent, Split, Target, analyse, prune};

static RUNTIME: LazyLock<OrtRuntime> = LazyLock::new(|| {
    OrtRuntime::new(OrtOptions { library: None, threads: NonZeroUsize::MIN }).expect("ORT_DYLIB_PATH must name the ONNX Runtime library")
});
const ROWS: usize = 96;
const SIDE: usize = 16;

/// Pseudo-random numbers in -1..1 (xorshift).
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn conv(graph: &mut GraphBuilder, x: &str, inputs: usize, outputs: usize, bias: f32) -> String {
    let name = graph.free_name("w");
    let scale = (6.0 / (inputs * 9) as f32).sqrt();
    let weights: Vec<f32> = noise(outputs * inputs * 9, outputs as u64 + name.len() as u64).iter().map(|w| w * scale).collect();
    let w = graph.floats(&name, &[outputs, inputs, 3, 3], &weights);
    let b = graph.floats(&format!("{name}.bias"), &[outputs], &vec![bias; outputs]);
    graph.node("Conv", &[x, &w, &b], vec![attribute("pads", vec![1i64; 4])])
}

/// A classifier with a branch of 48 channels that is zero behind its first activation, joined as `join` says.
fn with_dead_branch(join: &str) -> Vec<u8> {
    let mut graph = GraphBuilder::new("dead branch");
    let x = graph.input("x", ElementKind::Float, &[Dim::Free("n".to_owned()), Dim::Fixed(3), Dim::Fixed(SIDE), Dim::Fixed(SIDE)]);
    let stem = conv(&mut graph, &x, 3, 32, 0.1);
    let stem = graph.node("Relu", &[&stem], vec![]);
    let inner = conv(&mut graph, &stem, 32, 48, -1e4);
    let inner = graph.node("Relu", &[&inner], vec![]);
    let branch = conv(&mut graph, &inner, 48, 32, 0.2);
    let (joined, channels) = match join {
        "Add" => (graph.node("Add", &[&stem, &branch], vec![]), 32),
        _ => (graph.node("Concat", &[&stem, &branch], vec![attribute("axis", 1i64)]), 64),
    };
    let y = graph.node("Relu", &[&joined], vec![]);
    let y = conv(&mut graph, &y, channels, 32, 0.0);
    let y = graph.node("Relu", &[&y], vec![]);
    let y = graph.node("GlobalAveragePool", &[&y], vec![]);
    let y = graph.node("Flatten", &[&y], vec![]);
    let w = graph.floats("head", &[5, 32], &noise(160, 99));
    let b = graph.floats("head.bias", &[5], &[0.0; 5]);
    let y = graph.node("Gemm", &[&y, &w, &b], vec![attribute("transB", 1i64)]);
    graph.output(&y);
    graph.build().unwrap().encode()
}

fn data() -> Dataset {
    let shape = vec![ROWS, 3, SIDE, SIDE];
    let x = Tensor::fp32(shape.clone(), noise(shape.iter().product(), 7)).unwrap();
    let labels = Targets::Labels { positions: None, classes: (0..ROWS as i64).map(|i| i % 5).collect() };
    Dataset::new(BTreeMap::from([("x".to_owned(), x)]), Some(labels)).unwrap()
}

fn run(model: &[u8], rows: usize) -> Vec<f32> {
    let x = data().inputs()["x"].slice_rows(0, rows);
    let mut loaded = RUNTIME.load(model, Optimization::All).unwrap();
    loaded.run(&[("x", &x)]).unwrap().remove(0).as_fp32().unwrap().to_vec()
}

fn dead_branch_goes(join: &str) {
    let (model, data) = (with_dead_branch(join), data());
    let analysis = analyse(&model, &data, Criterion::Obs, &*RUNTIME, &Silent).unwrap();
    let plan = AtlasPlan::for_model(&analysis, 1, 16).unwrap();
    let atlas = Atlas::measure(&*RUNTIME, &plan, Duration::from_millis(30)).unwrap();
    let latency_us = 0.8 * atlas.dense_latency_us(&analysis).unwrap();
    let target = Target { latency_us, batch: 1, ..Target::default() };
    let Outcome::Made { model: pruned, report } = prune(&analysis, &atlas, &target, &data, &data, &*RUNTIME, &Silent).unwrap() else {
        panic!("rejected");
    };
    let branch = report.widths.iter().find(|w| w.of == 48).unwrap();
    assert_eq!(branch.kept, 0, "{:?}", report.widths);
    for rows in [1, 3] {
        let (before, after) = (run(&model, rows), run(&pruned, rows));
        let scale = before.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 0.02 * scale), "{before:?} {after:?}");
    }
    let convolutions = |bytes: &[u8]| {
        let model = Model::decode(bytes, &pleach_onnx::Limits::default()).unwrap();
        model.nodes().filter(|n| n.is("Conv")).count()
    };
    assert!(convolutions(&pruned) <= convolutions(&model) - 2 + report.factored.len());
}

#[test]
fn dead_branch_behind_an_add_becomes_a_constant() {
    dead_branch_goes("Add");
}

#[test]
fn dead_branch_in_a_concat_becomes_a_constant() {
    dead_branch_goes("Concat");
}

/// A classifier whose second convolution, 3 x 3 over two rows at a time, is 3 x 1 to 16 channels and 1 x 3 from them.
fn with_separable_kernel() -> Vec<u8> {
    let mut graph = GraphBuilder::new("separable");
    let x = graph.input("x", ElementKind::Float, &[Dim::Free("n".to_owned()), Dim::Fixed(3), Dim::Fixed(SIDE), Dim::Fixed(SIDE)]);
    let y = conv(&mut graph, &x, 3, 64, 0.1);
    let y = graph.node("Relu", &[&y], vec![]);
    let (tall, wide) = (noise(16 * 64 * 3, 21), noise(64 * 16 * 3, 22));
    let at = |i: usize| {
        let (o, c, y, x) = (i / 576, i / 9 % 64, i / 3 % 3, i % 3);
        (0..16).map(|r| tall[(r * 64 + c) * 3 + y] * wide[(o * 16 + r) * 3 + x]).sum::<f32>() * 0.04
    };
    let w = graph.floats("separable", &[64, 64, 3, 3], &(0..64 * 64 * 9).map(at).collect::<Vec<_>>());
    let b = graph.floats("separable.bias", &[64], &noise(64, 23));
    let y = graph.node("Conv", &[&y, &w, &b], vec![attribute("pads", vec![1i64, 1, 1, 1]), attribute("strides", vec![2i64, 1])]);
    let y = graph.node("Relu", &[&y], vec![]);
    let y = graph.node("GlobalAveragePool", &[&y], vec![]);
    let y = graph.node("Flatten", &[&y], vec![]);
    let w = graph.floats("head", &[5, 64], &noise(320, 99));
    let b = graph.floats("head.bias", &[5], &[0.0; 5]);
    let y = graph.node("Gemm", &[&y, &w, &b], vec![attribute("transB", 1i64)]);
    graph.output(&y);
    graph.build().unwrap().encode()
}

#[test]
fn a_separable_kernel_becomes_a_tall_and_a_wide_one() {
    let (model, data) = (with_separable_kernel(), data());
    let analysis = analyse(&model, &data, Criterion::Obs, &*RUNTIME, &Silent).unwrap();
    let plan = AtlasPlan::for_model(&analysis, 1, 16).unwrap();
    let atlas = Atlas::measure(&*RUNTIME, &plan, Duration::from_millis(30)).unwrap();
    let latency_us = 0.6 * atlas.dense_latency_us(&analysis).unwrap();
    let target = Target { latency_us, batch: 1, ..Target::default() };
    let Outcome::Made { model: pruned, report } = prune(&analysis, &atlas, &target, &data, &data, &*RUNTIME, &Silent).unwrap() else {
        panic!("rejected");
    };
    assert!(matches!(report.factored.as_slice(), [only] if only.split == Split::Separable), "{:?}", report.factored);
    let (before, after) = (run(&model, 3), run(&pruned, 3));
    let scale = before.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 0.02 * scale), "{before:?} {after:?}");
}
