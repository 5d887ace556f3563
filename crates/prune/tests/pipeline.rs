//! The engine end to end, on a trained network and the real runtime.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests fail by panicking

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use pleach_domain::Tensor;
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::Runtime;
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_prune::{
    Analysis, Atlas, AtlasPlan, Criterion, Outcome, Progress, PruneError, Report, Shortfall, Silent, Stage, Target, analyse, prune,
};

const WIDTH_STEP: usize = 16;

static RUNTIME: LazyLock<OrtRuntime> = LazyLock::new(|| {
    OrtRuntime::new(OrtOptions { library: None, threads: NonZeroUsize::MIN }).expect("ORT_DYLIB_PATH must name the ONNX Runtime library")
});
static MODEL: LazyLock<Vec<u8>> = LazyLock::new(|| fixture("fm-resnet/model.onnx"));
static CALIBRATION: LazyLock<Dataset> = LazyLock::new(|| dataset("fashion-calibration.npz"));
static VALIDATION: LazyLock<Dataset> = LazyLock::new(|| dataset("fashion-validation.npz"));
static SETTING: LazyLock<(Analysis, Atlas)> = LazyLock::new(|| {
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    let analysis = analyse(&MODEL, &CALIBRATION, Criterion::Obs, &*RUNTIME, &Silent).unwrap();
    println!("analysis {:.1} s wall, {:.1} s CPU: {:?}", wall.elapsed().as_secs_f64(), cpu_seconds() - cpu, analysis.seconds());
    let atlas = measured(&analysis);
    (analysis, atlas)
});

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn dataset(name: &str) -> Dataset {
    Dataset::parse_npz(&fixture(name), &DatasetLimits::default()).unwrap()
}

/// CPU time of this process, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn measured(analysis: &Analysis) -> Atlas {
    let plan = AtlasPlan::for_model(analysis, 1, WIDTH_STEP).unwrap();
    let bytes: usize = plan.items.iter().map(|i| i.model.model.len()).sum();
    println!("{} graphs to be timed, {bytes} bytes", plan.items.len());
    assert!(plan.items.len() <= 165 && bytes < 1_000_000);
    Atlas::measure(&*RUNTIME, &plan, Duration::from_millis(100)).unwrap()
}

fn target(latency_us: f64) -> Target {
    Target { latency_us, ..Target::default() }
}

fn run(analysis: &Analysis, atlas: &Atlas, target: &Target) -> Outcome {
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    let outcome = prune(analysis, atlas, target, &CALIBRATION, &VALIDATION, &*RUNTIME, &Silent).unwrap();
    println!("prune {:.1} s wall, {:.1} s CPU", wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    outcome
}

fn made(outcome: Outcome) -> (Vec<u8>, Report) {
    match outcome {
        Outcome::Made { model, report } => (model, *report),
        Outcome::Rejected { shortfall, .. } => panic!("rejected: {shortfall}"),
    }
}

#[test]
fn twice_as_fast_at_little_loss() {
    let (analysis, atlas) = &*SETTING;
    let dense_us = atlas.dense_latency_us(analysis).unwrap();
    let (model, report) = made(run(analysis, atlas, &target(dense_us / 2.0)));
    println!("{}", serde_json::to_string(&report).unwrap());
    assert!(report.predicted_latency_p50_us <= dense_us / 2.0);
    assert!(
        report.dense.quality.score() - report.pruned.quality.score() <= 0.015,
        "{} to {}",
        report.dense.quality.score(),
        report.pruned.quality.score()
    );
    assert!(report.pruned.latency_p50_us < 0.75 * report.dense.latency_p50_us);
    assert!(report.pruned.macs < report.dense.macs && report.pruned.parameters < report.dense.parameters);
    assert_eq!(report.pruned.size_bytes, model.len() as u64);
    assert!(
        report.front.len() >= 3 && report.front.windows(2).all(|w| w[0].latency_us < w[1].latency_us && w[0].divergence > w[1].divergence)
    );
    RUNTIME.load(&model, pleach_domain::runtime::Optimization::All).unwrap();
}

#[test]
fn ample_budget_delivers_the_dense_network() {
    let (analysis, atlas) = &*SETTING;
    let (_, report) = made(run(analysis, atlas, &target(1e9)));
    assert!(report.widths.iter().all(|w| w.kept == w.of));
    assert!((report.dense.quality.score() - report.pruned.quality.score()).abs() < 1e-3);
}

#[test]
fn impossible_budget_names_the_nearest_point() {
    let (analysis, atlas) = &*SETTING;
    let Outcome::Rejected { shortfall, nearest, .. } = run(analysis, atlas, &target(1.0)) else { panic!("made") };
    assert_eq!(shortfall, Shortfall::Latency { budget_us: 1.0, fastest_us: nearest.latency_us });
    assert!(nearest.accuracy > 0.5, "{nearest:?}");
}

#[test]
fn floor_and_size_are_kept_or_named() {
    let (analysis, atlas) = &*SETTING;
    let high = Target { min_accuracy: Some(0.99), ..target(1e9) };
    assert!(matches!(run(analysis, atlas, &high), Outcome::Rejected { shortfall: Shortfall::Accuracy { .. }, .. }));
    let small = Target { max_size_bytes: Some(1_000_000), ..target(1e9) };
    let (model, report) = made(run(analysis, atlas, &small));
    assert!(model.len() <= 1_000_000);
    assert!(report.dense.quality.score() - report.pruned.quality.score() < 0.02);
}

#[test]
fn refuses_targets_and_atlases_that_do_not_fit() {
    let (analysis, atlas) = &*SETTING;
    let refuse = |t: &Target| prune(analysis, atlas, t, &CALIBRATION, &VALIDATION, &*RUNTIME, &Silent).unwrap_err();
    assert!(matches!(refuse(&target(f64::NAN)), PruneError::Target(_)));
    assert!(matches!(refuse(&Target { batch: 2, ..target(1.0) }), PruneError::Atlas(_)));
}

#[test]
fn unfit_calibration_data_are_refused_in_words() {
    let refusal = |name: &str, shape: Vec<usize>| {
        let len = shape.iter().product();
        let inputs = BTreeMap::from([(name.to_owned(), Tensor::fp32(shape, vec![0.5; len]).unwrap())]);
        let data = Dataset::new(inputs, None).unwrap();
        let error = analyse(&MODEL, &data, Criterion::L2, &*RUNTIME, &Silent).unwrap_err();
        assert!(matches!(error, PruneError::Data { role: "calibration", .. }), "{error}");
        std::error::Error::source(&error).unwrap().to_string()
    };
    assert!(refusal("input", vec![4, 1, 32, 32]).contains("shape [4, 1, 32, 32]: expected [rows, 1, 28, 28]"));
    assert!(refusal("image", vec![4, 1, 28, 28]).contains(r#""input": missing"#));
}

#[test]
fn garbage_is_no_model() {
    let error = analyse(b"no model", &CALIBRATION, Criterion::L1, &*RUNTIME, &Silent).unwrap_err();
    assert!(matches!(error, PruneError::Model(_)), "{error}");
}

#[test]
fn few_rows_and_norms_work() {
    let few = CALIBRATION.slice_rows(0, 12).unwrap();
    let (_, atlas) = &*SETTING;
    for criterion in [Criterion::L1, Criterion::L2, Criterion::Eigen, Criterion::Obs, Criterion::Random] {
        let analysis = analyse(&MODEL, &few, criterion, &*RUNTIME, &Silent).unwrap();
        let latency_us = 0.7 * atlas.dense_latency_us(&analysis).unwrap();
        let outcome =
            prune(&analysis, atlas, &target(latency_us), &few, &VALIDATION.slice_rows(0, 500).unwrap(), &*RUNTIME, &Silent).unwrap();
        let (_, report) = made(outcome);
        println!("{criterion:?} on 12 rows: {} to {}", report.dense.quality.score(), report.pruned.quality.score());
        assert!(report.pruned.quality.score() > 0.6, "{criterion:?}: {}", report.pruned.quality.score());
    }
}

#[test]
fn same_bytes_on_one_and_two_threads() {
    let (_, atlas) = &*SETTING;
    let few = CALIBRATION.slice_rows(0, 200).unwrap();
    let on = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let analysis = analyse(&MODEL, &few, Criterion::Obs, &*RUNTIME, &Silent).unwrap();
            let latency_us = 0.5 * atlas.dense_latency_us(&analysis).unwrap();
            made(prune(&analysis, atlas, &target(latency_us), &few, &VALIDATION.slice_rows(0, 100).unwrap(), &*RUNTIME, &Silent).unwrap()).0
        })
    };
    assert!(on(1) == on(2));
}

#[test]
fn an_analysis_comes_back_from_its_bytes() {
    let (_, atlas) = &*SETTING;
    let few = CALIBRATION.slice_rows(0, 100).unwrap();
    let analysis = analyse(&MODEL, &few, Criterion::Eigen, &*RUNTIME, &Silent).unwrap();
    let bytes = analysis.to_bytes().unwrap();
    let again = Analysis::from_bytes(&bytes, &MODEL, &few, &*RUNTIME, &Silent).unwrap();
    let latency_us = 0.6 * atlas.dense_latency_us(&analysis).unwrap();
    let pruned = |a: &Analysis| {
        made(prune(a, atlas, &target(latency_us), &few, &VALIDATION.slice_rows(0, 100).unwrap(), &*RUNTIME, &Silent).unwrap()).0
    };
    assert!(pruned(&analysis) == pruned(&again));
    let refuse = |bytes: &[u8], model: &[u8], data: &Dataset| Analysis::from_bytes(bytes, model, data, &*RUNTIME, &Silent).unwrap_err();
    for end in [0, 10, 20, 2_000, bytes.len() - 4] {
        assert!(matches!(refuse(&bytes[..end], &MODEL, &few), PruneError::Cache(_)), "{end}");
    }
    assert!(matches!(refuse(&bytes, b"another model", &few), PruneError::Cache(_)));
    assert!(matches!(refuse(&bytes, &MODEL, &few.slice_rows(0, 50).unwrap()), PruneError::Cache(_)));
}

#[test]
fn cancelling_ends_the_run() {
    struct After(Stage, Mutex<Vec<Stage>>);
    impl Progress for After {
        fn report(&self, stage: Stage, fraction: f64) {
            assert!((0.0..=1.0).contains(&fraction));
            self.1.lock().unwrap().push(stage);
        }
        fn cancelled(&self) -> bool {
            self.1.lock().unwrap().contains(&self.0)
        }
    }
    let watch = After(Stage::Statistics, Mutex::new(Vec::new()));
    let few = CALIBRATION.slice_rows(0, 300).unwrap();
    let error = analyse(&MODEL, &few, Criterion::Obs, &*RUNTIME, &watch).unwrap_err();
    assert!(matches!(error, PruneError::Cancelled(Stage::Statistics | Stage::Rank)), "{error}");
}
