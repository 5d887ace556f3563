//! Who may do what: bearer tokens, kept as hashes, with a role each.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pleach_artifact::sha256;
use pleach_domain::DomainError;
use pleach_domain::role::Role;
use pleach_store::{Store, api_tokens};
use zeroize::Zeroizing;

use super::problem::{Code, Failure};
use crate::controller::Shared;
use crate::error::ControllerError;
use crate::files::{self, Access};
use crate::random;

/// Begin of every API token, so that a leaked one is recognised.
const PREFIX: &str = "pla1.";
/// Longest token that is looked up.
const MAX_TOKEN_BYTES: usize = 256;

/// Who sends a request, as the audit log names it.
#[derive(Clone, Debug)]
pub(super) struct Actor(pub(super) String);

/// What one route needs.
#[derive(Clone)]
pub(super) struct Guard {
    controller: Shared,
    role: Role,
}

impl Guard {
    pub(super) fn new(controller: Shared, role: Role) -> Self {
        Self { controller, role }
    }
}

/// Lets a request pass whose token has the guard's role, and notes who sends it.
pub(super) async fn check(State(guard): State<Guard>, mut request: Request, next: Next) -> Result<Response, Failure> {
    let token = bearer(request.headers()).ok_or_else(|| unauthenticated("no API token: expected `Authorization: Bearer <token>`"))?;
    // The database compares hashes of secrets with 256 bits of randomness, so its timing tells nothing about a secret.
    let digest = sha256(token.as_bytes());
    let mut session = guard.controller.store.read().await?;
    let known = api_tokens::authenticate(&mut session, &digest, random::now_ms()).await?;
    drop(session);
    let known = known.ok_or_else(|| unauthenticated("the API token is not known or has expired"))?;
    if known.role < guard.role {
        let (got, needed) = (known.role, guard.role);
        return Err(Failure::new(Code::Forbidden, format!("the API token has the role {got}: expected {needed}")));
    }
    request.extensions_mut().insert(Actor(format!("token:{}", known.id)));
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN_BYTES).then_some(token)
}

fn unauthenticated(detail: &str) -> Failure {
    Failure::new(Code::Unauthenticated, detail)
}

/// Makes the first administrator's token where there is no token yet, and writes its text to `file`.
///
/// # Errors
/// [`ControllerError`] when the file or the database refuses.
pub async fn first_admin(store: &Store, file: &std::path::Path) -> Result<(), ControllerError> {
    let mut session = store.write().await?;
    if api_tokens::any(&mut session).await? {
        return Ok(());
    }
    let (text, at_ms) = (secret()?, random::now_ms());
    let id = "admin".parse().map_err(|e: DomainError| ControllerError::Config(e.to_string()))?;
    let token = api_tokens::ApiToken { id, role: Role::Admin, created_at_ms: at_ms, expires_at_ms: None };
    api_tokens::insert(&mut session, &token, &sha256(text.as_bytes())).await?;
    // The file first: a crash between the two leaves a text that nothing knows, and the next start replaces it.
    files::replace(file, text.as_bytes(), Access::Secret)?;
    Ok(session.commit().await?)
}

/// The text of a new token.
pub(super) fn secret() -> Result<Zeroizing<String>, ControllerError> {
    let secret = Zeroizing::new(random::bytes::<32>()?);
    Ok(Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(*secret))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_of_sane_length_are_looked_up() {
        let token = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(token("bearer abc"), Some("abc".to_owned()));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearer "), None);
        assert_eq!(token(&format!("Bearer {}", "a".repeat(300))), None);
    }
}
