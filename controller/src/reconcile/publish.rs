//! Keeps the fleet's signed metadata complete and fresh: root, targets, release, snapshot and timestamp.
//!
//! The release file lists the bundles that are sealed; it is rewritten in the session that changes them, so that no assignment can
//! name a bundle that no device accepts yet. Here expiries are renewed, the first files made, and new keys put in force: the
//! metadata follow the keys in the folder. All that a rotation changes is changed in one session, so a device sees all or nothing of it.

use pleach_domain::DomainError;
use pleach_store::bundles::Bundle;
use pleach_store::trust::Metadata;
use pleach_store::{Page, Session, bundles, models, trust, variants};
use pleach_trust::rotation::accept_root;
use pleach_trust::{BundleEntry, BundleFacts, FleetAuthor, Sha256Digest, TrustError, UtcTime};

use super::{Context, Progress, ReconcileError, assign};
use crate::keys::Keys;

/// Name of the root role.
pub const ROOT: &str = "root";
/// Name of the targets role.
pub const TARGETS: &str = "targets";
/// Name of the release role.
pub const RELEASE: &str = "release";
/// Name of the snapshot role.
pub const SNAPSHOT: &str = "snapshot";
/// Name of the timestamp role.
pub const TIMESTAMP: &str = "timestamp";

const DAY_S: i64 = 24 * 3_600;
const ROOT_LIFE_S: i64 = 10 * 365 * DAY_S;
const TARGETS_LIFE_S: i64 = 365 * DAY_S;
/// Release, snapshot and timestamp bound how long a device can be kept from news by whoever controls its network. Devices that
/// were offline for longer fetch fresh ones when they are back.
const RELEASE_LIFE_S: i64 = 30 * DAY_S;
/// Files with less than this share of their life left are renewed.
const RENEW_SHARE: f64 = 0.5;

/// Makes the metadata that is missing, differs from the bundles that are sealed, or has half of its life behind it.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Trust`].
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    ensure(&context.store, &context.keys, at_ms).await.map(Progress::of)
}

/// As [`run`]; the controller calls it before it listens, so that the first device finds a root.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Trust`].
pub async fn ensure(store: &pleach_store::Store, keys: &Keys, at_ms: i64) -> Result<bool, ReconcileError> {
    let mut session = store.read().await?;
    let stale = stale(&mut session, keys, at_ms).await?;
    drop(session);
    if !stale {
        return Ok(false);
    }
    let mut session = store.write().await?;
    refresh(&mut session, keys, at_ms).await?;
    session.commit().await?;
    Ok(true)
}

async fn stale(session: &mut Session, keys: &Keys, at_ms: i64) -> Result<bool, ReconcileError> {
    let lives = [(ROOT, ROOT_LIFE_S), (TARGETS, TARGETS_LIFE_S), (RELEASE, RELEASE_LIFE_S), (SNAPSHOT, RELEASE_LIFE_S)];
    for (role, life_s) in lives {
        if due(trust::newest(session, role).await?.as_ref(), life_s, at_ms) {
            return Ok(true);
        }
    }
    let author = FleetAuthor::new(&keys.fleet);
    let (root, targets) = (trust::newest(session, ROOT).await?, trust::newest(session, TARGETS).await?);
    let (Some(root), Some(targets)) = (root, targets) else { return Ok(true) };
    let offered = keys.offered_root.as_ref().is_some_and(|offered| accept_root(&root.bytes, offered).is_ok());
    let others = author.differing_roles(&root.bytes)?;
    // Other root keys alone are those of a ceremony elsewhere, unless the key that can hand over is here.
    let hands_over = || author.next_root(&root.bytes, keys.previous_root.as_ref(), UtcTime::MAX).is_ok();
    let replaced = others.iter().any(|role| role != ROOT) || (!others.is_empty() && hands_over());
    Ok(offered || replaced || !author.is_author_of_targets(&targets.bytes)?)
}

fn due(metadata: Option<&Metadata>, life_s: i64, at_ms: i64) -> bool {
    metadata.is_none_or(|m| ((m.expires_at_ms - at_ms) as f64) < (life_s * 1_000) as f64 * RENEW_SHARE)
}

/// Writes release, snapshot and timestamp anew from the bundles that are sealed, and root and targets where they are due.
///
/// # Errors
/// [`ReconcileError::Store`], [`ReconcileError::Trust`].
pub async fn refresh(session: &mut Session, keys: &Keys, at_ms: i64) -> Result<(), ReconcileError> {
    let author = FleetAuthor::new(&keys.fleet);
    let now = UtcTime::from_unix_s(at_ms.div_euclid(1_000));
    refresh_root(session, keys, now, at_ms).await?;
    let targets = trust::newest(session, TARGETS).await?;
    let mut targets_version = targets.as_ref().map_or(0, |m| m.version);
    let ours = targets.as_ref().map(|m| author.is_author_of_targets(&m.bytes)).transpose()?.unwrap_or_default();
    if !ours || due(targets.as_ref(), TARGETS_LIFE_S, at_ms) {
        targets_version += 1;
        let expires = now.plus_s(TARGETS_LIFE_S);
        store(session, TARGETS, targets_version, author.targets(targets_version, expires)?, expires, at_ms).await?;
    }
    if !ours {
        // The director may be another now, and what the old one said is no longer believed.
        assign::sign_anew(session, keys, at_ms).await?;
    }
    let expires = now.plus_s(RELEASE_LIFE_S);
    let mut entries = Vec::new();
    for bundle in bundles::sealed(session, Page::of(Page::MAX_LIMIT)).await? {
        entries.push(entry_of(session, &bundle).await?);
    }
    let release_version = next(session, RELEASE).await?;
    store(session, RELEASE, release_version, author.release(release_version, expires, &entries)?, expires, at_ms).await?;
    let snapshot_version = next(session, SNAPSHOT).await?;
    let snapshot = author.snapshot(snapshot_version, expires, targets_version, release_version)?;
    let timestamp_version = next(session, TIMESTAMP).await?;
    let timestamp = author.timestamp(timestamp_version, expires, snapshot_version, &snapshot)?;
    store(session, SNAPSHOT, snapshot_version, snapshot, expires, at_ms).await?;
    store(session, TIMESTAMP, timestamp_version, timestamp, expires, at_ms).await
}

/// Publishes a root where none is, one that was signed elsewhere, and one that hands over to the keys at hand or lasts longer.
async fn refresh_root(session: &mut Session, keys: &Keys, now: UtcTime, at_ms: i64) -> Result<(), ReconcileError> {
    let author = FleetAuthor::new(&keys.fleet);
    let expires = now.plus_s(ROOT_LIFE_S);
    let Some(mut root) = trust::newest(session, ROOT).await? else {
        return store(session, ROOT, 1, author.root(1, expires)?, expires, at_ms).await;
    };
    if let Some(offered) = &keys.offered_root
        && let Ok((version, expires)) = accept_root(&root.bytes, offered)
    {
        store(session, ROOT, version, offered.clone(), expires, at_ms).await?;
        root = Metadata { version, bytes: offered.clone(), expires_at_ms: expires.unix_s() * 1_000 };
    }
    let others = author.differing_roles(&root.bytes)?;
    if others.is_empty() && !due(Some(&root), ROOT_LIFE_S, at_ms) {
        return Ok(());
    }
    match author.next_root(&root.bytes, keys.previous_root.as_ref(), expires) {
        Ok((version, bytes)) => store(session, ROOT, version, bytes, expires, at_ms).await,
        // Its keys are elsewhere; as long as it names all the others, only a ceremony can and need change it.
        Err(TrustError::Threshold { .. }) if others == [ROOT] => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn next(session: &mut Session, role: &str) -> Result<u64, ReconcileError> {
    Ok(trust::newest(session, role).await?.map_or(0, |m| m.version) + 1)
}

async fn store(
    session: &mut Session,
    role: &str,
    version: u64,
    bytes: Vec<u8>,
    expires: UtcTime,
    at_ms: i64,
) -> Result<(), ReconcileError> {
    let metadata = Metadata { version, bytes, expires_at_ms: expires.unix_s() * 1_000 };
    if trust::publish(session, role, &metadata, at_ms).await? {
        return Ok(());
    }
    // Another process published in between: the whole session is given up and tried again on top of that.
    Err(ReconcileError::Task(format!("{role} version {version} was published meanwhile")))
}

/// What release and director say of a bundle.
///
/// # Errors
/// [`ReconcileError::Missing`] when its variant is not there.
pub(super) async fn entry_of(session: &mut Session, bundle: &Bundle) -> Result<BundleEntry, ReconcileError> {
    let missing = |what, id: &str| ReconcileError::Missing { what, id: id.to_owned() };
    let variant = variants::find(session, &bundle.variant).await?.ok_or_else(|| missing("variant", bundle.variant.as_str()))?;
    let model = models::find(session, &variant.model, variant.model_version).await?;
    let model = model.ok_or_else(|| missing("model", variant.model.as_str()))?;
    let chunk_count = u32::try_from(bundle.leaves.len() / 32).map_err(|_| DomainError::Field {
        field: "bundles.leaves".to_owned(),
        got: bundle.leaves.len().to_string(),
        expected: "32 bytes for each of fewer than 2^32 chunks".to_owned(),
    })?;
    let facts = BundleFacts {
        tree_root: Sha256Digest::new(*bundle.tree_root.as_bytes()),
        chunk_count,
        model: model.content.name.to_string(),
        model_version: u64::from(model.version),
        class: bundle.class.to_string(),
        suite: bundle.suite.clone(),
        security_floor: 1,
    };
    Ok(BundleEntry { digest: Sha256Digest::new(*bundle.digest.as_bytes()), length: bundle.size_bytes, facts })
}
