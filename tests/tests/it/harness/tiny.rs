//! A model small enough to be pruned in a second, with the data that go with it.
//!
//! A convolution, a wide hidden layer and ten outputs, with pseudo-random weights; the labels are the model's own answers.

use std::io::Write;
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use pleach_domain::Tensor;
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};

/// Files of a model ready for upload.
pub struct ModelFiles {
    /// The ONNX file.
    pub onnx: PathBuf,
    /// Calibration samples.
    pub calibration: PathBuf,
    /// Labelled validation set.
    pub validation: PathBuf,
}

/// Pseudo-random values in -1..1, the same at every call.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The tiny model: `input` float32 [N, 1, 12, 12] to `logits` float32 [N, 10]. About 1.2 MB, so that its bundle has some twenty chunks.
pub fn onnx() -> Vec<u8> {
    let scaled =
        |seed, count: usize, fan_in: usize| -> Vec<f32> { noise(seed, count).iter().map(|x| x * (3.0 / fan_in as f32).sqrt()).collect() };
    let mut graph = GraphBuilder::new("tiny");
    let dims = [Dim::Free("batch".into()), Dim::Fixed(1), Dim::Fixed(12), Dim::Fixed(12)];
    let x = graph.input("input", ElementKind::Float, &dims);
    let w = graph.floats("conv.weight", &[16, 1, 3, 3], &scaled(1, 144, 9));
    let b = graph.floats("conv.bias", &[16], &[0.0; 16]);
    let y = graph.node("Conv", &[&x, &w, &b], vec![attribute("pads", vec![1i64; 4])]);
    let y = graph.node("Relu", &[&y], vec![]);
    let y = graph.node("Flatten", &[&y], vec![]);
    let w = graph.floats("hidden.weight", &[128, 2304], &scaled(2, 128 * 2304, 2304));
    let b = graph.floats("hidden.bias", &[128], &[0.01; 128]);
    let y = graph.node("Gemm", &[&y, &w, &b], vec![attribute("transB", 1i64)]);
    let y = graph.node("Relu", &[&y], vec![]);
    let w = graph.floats("out.weight", &[10, 128], &scaled(3, 1280, 128));
    let b = graph.floats("out.bias", &[10], &[0.0; 10]);
    graph.push(pleach_onnx::builder::node("Gemm", "out", &[&y, &w, &b], "logits", vec![attribute("transB", 1i64)]));
    graph.output_of("logits", ElementKind::Float, &[Dim::Free("batch".into()), Dim::Fixed(10)]);
    graph.build().unwrap().encode()
}

/// Inputs for the tiny model, `[rows, 1, 12, 12]`.
pub fn input(seed: u64, rows: usize) -> Tensor {
    Tensor::fp32(vec![rows, 1, 12, 12], noise(seed, rows * 144)).unwrap()
}

/// The model's own answers.
pub fn labels(input: &Tensor) -> Vec<i64> {
    let runtime = OrtRuntime::new(OrtOptions { library: None, threads: std::num::NonZeroUsize::MIN }).unwrap();
    let mut model = runtime.load(&onnx(), Optimization::All).unwrap();
    let logits = model.run(&[("input", input)]).unwrap();
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    logits[0].as_fp32().unwrap().chunks(10).map(best).collect()
}

/// Writes the model and its data into `folder`.
pub fn write_files(folder: &Path) -> ModelFiles {
    let files = ModelFiles {
        onnx: folder.join("tiny.onnx"),
        calibration: folder.join("tiny-calibration.npz"),
        validation: folder.join("tiny-validation.npz"),
    };
    std::fs::write(&files.onnx, onnx()).unwrap();
    let (calibration, validation) = (input(11, 256), input(12, 256));
    write_npz(&files.calibration, &[("input", &calibration)], None);
    write_npz(&files.validation, &[("input", &validation)], Some(&labels(&validation)));
    files
}

/// Writes float tensors and labels as .npz.
pub fn write_npz(path: &Path, arrays: &[(&str, &Tensor)], labels: Option<&[i64]>) {
    let mut archive = npyz::npz::NpzWriter::create(path).unwrap();
    for (name, tensor) in arrays {
        let shape: Vec<u64> = tensor.shape().iter().map(|&d| d as u64).collect();
        let mut writer = archive.array(name, Default::default()).unwrap().default_dtype().shape(&shape).begin_nd().unwrap();
        writer.extend(tensor.as_fp32().unwrap().iter().copied()).unwrap();
        writer.finish().unwrap();
    }
    if let Some(labels) = labels {
        let mut writer =
            archive.array("labels", Default::default()).unwrap().default_dtype().shape(&[labels.len() as u64]).begin_nd().unwrap();
        writer.extend(labels.iter().copied()).unwrap();
        writer.finish().unwrap();
    }
    archive.zip_writer().flush().unwrap();
}
