//! The first trust metadata of a fleet: its root, and the delegations to release and director.

use pleach_store::{Store, trust};
use pleach_trust::{FleetAuthor, FleetKeys, UtcTime};

use crate::error::ControllerError;

const YEAR_S: i64 = 365 * 24 * 3_600;
/// Life of a root: devices that were offline for years still find a chain they can follow.
const ROOT_LIFE_S: i64 = 10 * YEAR_S;
/// Life of the delegations.
const TARGETS_LIFE_S: i64 = 5 * YEAR_S;

/// Publishes version 1 of root and targets where there is none. Of two controllers that start at once, one wins.
///
/// # Errors
/// [`ControllerError`] when signing or the store fails.
pub async fn found(store: &Store, keys: &FleetKeys, now_ms: i64) -> Result<(), ControllerError> {
    let author = FleetAuthor::new(keys);
    let expires = |life_s: i64| UtcTime::from_unix_s(now_ms / 1_000).plus_s(life_s);
    let (root, targets) = (expires(ROOT_LIFE_S), expires(TARGETS_LIFE_S));
    let mut session = store.write().await?;
    for (role, expires, bytes) in [("root", root, author.root(1, root)?), ("targets", targets, author.targets(1, targets)?)] {
        if trust::newest(&mut session, role).await?.is_none() {
            let metadata = trust::Metadata { version: 1, bytes, expires_at_ms: expires.unix_s() * 1_000 };
            trust::publish(&mut session, role, &metadata, now_ms).await?;
        }
    }
    Ok(session.commit().await?)
}
