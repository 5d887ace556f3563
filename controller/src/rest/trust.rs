//! The fleet's signed metadata, as devices get them.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use pleach_store::trust;

use super::extract::Path;
use super::problem::Failure;
use crate::controller::Shared;

/// `GET /api/v1/trust/{role}`: the newest file of a role, byte for byte.
pub(super) async fn show(State(controller): State<Shared>, Path(role): Path<String>) -> Result<impl IntoResponse, Failure> {
    let mut session = controller.store.read().await?;
    let newest = trust::newest(&mut session, &role).await?.ok_or_else(|| Failure::not_found(format!("metadata of a role {role:?}")))?;
    Ok(([(CONTENT_TYPE, "application/json")], newest.bytes))
}
