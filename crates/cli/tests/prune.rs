//! `pleach prune` as users run it: on a fixture with few samples, on data that do not fit, and on budgets that nothing keeps.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not know for tests

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use npyz::WriterBuilder;
use npyz::npz::NpzWriter;
use npyz::zip::write::FileOptions;
use pleach_domain::dataset::{Dataset, DatasetLimits};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn array<T: npyz::Serialize + npyz::AutoSerialize>(
    npz: &mut NpzWriter<std::io::BufWriter<std::fs::File>>,
    name: &str,
    shape: &[u64],
    data: &[T],
) {
    let mut writer = npz.array(name, FileOptions::default()).unwrap().default_dtype().shape(shape).begin_nd().unwrap();
    writer.extend(data).unwrap();
    writer.finish().unwrap();
}

/// A folder with samples cut down from the fixtures.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes an input `name` of `rows` rows of the fashion images, changed by `change`, and labels if they are wanted.
    fn samples(&self, file: &str, rows: usize, name: &str, labels: Option<&[i64]>, change: impl Fn(&mut Vec<f32>)) -> PathBuf {
        let all = std::fs::read(fixture("fashion-calibration.npz")).unwrap();
        let data = Dataset::parse_npz(&all, &DatasetLimits::default()).unwrap().slice_rows(0, rows).unwrap();
        let mut values = data.inputs()["input"].as_fp32().expect("the fixture has floats").to_vec();
        change(&mut values);
        let path = self.path(file);
        let mut npz = NpzWriter::create(&path).unwrap();
        array(&mut npz, name, &[rows as u64, 1, 28, 28], &values);
        if let Some(labels) = labels {
            array(&mut npz, "labels", &[labels.len() as u64], labels);
        }
        drop(npz);
        path
    }

    /// Writes an input of any type and shape.
    fn array<T: npyz::Serialize + npyz::AutoSerialize>(&self, file: &str, shape: &[u64], data: &[T]) -> PathBuf {
        let path = self.path(file);
        array(&mut NpzWriter::create(&path).unwrap(), "input", shape, data);
        path
    }

    fn labelled(&self, file: &str, rows: usize) -> PathBuf {
        let all = std::fs::read(fixture("fashion-calibration.npz")).unwrap();
        let data = Dataset::parse_npz(&all, &DatasetLimits::default()).unwrap();
        self.samples(file, rows, "input", Some(&data.labels().unwrap()[..rows]), |_| {})
    }

    fn prune(&self, calibration: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.arg("prune").arg(fixture("fm-resnet/model.onnx")).arg("--calibration").arg(calibration);
        command.arg("--out").arg(self.path("out.onnx")).arg("--cache").arg(self.path("cache")).args(args);
        command.output().unwrap()
    }

    /// Exit code and message of a run that must fail and leave nothing.
    fn refusal(&self, calibration: &Path, args: &[&str]) -> (i32, String) {
        let output = self.prune(calibration, args);
        assert!(!self.path("out.onnx").exists());
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_model_is_pruned_to_a_speed_and_the_next_target_comes_from_the_cache() {
    let place = Place::new();
    let (calibration, validation) = (place.labelled("c.npz", 240), place.labelled("v.npz", 120));
    let validation = ["--validation", validation.to_str().unwrap()];
    let page = place.path("r.html");
    let args = [&validation[..], &["--target", "speedup=1.4", "--output", "json", "--html", page.to_str().unwrap()]].concat();
    let first = place.prune(&calibration, &args);
    let report_of_first = report(&first);
    for side in ["dense", "pruned"] {
        for field in ["accuracy", "recall", "f1", "latency_p50_us", "latency_p95_us", "macs", "parameters", "size_bytes"] {
            assert!(report_of_first[side][field].as_f64().unwrap() > 0.0, "{side}.{field}");
        }
    }
    assert!(report_of_first["speedup_p50"].as_f64().unwrap() >= 1.4);
    assert!(report_of_first["predicted_latency_p50_us"].as_f64().unwrap() > 0.0);
    let lost = report_of_first["lost"]["estimate"].as_f64().unwrap();
    assert!(report_of_first["accuracy_lost_bound_95"].as_f64().unwrap() > lost && lost < 0.05, "{lost}");
    assert_eq!(report_of_first["widths"].as_array().unwrap().len(), 10);
    assert!(report_of_first["seconds"]["statistics"].as_f64().unwrap() > 0.0);
    assert!(
        report_of_first["warnings"].as_array().unwrap().iter().any(|w| w.as_str().unwrap().starts_with("validation data have 120 rows"))
    );
    let size = std::fs::metadata(place.path("out.onnx")).unwrap().len();
    assert_eq!(report_of_first["pruned"]["size_bytes"].as_u64().unwrap(), size);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && !page.contains("http"), "a page that asks nobody");

    let second = report(&place.prune(&calibration, &[&validation[..], &["--max-size", "1500KB", "--output", "json"]].concat()));
    assert!(second["seconds"].get("statistics").is_none_or(|s| s.as_f64().unwrap() == 0.0), "{}", second["seconds"]);
    assert!(std::fs::metadata(place.path("out.onnx")).unwrap().len() <= 1_500_000);

    std::fs::remove_file(place.path("out.onnx")).unwrap();
    let json = place.path("r.json");
    let impossible = [&validation[..], &["--target", "p50=1us", "--report", json.to_str().unwrap()]].concat();
    let (code, message) = place.refusal(&calibration, &impossible);
    assert_eq!(code, 4, "{message}");
    assert!(message.contains("no variant keeps the latency budget 1 us") && message.contains("the nearest has"), "{message}");
    let nearest: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert!(nearest["speedup_p50"].as_f64().unwrap() > 1.4);
    let (code, message) = place.refusal(&calibration, &[&validation[..], &["--max-size", "2MB", "--min-accuracy", "1"]].concat());
    assert!(code == 4 && message.contains("accuracy floor 1.0000"), "{code} {message}");
}

#[test]
fn few_samples_without_labels_work_and_warn() {
    let place = Place::new();
    let constant = |values: &mut Vec<f32>| values.fill(0.25);
    let calibration = place.samples("c.npz", 12, "input", None, constant);
    let report = report(&place.prune(&calibration, &["--max-size", "2MB", "--criterion", "l2", "--output", "json"]));
    let warnings: Vec<&str> = report["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    let warned = |what: &str| assert!(warnings.iter().any(|w| w.contains(what)), "{what}: {warnings:?}");
    warned("calibration data have 12 rows");
    warned("1 of 1 channels never change");
    warned("no labels");
    assert_eq!(report["pruned"]["metric"], "agreement");
    assert!(report["accuracy_lost_bound_95"].as_f64().unwrap() > 0.5, "one row bounds little");
}

#[test]
fn data_that_do_not_fit_are_refused_in_words() {
    let place = Place::new();
    let size = ["--max-size", "1MB"];
    let refused = |calibration: &Path, words: &str| {
        let (code, message) = place.refusal(calibration, &size);
        assert!(code == 1 && message.contains(words), "{code} {message}");
    };
    refused(&place.samples("nan.npz", 4, "input", None, |v| v[800] = f32::NAN), r#""input": NaN or infinity in row 1"#);
    refused(&place.samples("name.npz", 4, "image", None, |_| {}), r#""input": missing"#);
    refused(&fixture("fm-yolo/calibration.npz"), r#""input": missing"#);
    refused(&place.array("type.npz", &[4, 1, 28, 28], &[0.5f64; 4 * 784]), r#""input": type FP64: expected FP32"#);
    refused(&place.array("shape.npz", &[4, 1, 14, 56], &[0.5f32; 4 * 784]), r#""input": shape [4, 1, 14, 56]: expected [rows, 1, 28, 28]"#);
    refused(&place.path("missing.npz"), "No such file");
    refused(&fixture("fm-resnet/model.onnx"), "expected an .npz archive");
    let labels = BTreeMap::from([("short", vec![0i64; 3]), ("long", vec![0; 5])]);
    for (name, labels) in labels {
        refused(&place.samples(name, 4, "input", Some(&labels), |_| {}), "expected 4");
    }
    let calibration = place.labelled("c.npz", 8);
    let (code, message) = place.refusal(&calibration, &["--max-size", "1MB", "--report", "/no/such/folder/r.json"]);
    assert!(code == 1 && message.contains("cannot write /no/such/folder/r.json"), "{code} {message}");
    let (code, message) = place.refusal(&calibration, &[]);
    assert!(code == 2 && message.contains("--target"), "{code} {message}");
}

#[test]
fn a_model_that_is_quantised_already_is_refused_in_words() {
    use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute, node};
    use pleach_onnx::proto::TensorProto;

    let place = Place::new();
    let mut graph = GraphBuilder::new("bytes");
    let x = graph.input("input", ElementKind::Float, &[Dim::Free("rows".to_owned()), Dim::Fixed(16)]);
    let weights = (0..64).map(|i| (i * 7 % 128) as u8).collect();
    graph.tensor(TensorProto {
        name: Some("w".to_owned()),
        dims: vec![16, 4],
        data_type: Some(2),
        raw_data: Some(weights),
        ..Default::default()
    });
    let mut bytes = node("DynamicQuantizeLinear", "bytes", &[&x], "q", vec![]);
    bytes.output.extend(["scale".to_owned(), "zero".to_owned()]);
    graph.push(bytes);
    let sum = graph.node("MatMulInteger", &["q", "w", "zero"], vec![]);
    let sum = graph.node("Cast", &[&sum], vec![attribute("to", 1i64)]);
    let y = graph.node("Mul", &[&sum, "scale"], vec![]);
    graph.output(&y);
    let model = place.path("bytes.onnx");
    std::fs::write(&model, graph.build().unwrap().encode()).unwrap();
    let data = place.array("c.npz", &[8, 16], &[0.5f32; 8 * 16]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.arg("prune").arg(&model).arg("--calibration").arg(&data).args(["--target", "speedup=2", "--no-cache", "--out"]);
    let output = command.arg(place.path("out.onnx")).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("1 MatMulInteger") && message.contains("already quantised"), "{message}");
    assert!(!place.path("out.onnx").exists());
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_no_half_model() {
    let place = Place::new();
    let calibration = place.labelled("c.npz", 24);
    // No file may grow beyond 64 KiB: the report fits, the model does not.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_pleach"), "prune"])
        .arg(fixture("fm-resnet/model.onnx"))
        .arg("--calibration")
        .arg(&calibration)
        .args(["--max-size", "2MB", "--cache"])
        .arg(place.path("cache"))
        .arg("--report")
        .arg(place.path("r.json"))
        .arg("--out")
        .arg(place.path("out.onnx"))
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("out.onnx") && message.contains("File too large"), "{message}");
    assert!(
        message.contains("what was found out about the model is not kept") || message.contains("the next run will take as long"),
        "{message}"
    );
    let files =
        |folder: &Path| -> Vec<_> { std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect() };
    let mut left = files(place.folder.path());
    left.sort();
    assert_eq!(left, ["c.npz", "cache", "r.json"]);
    assert!(
        files(&place.path("cache")).iter().all(|f| !f.starts_with('.') && !f.starts_with("analysis")),
        "{:?}",
        files(&place.path("cache"))
    );
}

#[cfg(unix)]
#[test]
fn a_run_that_was_stopped_goes_on_where_its_last_part_ended() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let place = Place::new();
    let calibration = place.labelled("c.npz", 48);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.arg("prune").arg(fixture("fm-resnet/model.onnx")).arg("--calibration").arg(&calibration).args(["--max-size", "2MB"]);
    command.arg("--out").arg(place.path("out.onnx")).arg("--cache").arg(place.path("cache"));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("timing standard kernels")), "the analysis is made");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(!place.path("out.onnx").exists());
    let report = report(&place.prune(&calibration, &["--max-size", "2MB", "--output", "json"]));
    assert!(report["seconds"].get("statistics").is_none() && report["seconds"].get("probe").is_none(), "{}", report["seconds"]);
    assert!(place.path("out.onnx").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_file() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let place = Place::new();
    let calibration = place.labelled("c.npz", 600);
    let mut child = Command::new(env!("CARGO_BIN_EXE_pleach"))
        .arg("prune")
        .arg(fixture("fm-resnet/model.onnx"))
        .arg("--calibration")
        .arg(&calibration)
        .args(["--target", "speedup=2", "--no-cache", "--out"])
        .arg(place.path("out.onnx"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("prove")), "the run begins");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("cancelled in stage")), "{rest:?}");
    let left: Vec<_> = std::fs::read_dir(place.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["c.npz"]);
}
