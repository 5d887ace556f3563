//! What the devices measured and what the engine promised, as far as the table and the verdict need it.

use pleach_domain::Digest;
use pleach_domain::adapt::Outcome;
use pleach_proto::rest::{DecisionView, DeploymentView, VariantView, WindowView};
use serde::Deserialize;

/// Windows that a statement about a device rests on.
pub(super) const WINDOWS: usize = 4;

/// What one device measured over some windows of one bundle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    /// Median of the windows' medians, in microseconds.
    pub p50_us: u64,
    /// Median of the windows' 95th percentiles, in microseconds.
    pub p95_us: u64,
    /// Labelled samples.
    pub labelled: u64,
    /// Accuracy on them, 0 to 1.
    pub accuracy: f64,
    /// Macro recall on them, 0 to 1, weighted by window.
    pub recall: f64,
    /// Macro F1 on them, 0 to 1, weighted by window.
    pub f1: f64,
}

/// The last `count` windows that began at or after `since_ms`, of `bundle` or of any; `Err` says how many there are when they are too few.
pub(super) fn measured(windows: &[WindowView], bundle: Option<Digest>, since_ms: i64, count: usize) -> Result<Measured, usize> {
    let of_bundle = |w: &&WindowView| bundle.is_none_or(|b| b == w.bundle);
    let useful: Vec<_> = windows.iter().filter(of_bundle).filter(|w| w.start_ms >= since_ms && w.requests > w.errors).collect();
    let last = useful.len().checked_sub(count).and_then(|from| useful.get(from..)).ok_or(useful.len())?;
    let labelled: u64 = last.iter().map(|w| w.labelled).sum();
    let mean = |of: fn(&WindowView) -> Option<f64>| {
        let sum: f64 = last.iter().filter_map(|w| of(w).map(|x| x * w.labelled as f64)).sum();
        sum / labelled.max(1) as f64
    };
    Ok(Measured {
        p50_us: median(last.iter().map(|w| w.p50_us)),
        p95_us: median(last.iter().map(|w| w.p95_us)),
        labelled,
        accuracy: mean(|w| w.accuracy),
        recall: mean(|w| w.recall),
        f1: mean(|w| w.f1),
    })
}

/// The upper one of the two middle values when their number is even.
fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// The engine's report, as far as it is shown.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Report {
    /// The full model.
    pub dense: Worth,
    /// The variant.
    pub pruned: Worth,
    /// Divergence from the full model, in nats.
    pub divergence: f64,
}

/// What a model is worth.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Worth {
    /// Accuracy on the validation data, 0 to 1.
    pub accuracy: f64,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// Encoded size in bytes.
    pub size_bytes: u64,
}

/// A variant as it was delivered to a device and proven there.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// Identifier of the variant.
    pub variant: String,
    /// Class it was made for.
    pub class: String,
    /// Digest of its bundle.
    pub bundle: Digest,
    /// What the engine says of it.
    pub report: Report,
    /// When it was proven.
    pub proven_at_ms: i64,
}

impl Version {
    /// Joins a proven deployment with its variant.
    pub(super) fn of(deployment: &DeploymentView, variants: &[VariantView]) -> anyhow::Result<Option<Self>> {
        let Some(variant) = variants.iter().find(|v| v.id == deployment.variant) else { return Ok(None) };
        Ok(Some(Self {
            variant: variant.id.clone(),
            class: deployment.class.clone(),
            bundle: deployment.digest,
            report: Report::deserialize(&variant.report)?,
            proven_at_ms: deployment.changed_at_ms,
        }))
    }
}

/// The first decision for `class` since `since_ms` whose outcome `wanted` accepts.
pub(super) fn decision<'a>(
    decisions: &'a [DecisionView],
    class: &str,
    since_ms: i64,
    wanted: fn(&Outcome) -> bool,
) -> Option<&'a DecisionView> {
    decisions.iter().find(|d| d.class == class && d.at_ms >= since_ms && wanted(&d.outcome))
}

/// Why, in words.
pub(super) fn reason(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Hold { reason } | Outcome::PruneMore { reason, .. } | Outcome::PruneLess { reason, .. } => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(number: u64, bundle: u8, p95_us: u64) -> WindowView {
        WindowView {
            device: "d".into(),
            class: "c".into(),
            number,
            bundle: Digest::new([bundle; 32]),
            rung: "full".into(),
            start_ms: i64::try_from(number).unwrap() * 1_000,
            duration_ms: 1_000,
            requests: 10,
            errors: 0,
            p50_us: p95_us / 2,
            p95_us,
            labelled: number,
            accuracy: Some(0.1 * number as f64),
            recall: None,
            f1: None,
        }
    }

    #[test]
    fn the_last_windows_of_the_bundle_count() {
        let mut windows: Vec<_> = (1..=6).map(|n| window(n, 1, 1_000 * n)).collect();
        windows.insert(3, window(9, 2, 99_000));
        let one = Some(Digest::new([1; 32]));
        let m = measured(&windows, one, 0, WINDOWS).unwrap();
        assert_eq!((m.p95_us, m.p50_us, m.labelled), (5_000, 2_500, 3 + 4 + 5 + 6));
        assert!((m.accuracy - (0.9 + 1.6 + 2.5 + 3.6) / 18.0).abs() < 1e-9);
        assert_eq!(measured(&windows, one, 4_000, WINDOWS), Err(3));
        assert_eq!(measured(&windows, None, 4_000, WINDOWS).map(|m| m.p95_us), Ok(6_000));
        assert_eq!(measured(&windows, Some(Digest::new([2; 32])), 0, WINDOWS), Err(1));
    }
}
