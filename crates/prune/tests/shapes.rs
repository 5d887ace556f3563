//! Coupling through the operators of convolutional nets, one small graph each: what is found, what stays and why, and every proof.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not know for tests

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use pleach_domain::Tensor;
use pleach_domain::runtime::Optimization;
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
use pleach_onnx::proto::{AttributeProto, NodeProto};
use pleach_onnx::{Limits, Model};
use pleach_prune::coupling::{Coupling, measure_shapes};
use pleach_prune::proof::{self, Subject};
use pleach_prune::{Silent, fold, surgery};

/// Side of the image.
const SIDE: usize = 8;

fn runtime() -> OrtRuntime {
    let options = OrtOptions { library: None, threads: NonZeroUsize::MIN };
    OrtRuntime::new(options).expect("these tests run models: set ORT_DYLIB_PATH to libonnxruntime.so 1.28.0")
}

/// Reproducible numbers in -1..1.
struct Noise(u64);

impl Noise {
    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() * scale).collect()
    }
}

/// A net over `x`, `[batch, 4, SIDE, SIDE]`.
struct Net {
    graph: GraphBuilder,
    noise: Noise,
}

impl Net {
    fn new(opset: i64) -> Self {
        let mut graph = GraphBuilder::new("net").opset(opset);
        graph.input("x", ElementKind::Float, &[Dim::Free("batch".to_owned()), Dim::Fixed(4), Dim::Fixed(SIDE), Dim::Fixed(SIDE)]);
        Self { graph, noise: Noise(9) }
    }

    /// A constant of noise around `offset`.
    fn around(&mut self, dims: &[usize], scale: f32, offset: f32) -> String {
        let values: Vec<f32> = self.noise.floats(dims.iter().product(), scale).into_iter().map(|v| v + offset).collect();
        let name = self.graph.free_name("c");
        self.graph.floats(&name, dims, &values)
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = self.graph.free_name("i");
        self.graph.ints(&name, &[values.len()], values)
    }

    fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.graph.node(op, inputs, attributes)
    }

    /// A node with several outputs.
    fn ops<const N: usize>(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> [String; N] {
        let first = self.graph.free_name(op);
        self.graph.ints(&first, &[1], &[0]); // takes the name
        let outputs: [String; N] = std::array::from_fn(|i| format!("{first}.{i}"));
        self.graph.push(NodeProto { output: outputs.to_vec(), ..node(op, &first, inputs, "", attributes) });
        outputs
    }

    /// A convolution from `inputs` to `outputs` channels in `groups`, kernel 3, rows and columns kept.
    fn grouped(&mut self, x: &str, inputs: usize, outputs: usize, groups: usize) -> String {
        let per_group = inputs / groups;
        let (w, b) = (self.around(&[outputs, per_group, 3, 3], 0.4, 0.0), self.around(&[outputs], 0.3, 0.0));
        self.op("Conv", &[x, &w, &b], vec![attribute("pads", vec![1i64; 4]), attribute("group", groups as i64)])
    }

    fn conv(&mut self, x: &str, inputs: usize, outputs: usize) -> String {
        self.grouped(x, inputs, outputs, 1)
    }

    fn relu(&mut self, x: &str) -> String {
        self.op("Relu", &[x], vec![])
    }

    fn reshape(&mut self, x: &str, target: &[i64]) -> String {
        let target = self.ints(target);
        self.op("Reshape", &[x, &target], vec![])
    }

    fn transpose(&mut self, x: &str, perm: &[i64]) -> String {
        self.op("Transpose", &[x], vec![attribute("perm", perm.to_vec())])
    }

    /// Finds the groups, proves them raw, folded and prepared, and compares sizes, and fragments of the reasons why something stays
    /// beside the graph's own inputs and outputs.
    fn check(self, output: &str, sizes: &[usize], reasons: &[&str]) {
        self.check_prepared(output, (sizes, reasons), (sizes, reasons));
    }

    /// As [`Net::check`], where more is found once the model is prepared.
    fn check_prepared(self, output: &str, raw: (&[usize], &[&str]), prepared: (&[usize], &[&str])) {
        let Self { mut graph, .. } = self;
        graph.output(output);
        let (runtime, model) = (runtime(), graph.build().unwrap());
        prove(&runtime, &model, raw);
        prove(&runtime, &fold::fold(&model).unwrap(), raw);
        let ready = fold::prepare(&model, &runtime, &BTreeMap::new()).unwrap();
        prove(&runtime, &ready, prepared);
        let x = image(3);
        let same = proof::equality(&runtime, &model, &ready, &[("x", &x)]).unwrap();
        assert!(same <= proof::BAR, "preparing: {same:e}");
    }
}

fn image(rows: usize) -> Tensor {
    Tensor::fp32(vec![rows, 4, SIDE, SIDE], Noise(7).floats(rows * 4 * SIDE * SIDE, 1.0)).unwrap()
}

fn prove(runtime: &OrtRuntime, model: &Model, (sizes, reasons): (&[usize], &[&str])) {
    let shapes = measure_shapes(model, runtime, &BTreeMap::new()).unwrap();
    let coupling = Coupling::find(model, &shapes);
    let told: Vec<&str> = coupling.frozen.iter().map(|f| f.reason.as_str()).filter(|r| !r.contains("graph ")).collect();
    assert_eq!(coupling.groups.iter().map(|g| g.size).collect::<Vec<_>>(), sizes, "{:#?}", coupling.frozen);
    assert_eq!(told.len(), reasons.len(), "{told:?}");
    for (reason, wanted) in told.iter().zip(reasons) {
        assert!(reason.contains(wanted), "{reason}: expected {wanted}");
    }
    let x = image(3);
    let subject = Subject { runtime, model, coupling: &coupling, shapes: &shapes, inputs: &[("x", &x)] };
    let found = proof::prove(&subject, 11, &Silent);
    assert!(found.is_ok(), "{}\n{:#?}", found.unwrap_err(), model.graph().node);
    for percent in proof::WIDTHS {
        let keep = proof::random_keep(&coupling, percent, 3);
        let pruned = surgery::prune(model, &coupling, &shapes, &keep).unwrap();
        let after = measure_shapes(&pruned, runtime, &BTreeMap::new()).unwrap();
        for tensor in model.nodes().flat_map(|n| n.outputs()) {
            let wanted = coupling.lengths(tensor, &shapes.at(tensor, 2).unwrap(), &keep);
            assert_eq!(after.at(tensor, 2).unwrap(), wanted, "`{tensor}`");
        }
    }
}

#[test]
fn halves_of_a_split_are_cut_apart() {
    for sizes in [Some(vec![3i64, 5]), None] {
        let mut net = Net::new(13);
        let a = net.conv("x", 4, 8);
        let [y, z] = match &sizes {
            Some(sizes) => {
                let sizes = net.ints(sizes);
                net.ops("Split", &[&a, &sizes], vec![attribute("axis", 1i64)])
            }
            None => net.ops("Split", &[&a], vec![attribute("axis", 1i64)]),
        };
        let (first, second) = if sizes.is_some() { (3, 5) } else { (4, 4) };
        let y = net.conv(&y, first, 6);
        let z = net.conv(&z, second, 6);
        let sum = net.op("Add", &[&y, &z], vec![]);
        let y = net.conv(&sum, 6, 2);
        match sizes {
            Some(_) => net.check(&y, &[3, 5, 6], &[]),
            None => net.check_prepared(&y, (&[4, 6], &[]), (&[4, 4, 6], &[])),
        }
    }
}

#[test]
fn a_split_by_attribute_follows() {
    let mut net = Net::new(11);
    let a = net.conv("x", 4, 8);
    let [y, z] = net.ops("Split", &[&a], vec![attribute("axis", -3i64), attribute("split", vec![2i64, 6])]);
    let joined = net.op("Concat", &[&z, &y, &z], vec![attribute("axis", 1i64)]);
    let y = net.conv(&joined, 14, 2);
    net.check(&y, &[2, 6], &[]);
}

#[test]
fn a_frozen_half_leaves_the_other_free() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 8);
    let sizes = net.ints(&[4, 4]);
    let [y, z] = net.ops("Split", &[&a, &sizes], vec![attribute("axis", 1i64)]);
    let y = net.op("LRN", &[&y], vec![attribute("size", 3i64)]);
    let joined = net.op("Concat", &[&y, &z], vec![attribute("axis", 1i64)]);
    let y = net.conv(&joined, 8, 2);
    net.check(&y, &[4], &["(LRN) works over it"]);
}

#[test]
fn slices_follow_by_positive_negative_and_open_bounds() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 9);
    let axes = net.ints(&[1]);
    let mut parts = Vec::new();
    for (start, end) in [(0, 3), (3, -3), (-3, i64::MAX)] {
        let (start, end) = (net.ints(&[start]), net.ints(&[end]));
        parts.push(net.op("Slice", &[&a, &start, &end, &axes], vec![]));
    }
    let joined = net.op("Concat", &[&parts[2], &parts[0], &parts[1]], vec![attribute("axis", 1i64)]);
    let y = net.conv(&joined, 9, 2);
    net.check(&y, &[3, 3, 3], &[]);
}

#[test]
fn overlapping_slices_make_three_parts() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 9);
    let axes = net.ints(&[1]);
    let bounds = [net.ints(&[0]), net.ints(&[6]), net.ints(&[3]), net.ints(&[9])];
    let y = net.op("Slice", &[&a, &bounds[0], &bounds[1], &axes], vec![]);
    let z = net.op("Slice", &[&a, &bounds[2], &bounds[3], &axes], vec![]);
    let joined = net.op("Concat", &[&y, &z], vec![attribute("axis", 1i64)]);
    let y = net.conv(&joined, 12, 2);
    net.check(&y, &[3, 3, 3], &[]);
}

#[test]
fn focus_takes_every_other_row_and_leaves_channels_alone() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 6);
    let (axes, steps, ends) = (net.ints(&[2, 3]), net.ints(&[2, 2]), net.ints(&[i64::MAX; 2]));
    let mut parts = Vec::new();
    for starts in [[0, 0], [1, 0], [0, 1], [1, 1]] {
        let starts = net.ints(&starts);
        parts.push(net.op("Slice", &[&a, &starts, &ends, &axes, &steps], vec![]));
    }
    let joined = net.op("Concat", &parts.iter().map(String::as_str).collect::<Vec<_>>(), vec![attribute("axis", 1i64)]);
    let y = net.conv(&joined, 24, 2);
    net.check(&y, &[6], &[]);
}

#[test]
fn a_gather_of_channels_is_counted_anew() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 6);
    let order = net.ints(&[5, 3, -6, 1, 2, 4, 3]);
    let b = net.op("Gather", &[&a, &order], vec![attribute("axis", 1i64)]);
    let y = net.conv(&b, 7, 2);
    net.check(&y, &[5], &["it has a single channel"]);
}

#[test]
fn a_gather_of_one_channel_keeps_them_all() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 6);
    let one = net.graph.ints("one", &[], &[2]);
    let b = net.op("Gather", &[&a, &one], vec![attribute("axis", 1i64)]);
    net.check(&b, &[], &["takes one index of it"]);
}

#[test]
fn groups_of_a_convolution_lose_whole_groups_and_the_same_channels() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 12);
    let b = net.grouped(&a, 12, 8, 4);
    let y = net.conv(&b, 8, 2);
    net.check(&y, &[4, 3, 2], &[]);
}

#[test]
fn a_shuffle_between_grouped_convolutions_follows() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 8);
    let a = net.grouped(&a, 8, 16, 4);
    let cut = net.reshape(&a, &[-1, 4, 4, SIDE as i64, SIDE as i64]);
    let turned = net.transpose(&cut, &[0, 2, 1, 3, 4]);
    let shuffled = net.reshape(&turned, &[-1, 16, SIDE as i64, SIDE as i64]);
    let b = net.grouped(&shuffled, 16, 16, 4);
    let y = net.conv(&b, 16, 2);
    net.check(&y, &[4, 2, 4, 4], &[]);
}

#[test]
fn a_depthwise_convolution_with_a_multiplier_passes_channels() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let b = net.grouped(&a, 6, 12, 6);
    let y = net.conv(&b, 12, 2);
    net.check(&y, &[6], &[]);
}

#[test]
fn transposed_convolutions_make_read_and_pass_channels() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let strides = || attribute("strides", vec![2i64, 2]);
    let (w, bias) = (net.around(&[6, 8, 2, 2], 0.4, 0.0), net.around(&[8], 0.3, 0.0));
    let b = net.op("ConvTranspose", &[&a, &w, &bias], vec![strides()]);
    let w = net.around(&[8, 1, 2, 2], 0.4, 0.0);
    let c = net.op("ConvTranspose", &[&b, &w], vec![strides(), attribute("group", 8i64)]);
    let w = net.around(&[8, 3, 2, 2], 0.4, 0.0);
    let d = net.op("ConvTranspose", &[&c, &w], vec![attribute("group", 2i64)]);
    let y = net.conv(&d, 6, 2);
    net.check(&y, &[6, 2, 4, 3], &[]);
}

/// Computes the sizes that a Resize wants from the input's own, as exporters do.
fn doubled(net: &mut Net, x: &str) -> String {
    let shape = net.op("Shape", &[x], vec![]);
    let (zero, two, four) = (net.ints(&[0]), net.ints(&[2]), net.ints(&[4]));
    let own = net.op("Slice", &[&shape, &zero, &two], vec![]);
    let space = net.op("Slice", &[&shape, &two, &four], vec![]);
    let twice = net.op("Mul", &[&space, &two], vec![]);
    net.op("Concat", &[&own, &twice], vec![attribute("axis", 0i64)])
}

#[test]
fn resized_channels_pass_by_scales_and_by_sizes() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 6);
    let scales = net.graph.floats("scales", &[4], &[1.0, 1.0, 0.5, 1.5]);
    let b = net.op("Resize", &[&a, "", &scales], vec![attribute("mode", "linear")]);
    let b = net.conv(&b, 6, 5);
    let sizes = doubled(&mut net, &b);
    let c = net.op("Resize", &[&b, "", "", &sizes], vec![attribute("mode", "nearest")]);
    let y = net.conv(&c, 5, 2);
    net.check(&y, &[6, 5], &[]);
}

#[test]
fn sizes_of_two_axes_follow_without_the_others() {
    let mut net = Net::new(18);
    let a = net.conv("x", 4, 6);
    let sizes = net.ints(&[16, 12]);
    let b = net.op("Resize", &[&a, "", "", &sizes], vec![attribute("mode", "nearest"), attribute("axes", vec![2i64, 3])]);
    let y = net.conv(&b, 6, 2);
    net.check(&y, &[6], &[]);
}

#[test]
fn an_upsample_of_old_opsets_passes() {
    let mut net = Net::new(9);
    let a = net.conv("x", 4, 6);
    let scales = net.graph.floats("scales", &[4], &[1.0, 1.0, 2.0, 2.0]);
    let b = net.op("Upsample", &[&a, &scales], vec![attribute("mode", "nearest")]);
    let y = net.conv(&b, 6, 2);
    net.check(&y, &[6], &[]);
}

#[test]
fn padding_of_rows_passes_and_of_channels_adds_indices_that_stay() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let pads = net.ints(&[0, 0, 1, 1, 0, 0, 1, 1]);
    let a = net.op("Pad", &[&a, &pads], vec![attribute("mode", "reflect")]);
    let pads = net.ints(&[0, 2, 0, 0, 0, 3, 0, 0]);
    let b = net.op("Pad", &[&a, &pads], vec![]);
    let y = net.conv(&b, 11, 2);
    net.check(&y, &[6], &[]);
}

#[test]
fn depth_to_space_keeps_what_moves_and_passes_the_rest() {
    for mode in ["DCR", "CRD"] {
        let mut net = Net::new(13);
        let a = net.conv("x", 4, 20);
        let b = net.op("DepthToSpace", &[&a], vec![attribute("blocksize", 2i64), attribute("mode", mode)]);
        let b = net.conv(&b, 5, 3);
        let c = net.op("SpaceToDepth", &[&b], vec![attribute("blocksize", 2i64)]);
        let y = net.conv(&c, 12, 2);
        net.check(&y, &[5, 3], &["moves it into rows and columns"]);
    }
}

#[test]
fn instances_are_normalised_by_channel() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let (scale, bias) = (net.around(&[6], 0.3, 1.0), net.around(&[6], 0.3, 0.0));
    let b = net.op("InstanceNormalization", &[&a, &scale, &bias], vec![]);
    let y = net.conv(&b, 6, 2);
    net.check(&y, &[6], &[]);
}

#[test]
fn groups_that_are_normalised_go_as_a_whole() {
    let mut net = Net::new(21);
    let a = net.conv("x", 4, 12);
    let (scale, bias) = (net.around(&[12], 0.3, 1.0), net.around(&[12], 0.3, 0.0));
    let b = net.op("GroupNormalization", &[&a, &scale, &bias], vec![attribute("num_groups", 4i64)]);
    let y = net.conv(&b, 12, 2);
    net.check(&y, &[4], &["works over it"]);
}

#[test]
fn groups_normalised_in_pieces_go_as_a_whole() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 12);
    let cut = net.reshape(&a, &[0, 4, -1]);
    let (one, zero) = (net.around(&[4], 0.0, 1.0), net.around(&[4], 0.0, 0.0));
    let normal = net.op("InstanceNormalization", &[&cut, &one, &zero], vec![]);
    let b = net.reshape(&normal, &[-1, 12, SIDE as i64, SIDE as i64]);
    let scale = net.around(&[12, 1, 1], 0.3, 1.0);
    let b = net.op("Mul", &[&b, &scale], vec![]);
    let y = net.conv(&b, 12, 2);
    net.check(&y, &[4], &["works over it"]);
}

#[test]
fn normalisation_written_as_arithmetic_slices_its_constants() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let mut b = a;
    for (op, dims, around) in
        [("Sub", vec![1, 6, 1, 1], 0.0), ("Mul", vec![6, 1, 1], 1.0), ("Add", vec![1, 6, 1, 1], 0.0), ("Div", vec![6, 1, 1], 2.0)]
    {
        let constant = net.around(&dims, 0.3, around);
        b = net.op(op, &[&b, &constant], vec![]);
    }
    let slope = net.around(&[6, 1, 1], 0.3, 0.2);
    let b = net.op("PRelu", &[&b, &slope], vec![]);
    let y = net.conv(&b, 6, 2);
    net.check(&y, &[6], &[]);
}

#[test]
fn squeeze_and_excite_gates_its_own_channels() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let pooled = net.op("GlobalAveragePool", &[&a], vec![]);
    let w = net.around(&[3, 6, 1, 1], 0.5, 0.0);
    let squeezed = net.op("Conv", &[&pooled, &w], vec![]);
    let squeezed = net.relu(&squeezed);
    let w = net.around(&[6, 3, 1, 1], 0.5, 0.0);
    let gate = net.op("Conv", &[&squeezed, &w], vec![]);
    let gate = net.op("HardSigmoid", &[&gate], vec![]);
    let b = net.op("Mul", &[&a, &gate], vec![]);
    let y = net.conv(&b, 6, 2);
    net.check(&y, &[6, 3], &[]);
}

#[test]
fn activations_written_out_pass() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let (three, six, half) = (net.around(&[], 0.0, 3.0), net.around(&[], 0.0, 6.0), net.around(&[], 0.0, 0.5));
    let (low, one) = (net.around(&[], 0.0, 0.0), net.around(&[], 0.0, 1.0));
    let b = net.op("Add", &[&a, &three], vec![]);
    let b = net.op("Clip", &[&b, &low, &six], vec![]);
    let b = net.op("Div", &[&b, &six], vec![]);
    let swish = net.op("Mul", &[&a, &b], vec![]);
    let c = net.conv(&swish, 6, 5);
    let e = net.op("Erf", &[&c], vec![]);
    let e = net.op("Add", &[&e, &one], vec![]);
    let e = net.op("Mul", &[&c, &e], vec![]);
    let gelu = net.op("Mul", &[&e, &half], vec![]);
    let y = net.conv(&gelu, 5, 2);
    net.check(&y, &[6, 5], &[]);
}

#[test]
fn channels_behind_transposes_are_the_same_channels() {
    let mut net = Net::new(17);
    let turned = net.transpose("x", &[0, 2, 3, 1]);
    let back = net.transpose(&turned, &[0, 3, 1, 2]);
    let a = net.conv(&back, 4, 6);
    let a = net.transpose(&a, &[0, 2, 3, 1]);
    let bias = net.around(&[6], 0.3, 0.0);
    let a = net.op("Add", &[&a, &bias], vec![]);
    let w = net.around(&[6, 5], 0.5, 0.0);
    let b = net.op("MatMul", &[&a, &w], vec![]);
    let b = net.transpose(&b, &[0, 3, 1, 2]);
    let y = net.conv(&b, 5, 2);
    net.check(&y, &[6, 5], &[]);
}

#[test]
fn where_cast_tile_and_expand_pass() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let zero = net.around(&[], 0.0, 0.0);
    let mask = net.op("Greater", &[&a, &zero], vec![]);
    let other = net.around(&[1, 6, 1, 1], 0.3, 0.0);
    let chosen = net.op("Where", &[&mask, &a, &other], vec![]);
    let numbers = net.op("Cast", &[&mask], vec![attribute("to", 1i64)]);
    let sum = net.op("Add", &[&chosen, &numbers], vec![]);
    let repeats = net.ints(&[1, 2, 1, 1]);
    let tiled = net.op("Tile", &[&sum, &repeats], vec![]);
    let w = net.around(&[1, 12, 1, 1], 0.5, 0.0);
    let gate = net.op("Conv", &[&tiled, &w], vec![]);
    let shape = net.ints(&[1, 12, 1, 1]);
    let wide = net.op("Expand", &[&gate, &shape], vec![]);
    let b = net.op("Mul", &[&tiled, &wide], vec![]);
    let y = net.conv(&b, 12, 2);
    net.check(&y, &[6], &["it has a single channel"]);
}

#[test]
fn reductions_over_channels_keep_them_and_over_space_do_not() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let mean = net.op("ReduceMean", &[&a], vec![attribute("axes", vec![2i64, 3])]);
    let a = net.op("Sub", &[&a, &mean], vec![]);
    let b = net.conv(&a, 6, 5);
    let most = net.op("ReduceMax", &[&b], vec![attribute("axes", vec![1i64])]);
    let b = net.op("Sub", &[&b, &most], vec![]);
    let y = net.conv(&b, 5, 2);
    net.check(&y, &[6], &["(ReduceMax) reduces over it"]);
}

#[test]
fn searches_keep_the_axis_they_search() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let k = net.ints(&[3]);
    let [best, _] = net.ops("TopK", &[&a, &k], vec![attribute("axis", 3i64)]);
    let w = net.around(&[5, 6, 1, 1], 0.5, 0.0);
    let b = net.op("Conv", &[&best, &w], vec![]);
    let axis = net.graph.ints("axis", &[], &[1]);
    let b = net.op("CumSum", &[&b, &axis], vec![]);
    let y = net.conv(&b, 5, 2);
    net.check(&y, &[6], &["(CumSum) works over it"]);
}

#[test]
fn a_length_that_is_computed_with_keeps_its_axis_and_one_that_follows_does_not() {
    let mut net = Net::new(17);
    let a = net.conv("x", 4, 6);
    let shape = net.op("Shape", &[&a], vec![]);
    let zeros = net.op("ConstantOfShape", &[&shape], vec![]);
    let a = net.op("Add", &[&a, &zeros], vec![]);
    let b = net.conv(&a, 6, 5);
    let shape = net.op("Shape", &[&b], vec![]);
    let one = net.graph.ints("one", &[], &[1]);
    let channels = net.op("Gather", &[&shape, &one], vec![]);
    let channels = net.op("Cast", &[&channels], vec![attribute("to", 1i64)]);
    let scale = net.op("Sqrt", &[&channels], vec![]);
    let b = net.op("Div", &[&b, &scale], vec![]);
    let y = net.conv(&b, 5, 2);
    net.check_prepared(&y, (&[6], &["(Div) computes with its length"]), (&[6, 5], &[]));
}

/// Share of the work that can shrink in a prepared fixture, after its proofs.
fn prunable(path: &str) -> f64 {
    let bytes = std::fs::read(format!("{}/../../tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (runtime, raw) = (runtime(), Model::decode(&bytes, &Limits::default()).unwrap());
    let model = fold::prepare(&raw, &runtime, &BTreeMap::new()).unwrap();
    let shapes = measure_shapes(&model, &runtime, &BTreeMap::new()).unwrap();
    let coupling = Coupling::find(&model, &shapes);
    let input = model.inputs().remove(0).name;
    let dims = shapes.at(&input, 2).unwrap();
    let x = Tensor::fp32(dims.clone(), Noise(7).floats(dims.iter().product(), 1.0)).unwrap();
    let inputs = [(input.as_str(), &x)];
    let subject = Subject { runtime: &runtime, model: &model, coupling: &coupling, shapes: &shapes, inputs: &inputs };
    let found = proof::prove(&subject, 11, &Silent);
    assert!(found.is_ok(), "{path}: {}", found.unwrap_err());
    let same = proof::equality(&runtime, &raw, &model, &inputs).unwrap();
    assert!(same <= proof::BAR, "preparing {path}: {same:e}");
    let macs = coupling.prunable_macs(&model, &shapes);
    macs.prunable as f64 / macs.total as f64
}

#[test]
fn every_file_of_the_classifiers_is_prunable() {
    let files = ["fm-resnet/model", "fm-resnet/model_folded", "fm-resnet/model_dynamo", "fm-vgg/model", "fm-vgg/model_folded"];
    for file in files.into_iter().chain(["fm-mbv2/model", "fm-mbv2/model_folded"]) {
        let share = prunable(&format!("{file}.onnx"));
        assert!(share >= 0.99, "{file}: {share}");
    }
}

#[test]
fn every_file_of_the_detector_is_prunable() {
    for file in ["model", "model_folded", "model_dynamo", "model_chunk"] {
        let share = prunable(&format!("fm-yolo/{file}.onnx"));
        assert!(share >= 0.95, "{file}: {share}");
    }
}

#[test]
fn a_large_weight_behind_a_transpose_keeps_its_values() {
    let mut net = Net::new(13);
    let x = net.op("Flatten", &["x"], vec![]);
    let (stored, out) = (net.around(&[48, 4 * SIDE * SIDE], 0.1, 0.0), net.around(&[48, 3], 0.3, 0.0));
    let weight = net.transpose(&stored, &[1, 0]);
    let hidden = net.op("MatMul", &[&x, &weight], vec![]);
    let hidden = net.relu(&hidden);
    let y = net.op("MatMul", &[&hidden, &out], vec![]);
    net.graph.output(&y);
    let (runtime, model) = (runtime(), net.graph.build().unwrap());
    let ready = fold::prepare(&model, &runtime, &BTreeMap::new()).unwrap();
    assert!(proof::equality(&runtime, &model, &ready, &[("x", &image(3))]).unwrap() <= proof::BAR);
    prove(&runtime, &ready, (&[48], &[]));
}

#[test]
fn a_table_that_layers_make_of_constants_keeps_its_values() {
    let mut net = Net::new(13);
    let a = net.conv("x", 4, 6);
    // A small network over coordinates gives a bias by place.
    let (places, first, second) =
        (net.around(&[SIDE * SIDE, 80], 1.0, 0.0), net.around(&[80, 96], 0.3, 0.0), net.around(&[96, 64], 0.3, 0.0));
    let hidden = net.op("MatMul", &[&places, &first], vec![]);
    let hidden = net.relu(&hidden);
    let table = net.op("MatMul", &[&hidden, &second], vec![]);
    let table = net.op("ReduceMean", &[&table], vec![attribute("axes", vec![1i64]), attribute("keepdims", 0i64)]);
    let table = net.reshape(&table, &[SIDE as i64, SIDE as i64]);
    let b = net.op("Add", &[&a, &table], vec![]);
    let y = net.conv(&b, 6, 2);
    net.graph.output(&y);
    let (runtime, model) = (runtime(), net.graph.build().unwrap());
    let ready = fold::prepare(&model, &runtime, &BTreeMap::new()).unwrap();
    assert!(ready.nodes().count() < model.nodes().count(), "nothing was settled");
    assert!(proof::equality(&runtime, &model, &ready, &[("x", &image(3))]).unwrap() <= proof::BAR);
    prove(&runtime, &ready, (&[6], &[]));
}

#[test]
fn a_bias_that_was_stored_once_couples_nothing() {
    let mut net = Net::new(17);
    let bias = net.around(&[6], 0.3, 0.0);
    let mut x = "x".to_owned();
    for inputs in [4, 6, 6] {
        let w = net.around(&[6, inputs, 3, 3], 0.4, 0.0);
        x = net.op("Conv", &[&x, &w, &bias], vec![attribute("pads", vec![1i64; 4])]);
        x = net.relu(&x);
    }
    let x = net.op("LRN", &[&x], vec![attribute("size", 3i64)]);
    let y = net.conv(&x, 6, 2);
    net.graph.output(&y);
    let (runtime, model) = (runtime(), net.graph.build().unwrap());
    prove(&runtime, &model, (&[], &["(LRN) works over it"]));
    let ready = fold::prepare(&model, &runtime, &BTreeMap::new()).unwrap();
    prove(&runtime, &ready, (&[6, 6], &["(LRN) works over it"]));
}

#[test]
fn a_choice_between_equals_is_proved_by_what_it_is_made_from() {
    let mut net = Net::new(13);
    // Twice the same network, so that every score has an equal: which of them comes first is for rounding to say.
    let (first, second) = (Noise(5).floats(16 * 4 * 9, 0.4), Noise(6).floats(2 * 16 * 9, 0.4));
    let mut scores = Vec::new();
    for copy in ["a", "b"] {
        let w = net.graph.floats(&format!("{copy}.first"), &[16, 4, 3, 3], &first);
        let hidden = net.op("Conv", &["x", &w], vec![attribute("pads", vec![1i64; 4])]);
        let hidden = net.relu(&hidden);
        let w = net.graph.floats(&format!("{copy}.second"), &[2, 16, 3, 3], &second);
        scores.push(net.op("Conv", &[&hidden, &w], vec![attribute("pads", vec![1i64; 4])]));
    }
    let twice = net.op("Concat", &[&scores[0], &scores[1]], vec![attribute("axis", 1i64)]);
    let flat = net.reshape(&twice, &[0, -1]);
    let count = net.ints(&[9]);
    let [values, places] = net.ops("TopK", &[&flat, &count], vec![attribute("axis", 1i64)]);
    net.graph.output(&values);
    net.graph.output_of(&places, ElementKind::Int64, &[Dim::Free("batch".to_owned()), Dim::Fixed(9)]);
    let (runtime, model) = (runtime(), net.graph.build().unwrap());
    let ready = fold::prepare(&model, &runtime, &BTreeMap::new()).unwrap();
    let shapes = measure_shapes(&ready, &runtime, &BTreeMap::new()).unwrap();
    let coupling = Coupling::find(&ready, &shapes);
    assert_eq!(coupling.groups.iter().map(|g| g.size).collect::<Vec<_>>(), [16, 16]);
    let x = image(3);
    let subject = Subject { runtime: &runtime, model: &ready, coupling: &coupling, shapes: &shapes, inputs: &[("x", &x)] };
    let by_outputs = proof::permutation(&subject, 11).unwrap();
    assert!(by_outputs.is_infinite(), "nothing changed places: {by_outputs:e}");
    proof::prove(&subject, 11, &Silent).unwrap();
}

#[test]
fn shapes_are_measured_without_the_work_of_layers() {
    for opset in [9, 17] {
        let mut net = Net::new(opset);
        let a = net.conv("x", 4, 40);
        let a = net.grouped(&a, 40, 80, 4);
        let (up, dense) = (net.around(&[80, 32, 2, 2], 0.1, 0.0), net.around(&[20, 32 * 4 * SIDE * SIDE], 0.1, 0.0));
        let a = net.op("ConvTranspose", &[&a, &up], vec![attribute("strides", vec![2i64, 2])]);
        let a = net.op("Flatten", &[&a], vec![]);
        let bias = net.around(&[20], 0.1, 0.0);
        let y = net.op("Gemm", &[&a, &dense, &bias], vec![attribute("transB", 1i64)]);
        net.graph.output(&y);
        let (runtime, model) = (runtime(), net.graph.build().unwrap());
        let probe = pleach_onnx::ShapeProbe::new(&model).unwrap().model;
        assert!(probe.encode().len() < 30_000, "the probe carries weights: {} bytes", probe.encode().len());
        let shapes = measure_shapes(&model, &runtime, &BTreeMap::new()).unwrap();
        let outputs = model.nodes().filter_map(|n| shapes.at(n.output(0)?, 5)).collect::<Vec<_>>();
        let wanted = [vec![5, 40, 8, 8], vec![5, 80, 8, 8], vec![5, 32, 16, 16], vec![5, 32 * 256], vec![5, 20]];
        assert_eq!(outputs, wanted, "opset {opset}");
    }
}

/// Operators of the graph that ONNX Runtime makes of a model, counted.
fn operators(model: &Model) -> BTreeMap<String, usize> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimised.onnx");
    runtime().write_optimized(&model.encode(), Optimization::Extended, &path).unwrap();
    let mut operators = BTreeMap::new();
    for node in Model::decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap().nodes() {
        *operators.entry(node.op_type().to_owned()).or_default() += 1;
    }
    operators
}

#[test]
fn what_the_runtime_fused_it_fuses_after_a_cut() {
    for (file, fused) in [("fm-resnet", "FusedConv"), ("fm-yolo", "QuickGelu")] {
        let bytes = std::fs::read(format!("{}/../../tests/fixtures/{file}/model.onnx", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let model = fold::prepare(&Model::decode(&bytes, &Limits::default()).unwrap(), &runtime(), &BTreeMap::new()).unwrap();
        let shapes = measure_shapes(&model, &runtime(), &BTreeMap::new()).unwrap();
        let coupling = Coupling::find(&model, &shapes);
        let pruned = surgery::prune(&model, &coupling, &shapes, &proof::random_keep(&coupling, 50, 3)).unwrap();
        let before = operators(&model);
        assert!(before.contains_key(fused), "{before:?}");
        assert_eq!(operators(&pruned), before, "{file}");
    }
}
