//! Looks into uploaded files: a model that runs, data that fit it, and what the model costs. Blocks; holds the files in memory.

use bytes::Bytes;
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::{LoadedModel, Optimization, Runtime, TensorSpec};
use pleach_domain::{DomainError, Element, Tensor};
use pleach_onnx::{Limits, Model, OnnxError, ShapeProbe, Shapes};
use pleach_prune::{PruneError, Task, TaskKind};

use super::problem::{Code, Failure, chain};

/// Most classes a classifier may have here.
const MAX_CLASSES: usize = pleach_domain::metrics::MAX_CLASSES;

/// The three files of a model.
pub(super) struct Files {
    pub(super) onnx: Bytes,
    pub(super) calibration: Bytes,
    pub(super) validation: Bytes,
}

/// What a model costs for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) macs: u64,
    pub(super) parameters: u64,
}

/// Checks that the model decodes, loads and runs, that it is of the task, and that both datasets fit it; of a classifier the validation
/// data with a label for every row.
pub(super) fn check(files: &Files, task: TaskKind, runtime: &dyn Runtime) -> Result<Cost, Failure> {
    let model = Model::decode(&files.onnx, &Limits::default()).map_err(refused_model)?;
    let mut loaded = runtime.load(&files.onnx, Optimization::Disabled).map_err(|e| invalid("ONNX Runtime does not load it", &*e))?;
    let calibration = dataset("calibration", &files.calibration, loaded.inputs())?;
    let validation = dataset("validation", &files.validation, loaded.inputs())?;
    match task {
        TaskKind::Classification => check_labels(&validation, classes(&mut *loaded, &validation)?)?,
        TaskKind::Tagging | TaskKind::LanguageModel | TaskKind::Detection | TaskKind::Values => {
            Task::find(&model, &validation, Some(task), runtime).map_err(refused_task)?;
        }
    }
    let shapes = shapes(&model, &calibration, loaded.inputs(), runtime)?;
    let statistics = pleach_onnx::statistics(&model, &shapes, 1);
    Ok(Cost { macs: statistics.macs, parameters: statistics.parameters })
}

fn refused_model(error: OnnxError) -> Failure {
    let code = match error {
        OnnxError::UnknownOperatorSet { .. } | OnnxError::UndeclaredOperatorSet { .. } => Code::ModelOperatorSet,
        OnnxError::TooLarge { .. } => Code::TooLarge,
        _ => Code::ModelInvalid,
    };
    Failure::new(code, format!("model: {}", chain(&error)))
}

fn invalid(what: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Code::ModelInvalid, format!("model: {what}: {}", chain(error)))
}

fn refused_data(role: &str, error: &DomainError) -> Failure {
    Failure::new(Code::DatasetInvalid, format!("{role} data: {}", chain(error)))
}

fn refused_task(error: PruneError) -> Failure {
    match error {
        PruneError::Data { role, source } => refused_data(role, &source),
        error => invalid("it is not of the task", &error),
    }
}

fn dataset(role: &str, bytes: &[u8], inputs: &[TensorSpec]) -> Result<Dataset, Failure> {
    let data = Dataset::parse_npz(bytes, &DatasetLimits::default()).map_err(|e| refused_data(role, &e))?;
    data.check_against(inputs).map_err(|e| refused_data(role, &e))?;
    Ok(data)
}

/// Runs one row and reads the number of classes off the first output, which must be scores `[1, classes]`.
fn classes(model: &mut dyn LoadedModel, data: &Dataset) -> Result<usize, Failure> {
    let rows = first_rows(data, model.inputs(), 1);
    let outputs = model.run(&borrowed(&rows)).map_err(|e| invalid("it does not run on a validation row", &*e))?;
    let shape = outputs.first().map(|t| t.shape().to_vec()).unwrap_or_default();
    match (outputs.first().map(Tensor::data), shape.as_slice()) {
        (Some(Element::Fp32(_) | Element::Fp64(_)), &[_, classes]) if (2..=MAX_CLASSES).contains(&classes) => Ok(classes),
        (data, _) => {
            let kind = data.map_or("nothing".to_owned(), |_| format!("a tensor of shape {shape:?}"));
            let detail = format!("model: its first output is {kind}: expected scores [rows, classes] with 2 to {MAX_CLASSES} classes");
            Err(Failure::new(Code::ModelInvalid, detail))
        }
    }
}

fn check_labels(data: &Dataset, classes: usize) -> Result<(), Failure> {
    let refuse = |detail: String| Failure::new(Code::DatasetInvalid, format!("validation data: dataset array \"labels\": {detail}"));
    let labels = data.labels().ok_or_else(|| refuse(format!("missing: expected {} labels, one a row", data.rows())))?;
    let wrong = labels.iter().enumerate().find(|(_, label)| usize::try_from(**label).map_or(true, |l| l >= classes));
    match wrong {
        Some((row, label)) => {
            Err(refuse(format!("label {label} in row {row}: expected 0 to {}, the model has {classes} classes", classes - 1)))
        }
        None => Ok(()),
    }
}

/// Runs the shape probe on one and on two rows; models of a fixed batch run on that.
fn shapes(model: &Model, data: &Dataset, inputs: &[TensorSpec], runtime: &dyn Runtime) -> Result<Shapes, Failure> {
    let probe = ShapeProbe::new(model).map_err(refused_model)?;
    let encoded = probe.model.encode();
    let mut loaded = runtime.load(&encoded, Optimization::Disabled).map_err(|e| invalid("its shapes cannot be found", &*e))?;
    let fixed = inputs.iter().find_map(|spec| spec.shape.first().copied().flatten());
    let (small, large) = fixed.map_or((1, 2.min(data.rows())), |rows| (rows, rows));
    let mut run = |rows: usize| -> Result<Vec<Vec<i64>>, Failure> {
        let tensors = first_rows(data, inputs, rows);
        let outputs = loaded.run(&borrowed(&tensors)).map_err(|e| invalid(&format!("it does not run on {rows} calibration rows"), &*e))?;
        Ok(outputs.iter().map(|t| t.as_int64().unwrap_or_default().to_vec()).collect())
    };
    let (a, b) = (run(small)?, run(large)?);
    probe.read((small, &a), (large, &b)).map_err(refused_model)
}

fn first_rows(data: &Dataset, inputs: &[TensorSpec], rows: usize) -> Vec<(String, Tensor)> {
    let of = |spec: &TensorSpec| data.inputs().get(&spec.name).map(|t| (spec.name.clone(), t.slice_rows(0, rows)));
    inputs.iter().filter_map(of).collect()
}

fn borrowed(tensors: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}
