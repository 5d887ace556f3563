//! Moves rollouts on: to the next wave, to completion on signed evidence from their devices, or back.

use pleach_domain::gate::Reading;
use pleach_domain::rollout::{Facts, Step, next};
use pleach_domain::state::RolloutState;
use pleach_store::rollouts::Rollout;
use pleach_store::{Page, Session, assignments, audit, rollouts};

use super::{Context, Progress, ReconcileError, entry, gates};

/// Decides on every rollout that is under way, and carries it out.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Missing`].
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let standing = rollouts::standing(&mut context.store.read().await?).await?;
    let mut changed = false;
    for rollout in standing.iter().filter(|r| r.state != RolloutState::Completed) {
        let base = base_of(&standing, rollout);
        let mut session = context.store.read().await?;
        let facts = facts(&mut session, rollout, base, at_ms).await?;
        let readings = match &rollout.rules.gates {
            Some(rules) if rollout.state == RolloutState::Running => gates::read(&mut session, rollout, base, rules).await?,
            Some(_) | None => rollout.readings.clone(),
        };
        drop(session);
        let step = next(&rollout.rules, rollout.state, &facts, &readings);
        // Other states keep the reason for which they began.
        let running = rollout.state == RolloutState::Running;
        let old = |why: &str| !running || (why == rollout.reason && readings == rollout.readings);
        if !matches!(&step, Step::Wait(why) if old(why)) {
            changed |= carry_out(context, rollout, step, &readings, at_ms).await?;
        }
    }
    Ok(Progress::of(changed))
}

/// Answers whether the rollout changed its wave or state; other news are only noted.
async fn carry_out(context: &Context, rollout: &Rollout, step: Step, readings: &[Reading], at_ms: i64) -> Result<bool, ReconcileError> {
    let mut session = context.store.write().await?;
    let action = match step {
        Step::Wait(why) => {
            rollouts::note(&mut session, (&rollout.id, rollout.state), &why, readings, at_ms).await?;
            None
        }
        Step::Widen => rollouts::widen(&mut session, &rollout.id, rollout.wave, at_ms).await?.then_some("rollout.widen"),
        Step::Become(state, why) => {
            if !rollouts::change(&mut session, &rollout.id, (rollout.state, state), &why, at_ms).await? {
                return Ok(false);
            }
            rollouts::note(&mut session, (&rollout.id, state), &why, readings, at_ms).await?;
            Some(action(state))
        }
    };
    if let Some(action) = action {
        audit::append(&mut session, &entry(action, rollout.id.as_str()), at_ms).await?;
    }
    session.commit().await?;
    Ok(action.is_some())
}

/// The rollout that devices of the same class go back to when they proved nothing else: the newest that completed before.
pub(super) fn base_of<'a>(standing: &'a [Rollout], rollout: &Rollout) -> Option<&'a Rollout> {
    let before = |r: &&Rollout| r.class == rollout.class && r.state == RolloutState::Completed && r.id != rollout.id;
    standing.iter().find(before).filter(|r| r.created_at_ms <= rollout.created_at_ms)
}

async fn facts(session: &mut Session, rollout: &Rollout, base: Option<&Rollout>, at_ms: i64) -> Result<Facts, ReconcileError> {
    let counts = rollouts::counts(session, rollout).await?;
    let given = match rollout.state {
        RolloutState::Halting => {
            let left = assignments::returnable(session, rollout, base.map(|b| &b.bundle), Page::of(Page::MAX_LIMIT)).await?;
            left.len() as u64
        }
        _ => counts.given,
    };
    Ok(Facts {
        wave: rollout.wave,
        members: counts.members,
        given,
        proven: counts.proven,
        failed: counts.failed,
        returning: counts.returning,
        stranded: counts.stranded,
        elapsed_ms: at_ms - rollout.since_ms,
    })
}

fn action(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Draft => "rollout.draft",
        RolloutState::WaitingForApproval => "rollout.wait",
        RolloutState::Running => "rollout.run",
        RolloutState::Paused => "rollout.pause",
        RolloutState::Halting => "rollout.halt",
        RolloutState::Reverted => "rollout.reverted",
        RolloutState::Completed => "rollout.complete",
        RolloutState::Aborted => "rollout.abort",
    }
}
