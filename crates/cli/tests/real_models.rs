//! Models from the world outside: each is analysed, proved at random cuts of every group, loaded cut at every optimisation level, and keeps
//! what the runtime fused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests, which clippy does not know for tests

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use pleach_cli::inspect::{Inspection, Subject};
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::{Limits, Model};
use pleach_prune::{Silent, proof};
use pleach_tests::models::{RealModel, real_models};

fn runtime() -> OrtRuntime {
    let options = OrtOptions { library: None, threads: NonZeroUsize::MIN };
    OrtRuntime::new(options).expect("these tests run models: set ORT_DYLIB_PATH to libonnxruntime.so 1.28.0")
}

/// The models, or nothing where they cannot be fetched; says so once.
fn models() -> &'static [RealModel] {
    static MODELS: OnceLock<Vec<RealModel>> = OnceLock::new();
    MODELS.get_or_init(|| {
        real_models().unwrap_or_else(|reason| {
            eprintln!("SKIPPED: real models are not to be had: {reason}");
            Vec::new()
        })
    })
}

/// Analyses one model and tries everything on it; `None` where it cannot be fetched.
fn prove(name: &str) -> Option<Inspection> {
    let real = models().iter().find(|m| m.name == name).or_else(|| {
        assert!(models().is_empty(), "no model is called {name}");
        None
    })?;
    let runtime = runtime();
    let bytes = std::fs::read(&real.path).unwrap();
    let shapes = real.shapes.iter().map(|&(input, shape)| (input.to_owned(), shape.to_vec())).collect();
    let subject =
        Subject::new(Model::decode(&bytes, &Limits::default()).unwrap(), &runtime, &shapes).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let inspection = Inspection::of(&subject, None).unwrap();
    let inputs = &subject.inputs();
    let (model, coupling, shapes) = (&subject.model, &subject.coupling, &subject.shapes);
    let found = proof::prove(&proof::Subject { runtime: &runtime, model, coupling, shapes, inputs }, 3, &Silent);
    found.unwrap_or_else(|e| panic!("{name}: {e}"));
    for percent in proof::WIDTHS {
        let cut = subject.cut(percent).unwrap().encode();
        for level in [Optimization::Disabled, Optimization::Basic, Optimization::Extended, Optimization::All] {
            runtime.load(&cut, level).unwrap_or_else(|e| panic!("{name} cut to {percent} %: {level:?}: {e}"));
        }
    }
    let cut = operators(&runtime, &subject.cut(50).unwrap());
    assert_eq!(cut, operators(&runtime, &subject.model), "{name}: another graph is made of the cut model");
    for (fused, count) in operators(&runtime, &subject.original).into_iter().filter(|((domain, _), _)| !domain.is_empty()) {
        assert!(cut.get(&fused).is_some_and(|own| *own >= count), "{name}: {count} {fused:?} before: {cut:?}");
    }
    Some(inspection)
}

/// Operators of the graph that ONNX Runtime makes of a model, counted, by domain and type.
fn operators(runtime: &OrtRuntime, model: &Model) -> BTreeMap<(String, String), usize> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimised.onnx");
    runtime.write_optimized(&model.encode(), Optimization::Extended, &path).unwrap();
    let mut operators = BTreeMap::new();
    for node in Model::decode_bytes(std::fs::read(path).unwrap().into(), &Limits::default()).unwrap().nodes() {
        *operators.entry((node.domain().to_owned(), node.op_type().to_owned())).or_default() += 1;
    }
    operators
}

/// As [`prove`], and at least so much of the work must be prunable.
fn prunable(name: &str, least_share: f64) {
    if let Some(inspection) = prove(name) {
        let share = inspection.prunable_macs_share;
        assert!(share >= least_share, "{name}: {share:.3} of the MACs are prunable; {:#?}", inspection.frozen_by_reason);
    }
}

macro_rules! at_least {
    ($($test:ident: $name:literal, $share:literal;)*) => {
        $(#[test] fn $test() { prunable($name, $share); })*
    };
}

at_least! {
    a_text_detector_is_prunable: "ocr-detector", 0.99;
    a_text_recogniser_is_prunable: "ocr-recogniser", 0.99;
    a_text_classifier_is_prunable: "ocr-classifier", 0.99;
    a_file_classifier_is_prunable: "magika", 0.99;
    a_sentence_encoder_is_prunable: "paraphrase-minilm", 0.99;
    a_resnet_of_tensorflow_is_prunable: "open-nsfw", 0.99;
    resnet50_is_prunable: "light-resnet50", 0.99;
    vgg19_is_prunable: "light-vgg19", 0.99;
    densenet121_is_prunable: "light-densenet121", 0.99;
    inception_v1_is_prunable: "light-inception-v1", 0.9;
    inception_v2_is_prunable: "light-inception-v2", 0.99;
    half_of_shufflenet_is_prunable: "light-shufflenet", 0.5;
    squeezenet_is_prunable: "light-squeezenet", 0.99;
    half_of_alexnet_is_prunable: "light-alexnet", 0.5;
    half_of_a_recurrent_voice_detector_is_prunable: "silero-vad-16k", 0.5;
}

#[test]
fn a_voice_detector_behind_a_branch_is_frozen_and_says_so() {
    if let Some(inspection) = prove("silero-vad") {
        assert!(inspection.frozen.iter().any(|f| f.reason.contains("(If)")), "{:?}", inspection.frozen);
    }
}
