//! Enrolment tokens: made here, shown once.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use pleach_domain::id::TokenId;
use pleach_proto::rest::{List, NewToken, TokenView};
use pleach_store::{Page, audit, tokens};

use super::auth::Actor;
use super::extract::{Json, Path};
use super::problem::{Code, Failure};
use crate::controller::Shared;
use crate::enrolment_token::EnrolmentToken;
use crate::random;

/// Most devices one token enrols.
const MAX_USES: u32 = 1_000_000;
/// Longest life of a token: a year.
const MAX_TTL_SECONDS: u32 = 365 * 24 * 3_600;
/// Most labels.
const MAX_LABELS: usize = 32;
/// Longest name or value of a label.
const MAX_LABEL_BYTES: usize = 64;

/// `POST /api/v1/tokens`: makes a token; its text is in this answer only.
pub(super) async fn create(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Json(new): Json<NewToken>,
) -> Result<(StatusCode, axum::Json<TokenView>), Failure> {
    check(&new)?;
    let at_ms = random::now_ms();
    let text = EnrolmentToken::generate(controller.authority.fingerprint()).map_err(Failure::internal)?;
    let token = tokens::Token {
        id: text.id.clone(),
        secret_sha256: text.secret_sha256(),
        labels: new.labels,
        uses_left: new.uses,
        expires_at_ms: at_ms + i64::from(new.ttl_seconds) * 1_000,
        created_at_ms: at_ms,
    };
    let mut session = controller.store.write().await?;
    tokens::insert(&mut session, &token).await?;
    let entry = audit::Entry { actor: &actor, action: "token.create", subject: token.id.as_str(), before: None, after: None };
    audit::append(&mut session, &entry, at_ms).await?;
    session.commit().await?;
    let shown = Some(text.to_text().to_string());
    Ok((StatusCode::CREATED, axum::Json(TokenView { token: shown, ..view(token) })))
}

/// `GET /api/v1/tokens`: every token without its text, oldest first.
pub(super) async fn list(State(controller): State<Shared>) -> Result<axum::Json<List<TokenView>>, Failure> {
    let mut session = controller.store.read().await?;
    let rows = tokens::list(&mut session, Page::of(Page::MAX_LIMIT)).await?;
    Ok(axum::Json(List { items: rows.into_iter().map(view).collect() }))
}

/// `POST /api/v1/tokens/{id}/revoke`: lets nobody else in with it. Repeating it is harmless.
pub(super) async fn revoke(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(id): Path<String>,
) -> Result<axum::Json<TokenView>, Failure> {
    let id: TokenId = id.parse()?;
    let mut session = controller.store.write().await?;
    if tokens::revoke(&mut session, &id).await? {
        let entry = audit::Entry { actor: &actor, action: "token.revoke", subject: id.as_str(), before: None, after: None };
        audit::append(&mut session, &entry, random::now_ms()).await?;
    }
    let token = tokens::find(&mut session, &id).await?.ok_or_else(|| Failure::not_found(format!("token {id}")))?;
    session.commit().await?;
    Ok(axum::Json(view(token)))
}

fn view(token: tokens::Token) -> TokenView {
    TokenView { id: token.id.into(), token: None, uses_left: token.uses_left, expires_at_ms: token.expires_at_ms }
}

fn check(new: &NewToken) -> Result<(), Failure> {
    let refuse = |detail: String| Err(Failure::new(Code::FieldInvalid, detail));
    if !(1..=MAX_USES).contains(&new.uses) {
        return refuse(format!("uses is {}: expected 1 to {MAX_USES}", new.uses));
    }
    if !(1..=MAX_TTL_SECONDS).contains(&new.ttl_seconds) {
        return refuse(format!("ttl_seconds is {}: expected 1 to {MAX_TTL_SECONDS}", new.ttl_seconds));
    }
    if new.labels.len() > MAX_LABELS {
        return refuse(format!("labels has {} entries: expected at most {MAX_LABELS}", new.labels.len()));
    }
    let sane = |text: &str| text.len() <= MAX_LABEL_BYTES && !text.chars().any(char::is_control);
    match new.labels.iter().find(|(name, value)| name.is_empty() || !sane(name) || !sane(value)) {
        Some(_) => refuse(format!("labels: expected names and values of at most {MAX_LABEL_BYTES} printable bytes")),
        None => Ok(()),
    }
}
