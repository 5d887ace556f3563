//! API tokens of people and their tools: made here, shown once, and taken back.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use pleach_artifact::sha256;
use pleach_domain::id::ApiTokenId;
use pleach_domain::role::Role;
use pleach_proto::rest::{ApiTokenView, List, NewApiToken};
use pleach_store::{Page, api_tokens, audit};

use super::auth::{self, Actor};
use super::extract::{Json, Path};
use super::problem::{Code, Failure};
use crate::controller::Shared;
use crate::random;

/// `POST /api/v1/api-tokens`: makes a token; its text is in this answer only.
pub(super) async fn create(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Json(new): Json<NewApiToken>,
) -> Result<(StatusCode, axum::Json<ApiTokenView>), Failure> {
    let at_ms = random::now_ms();
    if new.ttl_seconds == Some(0) {
        return Err(Failure::new(Code::FieldInvalid, "ttl_seconds is 0: expected at least 1, or none for a token that does not expire"));
    }
    let expires_at_ms = new.ttl_seconds.map(|s| at_ms + i64::from(s) * 1_000);
    let token = api_tokens::ApiToken { id: new.name, role: new.role, created_at_ms: at_ms, expires_at_ms };
    let text = auth::secret().map_err(Failure::internal)?;
    let mut session = controller.store.write().await?;
    if !api_tokens::insert(&mut session, &token, &sha256(text.as_bytes())).await? {
        return Err(Failure::new(Code::Conflict, format!("there is an API token {} already: revoke it first", token.id)));
    }
    let entry = audit::Entry { actor: &actor, action: "api-token.create", subject: token.id.as_str(), before: None, after: None };
    audit::append(&mut session, &entry, at_ms).await?;
    session.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(ApiTokenView { token: Some(text.to_string()), ..view(token) })))
}

/// `GET /api/v1/api-tokens`: every token without its text, by name.
pub(super) async fn list(State(controller): State<Shared>) -> Result<axum::Json<List<ApiTokenView>>, Failure> {
    let mut session = controller.store.read().await?;
    let rows = api_tokens::list(&mut session, Page::of(Page::MAX_LIMIT)).await?;
    Ok(axum::Json(List { items: rows.into_iter().map(view).collect() }))
}

/// `DELETE /api/v1/api-tokens/{name}`: the token is refused from now on. The last administrator without an end stays: nobody could make another.
pub(super) async fn revoke(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    let name: ApiTokenId = name.parse()?;
    let mut session = controller.store.write().await?;
    let lasting = |t: &api_tokens::ApiToken| t.role == Role::Admin && t.expires_at_ms.is_none();
    let admins: Vec<_> = api_tokens::list(&mut session, Page::of(Page::MAX_LIMIT)).await?.into_iter().filter(lasting).collect();
    if matches!(&*admins, [only] if only.id == name) {
        let detail = format!("{name} is the last administrator's token that does not expire: make another one first");
        return Err(Failure::new(Code::Conflict, detail));
    }
    if !api_tokens::remove(&mut session, &name).await? {
        return Err(Failure::not_found(format!("API token {name}")));
    }
    let entry = audit::Entry { actor: &actor, action: "api-token.revoke", subject: name.as_str(), before: None, after: None };
    audit::append(&mut session, &entry, random::now_ms()).await?;
    session.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn view(token: api_tokens::ApiToken) -> ApiTokenView {
    let api_tokens::ApiToken { id, role, created_at_ms, expires_at_ms } = token;
    ApiTokenView { name: id, role, token: None, created_at_ms, expires_at_ms }
}
