//! What the runtime has done since it started, for Prometheus.
//!
//! Source: Prometheus text exposition format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS_S: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Rungs that are told apart; beyond, counting begins anew, which Prometheus takes for a restart.
const MAX_RUNGS: usize = 64;

/// Counters that only grow.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    rungs: BTreeMap<String, RungCounts>,
    refused: u64,
    expired: u64,
    calls_shared: u64,
    requests_shared: u64,
    rows_audited: u64,
    rows_agreed: u64,
}

#[derive(Debug, Default)]
struct RungCounts {
    buckets: [u64; BUCKETS_S.len()],
    answered: u64,
    failed: u64,
    sum: Duration,
}

/// What the process is at this moment.
#[derive(Debug, Default)]
pub(crate) struct Now<'a> {
    pub(crate) bundle: String,
    pub(crate) model: &'a str,
    pub(crate) version: u64,
    pub(crate) waiting: usize,
    pub(crate) resident_bytes: u64,
    pub(crate) cpu_us: u64,
}

impl Totals {
    pub(crate) fn answered(&self, rung: &str, latency: Duration) {
        let mut counts = self.counts();
        let rung = counts.rung(rung);
        rung.answered += 1;
        rung.sum += latency;
        let place = BUCKETS_S.iter().position(|&most| latency.as_secs_f64() <= most);
        if let Some(bucket) = place.and_then(|place| rung.buckets.get_mut(place)) {
            *bucket += 1;
        }
    }

    pub(crate) fn failed(&self, rung: &str) {
        self.counts().rung(rung).failed += 1;
    }

    /// Refused because too many were waiting.
    pub(crate) fn refused(&self) {
        self.counts().refused += 1;
    }

    /// Given up by who asked, or too late.
    pub(crate) fn expired(&self) {
        self.counts().expired += 1;
    }

    /// Requests that shared one call.
    pub(crate) fn batched(&self, requests: usize) {
        let mut counts = self.counts();
        counts.calls_shared += 1;
        counts.requests_shared += requests as u64;
    }

    /// Rows checked against the fullest rung, and those on which it agreed.
    pub(crate) fn audited(&self, rows: usize, agreed: usize) {
        let mut counts = self.counts();
        counts.rows_audited += rows as u64;
        counts.rows_agreed += agreed as u64;
    }

    /// Everything as text.
    pub(crate) fn render(&self, now: &Now<'_>) -> String {
        let counts = self.counts();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = counts.write_rungs(&mut text);
        let _ = counts.write_totals(&mut text, now);
        text
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn rung(&mut self, name: &str) -> &mut RungCounts {
        if self.rungs.len() >= MAX_RUNGS && !self.rungs.contains_key(name) {
            self.rungs.clear();
        }
        self.rungs.entry(name.to_owned()).or_default()
    }

    fn write_rungs(&self, out: &mut String) -> std::fmt::Result {
        head(out, "pleach_requests_total", "counter", "Inference requests by outcome.")?;
        for (name, rung) in &self.rungs {
            let name = escaped(name);
            writeln!(out, "pleach_requests_total{{rung=\"{name}\",outcome=\"answered\"}} {}", rung.answered)?;
            writeln!(out, "pleach_requests_total{{rung=\"{name}\",outcome=\"failed\"}} {}", rung.failed)?;
        }
        let latency = "pleach_request_duration_seconds";
        head(out, latency, "histogram", "Time from admission to answer.")?;
        for (name, rung) in &self.rungs {
            let name = escaped(name);
            let mut below = 0;
            for (most, bucket) in BUCKETS_S.iter().zip(rung.buckets) {
                below += bucket;
                writeln!(out, "{latency}_bucket{{rung=\"{name}\",le=\"{most}\"}} {below}")?;
            }
            writeln!(out, "{latency}_bucket{{rung=\"{name}\",le=\"+Inf\"}} {}", rung.answered)?;
            writeln!(out, "{latency}_sum{{rung=\"{name}\"}} {}", rung.sum.as_secs_f64())?;
            writeln!(out, "{latency}_count{{rung=\"{name}\"}} {}", rung.answered)?;
        }
        Ok(())
    }

    fn write_totals(&self, out: &mut String, now: &Now<'_>) -> std::fmt::Result {
        let totals = [
            ("pleach_requests_refused_total", "Requests refused because too many waited.", self.refused),
            ("pleach_requests_expired_total", "Requests whose deadline passed, or that were given up, before the model ran.", self.expired),
            ("pleach_shared_calls_total", "Calls of the model that served several requests.", self.calls_shared),
            ("pleach_shared_requests_total", "Requests served by shared calls.", self.requests_shared),
            ("pleach_audited_rows_total", "Rows of slimmer rungs checked against the fullest.", self.rows_audited),
            ("pleach_agreed_rows_total", "Checked rows on which the fullest rung agreed.", self.rows_agreed),
        ];
        for (name, help, value) in totals {
            head(out, name, "counter", help)?;
            writeln!(out, "{name} {value}")?;
        }
        head(out, "process_cpu_seconds_total", "counter", "Processor time of the runtime.")?;
        writeln!(out, "process_cpu_seconds_total {}", now.cpu_us as f64 / 1e6)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory of the runtime.", now.resident_bytes),
            ("pleach_requests_waiting", "Requests that wait for the model.", now.waiting as u64),
        ] {
            head(out, name, "gauge", help)?;
            writeln!(out, "{name} {value}")?;
        }
        head(out, "pleach_bundle_info", "gauge", "The bundle that serves.")?;
        if !now.bundle.is_empty() {
            let (model, version, bundle) = (escaped(now.model), now.version, &now.bundle);
            writeln!(out, "pleach_bundle_info{{model=\"{model}\",version=\"{version}\",bundle=\"{bundle}\"}} 1")?;
        }
        Ok(())
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_labels_escaped() {
        let totals = Totals::default();
        for ms in [1, 3, 3, 60_000] {
            totals.answered("a\"b", Duration::from_millis(ms));
        }
        totals.failed("a\"b");
        let text = totals.render(&Now { bundle: "00".into(), model: "m", version: 3, ..Now::default() });
        for line in [
            "pleach_requests_total{rung=\"a\\\"b\",outcome=\"answered\"} 4",
            "pleach_requests_total{rung=\"a\\\"b\",outcome=\"failed\"} 1",
            "pleach_request_duration_seconds_bucket{rung=\"a\\\"b\",le=\"0.001\"} 1",
            "pleach_request_duration_seconds_bucket{rung=\"a\\\"b\",le=\"0.005\"} 3",
            "pleach_request_duration_seconds_bucket{rung=\"a\\\"b\",le=\"10\"} 3",
            "pleach_request_duration_seconds_bucket{rung=\"a\\\"b\",le=\"+Inf\"} 4",
            "pleach_bundle_info{model=\"m\",version=\"3\",bundle=\"00\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn names_of_rungs_stay_bounded() {
        let totals = Totals::default();
        (0..1_000).for_each(|n| totals.failed(&n.to_string()));
        assert!(totals.counts().rungs.len() <= MAX_RUNGS);
    }
}
