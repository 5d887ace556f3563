//! Memory while a large model is read, changed and written: below three times its file.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know for tests

use std::fs;

use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder};
use pleach_onnx::proto::TensorProto;
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::tensor::select;
use pleach_onnx::{Limits, Model, Patch};
use prost::Message;
use prost::bytes::Bytes;

const LAYERS: usize = 50;
const WIDTH: usize = 1024;

/// 50 layers of 4 MiB: 200 MiB in all, as raw bytes or as lists of floats.
fn file(typed: bool) -> Bytes {
    let mut graph = GraphBuilder::new("large");
    let mut x = graph.input("x", ElementKind::Float, &[Dim::Fixed(1), Dim::Fixed(WIDTH)]);
    for i in 0..LAYERS {
        let plain = TensorProto {
            name: Some(format!("w{i}")),
            dims: vec![WIDTH as i64; 2],
            data_type: Some(DataType::Float.into()),
            ..TensorProto::default()
        };
        let w = graph.tensor(if typed {
            TensorProto { float_data: vec![0.5; WIDTH * WIDTH], ..plain }
        } else {
            TensorProto { raw_data: Some(vec![7u8; 4 * WIDTH * WIDTH].into()), ..plain }
        });
        x = graph.node("MatMul", &[&x, &w], vec![]);
    }
    graph.output(&x);
    graph.into_proto().encode_to_vec().into()
}

fn status_bytes(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Reads a model, prunes one layer and writes it, and gives the peak of memory, the file included, in file sizes.
fn peak(typed: bool) -> f64 {
    let bytes = file(typed);
    let size = bytes.len() as u64;
    let before = status_bytes("VmRSS").saturating_sub(size);
    fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak begins anew
    let model = Model::decode_bytes(bytes, &Limits::default()).unwrap();
    let mut patch = Patch::new();
    let half: Vec<usize> = (0..WIDTH / 2).collect();
    patch.set_constant(select(&model.constant_tensor("w0").unwrap(), 1, &half).unwrap());
    patch.set_constant(select(&model.constant_tensor("w1").unwrap(), 0, &half).unwrap());
    let pruned = model.apply(&patch).unwrap();
    let written = pruned.encode();
    assert!(written.len() as u64 > size * 9 / 10);
    status_bytes("VmHWM").saturating_sub(before) as f64 / size as f64
}

#[test]
fn reading_pruning_and_writing_stay_below_three_times_the_file() {
    for (typed, most) in [(false, 2.3), (true, 3.0)] {
        // Pages that the system took away before come back into the count: noise only adds.
        let peak = (0..3).map(|_| peak(typed)).fold(f64::INFINITY, f64::min);
        println!("typed lists: {typed}: {peak:.2} times the file");
        assert!(peak < most, "typed lists: {typed}: {peak:.2} times the file: expected less than {most}");
    }
}
