//! Runs the real library on real and on broken models. `ORT_DYLIB_PATH` must name libonnxruntime.so.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may fail by panicking

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::{LoadedModel, Optimization, Runtime, TimedModel};
use pleach_domain::{ElementType, Tensor};
use pleach_inference::{InferenceError, OrtOptions, OrtRuntime, measure_kernels, standard_kernels, width_step};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder};
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::proto::type_proto::Value;
use pleach_onnx::{Limits, Model};

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn runtime(threads: usize) -> OrtRuntime {
    let threads = NonZeroUsize::new(threads).unwrap();
    OrtRuntime::new(OrtOptions { library: None, threads }).unwrap_or_else(|e| panic!("{e}"))
}

fn resnet(optimization: Optimization) -> Box<dyn LoadedModel> {
    runtime(1).load(&fixture("fm-resnet/model.onnx"), optimization).unwrap()
}

fn validation(rows: usize) -> Dataset {
    let data = Dataset::parse_npz(&fixture("fashion-validation.npz"), &DatasetLimits::default()).unwrap();
    data.slice_rows(0, rows).unwrap()
}

fn refusal(model: &mut dyn LoadedModel, name: &str, input: &Tensor) -> InferenceError {
    *model.run(&[(name, input)]).unwrap_err().downcast::<InferenceError>().unwrap()
}

#[test]
fn classifies_validation_images_as_trained() {
    let data = validation(64);
    let images = &data.inputs()["input"];
    let mut answers = Vec::new();
    for optimization in [Optimization::All, Optimization::Disabled] {
        let mut model = resnet(optimization);
        assert_eq!(model.inputs()[0].shape, [None, Some(1), Some(28), Some(28)]);
        let outputs = model.run(&[("input", images)]).unwrap();
        assert_eq!(outputs[0].shape(), [64, 10]);
        let logits = outputs[0].as_fp32().unwrap();
        let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i as i64).unwrap();
        let hits = logits.chunks(10).zip(data.labels().unwrap()).filter(|(row, label)| best(row) == **label).count();
        assert!(hits as f64 / 64.0 > 0.85, "{hits} of 64");
        answers.push(logits.to_vec());
    }
    let apart = answers[0].iter().zip(&answers[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-3, "optimised and plain answers differ by {apart}");
}

#[test]
fn refuses_wrong_names_types_and_shapes_in_words() {
    let mut model = resnet(Optimization::All);
    let image = Tensor::fp32(vec![1, 1, 28, 28], vec![0.0; 784]).unwrap();
    let error = refusal(&mut *model, "image", &image);
    assert_eq!(error.to_string(), r#"input "image" is not one of the model: expected ["input"]"#);
    let error = *model.run(&[]).unwrap_err().downcast::<InferenceError>().unwrap();
    assert_eq!(error.to_string(), r#"input "input" is missing: the model takes ["input"]"#);
    let integers = Tensor::int64(vec![1, 1, 28, 28], vec![0; 784]).unwrap();
    assert_eq!(refusal(&mut *model, "input", &integers).to_string(), r#"input "input" has type INT64: expected FP32"#);
    let flat = Tensor::fp32(vec![1, 784], vec![0.0; 784]).unwrap();
    let error = refusal(&mut *model, "input", &flat);
    assert_eq!(error.to_string(), r#"input "input" has shape [1, 784]: expected [?, 1, 28, 28]"#);
    assert!(model.run(&[("input", &image)]).is_ok());
}

#[test]
fn half_precision_crosses_as_single_precision() {
    let mut graph = GraphBuilder::new("half");
    let x = graph.input("x", ElementKind::Float, &[Dim::Fixed(3)]);
    let y = graph.node("Neg", &[&x], vec![]);
    graph.output(&y);
    let mut proto = graph.build().unwrap().to_proto();
    let graph = proto.graph.as_mut().unwrap();
    for port in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(Value::TensorType(tensor)) = port.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            tensor.elem_type = Some(DataType::Float16.into());
        }
    }
    let model = Model::from_proto(proto, &Limits::default()).unwrap();
    let mut loaded = runtime(1).load(&model.encode(), Optimization::All).unwrap();
    assert_eq!(loaded.inputs()[0].element_type, ElementType::Fp32);
    let x = Tensor::fp32(vec![3], vec![1.0, -0.1, 65504.0]).unwrap();
    let y = loaded.run(&[("x", &x)]).unwrap();
    assert_eq!(y[0].as_fp32().unwrap(), [-1.0, 0.099_975_586, -65504.0], "rounded to eleven bits");
}

#[test]
fn refuses_garbage_truncated_and_empty_models() {
    let good = fixture("fm-resnet/model.onnx");
    for bytes in [&b"this is no model"[..], &good[..good.len() / 2], &[]] {
        let Err(error) = runtime(1).load(bytes, Optimization::All) else { panic!("accepted {} bytes", bytes.len()) };
        let error = error.downcast::<InferenceError>().unwrap();
        assert!(matches!(*error, InferenceError::ModelRefused { bytes: n, .. } if n == bytes.len()), "{error}");
    }
}

#[test]
fn runtimes_share_the_library_and_refuse_another() {
    let (one, two) = (runtime(1), runtime(2));
    assert_eq!((one.library(), one.threads(), two.threads()), (two.library(), 1, 2));
    assert!(one.version().starts_with("1."), "{}", one.version());
    let other = tempfile::NamedTempFile::new().unwrap();
    let options = OrtOptions { library: Some(other.path().into()), threads: NonZeroUsize::MIN };
    assert!(matches!(OrtRuntime::new(options), Err(InferenceError::LibraryConflict { .. })));
}

#[test]
fn missing_library_says_what_to_set() {
    let options = OrtOptions { library: Some(PathBuf::from("/nonexistent/libonnxruntime.so")), threads: NonZeroUsize::MIN };
    let error = OrtRuntime::new(options).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/libonnxruntime.so") && error.contains("set ORT_DYLIB_PATH or --onnxruntime"), "{error}");
}

#[test]
fn times_models_side_by_side() {
    let model = fixture("fm-resnet/model.onnx");
    let timed = |rows: usize| TimedModel {
        model: model.clone(),
        inputs: vec![("input".to_owned(), Tensor::fp32(vec![rows, 1, 28, 28], vec![0.5; rows * 784]).unwrap())],
    };
    let timings = runtime(1).time(&[timed(1), timed(8)], Duration::from_millis(80)).unwrap();
    let (one, eight) = (timings[0], timings[1]);
    for t in [one, eight] {
        assert!(t.min_us > 0.0 && t.min_us <= t.p50_us && t.p50_us <= t.p95_us && t.mean_us >= t.min_us && t.calls >= 2, "{t:?}");
    }
    assert!(eight.mean_us > 2.0 * one.mean_us, "{one:?} {eight:?}");
    let bad = TimedModel { inputs: Vec::new(), ..timed(1) };
    let error = runtime(1).time(&[timed(1), bad], Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.to_string(), "model 1 of 2 cannot be timed");
}

#[test]
fn measures_every_standard_kernel() {
    let kernels = measure_kernels(&runtime(1), Duration::ZERO).unwrap();
    assert_eq!(kernels.len(), standard_kernels().unwrap().len());
    assert!(kernels.iter().all(|k| k.timing.mean_us > 0.0 && k.timing.calls > 0), "{kernels:?}");
    let step = width_step(&kernels);
    assert!([1, 4, 8, 16, 32].contains(&step), "{step}");
}

#[test]
fn opens_no_network_socket() {
    let sockets = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| std::fs::read_link(e.ok()?.path()).ok());
        let inodes: BTreeSet<_> = links.filter(|l| l.to_string_lossy().starts_with("socket:")).collect();
        inodes
    };
    let before = sockets();
    let mut model = resnet(Optimization::All);
    model.run(&[("input", &Tensor::fp32(vec![1, 1, 28, 28], vec![0.0; 784]).unwrap())]).unwrap();
    assert_eq!(sockets(), before);
}
