//! API tokens: one for each person or program, so that the log tells them apart and a second one can agree.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use pleach_domain::DeviceId;
use pleach_proto::rest::{ApiTokenView, NewApiToken};
use pleach_store::{api_tokens, audit};

use super::auth::{self, Actor, Role};
use super::extract::Json;
use super::problem::{Code, Failure};
use crate::controller::Shared;
use crate::random;

/// `POST /api/v1/api-tokens`: makes a token, or gives that of the same name another text; it is in this answer only.
pub(super) async fn create(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Json(new): Json<NewApiToken>,
) -> Result<(StatusCode, axum::Json<ApiTokenView>), Failure> {
    // Names follow the rule of all identifiers.
    let id: DeviceId = new.id.parse()?;
    let expected = || Failure::new(Code::FieldInvalid, format!("role is {:?}: expected viewer, operator or admin", new.role));
    let role: Role = new.role.parse().map_err(|()| expected())?;
    let (text, digest) = auth::generate().map_err(Failure::internal)?;
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    let token = api_tokens::ApiToken { id: id.into(), role: role.as_str().to_owned() };
    api_tokens::put(&mut session, &token, &digest, None, at_ms).await?;
    let entry = audit::Entry { actor: &actor, action: "api-token.create", subject: &token.id, before: None, after: None };
    audit::append(&mut session, &entry, at_ms).await?;
    session.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(ApiTokenView { id: token.id, role: token.role, token: text.to_string() })))
}
