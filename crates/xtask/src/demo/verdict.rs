//! The table at the end, and whether everything that the demo promises really happened.

use std::collections::BTreeSet;

use anyhow::Context;
use comfy_table::{Table, presets};
use pleach_proto::rest::DecisionView;

use super::calibrate::Pace;
use super::evidence::{Measured, Version, Worth};
use super::fleet::{CAMERA, KINDS, Kind, SENSOR};

/// Everything found out so far.
pub(super) struct Findings {
    /// What was demanded.
    pub pace: Pace,
    /// One entry for each kind of device.
    pub devices: Vec<Found>,
    /// The decision that gave the sensor more.
    pub prune_less: Option<DecisionView>,
    /// The decision that took from the camera.
    pub prune_more: Option<DecisionView>,
    /// The camera after its quota was halved, before the loop acted.
    pub broken: Option<Measured>,
    /// The camera with its newer version.
    pub recovered: Option<Measured>,
}

/// What was found out about one device.
pub(super) struct Found {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its identifier.
    pub id: Option<String>,
    /// Its class.
    pub class: Option<String>,
    /// Versions it has proven, newest last.
    pub versions: Vec<Version>,
    /// What it measured with the first.
    pub first: Option<Measured>,
    /// What it measured before the loop last acted.
    pub before: Option<Measured>,
    /// What it measured last.
    pub last: Option<Measured>,
}

impl Findings {
    /// Nothing yet.
    pub(super) fn new(pace: Pace) -> Self {
        let found = |kind| Found { kind, id: None, class: None, versions: Vec::new(), first: None, before: None, last: None };
        let devices = KINDS.iter().map(found).collect();
        Self { pace, devices, prune_less: None, prune_more: None, broken: None, recovered: None }
    }

    /// What is known of a kind.
    pub(super) fn device(&self, kind: &Kind) -> anyhow::Result<&Found> {
        self.devices.iter().find(|d| d.kind.name == kind.name).context("no such kind of device")
    }

    /// The same, to add to.
    pub(super) fn device_mut(&mut self, kind: &Kind) -> anyhow::Result<&mut Found> {
        self.devices.iter_mut().find(|d| d.kind.name == kind.name).context("no such kind of device")
    }

    /// Number of different classes.
    pub(super) fn classes(&self) -> usize {
        self.devices.iter().filter_map(|d| d.class.as_deref()).collect::<BTreeSet<_>>().len()
    }

    /// A line about the version that a device proved last.
    pub(super) fn describe(&self, kind: &Kind, m: &Measured) -> String {
        let (p95, accuracy) = (ms(m.p95_us as f64), m.accuracy * 100.0);
        let Some(report) = self.device(kind).ok().and_then(|f| f.versions.last()).map(|v| &v.report) else { return String::new() };
        format!(
            "{}: a variant with {:.0} % of the MACs is proven; expected accuracy {:.1} %; on the device p95 {p95}, accuracy {accuracy:.1} %",
            kind.name,
            percent(report.pruned.macs, report.dense.macs),
            report.pruned.accuracy * 100.0
        )
    }
}

/// One row for each class.
pub(super) fn table(findings: &Findings) -> String {
    let mut table = Table::new();
    let full = findings.devices.iter().find_map(|d| d.versions.last()).map(|v| &v.report.dense);
    let of = |text: Option<String>| text.map_or_else(String::new, |t| format!("\nof {t}"));
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "class".to_owned(),
        "device".to_owned(),
        "variant".to_owned(),
        format!("MACs{}", of(full.map(|f| format!("{:.1} M", millions(f.macs))))),
        format!("size{}", of(full.map(|f| format!("{} kB", f.size_bytes / 1_000)))),
        "accuracy / recall / F1\non the device".to_owned(),
        "p50 / p95\nbefore".to_owned(),
        "p50 / p95\nafter".to_owned(),
        "versions\ndelivered".to_owned(),
    ]);
    for found in &findings.devices {
        let version = found.versions.last();
        let report = version.map(|v| &v.report);
        let latency = |m: Option<Measured>| m.map(|m| format!("{} / {}", ms(m.p50_us as f64), ms(m.p95_us as f64)));
        let quality = found.last.map(|m| format!("{:.1} / {:.1} / {:.1} %", m.accuracy * 100.0, m.recall * 100.0, m.f1 * 100.0));
        let share = |of: fn(&Worth) -> u64| report.map_or(0.0, |r| percent(of(&r.pruned), of(&r.dense)));
        let macs = report.map(|r| format!("{:.1} M ({:.0} %)", millions(r.pruned.macs), share(|w| w.macs)));
        let size = report.map(|r| format!("{} kB ({:.0} %)", r.pruned.size_bytes / 1_000, share(|w| w.size_bytes)));
        let cells = [
            found.class.clone(),
            Some(found.kind.name.to_owned()),
            version.map(|v| v.variant.clone()),
            macs,
            size,
            quality,
            latency(found.before),
            latency(found.last),
            Some(found.versions.len().to_string()),
        ];
        table.add_row(cells.map(|c| c.unwrap_or_else(|| "-".to_owned())));
    }
    table.trim_fmt()
}

/// Prints each claim with what was found; returns how many did not come true.
pub(super) fn print(findings: &Findings) -> usize {
    println!("\nobjective: p95 {} for {} images a request", ms(findings.pace.slo_us as f64), super::calibrate::BATCH);
    let claims = claims(findings);
    for (claim, came_true, found) in &claims {
        println!("  {} {claim}: {found}", if *came_true { "yes" } else { " NO" });
    }
    claims.iter().filter(|c| !c.1).count()
}

/// What the demo promises, whether it came true, and what was found.
fn claims(findings: &Findings) -> Vec<(&'static str, bool, String)> {
    let slo_us = findings.pace.slo_us;
    let devices = &findings.devices;
    let count = |test: fn(&Found) -> bool| devices.iter().filter(|d| test(d)).count();
    let all = KINDS.len();

    let classes = findings.classes();
    let variants: BTreeSet<_> = devices.iter().filter_map(|d| d.versions.first()).map(|v| (&v.class, &v.variant)).collect();
    let pruned = count(|d| !d.versions.is_empty() && d.versions.iter().all(|v| v.report.pruned.macs < v.report.dense.macs));
    let judged = count(|d| d.first.is_some_and(|m| m.labelled > 0 && m.accuracy > 0.0));
    let inside = devices.iter().filter(|d| d.last.is_some_and(|m| m.p95_us <= slo_us)).count();
    let p95 = |m: Option<Measured>| m.map_or_else(|| "not measured".to_owned(), |m| format!("p95 {}", ms(m.p95_us as f64)));
    let (broken, recovered) = (findings.broken, findings.recovered);
    let camera = change(findings, &CAMERA);
    let sensor = change(findings, &SENSOR);

    vec![
        ("three classes of device", classes == all, format!("{classes}")),
        (
            "three pruned variants, delivered and proven",
            variants.len() == all && pruned == all,
            format!("{} variants, {pruned} pruned", variants.len()),
        ),
        ("accuracy measured on every device", judged == all, format!("{judged} of {all}")),
        ("half the quota broke the camera's objective", broken.is_some_and(|m| m.p95_us > slo_us), p95(broken)),
        (
            "the loop pruned the camera more and brought it back",
            findings.prune_more.is_some()
                && recovered.is_some_and(|m| m.p95_us <= slo_us)
                && camera.is_some_and(|(from, to)| to.report.pruned.macs < from.report.pruned.macs),
            format!("{}, {}", p95(recovered), camera.map_or_else(|| "no newer version".to_owned(), describe_change)),
        ),
        (
            "the loop pruned the sensor less, for accuracy",
            findings.prune_less.is_some()
                && sensor.is_some_and(|(from, to)| {
                    let (from, to) = (&from.report, &to.report);
                    to.pruned.macs > from.pruned.macs && to.pruned.accuracy > from.pruned.accuracy && to.divergence < from.divergence
                }),
            sensor.map_or_else(|| "no newer version".to_owned(), describe_change),
        ),
        ("every device inside the objective at the end", inside == all, format!("{inside} of {all}")),
    ]
}

/// What the loop changed on a device: for the camera, from the fullest version it had to the one it has; for the sensor, from its
/// first version to the most accurate one after it.
fn change<'a>(findings: &'a Findings, kind: &Kind) -> Option<(&'a Version, &'a Version)> {
    let versions = &findings.device(kind).ok()?.versions;
    let (first, later) = versions.split_first()?;
    if kind.name == CAMERA.name {
        Some((versions.iter().max_by_key(|v| v.report.pruned.macs)?, later.last()?))
    } else {
        Some((first, later.iter().max_by(|a, b| a.report.pruned.accuracy.total_cmp(&b.report.pruned.accuracy))?))
    }
}

fn describe_change((from, to): (&Version, &Version)) -> String {
    let side = |v: &Version| {
        let share = percent(v.report.pruned.macs, v.report.dense.macs);
        format!("{share:.0} % of the MACs with accuracy {:.2} %", v.report.pruned.accuracy * 100.0)
    };
    format!("from {} to {} (on the validation data)", side(from), side(to))
}

fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of.max(1) as f64
}

fn millions(n: u64) -> f64 {
    n as f64 / 1e6
}

/// Microseconds as milliseconds.
pub(super) fn ms(us: f64) -> String {
    format!("{:.1} ms", us / 1_000.0)
}
