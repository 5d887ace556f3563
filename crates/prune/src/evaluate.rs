//! Judging: quality on the validation data, size, work, and latency on this machine.

use std::time::Duration;

use pleach_domain::dataset::Dataset;
use pleach_domain::metrics::{Lost, Confusion, agreement};
use pleach_domain::runtime::{Runtime, TimedModel};
use pleach_domain::{DomainError, Tensor};
use pleach_onnx::{Model, statistics as cost_of};

use crate::analysis::Analysis;
use crate::coupling::measure_shapes;
use crate::error::PruneError;
use crate::linear::Rows;
use crate::network::{model_error, runtime as failed};
use crate::progress::Stage;
use crate::report::Worth;
use crate::run::Inputs;
use crate::statistics::classes;

/// Wall time spent on each model's local latency.
const TIMING: Duration = Duration::from_millis(250);

/// Dense and pruned, judged side by side.
pub(crate) struct Judgement {
    pub(crate) dense: Worth,
    pub(crate) pruned: Worth,
    pub(crate) lost: Lost,
    pub(crate) agreement: f64,
}

/// Rows of the validation data that carry labels.
pub(crate) struct Labelled<'a> {
    inputs: Inputs<'a>,
    labels: Vec<i64>,
    fingerprint: u64,
}

impl<'a> Labelled<'a> {
    /// # Errors
    /// [`PruneError::Data`] when there are no labels.
    pub(crate) fn new(data: &'a Dataset) -> Result<Self, PruneError> {
        let Some(labels) = data.labels().filter(|l| l.iter().any(|&l| l >= 0)) else {
            let reason = "missing: expected one class number a row".to_owned();
            return Err(PruneError::Data { role: "validation", source: DomainError::Dataset { array: "labels".to_owned(), reason } });
        };
        let inputs: Inputs<'a> = data.inputs().iter().map(|(n, t)| (n.as_str(), t)).collect();
        let fingerprint = inputs.iter().fold(0u64, |hash, (_, t)| hash.rotate_left(17) ^ digest(t));
        Ok(Self { inputs, labels: labels.to_vec(), fingerprint })
    }
}

/// A fingerprint of a tensor's bytes, quick rather than strong.
fn digest(tensor: &Tensor) -> u64 {
    tensor.to_le_bytes().chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash: u64, chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(w, c)| *w = *c);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}

/// Judges a variant against the model as uploaded.
pub(crate) fn judge(
    analysis: &Analysis,
    variant: &Model,
    data: &Labelled<'_>,
    batch: usize,
    runtime: &dyn Runtime,
) -> Result<Judgement, PruneError> {
    let teacher = dense_scores(analysis, data, runtime)?;
    let student = analysis.task.all_answers(variant, &data.inputs, runtime, Stage::Evaluate)?;
    let known = |rows: &Rows| -> Vec<usize> { classes(rows) };
    let (before, after) = (known(&teacher), known(&student));
    let confusion = |found: &[usize]| confusion(&data.labels, found, teacher.cols);
    let (dense_counts, pruned_counts) = (confusion(&before)?, confusion(&after)?);
    let right = |found: &[usize], row: usize| i64::try_from(found[row]).is_ok_and(|f| f == data.labels[row]);
    let rows: Vec<usize> = (0..before.len().min(after.len())).filter(|&r| data.labels.get(r).is_some_and(|&l| l >= 0)).collect();
    let count = |from: &[usize], to: &[usize]| rows.iter().filter(|&&r| right(from, r) && !right(to, r)).count() as u64;
    let lost = Lost::paired(count(&before, &after), count(&after, &before), rows.len() as u64);
    let latency = local_latency(analysis, variant, &data.inputs, batch, runtime)?;
    let cost = variant_cost(analysis, variant, data, runtime)?;
    let worth = |c: &Confusion, cost: &pleach_onnx::Statistics, local_latency_us: f64| Worth {
        accuracy: c.accuracy(),
        macro_recall: c.macro_recall(),
        macro_f1: c.macro_f1(),
        local_latency_us,
        macs: cost.macs,
        parameters: cost.parameters,
        size_bytes: cost.size_bytes,
    };
    Ok(Judgement {
        dense: worth(&dense_counts, &analysis.original_cost, latency[0]),
        pruned: worth(&pruned_counts, &cost, latency[1]),
        lost,
        agreement: agreement(&before, &after),
    })
}

/// The dense model's scores, kept until other data are judged.
fn dense_scores(analysis: &Analysis, data: &Labelled<'_>, runtime: &dyn Runtime) -> Result<Rows, PruneError> {
    let mut kept = analysis.validated.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, rows)) = kept.as_ref().filter(|(of, _)| *of == data.fingerprint) {
        return Ok(rows.clone());
    }
    let rows = analysis.task.all_answers(&analysis.network.model, &data.inputs, runtime, Stage::Evaluate)?;
    *kept = Some((data.fingerprint, rows.clone()));
    Ok(rows)
}

fn confusion(labels: &[i64], found: &[usize], classes: usize) -> Result<Confusion, PruneError> {
    let refused = |source| PruneError::Data { role: "validation", source };
    let mut confusion = Confusion::new(classes).map_err(refused)?;
    for (&label, &found) in labels.iter().zip(found) {
        let Ok(label) = usize::try_from(label) else { continue };
        confusion.record(label, found).map_err(refused)?;
    }
    Ok(confusion)
}

/// Mean latencies on this machine of the model as uploaded and of a variant, interleaved, in microseconds a batch.
fn local_latency(
    analysis: &Analysis,
    variant: &Model,
    inputs: &Inputs<'_>,
    batch: usize,
    runtime: &dyn Runtime,
) -> Result<[f64; 2], PruneError> {
    let batch = inputs.values().next().map_or(batch, |t| batch.min(t.rows()));
    let inputs: Vec<(String, Tensor)> = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.slice_rows(0, batch))).collect();
    let models = [analysis.original.clone(), variant.encode()].map(|model| TimedModel { model, inputs: inputs.clone() });
    let timings = runtime.time(&models, TIMING).map_err(failed(Stage::Evaluate))?;
    match timings.as_slice() {
        [dense, pruned] => Ok([dense.mean_us, pruned.mean_us]),
        other => Err(failed(Stage::Evaluate)(format!("{} timings: expected 2", other.len()).into())),
    }
}

fn variant_cost(
    analysis: &Analysis,
    variant: &Model,
    data: &Labelled<'_>,
    runtime: &dyn Runtime,
) -> Result<pleach_onnx::Statistics, PruneError> {
    if std::ptr::eq(variant, &analysis.network.model) {
        return Ok(cost_of(variant, &analysis.network.shapes, 1));
    }
    let examples = data.inputs.iter().map(|(n, t)| ((*n).to_owned(), t.shape().get(1..).unwrap_or_default().to_vec())).collect();
    let shapes = measure_shapes(variant, runtime, &examples).map_err(model_error)?;
    Ok(cost_of(variant, &shapes, 1))
}
