//! Devices: seen, and cut off.

use axum::Extension;
use axum::extract::State;
use pleach_domain::DeviceId;
use pleach_domain::selector::check_label;
use pleach_proto::rest::{DeviceView, LabelChange, List};
use pleach_store::{Page, Session, audit, devices};
use serde::Deserialize;

use super::auth::Actor;
use super::extract::{Json, Path, Query};
use super::problem::{Code, Failure};
use crate::controller::{Controller, Shared};
use crate::random;

/// Most labels of one device.
const MAX_LABELS: usize = 32;

/// What a list of devices holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    /// Whether each device's profile, with its measured kernels, is in it: by far the most of it.
    #[serde(default = "yes")]
    profile: bool,
}

const fn yes() -> bool {
    true
}

/// `GET /api/v1/devices?profile=`: every device, by identifier.
pub(super) async fn list(State(controller): State<Shared>, Query(shape): Query<Shape>) -> Result<axum::Json<List<DeviceView>>, Failure> {
    let mut session = controller.store.read().await?;
    let rows = devices::list(&mut session, Page::of(Page::MAX_LIMIT)).await?;
    let items = rows.into_iter().map(|device| {
        let mut view = view(&controller, device);
        view.profile = view.profile.filter(|_| shape.profile);
        view
    });
    Ok(axum::Json(List { items: items.collect() }))
}

/// `GET /api/v1/devices/{id}`.
pub(super) async fn show(State(controller): State<Shared>, Path(id): Path<String>) -> Result<axum::Json<DeviceView>, Failure> {
    let id: DeviceId = id.parse()?;
    let mut session = controller.store.read().await?;
    let device = devices::find(&mut session, &id).await?.ok_or_else(|| Failure::not_found(format!("device {id}")))?;
    Ok(axum::Json(view(&controller, device)))
}

/// `POST /api/v1/devices/{id}/revoke`: cuts a device off for ever; its open stream ends at once. Repeating it is harmless.
pub(super) async fn revoke(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(id): Path<String>,
) -> Result<axum::Json<DeviceView>, Failure> {
    let id: DeviceId = id.parse()?;
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    let done = devices::revoke(&mut session, &id, at_ms).await?;
    let device = changed(session, &actor, &id, "device.revoke", done.then_some(at_ms)).await?;
    controller.presence.nudge(&id);
    controller.wake.all();
    Ok(axum::Json(view(&controller, device)))
}

/// `POST /api/v1/devices/{id}/approve`: lets a device in that waits for a person. Repeating it is harmless.
pub(super) async fn approve(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(id): Path<String>,
) -> Result<axum::Json<DeviceView>, Failure> {
    let id: DeviceId = id.parse()?;
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    let done = devices::approve(&mut session, &id, at_ms).await?;
    let device = changed(session, &actor, &id, "device.approve", done.then_some(at_ms)).await?;
    controller.presence.forget_boots(&id);
    controller.wake.all();
    Ok(axum::Json(view(&controller, device)))
}

/// `POST /api/v1/devices/{id}/labels`: sets and takes away labels; rollouts that stand consider the device anew.
pub(super) async fn label(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(id): Path<String>,
    Json(change): Json<LabelChange>,
) -> Result<axum::Json<DeviceView>, Failure> {
    let id: DeviceId = id.parse()?;
    for (key, value) in &change.set {
        check_label(key, value)?;
    }
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    let device = devices::find(&mut session, &id).await?.ok_or_else(|| Failure::not_found(format!("device {id}")))?;
    let mut labels = device.enrolled.labels.clone();
    labels.retain(|key, _| !change.remove.contains(key));
    labels.extend(change.set);
    if labels.len() > MAX_LABELS {
        return Err(Failure::new(
            Code::FieldInvalid,
            format!("the device would have {} labels: expected at most {MAX_LABELS}", labels.len()),
        ));
    }
    let done = labels != device.enrolled.labels && devices::set_labels(&mut session, &id, &labels, at_ms).await?;
    let device = changed(session, &actor, &id, "device.label", done.then_some(at_ms)).await?;
    controller.wake.all();
    Ok(axum::Json(view(&controller, device)))
}

/// Ends a change of a device's state: audited where it changed anything, at the time given, and committed.
async fn changed(mut session: Session, actor: &str, id: &DeviceId, action: &str, at_ms: Option<i64>) -> Result<devices::Device, Failure> {
    if let Some(at_ms) = at_ms {
        let entry = audit::Entry { actor, action, subject: id.as_str(), before: None, after: None };
        audit::append(&mut session, &entry, at_ms).await?;
    }
    let device = devices::find(&mut session, id).await?.ok_or_else(|| Failure::not_found(format!("device {id}")))?;
    session.commit().await?;
    Ok(device)
}

fn view(controller: &Controller, device: devices::Device) -> DeviceView {
    DeviceView {
        connected: controller.presence.is_connected(&device.enrolled.id),
        id: device.enrolled.id.into(),
        state: device.state,
        labels: device.enrolled.labels,
        class: device.class.map(Into::into),
        class_reason: device.class_reason,
        profile: device.profile,
        last_seen_at_ms: device.last_seen_at_ms,
        enrolled_at_ms: device.enrolled_at_ms,
    }
}
