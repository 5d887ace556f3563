//! Puts devices that have sent a profile into classes; founds classes.

use pleach_domain::class::{Class, Classification, classify};
use pleach_store::{Page, audit, classes, devices};

use super::{Context, Progress, ReconcileError, entry};

/// Most devices in one go.
const BATCH: u32 = 200;

/// Classifies active devices that have a profile and no class.
///
/// # Errors
/// [`ReconcileError::Store`]; [`ReconcileError::Domain`] for a stored profile that is out of range.
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    if devices::unclassified(&mut context.store.read().await?, Page::of(1)).await?.is_empty() {
        return Ok(Progress::Nothing);
    }
    // Looked up again inside the writing session, so that two of these cannot found the same class twice.
    let mut session = context.store.write().await?;
    let waiting = devices::unclassified(&mut session, Page::of(BATCH)).await?;
    let mut known: Vec<Class> = classes::list(&mut session, Page::of(Page::MAX_LIMIT)).await?.into_iter().map(|row| row.class).collect();
    let mut changed = false;
    for device in waiting {
        let Some(profile) = &device.profile else { continue };
        let (class, why) = match classify(profile, &known)? {
            Classification::Known { id, why } => (id, why),
            Classification::Founds { class, why } => {
                classes::insert(&mut session, &class, at_ms).await?;
                audit::append(&mut session, &entry("class.found", class.id.as_str()), at_ms).await?;
                known.push(class.clone());
                (class.id, why)
            }
        };
        if devices::classify(&mut session, &device.enrolled.id, &class, &why, at_ms).await? {
            let subject = format!("{} in {class}", device.enrolled.id);
            audit::append(&mut session, &entry("device.classify", &subject), at_ms).await?;
            changed = true;
        }
    }
    session.commit().await?;
    Ok(Progress::of(changed))
}
