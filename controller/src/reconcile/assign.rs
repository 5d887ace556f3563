//! Assigns the bundle of a rollout to the devices whose turn it is, and an older one to those that go back: a signed statement and a
//! wrap of the content key for each.

use std::collections::BTreeMap;

use pleach_artifact::{SealingPublicKey, WrapContext, wrap};
use pleach_domain::BundleId;
use pleach_domain::id::ModelName;
use pleach_domain::state::RolloutState;
use pleach_store::assignments::{NewAssignment, Unassigned};
use pleach_store::bundles::Bundle;
use pleach_store::rollouts::Rollout;
use pleach_store::{Page, Session, assignments, audit, bundles, devices, rollouts};
use pleach_trust::{BundleEntry, FleetAuthor, UtcTime};

use super::{Context, Progress, ReconcileError, entry, progress, publish};
use crate::keys::Keys;

/// Most assignments in one session, so that no other writer waits long.
const BATCH: u32 = 64;
/// Life of a statement. A device that runs a bundle keeps it beyond this; only accepting it anew needs a fresh statement.
const LIFE_S: i64 = 30 * 24 * 3_600;
/// Statements with less left are signed anew under the same sequence.
const RENEW_BELOW_MS: i64 = LIFE_S * 1_000 / 2;

const MINUTE_MS: i64 = 60_000;

/// A bundle with what every assignment of it needs.
struct Assignable {
    bundle: Bundle,
    facts: BundleEntry,
    model: ModelName,
}

/// Assigns to devices that are due, and renews statements that have half of their life behind them.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Artifact`], [`ReconcileError::Trust`].
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    let mut session = context.store.read().await?;
    let missing = due(&mut session, at_ms).await?;
    let stale = assignments::expiring(&mut session, at_ms + RENEW_BELOW_MS, Page::of(BATCH)).await?;
    let mut known = BTreeMap::new();
    for id in missing.iter().map(|m| &m.bundle).chain(stale.iter().map(|s| &s.bundle)) {
        if !known.contains_key(id) {
            known.insert(id.clone(), assignable(&mut session, id).await?);
        }
    }
    drop(session);
    if missing.is_empty() && stale.is_empty() {
        return Ok(Progress::Nothing);
    }
    let expires = UtcTime::from_unix_s(at_ms.div_euclid(1_000)).plus_s(LIFE_S);
    let mut session = context.store.write().await?;
    for device in &missing {
        if let Some(bundle) = known.get(&device.bundle) {
            assign(context, &mut session, device, bundle, expires, at_ms).await?;
        }
    }
    for deployment in &stale {
        if let Some(bundle) = known.get(&deployment.bundle) {
            let author = FleetAuthor::new(&context.keys.fleet);
            let statement = author.assignment(deployment.device.as_str(), &bundle.facts, deployment.sequence, expires)?;
            assignments::renew(&mut session, &deployment.device, deployment.sequence, &statement, expires.unix_s() * 1_000).await?;
        }
    }
    session.commit().await?;
    Ok(Progress::Something)
}

/// Devices that are due for an assignment now: newest rollouts first, each as far as its state and rules let it.
async fn due(session: &mut Session, at_ms: i64) -> Result<Vec<Unassigned>, ReconcileError> {
    let standing = rollouts::standing(session).await?;
    for rollout in &standing {
        let due = match rollout.state {
            RolloutState::Running => spreading(session, rollout, at_ms).await?,
            RolloutState::Completed => assignments::missing(session, rollout, Page::of(BATCH)).await?,
            RolloutState::Halting => {
                let base = progress::base_of(&standing, rollout).map(|b| &b.bundle);
                assignments::returnable(session, rollout, base, Page::of(BATCH)).await?
            }
            RolloutState::Draft | RolloutState::WaitingForApproval | RolloutState::Paused => Vec::new(),
            RolloutState::Reverted | RolloutState::Aborted => Vec::new(),
        };
        // One rollout at a time: what a device gets from this one decides whether an older one is for it.
        if !due.is_empty() {
            return Ok(due);
        }
    }
    Ok(Vec::new())
}

/// The next devices of a running rollout, within its wave, its hours and its rate.
async fn spreading(session: &mut Session, rollout: &Rollout, at_ms: i64) -> Result<Vec<Unassigned>, ReconcileError> {
    let rules = &rollout.rules;
    if rules.maintenance.is_some_and(|hours| !hours.is_open(at_ms)) {
        return Ok(Vec::new());
    }
    let missing = assignments::missing(session, rollout, Page::of(BATCH)).await?;
    if missing.is_empty() {
        return Ok(missing);
    }
    let counts = rollouts::counts(session, rollout).await?;
    let mut room = rules.target(rollout.wave, counts.members).saturating_sub(counts.given);
    if let Some(most) = rules.max_per_minute {
        let lately = rollouts::given_since(session, rollout, at_ms - MINUTE_MS).await?;
        room = room.min(u64::from(most).saturating_sub(lately));
    }
    Ok(missing.into_iter().take(usize::try_from(room).unwrap_or(usize::MAX)).collect())
}

/// Signs the statement of every device anew, under the same sequence.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Trust`].
pub(super) async fn sign_anew(session: &mut Session, keys: &Keys, at_ms: i64) -> Result<(), ReconcileError> {
    // A second longer than any statement there can be, so that each is behind it once.
    let expires = UtcTime::from_unix_s(at_ms.div_euclid(1_000)).plus_s(LIFE_S + 1);
    let expires_at_ms = expires.unix_s() * 1_000;
    let mut known = BTreeMap::new();
    loop {
        let old = assignments::expiring(session, expires_at_ms, Page::of(BATCH)).await?;
        if old.is_empty() {
            return Ok(());
        }
        for deployment in old {
            if !known.contains_key(&deployment.bundle) {
                known.insert(deployment.bundle.clone(), assignable(session, &deployment.bundle).await?);
            }
            let Some(bundle) = known.get(&deployment.bundle) else { continue };
            let author = FleetAuthor::new(&keys.fleet);
            let statement = author.assignment(deployment.device.as_str(), &bundle.facts, deployment.sequence, expires)?;
            assignments::renew(session, &deployment.device, deployment.sequence, &statement, expires_at_ms).await?;
        }
    }
}

async fn assignable(session: &mut Session, id: &BundleId) -> Result<Assignable, ReconcileError> {
    let missing = || ReconcileError::Missing { what: "bundle", id: id.to_string() };
    let bundle = bundles::find(session, id).await?.ok_or_else(missing)?;
    let facts = publish::entry_of(session, &bundle).await?;
    let model = facts.facts.model.parse()?;
    Ok(Assignable { bundle, facts, model })
}

async fn assign(
    context: &Context,
    session: &mut Session,
    waiting: &Unassigned,
    of: &Assignable,
    expires: UtcTime,
    at_ms: i64,
) -> Result<(), ReconcileError> {
    let Some(sequence) = devices::next_assignment(session, &waiting.device).await? else { return Ok(()) };
    let metadata = FleetAuthor::new(&context.keys.fleet).assignment(waiting.device.as_str(), &of.facts, sequence, expires)?;
    let content_key = context.keys.content.decrypt(&of.bundle.content_key, &of.bundle.digest)?;
    let binding = WrapContext {
        device: &waiting.device,
        bundle: &of.bundle.digest,
        model: &of.model,
        model_version: of.facts.facts.model_version,
        class: &of.bundle.class,
        sequence,
    };
    let wrapped = wrap(&content_key, &SealingPublicKey::from_slice(&waiting.sealing_key)?, &binding)?;
    let assignment = NewAssignment {
        device: waiting.device.clone(),
        sequence,
        rollout: waiting.rollout.clone(),
        bundle: waiting.bundle.clone(),
        metadata,
        wrap: wrapped.as_bytes().to_vec(),
        expires_at_ms: expires.unix_s() * 1_000,
    };
    assignments::insert(session, &assignment, at_ms).await?;
    let subject = format!("{} sequence {sequence} runs {}", waiting.device, waiting.bundle);
    audit::append(session, &entry("device.assign", &subject), at_ms).await?;
    Ok(())
}
