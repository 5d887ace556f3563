//! The audit log.

use axum::extract::State;
use pleach_proto::rest::{AuditView, List};
use pleach_store::{Page, audit};
use serde::Deserialize;

use super::extract::Query;
use super::problem::Failure;
use crate::controller::Shared;

/// Where a list begins and ends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    /// Entries behind this sequence.
    #[serde(default)]
    after: u64,
    /// At most so many.
    limit: Option<u32>,
}

/// `GET /api/v1/audit?after=&limit=`: entries, oldest first.
pub(super) async fn list(State(controller): State<Shared>, Query(after): Query<After>) -> Result<axum::Json<List<AuditView>>, Failure> {
    let mut session = controller.store.read().await?;
    let page = after.limit.map_or_else(Page::default, Page::of);
    let rows = audit::list(&mut session, after.after, page).await?;
    let view = |row: audit::AuditRow| AuditView {
        sequence: row.sequence,
        actor: row.actor,
        action: row.action,
        subject: row.subject,
        hash: row.hash,
        at_ms: row.at_ms,
    };
    Ok(axum::Json(List { items: rows.into_iter().map(view).collect() }))
}
