//! Takes devices into the rollouts that stand for their class: all of them when a rollout begins, later only those that changed.

use std::collections::BTreeSet;

use pleach_domain::DeviceId;
use pleach_domain::id::RolloutId;
use pleach_domain::selector::Subject;
use pleach_store::rollouts::Rollout;
use pleach_store::{Page, rollouts};

use super::{Context, Progress, ReconcileError};

/// Most devices in one session, so that no other writer waits long.
const BATCH: u32 = 500;

/// Considers the devices that were not considered since they or the rollouts of their class changed.
///
/// # Errors
/// [`ReconcileError::Store`].
pub async fn run(context: &Context, _at_ms: i64) -> Result<Progress, ReconcileError> {
    let mut session = context.store.read().await?;
    let standing = rollouts::standing(&mut session).await?;
    let classes: BTreeSet<_> = standing.iter().map(|r| &r.class).collect();
    let mut work = Vec::new();
    for class in classes {
        let beside: Vec<&Rollout> = standing.iter().filter(|r| r.class == *class).collect();
        let Some(newest) = beside.first() else { continue };
        if !rollouts::unconsidered(&mut session, class, &newest.id, Page::of(1)).await?.is_empty() {
            work.push((class, newest.id.clone(), beside));
        }
    }
    drop(session);
    for (class, newest, beside) in &work {
        let mut session = context.store.write().await?;
        for candidate in rollouts::unconsidered(&mut session, class, newest, Page::of(BATCH)).await? {
            for rollout in beside {
                let subject = Subject { labels: &candidate.labels, class: Some(class.as_str()) };
                if rollout.rules.selector.matches(subject) {
                    rollouts::enlist(&mut session, &rollout.id, &candidate.device, place(&rollout.id, &candidate.device)).await?;
                } else {
                    rollouts::dismiss(&mut session, &rollout.id, &candidate.device).await?;
                }
            }
            rollouts::considered(&mut session, &candidate.device, newest).await?;
        }
        session.commit().await?;
    }
    Ok(Progress::of(!work.is_empty()))
}

/// Where a device stands in a rollout's order: drawn anew for each rollout, so that no device is always the canary, and the same
/// whoever draws it.
fn place(rollout: &RolloutId, device: &DeviceId) -> i64 {
    let digest = pleach_artifact::sha256(format!("{rollout}/{device}").as_bytes());
    digest.as_bytes().iter().take(8).fold(0_i64, |n, &byte| n << 8 | i64::from(byte)) & i64::MAX
}
