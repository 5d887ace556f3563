//! The fleet at a glance, and the stream that says when to look again.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, stream};
use pleach_proto::rest::{DeploymentCount, DeviceCount, FleetView};
use pleach_store::fleet;
use tokio::time::{Instant, sleep, timeout_at};

use super::problem::Failure;
use crate::controller::Shared;

/// One stream lives so long; the client opens the next one, and its token is looked at again.
const STREAM_LIFE: Duration = Duration::from_secs(300);
/// Changes that follow each other faster become one event.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);

/// `GET /api/v1/fleet`.
pub(super) async fn show(State(controller): State<Shared>) -> Result<axum::Json<FleetView>, Failure> {
    let mut session = controller.store.read().await?;
    let devices = fleet::devices(&mut session).await?;
    let deployments = fleet::deployments(&mut session).await?;
    Ok(axum::Json(FleetView {
        devices: devices.into_iter().map(|(state, count)| DeviceCount { state, count }).collect(),
        connected: controller.presence.connected().len() as u64,
        deployments: deployments.into_iter().map(|(class, state, count)| DeploymentCount { class: class.into(), state, count }).collect(),
    }))
}

/// `GET /api/v1/events`: server-sent events named `changed`, each saying that rows changed since the one before. The first comes at once.
///
/// What changed is not said: the lists are the truth, and reading them again is harmless.
pub(super) async fn events(State(controller): State<Shared>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changed = controller.wake.listen();
    let stop = controller.stop.clone();
    let end = Instant::now() + STREAM_LIFE;
    let stream = stream::unfold((changed, true), move |(mut changed, first)| {
        let stop = stop.clone();
        async move {
            if !first {
                let next = async {
                    sleep(SHORTEST_PAUSE).await;
                    changed.changed().await
                };
                tokio::select! {
                    () = stop.cancelled() => return None,
                    next = timeout_at(end, next) => next.ok()?.ok()?,
                }
            }
            Some((Ok(Event::default().event("changed").data("{}")), (changed, false)))
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}
