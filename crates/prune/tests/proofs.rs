//! Coupling, surgery and folding, proved by running: the fixture and random graphs over the operator table.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not know for tests

#[path = "proofs/forms.rs"]
mod forms;
#[path = "proofs/images.rs"]
mod images;
#[path = "proofs/sequences.rs"]
mod sequences;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use pleach_domain::Tensor;
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};
use pleach_onnx::{Limits, Model, Shapes, statistics};
use pleach_prune::coupling::{Coupling, GroupId, Keep, measure_shapes};
use pleach_prune::fold::prepare;
use pleach_prune::proof::{self, Subject};
use pleach_prune::surgery;
use pleach_prune::{Silent, fold};

fn runtime() -> OrtRuntime {
    let options = OrtOptions { library: None, threads: NonZeroUsize::MIN };
    OrtRuntime::new(options).expect("these tests run models: set ORT_DYLIB_PATH to libonnxruntime.so 1.28.0")
}

/// A model with all that the proofs need.
struct Case {
    model: Model,
    shapes: Shapes,
    coupling: Coupling,
    inputs: Vec<(String, Tensor)>,
}

impl Case {
    fn new(model: Model) -> Self {
        let shapes = measure_shapes(&model, &runtime(), &BTreeMap::new()).unwrap();
        let coupling = Coupling::find(&model, &shapes);
        let mut noise = Noise(7);
        let input = |name: String| {
            let dims = shapes.at(&name, 3).unwrap();
            let count = dims.iter().product();
            (name, Tensor::fp32(dims, noise.floats(count, 1.0)).unwrap())
        };
        let inputs = model.inputs().into_iter().map(|i| i.name).map(input).collect();
        Self { model, shapes, coupling, inputs }
    }

    fn inputs(&self) -> Vec<(&str, &Tensor)> {
        self.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }

    fn keep(&self, percent: usize) -> Keep {
        proof::random_keep(&self.coupling, percent, 3)
    }

    fn prunable(&self) -> f64 {
        let macs = self.coupling.prunable_macs(&self.model, &self.shapes);
        macs.prunable as f64 / macs.total as f64
    }

    /// Every proof, at three widths.
    fn prove(&self) {
        let (runtime, inputs) = (runtime(), self.inputs());
        assert!(proof::identity(&self.model.encode(), &self.coupling, &self.shapes).unwrap());
        let folding = proof::equality(&runtime, &self.model, &fold::fold(&self.model).unwrap(), &inputs).unwrap();
        assert!(folding <= proof::bar(&self.model), "folding: {folding:e}\n{:#?}", self.model.graph().node);
        let Self { model, coupling, shapes, .. } = self;
        let subject = Subject { runtime: &runtime, model, coupling, shapes, inputs: &inputs };
        let found = proof::prove(&subject, 11, &Silent);
        assert!(found.is_ok(), "{}\n{:#?}", found.unwrap_err(), self.model.graph().node);
        for percent in proof::WIDTHS {
            self.shapes_follow(&self.keep(percent));
        }
    }

    /// The cut model has the shapes that the coupling says.
    fn shapes_follow(&self, keep: &Keep) {
        let pruned = surgery::prune(&self.model, &self.coupling, &self.shapes, keep).unwrap();
        let shapes = measure_shapes(&pruned, &runtime(), &BTreeMap::new()).unwrap();
        for tensor in self.model.nodes().flat_map(|n| n.outputs()) {
            let dense = self.shapes.at(tensor, 2).unwrap();
            let wanted = self.coupling.lengths(tensor, &dense, keep);
            assert_eq!(shapes.at(tensor, 2).unwrap(), wanted, "`{tensor}`");
        }
    }
}

/// Proves a model as it is and as the product prepares it, and that both compute the same.
fn prove_raw_and_prepared(model: Model) {
    let prepared = Case::new(prepare(&model, &runtime(), &BTreeMap::new()).unwrap());
    let raw = Case::new(model);
    let same = proof::equality(&runtime(), &raw.model, &prepared.model, &raw.inputs()).unwrap();
    assert!(same <= proof::bar(&raw.model), "preparing: {same:e}\n{:#?}", raw.model.graph().node);
    raw.prove();
    prepared.prove();
}

fn fixture(path: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../../tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_fixture_has_a_spine_group_a_stage_and_an_inner_group_a_block() {
    let raw = Model::decode(&fixture("fm-resnet/model.onnx"), &Limits::default()).unwrap();
    for model in [raw.clone(), fold::fold(&raw).unwrap()] {
        let case = Case::new(model);
        let found: Vec<_> = case.coupling.groups.iter().map(|g| (g.size, g.producers.len(), g.consumers.len())).collect();
        let (spines, inner) = ([(24, 1, 2), (32, 3, 3), (64, 3, 3), (128, 3, 2)], |size| (size, 1, 1));
        let wanted = [spines[0], spines[1], inner(32), inner(32), spines[2], inner(64), inner(64), spines[3], inner(128), inner(128)];
        assert_eq!(found, wanted);
        let frozen: Vec<_> = case.coupling.frozen.iter().map(|f| (f.name.as_str(), f.reason.as_str())).collect();
        assert_eq!(frozen, [("/fc/Gemm", "graph output `logits`"), ("stem.weight", "graph input `input`")]);
        assert!(case.prunable() >= 0.99);
    }
}

#[test]
fn the_fixture_holds_every_proof_raw_and_folded() {
    let bytes = fixture("fm-resnet/model.onnx");
    let raw = Model::decode(&bytes, &Limits::default()).unwrap();
    let folded = fold::fold(&raw).unwrap();
    assert!(folded.nodes().all(|n| !matches!(n.op_type(), "BatchNormalization" | "Identity" | "Constant")));
    let case = Case::new(raw);
    assert!(proof::identity(&bytes, &case.coupling, &case.shapes).unwrap());
    case.prove();
    Case::new(folded).prove();
}

#[test]
fn half_the_width_is_a_quarter_of_the_work() {
    let case = Case::new(fold::fold(&Model::decode(&fixture("fm-resnet/model.onnx"), &Limits::default()).unwrap()).unwrap());
    let pruned = surgery::prune(&case.model, &case.coupling, &case.shapes, &case.keep(50)).unwrap();
    let after = statistics(&pruned, &measure_shapes(&pruned, &runtime(), &BTreeMap::new()).unwrap(), 1);
    let before = statistics(&case.model, &case.shapes, 1);
    assert_eq!(before.macs, 21_906_048);
    assert!((0.24..0.27).contains(&(after.macs as f64 / before.macs as f64)), "{} of {}", after.macs, before.macs);
    assert!(after.parameters * 3 < before.parameters && after.size_bytes * 3 < before.size_bytes);
}

/// `x` of `[batch, 4, 6, 6]`, and a conv of `channels` outputs and kernel 3 over `from`.
fn conv(graph: &mut GraphBuilder, noise: &mut Noise, from: &str, inputs: usize, channels: usize) -> String {
    let name = graph.free_name("w");
    let scale = 1.5 / ((inputs * 9) as f32).sqrt();
    let w = graph.floats(&name, &[channels, inputs, 3, 3], &noise.floats(channels * inputs * 9, scale));
    let bias = graph.floats(&format!("{name}.bias"), &[channels], &noise.floats(channels, 0.3));
    graph.node("Conv", &[from, &w, &bias], vec![attribute("pads", vec![1i64; 4])])
}

fn image(graph: &mut GraphBuilder) -> String {
    graph.input("x", ElementKind::Float, &[Dim::Free("batch".to_owned()), Dim::Fixed(4), Dim::Fixed(6), Dim::Fixed(6)])
}

#[test]
fn an_operator_without_a_rule_freezes_what_it_touches_and_nothing_else() {
    let (mut graph, mut noise) = (GraphBuilder::new("softmax"), Noise(1));
    let x = image(&mut graph);
    let a = conv(&mut graph, &mut noise, &x, 4, 6);
    let zeros = graph.ints("zeros", &[1, 6, 6, 6], &[0; 216]);
    let a = graph.node("GatherElements", &[&a, &zeros], vec![attribute("axis", 1i64)]);
    let b = conv(&mut graph, &mut noise, &a, 6, 8);
    let c = conv(&mut graph, &mut noise, &b, 8, 5);
    graph.output(&c);
    let case = Case::new(graph.build().unwrap());
    assert_eq!(case.coupling.groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), [b.as_str()]);
    let reasons: Vec<&str> = case.coupling.frozen.iter().map(|f| f.reason.as_str()).collect();
    assert!(reasons.contains(&"node `GatherElements_1` (GatherElements) has no rule for this form"), "{reasons:?}");
    case.prove();
}

#[test]
fn units_behind_a_flatten_are_runs_and_behind_a_concat_are_offset() {
    let (mut graph, mut noise) = (GraphBuilder::new("flatten"), Noise(2));
    let x = image(&mut graph);
    let a = conv(&mut graph, &mut noise, &x, 4, 3);
    let b = conv(&mut graph, &mut noise, &x, 4, 2);
    let joined = graph.node("Concat", &[&a, &b], vec![attribute("axis", 1i64)]);
    let flat = graph.node("Flatten", &[&joined], vec![]);
    let w = graph.floats("fc", &[5 * 36, 7], &noise.floats(5 * 36 * 7, 0.1));
    let y = graph.node("Gemm", &[&flat, &w], vec![]);
    graph.output(&y);
    let case = Case::new(graph.build().unwrap());
    let [first, second] = case.coupling.groups.as_slice() else { panic!("{:?}", case.coupling.groups.len()) };
    assert_eq!((first.size, second.size), (3, 2));
    assert_eq!(first.consumers[0].units.repeat(), Some(36));
    assert_eq!(second.consumers[0].units.of(1), (4 * 36..5 * 36).collect::<Vec<_>>());
    case.prove();
}

#[test]
fn each_part_of_a_concat_that_meets_a_plain_tensor_is_a_group() {
    let (mut graph, mut noise) = (GraphBuilder::new("concat and add"), Noise(3));
    let x = image(&mut graph);
    let a = conv(&mut graph, &mut noise, &x, 4, 3);
    let b = conv(&mut graph, &mut noise, &x, 4, 5);
    let c = conv(&mut graph, &mut noise, &x, 4, 8);
    let joined = graph.node("Concat", &[&a, &b], vec![attribute("axis", 1i64)]);
    let sum = graph.node("Add", &[&joined, &c], vec![]);
    let y = conv(&mut graph, &mut noise, &sum, 8, 2);
    graph.output(&y);
    let case = Case::new(graph.build().unwrap());
    let found: Vec<_> = case.coupling.groups.iter().map(|g| (g.size, g.producers.len(), g.consumers.len())).collect();
    assert_eq!(found, [(3, 2, 1), (5, 2, 1)]);
    case.prove();
}

#[test]
fn a_broadcast_over_one_channel_does_not_couple() {
    let (mut graph, mut noise) = (GraphBuilder::new("gate"), Noise(4));
    let x = image(&mut graph);
    let a = conv(&mut graph, &mut noise, &x, 4, 6);
    let gate = conv(&mut graph, &mut noise, &x, 4, 1);
    let gate = graph.node("Sigmoid", &[&gate], vec![]);
    let scaled = graph.node("Mul", &[&a, &gate], vec![]);
    let y = conv(&mut graph, &mut noise, &scaled, 6, 2);
    graph.output(&y);
    let case = Case::new(graph.build().unwrap());
    assert_eq!(case.coupling.groups.iter().map(|g| g.size).collect::<Vec<_>>(), [6]);
    case.prove();
}

#[test]
fn cuts_that_are_none_are_refused() {
    let case = Case::new(Model::decode(&fixture("fm-resnet/model.onnx"), &Limits::default()).unwrap());
    let refused = |id, kept: &[usize]| {
        let keep = Keep::from([(GroupId(id), kept.to_vec())]);
        surgery::prune(&case.model, &case.coupling, &case.shapes, &keep).unwrap_err().to_string()
    };
    assert_eq!(refused(99, &[0]), "group 99 does not exist");
    assert_eq!(refused(0, &[]), "group `/stem/Conv` of 24 units: none is kept");
    assert_eq!(refused(0, &[24]), "group `/stem/Conv` of 24 units: unit 24 does not exist");
    assert_eq!(refused(0, &[3, 1]), "group `/stem/Conv` of 24 units: kept units are not sorted, or repeat");
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
