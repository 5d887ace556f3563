//! A deterministic fuzz run over small models: bit flips, truncations, splices and edited lengths, thousands in seconds.
//! `PLEACH_FUZZ_CASES` and `PLEACH_FUZZ_SEED` make it longer or another one. The same targets run under libFuzzer from the folder
//! `fuzz/`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not know for tests

#[path = "fuzz/targets.rs"]
mod targets;

use pleach_domain::random::SplitMix;
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
use pleach_onnx::proto::{FunctionProto, OperatorSetIdProto};
use pleach_onnx::{Limits, Model};

/// Most bytes by which mutants may raise this process's peak memory.
const MAX_GROWTH_BYTES: u64 = 192 << 20;

fn batch(dims: &[usize]) -> Vec<Dim> {
    std::iter::once(Dim::Free("n".to_owned())).chain(dims.iter().map(|&d| Dim::Fixed(d))).collect()
}

/// Convolutions with a depthwise one, a normalisation, a residual, a concatenation and a head, all shapes declared.
fn convolutions() -> Vec<u8> {
    let mut graph = GraphBuilder::new("convolutions");
    let x = graph.input("x", ElementKind::Float, &batch(&[2, 4, 4]));
    let w = graph.floats("w", &[4, 2, 1, 1], &[0.5; 8]);
    let a = graph.node("Conv", &[&x, &w], vec![attribute("kernel_shape", vec![1i64, 1])]);
    let d = graph.floats("d", &[4, 1, 3, 3], &[0.1; 36]);
    let b = graph.node("Conv", &[&a, &d], vec![attribute("group", 4i64), attribute("pads", vec![1i64; 4])]);
    let ones = graph.floats("ones", &[4], &[1.0; 4]);
    let n = graph.node("BatchNormalization", &[&b, &ones, &ones, &ones, &ones], vec![]);
    let s = graph.node("Add", &[&a, &n], vec![]);
    let c = graph.node("Concat", &[&s, &a], vec![attribute("axis", 1i64)]);
    let shape = graph.ints("shape", &[2], &[0, 128]);
    let f = graph.node("Reshape", &[&c, &shape], vec![]);
    let g = graph.floats("g", &[128, 3], &[0.1; 384]);
    let y = graph.node("Gemm", &[&f, &g], vec![]);
    graph.output_of(&y, ElementKind::Float, &batch(&[3]));
    let mut proto = graph.into_proto();
    let dims = [(a, vec![4, 4, 4]), (b, vec![4, 4, 4]), (n, vec![4, 4, 4]), (s, vec![4, 4, 4]), (c, vec![8, 4, 4]), (f, vec![128])];
    let infos = dims.iter().map(|(name, dims)| pleach_onnx::builder::value_info(name, ElementKind::Float, Some(&batch(dims))));
    proto.graph.as_mut().unwrap().value_info = infos.collect();
    Model::from_proto(proto, &Limits::default()).unwrap().encode()
}

/// Layers on a sequence, a nested graph, a function of its own and constants of every kind.
fn mixture() -> Vec<u8> {
    let mut graph = GraphBuilder::new("mixture");
    let x = graph.input("x", ElementKind::Float, &batch(&[3, 4]));
    let w = graph.node("Constant", &[], vec![attribute("value_floats", vec![0.5f32; 4])]);
    let shape = graph.ints("shape", &[2], &[4, 6]);
    let filled = graph.node("ConstantOfShape", &[&shape], vec![]);
    let scaled = graph.node("Mul", &[&x, &w], vec![]);
    let hidden = graph.node("MatMul", &[&scaled, &filled], vec![]);
    let mut call = node("Own", "own", &[&hidden], "owned", vec![attribute("alpha", 0.2f32)]);
    call.domain = Some("own".to_owned());
    graph.push(call);
    let condition = graph.node("Constant", &[], vec![attribute("value_int", 1i64)]);
    let condition = graph.node("Cast", &[&condition], vec![attribute("to", 9i64)]);
    let mut branch = GraphBuilder::new("branch");
    branch.push(node("Neg", "neg", &["owned"], "negated", vec![]));
    branch.output("negated");
    let branch = branch.into_proto().graph.unwrap();
    let y = graph.node("If", &[&condition], vec![attribute("then_branch", branch.clone()), attribute("else_branch", branch)]);
    graph.output(&y);
    let mut proto = graph.into_proto();
    proto.opset_import.push(OperatorSetIdProto { domain: Some("own".to_owned()), version: Some(1) });
    proto.functions = vec![FunctionProto {
        name: Some("Own".to_owned()),
        domain: Some("own".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![node("Relu", "r", &["a"], "t", vec![]), node("Exp", "e", &["t"], "b", vec![])],
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        ..FunctionProto::default()
    }];
    Model::from_proto(proto, &Limits::default()).unwrap().encode()
}

/// One to three changes of one kind each.
fn mutant(random: &mut SplitMix, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => bytes.truncate(at),
            3 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                let part: Vec<u8> = other[from..(from + random.below(64)).min(other.len())].to_vec();
                bytes.splice(at..(at + random.below(part.len() + 1)).min(bytes.len()), part);
            }
            4 => {
                // A number or length where there may have been one: small, huge, or not minimal.
                let numbers: [&[u8]; 6] = [&[0], &[1], &[0x7f], &[0x80, 0x80, 0x00], &[0xff, 0xff, 0xff, 0xff, 0x07], &[0xff; 9]];
                let number = numbers[random.below(numbers.len())];
                bytes.splice(at..(at + 1).min(bytes.len()), number.iter().copied());
            }
            5 => {
                let end = (at + random.below(32)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = byte.wrapping_add([1, 255, 8, 248][random.below(4)]);
                }
            }
        }
    }
    bytes
}

/// A number from the environment, or the usual one.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |value| value.parse().expect("a number"))
}

/// Most memory that this process ever had resident, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

#[test]
fn mutants_are_refused_or_keep_every_promise_in_bounded_memory() {
    let mut corpus = vec![convolutions(), mixture()];
    assert!(corpus.iter().all(|bytes| targets::decode(bytes)));
    assert!(targets::groups(&corpus[0]), "the corpus reaches the group finder");
    let before = peak_bytes();
    let (mut random, mut decoded, mut grouped) = (SplitMix(setting("PLEACH_FUZZ_SEED", 42)), 0, 0);
    for case in 0..setting("PLEACH_FUZZ_CASES", 12_000) {
        let bytes = mutant(&mut random, &corpus);
        if targets::decode(&bytes) {
            decoded += 1;
            grouped += usize::from(targets::groups(&bytes));
            // Mutants of mutants go deeper.
            if case % 50 == 0 && corpus.len() < 40 {
                corpus.push(bytes);
            }
        }
    }
    assert!(decoded > 1000 && grouped > 100, "mutants must get past the first checks: {decoded} decoded, {grouped} with groups");
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        assert!(after - before < MAX_GROWTH_BYTES, "peak memory rose by {} MB", (after - before) >> 20);
    }
}
