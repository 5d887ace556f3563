//! The engine on transformers: heads by rank, feed-forward widths, fused delivery.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests fail by panicking

use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::Duration;

use pleach_domain::Tensor;
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::{Limits, Model};
use pleach_prune::{Analysis, Atlas, AtlasPlan, Criterion, Outcome, Report, Silent, Target, analyse, prune};

static RUNTIME: LazyLock<OrtRuntime> = LazyLock::new(|| {
    OrtRuntime::new(OrtOptions { library: None, threads: NonZeroUsize::MIN }).expect("ORT_DYLIB_PATH must name the ONNX Runtime library")
});
static MODEL: LazyLock<Vec<u8>> = LazyLock::new(|| fixture("model.onnx"));
static CALIBRATION: LazyLock<Dataset> = LazyLock::new(|| dataset("calibration.npz", 96));
static VALIDATION: LazyLock<Dataset> = LazyLock::new(|| dataset("validation.npz", 200));
static SETTING: LazyLock<(Analysis, Atlas)> = LazyLock::new(|| {
    let analysis = analyse(&MODEL, &CALIBRATION, Criterion::Obs, &*RUNTIME, &Silent).unwrap();
    let plan = AtlasPlan::for_model(&analysis, 1, 16).unwrap();
    let atlas = Atlas::measure(&*RUNTIME, &plan, Duration::from_millis(60)).unwrap();
    (analysis, atlas)
});

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../../tests/fixtures/spam-bert/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn dataset(name: &str, rows: usize) -> Dataset {
    Dataset::parse_npz(&fixture(name), &DatasetLimits::default()).unwrap().slice_rows(0, rows).unwrap()
}

fn half(analysis: &Analysis) -> (Vec<u8>, Report) {
    let atlas = &SETTING.1;
    let target = Target { latency_us: 0.5 * atlas.dense_latency_us(analysis).unwrap(), ..Target::default() };
    match prune(analysis, atlas, &target, &CALIBRATION, &VALIDATION, &*RUNTIME, &Silent).unwrap() {
        Outcome::Made { model, report } => (model, *report),
        Outcome::Rejected { shortfall, .. } => panic!("rejected: {shortfall}"),
    }
}

#[test]
fn an_encoder_is_halved_at_no_loss_and_delivered_in_fused_nodes() {
    let (analysis, _) = &*SETTING;
    // Of each layer heads, dims of queries and keys, dims of values, and the feed-forward width.
    let mut sizes: Vec<usize> = analysis.groups().map(|(_, size)| size).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [[4; 3], [32; 3], [32; 3], [512; 3]].concat());
    let (bytes, report) = half(analysis);
    assert!(report.predicted_latency_p50_us <= 0.5 * report.predicted_dense_latency_us * (1.0 + 1e-9));
    assert!(report.lost.estimate <= 0.01, "{:?}", report.lost);
    let model = Model::decode(&bytes, &Limits::default()).unwrap();
    let count = |op: &str| model.nodes().filter(|n| n.op_type() == op).count();
    assert!(count("Softmax") == 0 && count("LayerNormalization") == 0 && count("SkipLayerNormalization") >= 3);
    // Batch and sequence are as free as they were.
    let ids = Tensor::int64(vec![3, 17], (0..51).map(|i| 5 + i * 7 % 300).collect()).unwrap();
    let mask = Tensor::int64(vec![3, 17], vec![1; 51]).unwrap();
    let mut loaded = RUNTIME.load(&bytes, Optimization::All).unwrap();
    let outputs = loaded.run(&[("input_ids", &ids), ("attention_mask", &mask)]).unwrap();
    assert_eq!(outputs.first().map(Tensor::shape), Some(&[3, 2][..]));
}

#[test]
fn a_cached_analysis_prunes_to_the_same_bytes() {
    let (analysis, _) = &*SETTING;
    let cached = Analysis::from_bytes(&analysis.to_bytes().unwrap(), &MODEL, &CALIBRATION, &*RUNTIME, &Silent).unwrap();
    assert!(half(analysis).0 == half(&cached).0);
}
