//! Adds windows up by minute, hour and day, once each, and forgets what is older than anybody reads.

use pleach_domain::rollup::add_up;
use pleach_domain::state::Span;
use pleach_store::{Page, rollups, windows};

use super::{Context, Progress, ReconcileError};

/// Most windows in one session, so that no other writer waits long.
const BATCH: u32 = 1_000;
const DAY_MS: i64 = 86_400_000;
/// Days for which each span is kept.
const KEPT_DAYS: [(Span, i64); 3] = [(Span::Minute, 3), (Span::Hour, 35), (Span::Day, 730)];

/// Adds up what has come, and forgets what is old.
///
/// # Errors
/// [`ReconcileError::Store`].
pub async fn run(context: &Context, at_ms: i64) -> Result<Progress, ReconcileError> {
    // Most looks find nothing: a look that only reads keeps no writer out.
    let waiting = windows::any_unrolled(&mut context.store.read().await?).await?;
    let kept_ms = i64::from(context.config.windows_kept_days) * DAY_MS;
    let old = windows::any_before(&mut context.store.read().await?, at_ms - kept_ms).await?;
    if !waiting && !old {
        return Ok(Progress::Nothing);
    }
    let mut session = context.store.write().await?;
    let taken = windows::take_unrolled(&mut session, Page::of(BATCH)).await?;
    for (key, sums) in add_up(taken.iter().map(|row| (&row.device, row.class.as_ref(), &row.window))) {
        rollups::add(&mut session, &key, &sums).await?;
    }
    if old {
        windows::forget(&mut session, at_ms - kept_ms, Page::of(BATCH)).await?;
        for (span, days) in KEPT_DAYS {
            rollups::forget(&mut session, span, at_ms - days * DAY_MS).await?;
        }
    }
    session.commit().await?;
    // Nobody waits for roll-ups, so nobody is woken; the rest of a full batch comes at the next look.
    Ok(Progress::Nothing)
}
