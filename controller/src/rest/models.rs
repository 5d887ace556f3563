//! Models: registered once their three files are there and fit each other.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use pleach_domain::id::ModelName;
use pleach_proto::rest::{List, ModelView, NewModel};
use pleach_prune::TaskKind;
use pleach_store::{Page, audit, models};

use super::auth::Actor;
use super::extract::Json;
use super::inspect::{self, Files};
use super::problem::{Code, Failure};
use crate::controller::Shared;
use crate::random;

/// `POST /api/v1/models`: checks the files and registers the next version.
pub(super) async fn register(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Json(new): Json<NewModel>,
) -> Result<(StatusCode, axum::Json<ModelView>), Failure> {
    let name: ModelName = new.name.parse()?;
    let Some(task) = TaskKind::named(&new.task) else {
        let task: String = new.task.chars().take(80).collect();
        return Err(Failure::new(Code::FieldInvalid, format!("task is {task:?}: expected one of {:?}", TaskKind::ALL.map(TaskKind::name))));
    };
    let limit = controller.config.max_upload_bytes;
    let files = Files {
        onnx: controller.blobs.get(&new.onnx, limit).await?,
        calibration: controller.blobs.get(&new.calibration, limit).await?,
        validation: controller.blobs.get(&new.validation, limit).await?,
    };
    let runtime = controller.runtime.clone();
    let size_bytes = files.onnx.len() as u64;
    let cost = tokio::task::spawn_blocking(move || inspect::check(&files, task, &runtime)).await.map_err(Failure::internal)??;
    let content = models::NewModel {
        name,
        task: new.task,
        onnx: new.onnx,
        calibration: new.calibration,
        validation: new.validation,
        macs: cost.macs,
        parameters: cost.parameters,
        size_bytes,
    };
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    let version = models::insert(&mut session, &content, at_ms).await?;
    let subject = format!("{}/{version}", content.name);
    let entry = audit::Entry { actor: &actor, action: "model.register", subject: &subject, before: None, after: Some(content.onnx) };
    audit::append(&mut session, &entry, at_ms).await?;
    session.commit().await?;
    controller.wake.all();
    Ok((StatusCode::CREATED, axum::Json(view(models::Model { version, content, created_at_ms: at_ms }))))
}

/// `GET /api/v1/models`: every version, by name and version.
pub(super) async fn list(State(controller): State<Shared>) -> Result<axum::Json<List<ModelView>>, Failure> {
    let mut session = controller.store.read().await?;
    let rows = models::list(&mut session, Page::of(Page::MAX_LIMIT)).await?;
    Ok(axum::Json(List { items: rows.into_iter().map(view).collect() }))
}

fn view(model: models::Model) -> ModelView {
    let content = model.content;
    ModelView {
        name: content.name.into(),
        version: model.version,
        task: content.task,
        onnx: content.onnx,
        calibration: content.calibration,
        validation: content.validation,
        macs: content.macs,
        parameters: content.parameters,
        size_bytes: content.size_bytes,
        created_at_ms: model.created_at_ms,
    }
}
