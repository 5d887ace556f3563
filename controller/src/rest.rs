//! The REST interface of people and their tools under `/api/v1`: JSON in and out, refusals as problem details (RFC 9457).
//!
//! Every route names the least role that may use it; there is no way to add one without. Only `/healthz`, `/readyz` and the page of the
//! dashboard, which holds no figures, are open.

mod api_tokens;
mod auth;
mod blobs;
mod dashboard;
mod devices;
mod extract;
mod fleet;
mod inspect;
mod journey;
mod log;
mod models;
mod offline;
mod policies;
pub mod problem;
mod rollouts;
mod telemetry;
mod tokens;
mod trust;
mod why;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};
use tower_http::trace::TraceLayer;

pub use auth::first_admin;
use pleach_domain::role::Role;

use crate::controller::Shared;
use auth::Guard;
use problem::{Code, Failure};

/// Largest JSON body.
const MAX_JSON_BYTES: usize = 256 * 1024;

/// Every guarded route, with the least role it needs for reading and for the rest.
fn routes() -> Vec<(&'static str, Role, MethodRouter<Shared>)> {
    use Role::{Admin, Operator, Viewer};
    vec![
        ("/api/v1/blobs/{sha256}", Operator, put(blobs::upload).layer(DefaultBodyLimit::disable())),
        ("/api/v1/models", Operator, post(models::register)),
        ("/api/v1/models", Viewer, get(models::list)),
        ("/api/v1/policies/{name}", Operator, put(policies::apply)),
        ("/api/v1/policies", Viewer, get(policies::list)),
        ("/api/v1/api-tokens", Admin, post(api_tokens::create)),
        ("/api/v1/api-tokens", Admin, get(api_tokens::list)),
        ("/api/v1/api-tokens/{name}", Admin, delete(api_tokens::revoke)),
        ("/api/v1/tokens", Admin, post(tokens::create)),
        ("/api/v1/tokens", Admin, get(tokens::list)),
        ("/api/v1/tokens/{id}/revoke", Admin, post(tokens::revoke)),
        ("/api/v1/events", Viewer, get(fleet::events)),
        ("/api/v1/fleet", Viewer, get(fleet::show)),
        ("/api/v1/devices", Viewer, get(devices::list)),
        ("/api/v1/devices/{id}", Viewer, get(devices::show)),
        ("/api/v1/devices/{id}/bundle", Operator, get(offline::export)),
        ("/api/v1/devices/{id}/revoke", Admin, post(devices::revoke)),
        ("/api/v1/devices/{id}/approve", Admin, post(devices::approve)),
        ("/api/v1/devices/{id}/labels", Operator, post(devices::label)),
        ("/api/v1/devices/{id}/why", Viewer, get(why::why)),
        ("/api/v1/classes", Viewer, get(journey::classes)),
        ("/api/v1/variants", Viewer, get(journey::variants)),
        ("/api/v1/bundles", Viewer, get(journey::bundles)),
        ("/api/v1/rollouts", Viewer, get(rollouts::list)),
        ("/api/v1/rollouts/{id}", Viewer, get(rollouts::show)),
        ("/api/v1/rollouts/{id}/pause", Operator, post(rollouts::pause)),
        ("/api/v1/rollouts/{id}/resume", Operator, post(rollouts::resume)),
        ("/api/v1/rollouts/{id}/abort", Operator, post(rollouts::abort)),
        ("/api/v1/rollouts/{id}/undo", Operator, post(rollouts::undo)),
        ("/api/v1/rollouts/{id}/approve", Operator, post(rollouts::approve)),
        ("/api/v1/deployments", Viewer, get(journey::deployments)),
        ("/api/v1/jobs", Viewer, get(journey::jobs)),
        ("/api/v1/windows", Viewer, get(telemetry::windows)),
        ("/api/v1/rollups", Viewer, get(telemetry::rollups)),
        ("/api/v1/decisions", Viewer, get(telemetry::decisions)),
        ("/api/v1/trust/{role}", Viewer, get(trust::show)),
        ("/api/v1/audit", Viewer, get(log::list)),
    ]
}

/// The whole interface.
pub fn router(controller: Shared) -> Router {
    let open = Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready));
    let guarded = routes().into_iter().fold(Router::new(), |router, (path, role, method)| {
        router.route(path, method.layer(from_fn_with_state(Guard::new(controller.clone(), role), auth::check)))
    });
    open.merge(guarded)
        .fallback(get(dashboard::serve))
        .method_not_allowed_fallback(|| async { Failure::new(Code::MethodNotAllowed, "the route does not have this method") })
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .layer(TraceLayer::new_for_http())
        .with_state(controller)
}

/// Whether the database answers.
async fn ready(State(controller): State<Shared>) -> Result<(StatusCode, &'static str), Failure> {
    match controller.store.read().await {
        Ok(_) => Ok((StatusCode::OK, "ready")),
        Err(_) => Err(Failure::new(Code::Unavailable, "the database does not answer")),
    }
}
