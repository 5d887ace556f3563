//! Judging: quality on the validation data, size, work, and latency on this machine.

mod answers;
mod figures;

use std::sync::Arc;
use std::time::Duration;

use pleach_domain::Tensor;
use pleach_domain::dataset::Dataset;
use pleach_domain::metrics::Lost;
use pleach_domain::runtime::{Runtime, TimedModel, Timing};
use pleach_onnx::{Model, Shapes, activation_bytes, statistics as cost_of};

use crate::analysis::Analysis;
use crate::coupling::measure_shapes;
use crate::error::PruneError;
use crate::network::{model_error, runtime as failed};
use crate::progress::Stage;
use crate::report::{Quality, Worth};
use crate::run::Inputs;
use crate::task::{Task, TaskKind};
use crate::verify::Built;

pub(crate) use answers::Answers;

/// Wall time spent on each model's local latency.
const TIMING: Duration = Duration::from_millis(400);

/// Judges one model by itself on labelled data; `kind` overrides the task that would be inferred.
///
/// # Errors
/// Those of [`crate::Task::find`], and [`PruneError::Data`] for labels that do not fit.
pub fn quality(model: &Model, data: &Dataset, kind: Option<TaskKind>, runtime: &dyn Runtime) -> Result<Quality, PruneError> {
    let task = Task::find(model, data, kind, runtime)?;
    let answers = Answers::of(&task, model, data, runtime)?;
    let verdict = figures::compare(&task, data, &answers, &answers);
    Ok(verdict.map_err(|source| PruneError::Data { role: "validation", source })?.dense)
}

/// Dense and pruned, judged side by side.
pub(crate) struct Judgement {
    pub(crate) dense: Worth,
    pub(crate) pruned: Worth,
    pub(crate) lost: Lost,
    pub(crate) agreement: f64,
}

/// The data that variants are judged on, with the dense model's answers.
pub(crate) struct Examiner<'a> {
    analysis: &'a Analysis,
    data: &'a Dataset,
    inputs: Inputs<'a>,
    dense: Arc<Answers>,
}

impl<'a> Examiner<'a> {
    /// Has the dense model answer, once for all variants.
    pub(crate) fn new(analysis: &'a Analysis, data: &'a Dataset, runtime: &dyn Runtime) -> Result<Self, PruneError> {
        analysis.task.check_targets(data).map_err(|source| PruneError::Data { role: "validation", source })?;
        let inputs: Inputs<'a> = data.inputs().iter().map(|(n, t)| (n.as_str(), t)).collect();
        let fingerprint = inputs.iter().fold(0u64, |hash, (_, t)| hash.rotate_left(17) ^ digest(t));
        let mut kept = analysis.validated.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dense = match kept.as_ref().filter(|(of, _)| *of == fingerprint) {
            Some((_, answers)) => Arc::clone(answers),
            None => {
                let answers = Arc::new(Answers::of(&analysis.task, &analysis.network.model, data, runtime)?);
                *kept = Some((fingerprint, Arc::clone(&answers)));
                answers
            }
        };
        drop(kept);
        Ok(Self { analysis, data, inputs, dense })
    }

    /// Judges a variant against the model as uploaded.
    pub(crate) fn judge(&self, variant: &Built, batch: usize, runtime: &dyn Runtime) -> Result<Judgement, PruneError> {
        let Self { analysis, data, dense, .. } = self;
        let (latency, variant) = (variant.measured.latency, &variant.model);
        let student = Answers::of(&analysis.task, variant, data, runtime)?;
        let refused = |source| PruneError::Data { role: "validation", source };
        let verdict = figures::compare(&analysis.task, data, dense, &student).map_err(refused)?;
        let cost = cost_of(variant, &self.shapes(variant, runtime)?, 1);
        let original = &analysis.original_cost;
        let dense_memory = original.size_bytes + activation_bytes(&analysis.network.model, &analysis.network.shapes, batch);
        let memory = self.memory_bytes(variant, batch, runtime)?;
        let worth = |quality: Quality, cost: &pleach_onnx::Statistics, memory_bytes: u64, timing: Timing| Worth {
            quality,
            latency_p50_us: timing.p50_us,
            latency_p95_us: timing.p95_us,
            macs: cost.macs,
            parameters: cost.parameters,
            size_bytes: cost.size_bytes,
            memory_bytes,
        };
        Ok(Judgement {
            dense: worth(verdict.dense, original, dense_memory, latency[0]),
            pruned: worth(verdict.pruned, &cost, memory, latency[1]),
            lost: verdict.lost,
            agreement: verdict.agreement,
        })
    }

    /// Latencies on this machine of the model as uploaded and of others, interleaved, of one batch.
    pub(crate) fn times(&self, others: Vec<Vec<u8>>, batch: usize, runtime: &dyn Runtime) -> Result<Vec<Timing>, PruneError> {
        let batch = batch.min(self.data.rows());
        let inputs: Vec<(String, Tensor)> = self.inputs.iter().map(|(n, t)| ((*n).to_owned(), t.slice_rows(0, batch))).collect();
        let models = std::iter::once(self.analysis.original.clone()).chain(others);
        let models: Vec<_> = models.map(|model| TimedModel { model, inputs: inputs.clone() }).collect();
        let timings = runtime.time(&models, TIMING).map_err(failed(Stage::Evaluate))?;
        if timings.len() != models.len() {
            return Err(failed(Stage::Evaluate)(format!("{} timings: expected {}", timings.len(), models.len()).into()));
        }
        Ok(timings)
    }

    /// Most bytes that one call of a variant holds.
    pub(crate) fn memory_bytes(&self, variant: &Model, batch: usize, runtime: &dyn Runtime) -> Result<u64, PruneError> {
        Ok(variant.encode().len() as u64 + activation_bytes(variant, &self.shapes(variant, runtime)?, batch))
    }

    fn shapes(&self, variant: &Model, runtime: &dyn Runtime) -> Result<Shapes, PruneError> {
        let examples = self.inputs.iter().map(|(n, t)| ((*n).to_owned(), t.shape().get(1..).unwrap_or_default().to_vec())).collect();
        measure_shapes(variant, runtime, &examples).map_err(model_error)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;
    use std::sync::LazyLock;

    use pleach_domain::dataset::{DatasetLimits, Targets};
    use pleach_inference::{OrtOptions, OrtRuntime};
    use pleach_onnx::Limits;

    use super::*;

    static RUNTIME: LazyLock<OrtRuntime> =
        LazyLock::new(|| OrtRuntime::new(OrtOptions { library: None, threads: NonZeroUsize::MIN }).expect("ORT_DYLIB_PATH"));

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn judged(model: &str, data: &str, rows: usize) -> (Task, Dataset, figures::Verdict) {
        let model = Model::decode(&fixture(&format!("{model}/model.onnx")), &Limits::default()).unwrap();
        let data = Dataset::parse_npz(&fixture(&format!("{data}validation.npz")), &DatasetLimits::default()).unwrap();
        let data = data.slice_rows(0, rows).unwrap();
        let task = Task::find(&model, &data, None, &*RUNTIME).unwrap();
        let answers = Answers::of(&task, &model, &data, &*RUNTIME).unwrap();
        let verdict = figures::compare(&task, &data, &answers, &answers).unwrap();
        assert!((verdict.agreement - 1.0).abs() < 1e-12 || task.kind() == TaskKind::Detection, "{}", verdict.agreement);
        assert!(verdict.lost.estimate.abs() < 1e-12 && verdict.lost.bound >= 0.0);
        (task, data, verdict)
    }

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 2e-4, "{got}: expected {want}");
    }

    // The expected figures come from independent NumPy code run on the same files.

    #[test]
    fn detections_are_judged_as_the_reference_judges_them() {
        let (task, _, verdict) = judged("fm-yolo", "fm-yolo/", 500);
        assert_eq!(task.kind(), TaskKind::Detection);
        let Quality::MeanPrecision { map50, map50_95, .. } = verdict.dense else { panic!("{:?}", verdict.dense) };
        near(map50, 0.849_17);
        near(map50_95, 0.673_88);
        assert!(verdict.agreement > 0.97, "{}", verdict.agreement);
    }

    #[test]
    fn next_tokens_are_told_from_tags_and_judged_by_perplexity() {
        let (task, _, verdict) = judged("austen-gpt", "austen-gpt/", 60);
        assert_eq!(task.kind(), TaskKind::LanguageModel);
        near(verdict.dense.headline(), 6.252_99);
    }

    #[test]
    fn classes_of_rows_are_judged_by_accuracy_recall_and_f1() {
        let (task, _, verdict) = judged("spam-bert", "spam-bert/", 600);
        assert_eq!(task.kind(), TaskKind::Classification);
        let Quality::Accuracy { accuracy, recall, f1, classes, .. } = verdict.dense else { panic!("{:?}", verdict.dense) };
        near(accuracy, 0.981_67);
        near(recall, 0.975_89);
        near(f1, 0.978_14);
        assert_eq!(classes.len(), 2);
    }

    #[test]
    fn tags_are_judged_by_entities() {
        let model = Model::decode(&fixture("conll-bert/model.onnx"), &Limits::default()).unwrap();
        let ids = Tensor::int64(vec![2, 6], vec![275, 167, 4, 1, 0, 0, 1584, 152, 28, 0, 0, 0]).unwrap();
        let mask = Tensor::int64(vec![2, 6], vec![1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0]).unwrap();
        let labels = vec![1, 2, 0, 0, -100, -100, 0, 0, 5, -100, -100, -100];
        let inputs = BTreeMap::from([("input_ids".to_owned(), ids), ("attention_mask".to_owned(), mask)]);
        let data = Dataset::new(inputs, Some(Targets::Labels { positions: Some(6), classes: labels })).unwrap();
        let task = Task::find(&model, &data, None, &*RUNTIME).unwrap();
        assert_eq!(task.kind(), TaskKind::Tagging);
        let mut answers = Answers::of(&task, &model, &data, &*RUNTIME).unwrap();
        // One entity of two found, its tags right; padding counts for nothing.
        answers.picks = vec![1, 2, 0, 3, 5, 5, 0, 0, 0, 1, 1, 1];
        let mut other = Answers::of(&task, &model, &data, &*RUNTIME).unwrap();
        other.picks = vec![1, 2, 0, 0, 1, 1, 0, 0, 5, 3, 3, 3];
        let verdict = figures::compare(&task, &data, &other, &answers).unwrap();
        let Quality::EntityF1 { accuracy, recall, precision, f1, .. } = verdict.pruned else { panic!("{:?}", verdict.pruned) };
        near(accuracy, 5.0 / 7.0);
        near(recall, 0.5);
        near(precision, 0.5);
        near(f1, 0.5);
        near(verdict.dense.headline(), 1.0);
        near(verdict.lost.estimate, 0.5);
        near(verdict.agreement, 5.0 / 7.0);
    }

    #[test]
    fn labels_of_classes_that_the_model_has_not_are_refused() {
        let (task, data, _) = judged("spam-bert", "spam-bert/", 2);
        let model = Model::decode(&fixture("spam-bert/model.onnx"), &Limits::default()).unwrap();
        let data = Dataset::new(data.inputs().clone(), Some(Targets::labels(vec![0, 2]))).unwrap();
        let answers = Answers::of(&task, &model, &data, &*RUNTIME).unwrap();
        let error = figures::compare(&task, &data, &answers, &answers).err().unwrap().to_string();
        assert!(error.contains("label 2 in row 1: expected below 2"), "{error}");
    }

    #[test]
    fn without_labels_models_are_judged_by_agreement() {
        let (task, data, _) = judged("spam-bert", "spam-bert/", 4);
        let model = Model::decode(&fixture("spam-bert/model.onnx"), &Limits::default()).unwrap();
        let data = Dataset::new(data.inputs().clone(), None).unwrap();
        assert_eq!(Task::find(&model, &data, None, &*RUNTIME).unwrap().kind(), TaskKind::Classification);
        let mut student = Answers::of(&task, &model, &data, &*RUNTIME).unwrap();
        let teacher = Answers::of(&task, &model, &data, &*RUNTIME).unwrap();
        student.picks[0] = 1 - student.picks[0];
        let verdict = figures::compare(&task, &data, &teacher, &student).unwrap();
        assert_eq!(verdict.pruned, Quality::Agreement { agreement: 0.75 });
        assert!(verdict.lost.bound > 0.25);
    }
}
