//! Policies: applied whole, revisioned.

use axum::Extension;
use axum::extract::State;
use pleach_domain::id::PolicyName;
use pleach_domain::policy::Policy;
use pleach_proto::rest::List;
use pleach_store::{Page, audit, models, policies};

use super::auth::Actor;
use super::extract::{Json, Path};
use super::problem::{Code, Failure};
use crate::controller::Shared;
use crate::random;

/// `PUT /api/v1/policies/{name}`: makes it the newest revision; the same policy again changes nothing.
pub(super) async fn apply(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(name): Path<String>,
    Json(policy): Json<Policy>,
) -> Result<axum::Json<Policy>, Failure> {
    let name: PolicyName = name.parse()?;
    if policy.name != name {
        return Err(Failure::new(
            Code::FieldInvalid,
            format!("name is {:?}: expected {:?}, as in the address", policy.name.as_str(), name.as_str()),
        ));
    }
    policy.validate()?;
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    if models::newest(&mut session, &policy.model).await?.is_none() {
        return Err(Failure::new(Code::FieldInvalid, format!("model is {:?}: expected a registered one", policy.model.as_str())));
    }
    let before = policies::find(&mut session, &name).await?.map(|p| p.policy);
    policies::apply(&mut session, &policy, &actor, at_ms).await?;
    if before.as_ref() != Some(&policy) {
        let digest = |p: &Policy| serde_json::to_vec(p).ok().map(|json| pleach_artifact::sha256(&json));
        let (before, after) = (before.as_ref().and_then(digest), digest(&policy));
        let entry = audit::Entry { actor: &actor, action: "policy.apply", subject: name.as_str(), before, after };
        audit::append(&mut session, &entry, at_ms).await?;
    }
    session.commit().await?;
    controller.wake.all();
    Ok(axum::Json(policy))
}

/// `GET /api/v1/policies`: the newest revision of each, by name.
pub(super) async fn list(State(controller): State<Shared>) -> Result<axum::Json<List<Policy>>, Failure> {
    let mut session = controller.store.read().await?;
    let rows = policies::list(&mut session, Page::of(Page::MAX_LIMIT)).await?;
    Ok(axum::Json(List { items: rows.into_iter().map(|p| p.policy).collect() }))
}
