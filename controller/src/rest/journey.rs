//! What stands between an upload and a device: classes, jobs, variants, bundles, deployments. Reads only.

use axum::extract::State;
use pleach_domain::ClassId;
use pleach_proto::rest::{BundleView, ClassView, DeploymentView, JobView, List, VariantView};
use pleach_store::{Page, assignments, bundles, classes, jobs, variants};
use serde::Deserialize;

use super::extract::Query;
use super::problem::Failure;
use crate::controller::Shared;

type Items<T> = Result<axum::Json<List<T>>, Failure>;

/// How much of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bounds {
    /// At most so many.
    limit: Option<u32>,
}

impl Bounds {
    pub(super) fn page(&self) -> Page {
        page(self.limit)
    }
}

/// How much of a list, and of which class.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfClass {
    class: Option<ClassId>,
    limit: Option<u32>,
}

fn page(limit: Option<u32>) -> Page {
    limit.map_or_else(Page::default, Page::of)
}

fn items<T, V>(rows: Vec<T>, view: impl FnMut(T) -> V) -> Items<V> {
    Ok(axum::Json(List { items: rows.into_iter().map(view).collect() }))
}

/// `GET /api/v1/classes`: oldest first.
pub(super) async fn classes(State(controller): State<Shared>, Query(bounds): Query<Bounds>) -> Items<ClassView> {
    let mut session = controller.store.read().await?;
    items(classes::list(&mut session, page(bounds.limit)).await?, |row| ClassView {
        id: row.class.id.into(),
        architecture: row.class.architecture,
        vector: row.class.vector,
        inference_threads: row.class.inference_threads,
        devices: row.devices,
    })
}

/// `GET /api/v1/variants?class=&limit=`: the newest, newest last.
pub(super) async fn variants(State(controller): State<Shared>, Query(of): Query<OfClass>) -> Items<VariantView> {
    let mut session = controller.store.read().await?;
    items(variants::list(&mut session, of.class.as_ref(), page(of.limit)).await?, |row| VariantView {
        id: row.id.into(),
        class: row.budget.class.into(),
        model: row.model.into(),
        model_version: row.model_version,
        budget_revision: row.budget.revision,
        budget_us: row.budget_us,
        state: row.state,
        digest: row.digest,
        report: row.report,
        rejection: row.rejection,
        created_at_ms: row.created_at_ms,
    })
}

/// `GET /api/v1/bundles`: the newest, newest last.
pub(super) async fn bundles(State(controller): State<Shared>, Query(bounds): Query<Bounds>) -> Items<BundleView> {
    let mut session = controller.store.read().await?;
    items(bundles::list(&mut session, page(bounds.limit)).await?, |row| BundleView {
        id: row.id.into(),
        variant: row.variant.into(),
        class: row.class.into(),
        state: row.state,
        digest: row.digest,
        size_bytes: row.size_bytes,
        created_at_ms: row.created_at_ms,
    })
}

/// `GET /api/v1/deployments`: the newest assignment of each device, by device.
pub(super) async fn deployments(State(controller): State<Shared>) -> Items<DeploymentView> {
    let mut session = controller.store.read().await?;
    items(assignments::deployments(&mut session, Page::of(Page::MAX_LIMIT)).await?, |row| DeploymentView {
        device: row.device.into(),
        class: row.class.into(),
        sequence: row.sequence,
        rollout: row.rollout.into(),
        bundle: row.bundle.into(),
        digest: row.digest,
        variant: row.variant.into(),
        state: row.state,
        check: row.failed_check,
        detail: row.detail,
        assigned_at_ms: row.assigned_at_ms,
        changed_at_ms: row.changed_at_ms,
    })
}

/// `GET /api/v1/jobs`: the newest, newest last.
pub(super) async fn jobs(State(controller): State<Shared>, Query(bounds): Query<Bounds>) -> Items<JobView> {
    let mut session = controller.store.read().await?;
    items(jobs::list(&mut session, page(bounds.limit)).await?, |row| JobView {
        id: row.work.id.into(),
        kind: row.work.kind,
        state: row.state,
        attempt: row.attempt,
        stage: row.stage,
        progress: row.progress,
        error: row.error,
        subject: row.work.subject,
    })
}
