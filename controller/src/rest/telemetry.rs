//! What devices measured, and what was decided because of it. Reads only.

use axum::extract::State;
use pleach_domain::rollup::{Key, Subject, Sums};
use pleach_domain::state::Span;
use pleach_domain::{ClassId, DeviceId};
use pleach_proto::rest::{DecisionView, List, RollupView, WindowView};
use pleach_store::{Page, decisions, rollups, windows};
use serde::Deserialize;

use super::extract::Query;
use super::problem::{Code, Failure};
use crate::controller::Shared;

/// Which windows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    device: Option<DeviceId>,
    class: Option<ClassId>,
    #[serde(default)]
    since_ms: i64,
    limit: Option<u32>,
}

/// How much of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bounds {
    limit: Option<u32>,
}

/// `GET /api/v1/windows?device=&class=&since_ms=&limit=`: the newest, newest last.
pub(super) async fn windows(State(controller): State<Shared>, Query(which): Query<Which>) -> Result<axum::Json<List<WindowView>>, Failure> {
    let filter = windows::Filter { device: which.device, class: which.class, since_ms: which.since_ms };
    let page = which.limit.map_or_else(Page::default, Page::of);
    let mut session = controller.store.read().await?;
    let rows = windows::list(&mut session, &filter, page).await?;
    Ok(axum::Json(List { items: rows.into_iter().map(window).collect() }))
}

fn window(row: windows::WindowRow) -> WindowView {
    let window = row.window;
    let confusion = window.confusion.filter(|c| c.total() > 0);
    WindowView {
        device: row.device.into(),
        class: row.class.map(Into::into).unwrap_or_default(),
        number: window.number,
        bundle: window.bundle,
        rung: window.rung,
        start_ms: window.start_ms,
        duration_ms: window.duration_ms,
        requests: window.requests,
        errors: window.errors,
        p50_us: window.latency.quantile_us(0.5),
        p95_us: window.latency.quantile_us(0.95),
        labelled: confusion.as_ref().map_or(0, |c| c.total()),
        accuracy: confusion.as_ref().map(|c| c.accuracy()),
        recall: confusion.as_ref().map(|c| c.macro_recall()),
        f1: confusion.as_ref().map(|c| c.macro_f1()),
    }
}

/// Which roll-ups.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spans {
    device: Option<DeviceId>,
    class: Option<ClassId>,
    span: Option<String>,
    #[serde(default)]
    since_ms: i64,
    until_ms: Option<i64>,
    limit: Option<u32>,
}

/// `GET /api/v1/rollups?device=|class=&span=&since_ms=&until_ms=&limit=`: the newest, newest last; by the hour unless told otherwise.
pub(super) async fn rollups(State(controller): State<Shared>, Query(of): Query<Spans>) -> Result<axum::Json<List<RollupView>>, Failure> {
    let subject = match (of.device, of.class) {
        (Some(device), None) => Subject::Device(device),
        (None, Some(class)) => Subject::Class(class),
        _ => return Err(Failure::new(Code::RequestInvalid, "whose roll-ups is not clear: expected either device or class")),
    };
    let span = of.span.map_or(Ok(Span::Hour), |span| span.parse())?;
    let filter = rollups::Filter { subject, span, since_ms: of.since_ms, until_ms: of.until_ms.unwrap_or(i64::MAX) };
    let mut session = controller.store.read().await?;
    let rows = rollups::list(&mut session, &filter, of.limit.map_or_else(Page::default, Page::of)).await?;
    let view = |(key, sums): (Key, Sums)| RollupView {
        span: key.span,
        start_ms: key.start_ms,
        bundle: key.bundle,
        rung: key.rung,
        windows: sums.windows,
        requests: sums.requests,
        errors: sums.errors,
        p50_us: sums.latency.quantile_us(0.5),
        p95_us: sums.latency.quantile_us(0.95),
        p99_us: sums.latency.quantile_us(0.99),
        labelled: sums.labelled,
        accuracy: (sums.labelled > 0).then(|| sums.correct as f64 / sums.labelled as f64),
        cpu_us: sums.cpu_us,
        max_memory_bytes: sums.max_memory_bytes,
    };
    Ok(axum::Json(List { items: rows.into_iter().map(view).collect() }))
}

/// `GET /api/v1/decisions`: the newest, newest last.
pub(super) async fn decisions(
    State(controller): State<Shared>,
    Query(bounds): Query<Bounds>,
) -> Result<axum::Json<List<DecisionView>>, Failure> {
    let page = bounds.limit.map_or_else(Page::default, Page::of);
    let mut session = controller.store.read().await?;
    let rows = decisions::list(&mut session, page).await?;
    let view = |row: decisions::Decision| DecisionView {
        id: row.id.into(),
        class: row.class.into(),
        model: row.model.into(),
        policy: row.policy.into(),
        outcome: row.outcome,
        evidence: row.evidence,
        budget_revision: row.budget_revision,
        at_ms: row.at_ms,
    };
    Ok(axum::Json(List { items: rows.into_iter().map(view).collect() }))
}
