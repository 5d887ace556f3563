//! The result in a few lines for people.

use std::time::Duration;

use pleach_prune::{Quality, Report, Worth};

use crate::table::{bytes, count, plain};

/// A table of dense against pruned, and what should be known of it.
pub(super) fn render(report: &Report, took: Duration) -> String {
    let Report { dense, pruned, .. } = report;
    let mut rows: Vec<Vec<String>> = Vec::new();
    for ((name, before), (_, after)) in figures(&dense.quality).into_iter().zip(figures(&pruned.quality)) {
        rows.push(vec![name.to_owned(), format!("{before:.4}"), format!("{after:.4}"), format!("{:+.4}", after - before)]);
    }
    let ratio = |a: f64, b: f64| format!("{:.2}x", a / b.max(f64::MIN_POSITIVE));
    let mut line = |name: &str, of: &dyn Fn(&Worth) -> f64, show: &dyn Fn(f64) -> String, better: bool| {
        let (a, b) = (of(dense), of(pruned));
        rows.push(vec![name.to_owned(), show(a), show(b), if better { ratio(a, b) } else { ratio(b, a) }]);
    };
    line("latency p50, ms", &|w| w.latency_p50_us, &millis, true);
    line("latency p95, ms", &|w| w.latency_p95_us, &millis, true);
    line("MACs", &|w| w.macs as f64, &|x| count(x as u64), false);
    line("parameters", &|w| w.parameters as f64, &|x| count(x as u64), false);
    line("file", &|w| w.size_bytes as f64, &|x| bytes(x as u64), false);
    line("memory", &|w| w.memory_bytes as f64, &|x| bytes(x as u64), false);
    let mut text = plain(&["", "dense", "pruned", "change"], rows);
    let name = dense.quality.headline_name();
    text.push_str(&format!(
        "\n\n{name} lost: {:+.4}, on as many fresh rows below {:+.4}\n",
        report.lost.estimate, report.accuracy_lost_bound_95
    ));
    text.push_str(&format!("answers that agree with the dense model: {:.2} %\n", report.agreement * 100.0));
    text.push_str(&format!(
        "{:.2} times as fast, predicted {} ms; took {:.1} s\n",
        report.speedup_p50,
        millis(report.predicted_latency_p50_us),
        took.as_secs_f64()
    ));
    for warning in &report.warnings {
        text.push_str(&format!("note: {warning}\n"));
    }
    text
}

/// The figures of a quality by name.
pub(super) fn figures(quality: &Quality) -> Vec<(&'static str, f64)> {
    match *quality {
        Quality::Accuracy { accuracy, recall, f1, .. } => vec![("accuracy", accuracy), ("recall", recall), ("F1", f1)],
        Quality::EntityF1 { accuracy, recall, precision, f1, .. } => {
            vec![("entity F1", f1), ("entity recall", recall), ("entity precision", precision), ("tag accuracy", accuracy)]
        }
        Quality::MeanPrecision { map50, map50_95, recall, .. } => vec![("mAP@0.5", map50), ("mAP@0.5:0.95", map50_95), ("recall", recall)],
        Quality::Perplexity { perplexity, accuracy } => vec![("perplexity", perplexity), ("accuracy", accuracy)],
        Quality::Agreement { agreement } => vec![("agreement", agreement)],
    }
}

/// Microseconds as milliseconds, three digits behind the point.
pub(super) fn millis(us: f64) -> String {
    format!("{:.3}", us / 1e3)
}
