//! Seals variants into bundles: a ladder of one rung with its known-answer test, encrypted once and published under the release role.

use bytes::Bytes;
use pleach_artifact::{BundleManifest, KnownAnswer, NamedTensor, PayloadReader, Rung, RungSource, Suite, seal};
use pleach_domain::dataset::{Dataset, DatasetLimits};
use pleach_domain::runtime::{Optimization, Runtime};
use pleach_domain::state::BundleState;
use pleach_domain::{Digest, Tensor};
use pleach_store::bundles::Bundle;
use pleach_store::models::Model;
use pleach_store::variants::Variant;
use pleach_store::{Page, audit, budgets, bundles, devices, models, variants};

use super::{Context, Progress, ReconcileError, entry, ids, publish};

/// Rows of the known-answer test.
const KNOWN_ANSWER_ROWS: usize = 2;
/// Tolerances of the known answer: wide enough for another processor's rounding, far too narrow for another model.
const KNOWN_ANSWER_RTOL: f32 = 1e-2;
/// Absolute tolerance as a share of the largest expected magnitude.
const KNOWN_ANSWER_SHARE: f32 = 1e-3;
const MAX_FILE_BYTES: u64 = 4 << 30;

/// Seals every variant that is made and has no bundle.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Artifact`], [`ReconcileError::Run`] when the variant does not run.
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let waiting = variants::unsealed(&mut context.store.read().await?, Page::default()).await?;
    let mut changed = false;
    for variant in waiting {
        changed |= seal_variant(context, variant, at_ms).await?;
    }
    Ok(Progress::of(changed))
}

async fn seal_variant(context: &Context, variant: Variant, at_ms: i64) -> Result<bool, ReconcileError> {
    let missing = |what, id: String| ReconcileError::Missing { what, id };
    let mut session = context.store.read().await?;
    let model = models::find(&mut session, &variant.model, variant.model_version).await?;
    let model = model.ok_or_else(|| missing("model", variant.model.to_string()))?;
    let batch = budgets::find(&mut session, &variant.budget).await?.map(|b| b.batch);
    let batch = batch.ok_or_else(|| missing("budget", variant.budget.to_string()))?;
    let suite = suite(&devices::of_class(&mut session, &variant.budget.class, Page::of(1)).await?);
    drop(session);
    let digest = variant.digest.ok_or_else(|| missing("file of variant", variant.id.to_string()))?;
    let onnx = context.blobs.get(&digest, MAX_FILE_BYTES).await?;
    let calibration = context.blobs.get(&model.content.calibration, MAX_FILE_BYTES).await?;
    let runtime = context.runtime.clone();
    let of = variant.clone();
    let sealed = move || -> Result<_, ReconcileError> {
        let samples = Dataset::parse_npz(&calibration, &DatasetLimits::default())?;
        let manifest = manifest(&of, &model, batch, digest, &onnx, &samples, &runtime, at_ms)?;
        let mut payload = PayloadReader::new(&manifest, &[RungSource { onnx: &onnx }])?;
        let (length, mut ciphertext) = (payload.length(), Vec::new());
        let sealed = seal(&mut payload, length, suite, &mut ciphertext)?;
        Ok((sealed, ciphertext))
    };
    let (sealed, ciphertext) = context.engine.run(sealed).await??;
    context.blobs.put_bytes(Bytes::from(ciphertext)).await?;
    let bundle = Bundle {
        id: ids::named("b", &sealed.digest)?,
        variant: variant.id,
        class: variant.budget.class,
        state: BundleState::Sealed,
        digest: sealed.digest,
        size_bytes: sealed.length,
        tree_root: sealed.tree_root,
        leaves: sealed.leaves.encode(),
        suite: sealed.suite.name().to_owned(),
        content_key: context.keys.content.encrypt(&sealed.content_key, &sealed.digest)?,
        created_at_ms: at_ms,
    };
    let mut session = context.store.write().await?;
    if !bundles::insert(&mut session, &bundle).await? {
        return Ok(false);
    }
    publish::refresh(&mut session, &context.keys, at_ms).await?;
    let subject = format!("{} with {}", bundle.id, bundle.variant);
    audit::append(&mut session, &entry("bundle.seal", &subject), at_ms).await?;
    session.commit().await?;
    Ok(true)
}

/// AES where the class has instructions for it.
fn suite(devices: &[devices::Device]) -> Suite {
    let has_aes = |d: &devices::Device| d.profile.as_ref().is_some_and(|p| p.instruction_sets.iter().any(|s| s == "aes"));
    if devices.iter().any(has_aes) { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
}

#[allow(clippy::too_many_arguments)] // each is one fact of the manifest
fn manifest(
    variant: &Variant,
    model: &Model,
    batch: u32,
    digest: Digest,
    onnx: &[u8],
    samples: &Dataset,
    runtime: &dyn Runtime,
    at_ms: i64,
) -> Result<BundleManifest, ReconcileError> {
    let failed = |source| ReconcileError::Run { variant: variant.id.to_string(), source };
    let mut loaded = runtime.load(onnx, Optimization::All).map_err(failed)?;
    let inputs: Vec<(String, Tensor)> =
        samples.inputs().iter().map(|(name, tensor)| (name.clone(), tensor.slice_rows(0, KNOWN_ANSWER_ROWS))).collect();
    let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let answers = loaded.run(&named).map_err(failed)?;
    let magnitude = answers.iter().filter_map(Tensor::as_fp32).flatten().fold(0.0f32, |m, x| m.max(x.abs()));
    let outputs = loaded.outputs().iter().zip(answers).map(|(spec, tensor)| NamedTensor { name: spec.name.clone(), tensor }).collect();
    let known_answer = KnownAnswer { outputs, rtol: KNOWN_ANSWER_RTOL, atol: (magnitude * KNOWN_ANSWER_SHARE).max(1e-6) };
    let macs = variant.report.pointer("/pruned/macs").and_then(serde_json::Value::as_u64).unwrap_or(model.content.macs);
    let rung = Rung { name: "full".to_owned(), offset_bytes: 0, length_bytes: onnx.len() as u64, sha256: digest, macs, known_answer };
    Ok(BundleManifest {
        format: pleach_artifact::manifest::MANIFEST_FORMAT,
        model: model.content.name.clone(),
        version: u64::from(model.version),
        class: variant.budget.class.clone(),
        task: model.content.task.clone(),
        labels: Vec::new(),
        inputs: loaded.inputs().to_vec(),
        outputs: loaded.outputs().to_vec(),
        request_batch: batch,
        known_answer_inputs: inputs.into_iter().map(|(name, tensor)| NamedTensor { name, tensor }).collect(),
        rungs: vec![rung],
        created_at_ms: at_ms,
    })
}
