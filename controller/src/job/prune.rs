//! One pruning job: from a budget to a variant, made or rejected.

use std::sync::Arc;

use bytes::Bytes;
use pleach_domain::state::VariantState;
use pleach_prune::{Atlas, Criterion, Outcome, Report, Target};
use pleach_store::budgets::{Budget, BudgetKey};
use pleach_store::jobs::Lease;
use pleach_store::measurements::AtlasKey;
use pleach_store::variants::Variant;
use pleach_store::{atlases, audit, budgets, jobs, models, policies, variants};

use super::{Engine, Tracker};
use crate::controller::Controller;
use crate::random;
use crate::reconcile::{ReconcileError, entry, ids};

/// Prunes for the budget that `payload` names and stores the variant together with the end of the job.
///
/// # Errors
/// [`ReconcileError`]; nothing but unreferenced blobs is stored then.
pub(super) async fn run(
    controller: &Controller,
    engine: &Engine,
    lease: &Lease,
    payload: &str,
    tracker: &Arc<Tracker>,
) -> Result<(), ReconcileError> {
    let key: BudgetKey = serde_json::from_str(payload).map_err(ReconcileError::document("payload of a job"))?;
    let mut session = controller.store.read().await?;
    let missing = |what, id: String| ReconcileError::Missing { what, id };
    let budget = budgets::find(&mut session, &key).await?.ok_or_else(|| missing("budget", key.to_string()))?;
    let model = models::find(&mut session, &budget.model, budget.model_version).await?;
    let model = model.ok_or_else(|| missing("model", format!("{} version {}", budget.model, budget.model_version)))?;
    let measured =
        AtlasKey { class: key.class.clone(), model: budget.model.clone(), model_version: budget.model_version, batch: budget.batch };
    let atlas: Option<Atlas> = atlases::find(&mut session, &measured).await?;
    let atlas = atlas.ok_or_else(|| missing("atlas", key.to_string()))?;
    let policy = policies::find(&mut session, &key.policy).await?.ok_or_else(|| missing("policy", key.policy.to_string()))?;
    drop(session);
    let criterion = criterion(&budget)?;
    let analysed = engine.analysed(controller, &model, criterion, Arc::clone(tracker)).await?;
    let target = Target {
        latency_us: budget.latency_us,
        max_size_bytes: budget.max_size_bytes,
        min_accuracy: Some(budget.accuracy_floor),
        min_class_recall: policy.policy.class_recall_floor,
        batch: budget.batch as usize,
        ..Target::default()
    };
    let (runtime, progress) = (controller.runtime.clone(), Arc::clone(tracker));
    let outcome = engine
        .run(move || {
            pleach_prune::prune(&analysed.analysis, &atlas, &target, &analysed.calibration, &analysed.validation, &runtime, &*progress)
        })
        .await??;
    store(controller, lease, budget, outcome).await
}

fn criterion(budget: &Budget) -> Result<Criterion, ReconcileError> {
    serde_json::from_value(serde_json::Value::String(budget.criterion.clone())).map_err(ReconcileError::document("criterion of a budget"))
}

async fn store(controller: &Controller, lease: &Lease, budget: Budget, outcome: Outcome) -> Result<(), ReconcileError> {
    let (state, digest, rejection, report): (_, _, _, Box<Report>) = match outcome {
        Outcome::Made { model, report } => {
            let digest = controller.blobs.put_bytes(Bytes::from(model)).await?;
            (VariantState::Made, Some(digest), None, report)
        }
        Outcome::Rejected { shortfall, nearest, report } => {
            let words = format!(
                "{shortfall}; the nearest feasible point has a predicted latency of {:.0} us, accuracy {:.4} and {} bytes",
                nearest.latency_us, nearest.accuracy, nearest.size_bytes
            );
            (VariantState::Rejected, None, Some(words), report)
        }
    };
    let subject = budget.key.to_string();
    let at_ms = random::now_ms();
    let variant = Variant {
        id: ids::derived("v", &subject)?,
        model: budget.model,
        model_version: budget.model_version,
        budget_us: budget.latency_us,
        budget: budget.key,
        state,
        digest,
        report: serde_json::to_value(&report).map_err(ReconcileError::document("report of a variant"))?,
        rejection,
        created_at_ms: at_ms,
    };
    let mut session = controller.store.write().await?;
    variants::insert(&mut session, &variant).await?;
    if !jobs::succeed(&mut session, lease, at_ms).await? {
        return Err(ReconcileError::Task("the lease was lost before the variant was stored".to_owned()));
    }
    let action = if variant.state == VariantState::Made { "variant.make" } else { "variant.reject" };
    audit::append(&mut session, &entry(action, &subject), at_ms).await?;
    Ok(session.commit().await?)
}
