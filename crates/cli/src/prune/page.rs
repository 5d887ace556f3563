//! The report for people: one page that asks nobody for anything, with a picture of what other budgets would give.

use std::fmt::Write;

use pleach_prune::{Report, Shortfall};

use super::summary::{figures, millis};
use crate::table::{bytes, count};

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d5dbe3;--paper:#fff;--mark:#1668c7;--sure:#b3541e}\
@media(prefers-color-scheme:dark){:root{--ink:#e8ecf2;--soft:#9aa6b5;--line:#35404d;--paper:#141a21;--mark:#6db1ff;--sure:#f0a070}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:56rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--line)}\
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}.missed{color:var(--sure)}\
.bar{fill:none;stroke:var(--line);stroke-width:8}.kept{stroke:var(--mark)}code{font-size:.85em}";

/// Width, height and margin of the picture.
const SIZE: (f64, f64, f64) = (720.0, 340.0, 56.0);
/// Divergences below this are drawn at the bottom.
const LEAST: f64 = 1e-6;

/// The page of a report.
pub(super) fn render(model: &str, report: &Report, shortfall: Option<&Shortfall>) -> String {
    let model = escape(model);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{model}, pruned</title><style>{STYLE}</style><h1>{model}, pruned</h1>"
    );
    if let Some(shortfall) = shortfall {
        page.push_str(&format!(
            "<p class=\"missed\"><strong>Not delivered:</strong> {}. This is the nearest.</p>",
            escape(&shortfall.to_string())
        ));
    }
    page.push_str(&format!(
        "<p>{:.2} times as fast (median, {} row{} a call); {} lost {:+.4}, on as many fresh rows below {:+.4}.</p>",
        report.speedup_p50,
        report.batch,
        if report.batch == 1 { "" } else { "s" },
        report.dense.quality.headline_name(),
        report.lost.estimate,
        report.accuracy_lost_bound_95
    ));
    for warning in &report.warnings {
        page.push_str(&format!("<p class=\"missed\">{}</p>", escape(warning)));
    }
    page.push_str("<h2>Dense and pruned</h2><table><tr><th><th>dense<th>pruned");
    for (name, before, after) in rows(report) {
        page.push_str(&format!("<tr><td>{name}<td>{before}<td>{after}"));
    }
    page.push_str("</table><h2>What other budgets would give</h2>");
    page.push_str(&front(report));
    page.push_str("<h2>Groups</h2><table><tr><th>group<th>kept<th>of<th>share");
    for w in &report.widths {
        let share = w.kept as f64 / w.of.max(1) as f64;
        page.push_str(&format!(
            "<tr><td><code>{}</code><td>{}<td>{}<td><svg viewBox=\"0 0 100 8\" role=\"img\" aria-label=\"{:.0} %\" style=\"width:8rem\">\
             <path class=\"bar\" d=\"M0 4H100\"/><path class=\"bar kept\" d=\"M0 4H{:.1}\"/></svg>",
            escape(&w.group),
            w.kept,
            w.of,
            share * 100.0,
            share * 100.0
        ));
    }
    page.push_str("</table><h2>Time spent</h2><table>");
    for (stage, seconds) in &report.seconds {
        page.push_str(&format!("<tr><td>{stage}<td>{seconds:.1} s"));
    }
    page.push_str("</table></html>\n");
    page
}

fn rows(report: &Report) -> Vec<(String, String, String)> {
    let (dense, pruned) = (&report.dense, &report.pruned);
    let quality = figures(&dense.quality).into_iter().zip(figures(&pruned.quality));
    let mut rows: Vec<_> = quality.map(|((name, a), (_, b))| (name.to_owned(), format!("{a:.4}"), format!("{b:.4}"))).collect();
    let mut add = |name: &str, a: String, b: String| rows.push((name.to_owned(), a, b));
    add("latency p50, ms", millis(dense.latency_p50_us), millis(pruned.latency_p50_us));
    add("latency p95, ms", millis(dense.latency_p95_us), millis(pruned.latency_p95_us));
    add("multiply-accumulates", count(dense.macs), count(pruned.macs));
    add("parameters", count(dense.parameters), count(pruned.parameters));
    add("file", bytes(dense.size_bytes), bytes(pruned.size_bytes));
    add("memory of one call", bytes(dense.memory_bytes), bytes(pruned.memory_bytes));
    rows
}

/// The front: predicted latency to the right, expected divergence (logarithmic) upwards, and the variant on it.
fn front(report: &Report) -> String {
    let (width, height, margin) = SIZE;
    let this = (report.predicted_latency_p50_us, report.divergence);
    let points: Vec<(f64, f64)> = report.front.iter().map(|p| (p.latency_us, p.divergence)).collect();
    let all = || points.iter().copied().chain([this]);
    let most_us = all().fold(0.0, |m: f64, p| m.max(p.0)).max(f64::MIN_POSITIVE) * 1.05;
    let log = |d: f64| d.max(LEAST).log10();
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), p| (l.min(log(p.1)), h.max(log(p.1))));
    let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let x = |us: f64| margin + us / most_us * (width - 2.0 * margin);
    let y = |d: f64| height - margin - (log(d) - low) / (high - low) * (height - 2.0 * margin);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Expected divergence by predicted latency\">\
         <path d=\"M{margin} {margin}V{0}H{1}\" fill=\"none\" stroke=\"var(--line)\"/>",
        height - margin,
        width - margin
    );
    for step in 0..=4 {
        let us = most_us * f64::from(step) / 4.0;
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", x(us), height - margin + 18.0, millis(us));
    }
    let mut decade = low;
    while decade <= high {
        let at = y(10f64.powf(decade)) + 4.0;
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"end\">1e{decade:.0}</text>", margin - 8.0);
        decade += 1.0;
    }
    let line: Vec<String> = points.iter().map(|&(us, d)| format!("{:.1},{:.1}", x(us), y(d))).collect();
    let _ = write!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"var(--mark)\" stroke-width=\"2\"/>", line.join(" "));
    for &(us, d) in &points {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"var(--mark)\"><title>{} ms, divergence {d:.2e}</title></circle>",
            x(us),
            y(d),
            millis(us)
        );
    }
    let _ = write!(
        svg,
        "<circle cx=\"{0:.1}\" cy=\"{1:.1}\" r=\"7\" fill=\"none\" stroke=\"var(--sure)\" stroke-width=\"3\"><title>this variant: {2} ms, divergence \
         {3:.2e}</title></circle><text x=\"{0:.1}\" y=\"{4:.1}\" text-anchor=\"middle\">this variant</text>\
         <text x=\"{5:.1}\" y=\"{6:.1}\" text-anchor=\"middle\">predicted latency, ms</text>\
         <text x=\"{7:.1}\" y=\"{8:.1}\">expected divergence</text></svg>",
        x(this.0),
        y(this.1),
        millis(this.0),
        this.1,
        y(this.1) - 14.0,
        width / 2.0,
        height - 12.0,
        8.0,
        margin - 16.0
    );
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
