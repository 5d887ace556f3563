//! Has a device of each class time what the atlas of a model needs, and makes the atlas of its answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pleach_domain::DeviceId;
use pleach_domain::class::Class;
use pleach_domain::profile::MeasuredKernel;
use pleach_domain::runtime::{TimedModel, Timing};
use pleach_inference::width_step;
use pleach_proto::fleet::{MeasurementInput, MeasurementModel, MeasurementSet};
use pleach_prune::{Atlas, AtlasPlan, PruneError};
use pleach_store::measurements::{Task, TaskState};
use pleach_store::{Page, atlases, audit, devices, measurements};
use prost::Message;

use super::scope::{self, Scope};
use super::{Context, Progress, ReconcileError, entry, ids};
use crate::job::Tracker;

/// Wall time on each graph.
const BUDGET_MS: u32 = 60;
/// Pause before the next try, for each one that failed.
const PAUSE_MS: i64 = 10_000;
const MAX_PAUSE_MS: i64 = 600_000;

/// Opens tasks where a class has no atlas of its model, and makes atlases of answers.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Prune`] when a model cannot be analysed.
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let scopes = scope::all(&mut context.store.read().await?).await?;
    let (mut changed, mut failed) = (false, None);
    for scope in scopes {
        // One model that cannot be analysed must not keep the others waiting.
        match measure(context, &scope, at_ms).await {
            Ok(something) => changed |= something,
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if !changed => Err(error),
        _ => Ok(Progress::of(changed)),
    }
}

async fn measure(context: &Context, scope: &Scope, at_ms: i64) -> Result<bool, ReconcileError> {
    let key = scope.atlas();
    let mut session = context.store.read().await?;
    if atlases::exists(&mut session, &key).await? {
        return Ok(false);
    }
    let tasks = measurements::of_atlas(&mut session, &key).await?;
    drop(session);
    for (task, state) in &tasks {
        match state {
            TaskState::Done(timings) => return conclude(context, scope, task, timings, at_ms).await,
            TaskState::Open if task.deadline_at_ms > at_ms => return Ok(false),
            TaskState::Open => return give_up(context, task, "the device did not answer in time").await,
            TaskState::Failed(_) => {}
        }
    }
    let failures = i64::try_from(tasks.len()).unwrap_or(i64::MAX);
    let last_ms = tasks.last().map_or(i64::MIN / 2, |(task, _)| task.deadline_at_ms - deadline_ms(context));
    if at_ms < last_ms.saturating_add((failures * PAUSE_MS).min(MAX_PAUSE_MS)) {
        return Ok(false);
    }
    let failed: Vec<_> = tasks.iter().map(|(task, _)| &task.device).collect();
    match volunteer(context, &scope.class, &failed).await? {
        Some(device) => open(context, scope, device, tasks.len(), at_ms).await,
        None => Ok(false),
    }
}

/// A connected device of the class, one that has failed least often.
async fn volunteer(context: &Context, class: &Class, failed: &[&DeviceId]) -> Result<Option<DeviceId>, ReconcileError> {
    let devices = devices::of_class(&mut context.store.read().await?, &class.id, Page::default()).await?;
    let connected = devices.into_iter().map(|d| d.enrolled.id).filter(|id| context.presence.is_connected(id));
    Ok(connected.min_by_key(|id| failed.iter().filter(|f| **f == id).count()))
}

async fn open(context: &Context, scope: &Scope, device: DeviceId, tries: usize, at_ms: i64) -> Result<bool, ReconcileError> {
    let plan = atlas_plan(context, scope).await?;
    let models = plan.items.into_iter().map(|item| encode(item.key, item.model)).collect::<Vec<_>>();
    let set = Bytes::from(MeasurementSet { models }.encode_to_vec());
    let length = set.len() as u64;
    let blob = context.blobs.put_bytes(set).await?;
    let key = scope.atlas();
    let id: pleach_domain::id::JobId = ids::derived("m", &format!("{key:?}/{tries}"))?;
    let deadline_at_ms = at_ms + deadline_ms(context);
    let task = Task { id: id.to_string(), key, device, blob, length, budget_ms: BUDGET_MS, deadline_at_ms };
    let mut session = context.store.write().await?;
    measurements::insert(&mut session, &task, at_ms).await?;
    let subject = format!("{} by {}", scope.subject(), task.device);
    audit::append(&mut session, &entry("atlas.measure", &subject), at_ms).await?;
    session.commit().await?;
    Ok(true)
}

/// How long a device has.
fn deadline_ms(context: &Context) -> i64 {
    i64::from(context.config.measurement_deadline_seconds) * 1_000
}

async fn conclude(context: &Context, scope: &Scope, task: &Task, timings: &[MeasuredKernel], at_ms: i64) -> Result<bool, ReconcileError> {
    let plan = atlas_plan(context, scope).await?;
    let by_key: BTreeMap<&str, Timing> = timings.iter().map(|k| (k.key.as_str(), k.timing)).collect();
    let ordered: Vec<Timing> = plan.items.iter().filter_map(|item| by_key.get(item.key.as_str()).copied()).collect();
    let atlas = match Atlas::from_timings(&plan, &ordered) {
        Ok(atlas) => atlas,
        Err(error @ PruneError::Atlas(_)) => return give_up(context, task, &error.to_string()).await,
        Err(error) => return Err(error.into()),
    };
    let mut session = context.store.write().await?;
    if !atlases::insert(&mut session, &task.key, &task.device, &atlas, at_ms).await? {
        return Ok(false);
    }
    audit::append(&mut session, &entry("atlas.make", &scope.subject()), at_ms).await?;
    session.commit().await?;
    Ok(true)
}

async fn give_up(context: &Context, task: &Task, reason: &str) -> Result<bool, ReconcileError> {
    let mut session = context.store.write().await?;
    let new = measurements::fail(&mut session, &task.id, &task.device, reason).await?;
    session.commit().await?;
    Ok(new)
}

/// What to time for the class: the same for every device and every try, because it follows from the class and the model.
async fn atlas_plan(context: &Context, scope: &Scope) -> Result<AtlasPlan, ReconcileError> {
    let timing = |us: f64| Timing { mean_us: us, min_us: us, p50_us: us, p95_us: us, calls: 1 };
    let kernels: Vec<_> =
        scope.class.kernel_mean_us.iter().map(|(key, &us)| MeasuredKernel { key: key.clone(), timing: timing(us) }).collect();
    let step = width_step(&kernels);
    let criterion = scope.policy.policy.criterion;
    let tracker = Arc::new(Tracker::new(context.stop.clone()));
    let analysed = context.engine.analysed(&context.controller, &scope.model, criterion, tracker).await?;
    let batch = scope.policy.policy.request_batch as usize;
    Ok(context.engine.run(move || AtlasPlan::for_model(&analysed.analysis, batch, step)).await??)
}

fn encode(key: String, timed: TimedModel) -> MeasurementModel {
    let input = |(name, tensor): (String, pleach_domain::Tensor)| MeasurementInput {
        name,
        datatype: tensor.element_type().name().to_owned(),
        shape: tensor.shape().iter().map(|&d| u32::try_from(d).unwrap_or(u32::MAX)).collect(),
    };
    MeasurementModel { key, onnx: timed.model, inputs: timed.inputs.into_iter().map(input).collect() }
}
