//! What fuzzers feed: any bytes must give a typed error or a model that holds its promises, never a panic, a hang or unbounded
//! memory. Driven by `tests/fuzz.rs` in every test run and by libFuzzer from the folder `fuzz/`.

use pleach_onnx::builder::attribute;
use pleach_onnx::{AxisLength, Dim, Limits, Model, NodeId, Patch, Shapes, activation_bytes, statistics};
use pleach_prune::coupling::{Coupling, Keep};
use pleach_prune::{fold, proof, surgery};

/// Bounds of a service that expects small models.
const LIMITS: Limits = Limits {
    max_bytes: 1 << 20,
    max_external_bytes: 1 << 20,
    max_fields: 100_000,
    max_list_bytes: 1 << 22,
    max_nodes: 10_000,
    max_arity: 1000,
    max_name_bytes: 1000,
    max_rank: 8,
    max_elements: 1 << 16,
    max_depth: 8,
};

/// Decodes, reads, patches and encodes. Tells whether the bytes were a model.
pub(crate) fn decode(bytes: &[u8]) -> bool {
    let Ok(model) = Model::decode(bytes, &LIMITS) else { return false };
    assert_eq!(model.encode(), bytes, "an untouched model encodes to its bytes");
    for name in model.constants() {
        assert_eq!(model.constant_dims(name).is_some(), model.constant_type(name).is_some());
        let _ = (model.constant_dims(name), model.consumers(name));
    }
    let _ = model.inline(&LIMITS);
    if model.nodes().next().is_some() {
        let mut patch = Patch::new();
        patch.set_attribute(NodeId(0), attribute("pleach.fuzz", 1i64));
        if let Ok(patched) = model.apply(&patch) {
            let again = Model::decode(&patched.encode(), &Limits::default()).expect("what was validated decodes");
            // As text: values that are no numbers equal nothing.
            assert_eq!(format!("{:?}", again.to_proto()), format!("{:?}", patched.to_proto()), "splicing loses nothing");
        }
    }
    true
}

/// Finds groups on made-up shapes, folds and cuts. Tells whether there were any groups.
pub(crate) fn groups(bytes: &[u8]) -> bool {
    let Ok(model) = Model::decode(bytes, &LIMITS) else { return false };
    let shapes = made_up(&model);
    let coupling = Coupling::find(&model, &shapes);
    let _ = (statistics(&model, &shapes, 2), activation_bytes(&model, &shapes, 2), coupling.prunable_macs(&model, &shapes));
    let all: Keep = coupling.groups.iter().map(|g| (g.id, (0..g.size).collect())).collect();
    if let Ok(whole) = surgery::prune(&model, &coupling, &shapes, &all) {
        assert_eq!(whole.encode(), bytes, "a cut that removes nothing changes nothing");
    }
    let keep = proof::random_keep(&coupling, 50, 1);
    let _ = surgery::prune(&model, &coupling, &shapes, &keep);
    let _ = surgery::mask(&model, &coupling, &keep);
    for group in &coupling.groups {
        let order: Vec<usize> = (0..group.size).rev().collect();
        let _ = surgery::permute(&model, &coupling, group.id, &order);
    }
    let _ = fold::fold(&model);
    !coupling.groups.is_empty()
}

/// Shapes as declared; where nothing is declared, small ones that follow from the name.
fn made_up(model: &Model) -> Shapes {
    let mut shapes = Shapes::default();
    let fixed = |length: usize| AxisLength { base: length.min(4096) as i64, per_row: 0 };
    let batch = AxisLength { base: 0, per_row: 1 };
    for name in model.nodes().flat_map(|n| n.outputs()) {
        let hash = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let axes = (0..hash % 5).map(|axis| if axis == 0 { batch } else { fixed((hash >> (8 * axis)) as usize % 7) });
        shapes.insert(name, axes.collect());
    }
    for (name, dims) in model.declared().into_iter().filter_map(|info| Some((info.name, info.dims?))) {
        let axes = dims.iter().map(|dim| match dim {
            Dim::Fixed(length) => fixed(*length),
            Dim::Free(_) => batch,
        });
        shapes.insert(&name, axes.collect());
    }
    shapes
}
