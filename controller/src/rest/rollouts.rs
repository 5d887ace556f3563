//! Rollouts: seen, and steered by people.

use axum::Extension;
use axum::extract::State;
use pleach_domain::id::RolloutId;
use pleach_domain::state::RolloutState;
use pleach_proto::rest::{List, RolloutView};
use pleach_store::rollouts::Rollout;
use pleach_store::{Session, audit, rollouts};

use super::auth::Actor;
use super::extract::{Path, Query};
use super::journey::Bounds;
use super::problem::{Code, Failure};
use crate::controller::Shared;
use crate::random;

/// `GET /api/v1/rollouts`: the newest, newest last.
pub(super) async fn list(State(controller): State<Shared>, Query(bounds): Query<Bounds>) -> Result<axum::Json<List<RolloutView>>, Failure> {
    let mut session = controller.store.read().await?;
    let mut items = Vec::new();
    for rollout in rollouts::list(&mut session, bounds.page()).await? {
        items.push(view(&mut session, rollout).await?);
    }
    Ok(axum::Json(List { items }))
}

/// `GET /api/v1/rollouts/{id}`.
pub(super) async fn show(State(controller): State<Shared>, Path(id): Path<String>) -> Result<axum::Json<RolloutView>, Failure> {
    let mut session = controller.store.read().await?;
    let rollout = find(&mut session, &id).await?;
    Ok(axum::Json(view(&mut session, rollout).await?))
}

/// What a person does with a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deed {
    action: &'static str,
    from: &'static [RolloutState],
    to: RolloutState,
}

const PAUSE: Deed = Deed { action: "rollout.pause", from: &[RolloutState::Running], to: RolloutState::Paused };
const RESUME: Deed = Deed { action: "rollout.resume", from: &[RolloutState::Paused], to: RolloutState::Running };
const ABORT: Deed = Deed {
    action: "rollout.abort",
    from: &[RolloutState::WaitingForApproval, RolloutState::Running, RolloutState::Paused, RolloutState::Halting],
    to: RolloutState::Aborted,
};
const UNDO: Deed = Deed {
    action: "rollout.undo",
    from: &[RolloutState::Running, RolloutState::Paused, RolloutState::Completed, RolloutState::Aborted],
    to: RolloutState::Halting,
};

/// `POST /api/v1/rollouts/{id}/pause`: nobody else gets it; who has it keeps it. As the others, repeating it is harmless.
pub(super) async fn pause(state: State<Shared>, actor: Extension<Actor>, id: Path<String>) -> Result<axum::Json<RolloutView>, Failure> {
    steer(PAUSE, state, actor, id).await
}

/// `POST /api/v1/rollouts/{id}/resume`: goes on where it was paused; its deadline begins anew.
pub(super) async fn resume(state: State<Shared>, actor: Extension<Actor>, id: Path<String>) -> Result<axum::Json<RolloutView>, Failure> {
    steer(RESUME, state, actor, id).await
}

/// `POST /api/v1/rollouts/{id}/abort`: ends it; every device keeps what it has.
pub(super) async fn abort(state: State<Shared>, actor: Extension<Actor>, id: Path<String>) -> Result<axum::Json<RolloutView>, Failure> {
    steer(ABORT, state, actor, id).await
}

/// `POST /api/v1/rollouts/{id}/undo`: every device that has it goes back to what it proved last before.
pub(super) async fn undo(state: State<Shared>, actor: Extension<Actor>, id: Path<String>) -> Result<axum::Json<RolloutView>, Failure> {
    steer(UNDO, state, actor, id).await
}

/// `POST /api/v1/rollouts/{id}/approve`: lets it begin, when somebody else applied its policy.
pub(super) async fn approve(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(id): Path<String>,
) -> Result<axum::Json<RolloutView>, Failure> {
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    let rollout = find(&mut session, &id).await?;
    if rollout.begun_by == actor {
        let detail = format!("rollout {id} follows from a policy that {actor} applied: somebody else has to approve it");
        return Err(Failure::new(Code::Forbidden, detail));
    }
    if rollouts::approve(&mut session, &rollout.id, &actor, at_ms).await? {
        note(&mut session, &actor, "rollout.approve", &rollout.id, at_ms).await?;
    } else if rollout.approved_by != actor {
        return Err(Failure::new(Code::Conflict, format!("rollout {id} is {}: it waits for no approval", rollout.state)));
    }
    let rollout = find(&mut session, &id).await?;
    let view = view(&mut session, rollout).await?;
    session.commit().await?;
    controller.wake.all();
    Ok(axum::Json(view))
}

async fn steer(
    deed: Deed,
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(id): Path<String>,
) -> Result<axum::Json<RolloutView>, Failure> {
    let at_ms = random::now_ms();
    let mut session = controller.store.write().await?;
    let before = find(&mut session, &id).await?;
    if before.state != deed.to {
        let changed = deed.from.contains(&before.state)
            && rollouts::change(&mut session, &before.id, (before.state, deed.to), &format!("{} by {actor}", deed.action), at_ms).await?;
        if !changed {
            let from: Vec<_> = deed.from.iter().map(|state| state.as_str()).collect();
            let detail = format!("rollout {id} is {}: expected {}", before.state, from.join(", "));
            return Err(Failure::new(Code::Conflict, detail));
        }
        note(&mut session, &actor, deed.action, &before.id, at_ms).await?;
    }
    let after = find(&mut session, &id).await?;
    let view = view(&mut session, after).await?;
    session.commit().await?;
    controller.wake.all();
    Ok(axum::Json(view))
}

async fn note(session: &mut Session, actor: &str, action: &str, id: &RolloutId, at_ms: i64) -> Result<(), Failure> {
    let entry = audit::Entry { actor, action, subject: id.as_str(), before: None, after: None };
    Ok(audit::append(session, &entry, at_ms).await?)
}

async fn find(session: &mut Session, id: &str) -> Result<Rollout, Failure> {
    let id: RolloutId = id.parse()?;
    rollouts::find(session, &id).await?.ok_or_else(|| Failure::not_found(format!("rollout {id}")))
}

async fn view(session: &mut Session, rollout: Rollout) -> Result<RolloutView, Failure> {
    let counts = rollouts::counts(session, &rollout).await?;
    Ok(RolloutView {
        target: rollout.rules.target(rollout.wave, counts.members),
        id: rollout.id.into(),
        class: rollout.class.into(),
        bundle: rollout.bundle.into(),
        state: rollout.state,
        reason: rollout.reason,
        rules: rollout.rules,
        wave: rollout.wave,
        devices: counts.members,
        given: counts.given,
        proven: counts.proven,
        failed: counts.failed,
        returning: counts.returning,
        stranded: counts.stranded,
        readings: rollout.readings,
        begun_by: rollout.begun_by,
        approved_by: rollout.approved_by,
        created_at_ms: rollout.created_at_ms,
        since_ms: rollout.since_ms,
    })
}
