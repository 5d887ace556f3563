//! Lists as tables for people.

use comfy_table::{Table, presets};
use pleach_domain::Digest;
use pleach_domain::adapt::Outcome;
use pleach_proto::rest::{
    ApiTokenView, AuditView, BundleView, ClassView, DecisionView, DeploymentView, DeviceView, JobView, ModelView, RolloutView, VariantView,
    WindowView,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::Noun;

/// Renders the items of a list; ages count back from `now_ms` (milliseconds since 1970 UTC).
///
/// # Errors
/// When an item is not what this version knows.
pub fn render(noun: Noun, items: Vec<Value>, now_ms: i64) -> Result<String, serde_json::Error> {
    let age = |at_ms: i64| age(now_ms - at_ms);
    match noun {
        Noun::Devices => table(&["DEVICE", "STATE", "CLASS", "THREADS", "CONNECTED", "LABELS", "SEEN"], items, |d: DeviceView| {
            let labels: Vec<_> = d.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let threads = d.profile.as_ref().map(|p| p.inference_threads.to_string());
            let connected = if d.connected { "yes" } else { "no" };
            vec![
                d.id,
                d.state.to_string(),
                or_dash(d.class),
                or_dash(threads),
                connected.to_owned(),
                labels.join(","),
                or_dash(d.last_seen_at_ms.map(age)),
            ]
        }),
        Noun::Classes => table(&["CLASS", "ARCHITECTURE", "VECTOR", "THREADS", "DEVICES"], items, |c: ClassView| {
            vec![c.id, c.architecture, c.vector, c.inference_threads.to_string(), c.devices.to_string()]
        }),
        Noun::Models => table(&["MODEL", "VERSION", "TASK", "PARAMETERS", "MACS", "SIZE", "AGE"], items, |m: ModelView| {
            let (parameters, macs) = (count(m.parameters), count(m.macs));
            vec![m.name, m.version.to_string(), m.task, parameters, macs, bytes(m.size_bytes), age(m.created_at_ms)]
        }),
        Noun::Variants => table(
            &["VARIANT", "CLASS", "MODEL", "BUDGET", "STATE", "ACCURACY", "MACS", "SIZE", "REJECTION", "AGE"],
            items,
            |v: VariantView| {
                let pruned = |field: &str| v.report.pointer(&format!("/pruned/{field}"));
                let whole = |field: &str| pruned(field).and_then(Value::as_u64);
                vec![
                    v.id,
                    v.class,
                    format!("{}:{}", v.model, v.model_version),
                    format!("{} ({})", v.budget_revision, millis(v.budget_us)),
                    v.state.to_string(),
                    share(pruned("accuracy").and_then(Value::as_f64)),
                    or_dash(whole("macs").map(count)),
                    or_dash(whole("size_bytes").map(bytes)),
                    or_dash(v.rejection),
                    age(v.created_at_ms),
                ]
            },
        ),
        Noun::Bundles => table(&["BUNDLE", "VARIANT", "CLASS", "STATE", "DIGEST", "SIZE", "AGE"], items, |b: BundleView| {
            vec![b.id, b.variant, b.class, b.state.to_string(), short(b.digest), bytes(b.size_bytes), age(b.created_at_ms)]
        }),
        Noun::Rollouts => {
            table(&["ROLLOUT", "CLASS", "BUNDLE", "STATE", "WAVE", "DEVICES", "PROVEN", "FAILED", "AGE"], items, |r: RolloutView| {
                let wave = format!("{}/{}", r.wave + 1, r.rules.waves.len() + 1);
                let counts = [r.devices, r.proven, r.failed].map(|n| n.to_string());
                [vec![r.id, r.class, r.bundle, r.state.to_string(), wave], counts.to_vec(), vec![age(r.created_at_ms)]].concat()
            })
        }
        Noun::Deployments => table(&["DEVICE", "CLASS", "SEQUENCE", "VARIANT", "STATE", "CHECK", "CHANGED"], items, |d: DeploymentView| {
            vec![d.device, d.class, d.sequence.to_string(), d.variant, d.state.to_string(), or_dash(d.check), age(d.changed_at_ms)]
        }),
        Noun::Windows => table(
            &["DEVICE", "CLASS", "WINDOW", "BUNDLE", "RUNG", "REQUESTS", "ERRORS", "P50", "P95", "ACCURACY", "RECALL", "F1", "AGE"],
            items,
            |w: WindowView| {
                let us = |us: u64| millis(us as f64);
                vec![
                    w.device,
                    w.class,
                    w.number.to_string(),
                    short(w.bundle),
                    w.rung,
                    w.requests.to_string(),
                    w.errors.to_string(),
                    us(w.p50_us),
                    us(w.p95_us),
                    share(w.accuracy),
                    share(w.recall),
                    share(w.f1),
                    age(w.start_ms),
                ]
            },
        ),
        Noun::Decisions => table(&["DECISION", "CLASS", "MODEL", "OUTCOME", "BUDGET", "REASON", "AGE"], items, |d: DecisionView| {
            let (outcome, budget_us, reason) = match d.outcome {
                Outcome::Hold { reason } => ("hold", None, reason),
                Outcome::PruneMore { budget_us, reason } => ("prune more", Some(budget_us), reason),
                Outcome::PruneLess { budget_us, reason } => ("prune less", Some(budget_us), reason),
            };
            vec![d.id, d.class, d.model, outcome.to_owned(), or_dash(budget_us.map(millis)), reason, age(d.at_ms)]
        }),
        Noun::Jobs => table(&["JOB", "KIND", "SUBJECT", "STATE", "ATTEMPT", "STAGE", "DONE", "ERROR"], items, |j: JobView| {
            let done = format!("{:.0} %", j.progress * 100.0);
            vec![j.id, j.kind, j.subject, j.state.to_string(), j.attempt.to_string(), j.stage, done, or_dash(j.error)]
        }),
        Noun::Audit => table(&["ENTRY", "WHO", "WHAT", "ON", "HASH", "AGE"], items, |a: AuditView| {
            vec![a.sequence.to_string(), a.actor, a.action, a.subject, short(a.hash), age(a.at_ms)]
        }),
        Noun::ApiTokens => table(&["NAME", "ROLE", "EXPIRES IN", "AGE"], items, |t: ApiTokenView| {
            let left = t.expires_at_ms.map_or_else(|| "never".to_owned(), |at_ms| self::age(at_ms - now_ms));
            vec![t.name.into(), t.role.to_string(), left, age(t.created_at_ms)]
        }),
    }
}

fn table<T: DeserializeOwned>(headers: &[&str], items: Vec<Value>, row: impl Fn(T) -> Vec<String>) -> Result<String, serde_json::Error> {
    let rows = items.into_iter().map(|item| Ok(row(serde_json::from_value(item)?))).collect::<Result<_, serde_json::Error>>()?;
    Ok(plain(headers, rows))
}

/// A table without lines; without a header when `headers` is empty.
pub fn plain(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !headers.is_empty() {
        table.set_header(headers);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// The beginning of a digest, enough to tell bundles apart.
fn short(digest: Digest) -> String {
    digest.to_string().chars().take(12).collect()
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |x| format!("{:.1} %", x * 100.0))
}

/// Microseconds as milliseconds.
pub(crate) fn millis(us: f64) -> String {
    format!("{:.1} ms", us / 1_000.0)
}

/// Bytes in the unit that suits them.
pub fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{} kB", n / 1_000),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// A large count, e.g. of multiply-accumulates.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{} k", n / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn digest() -> String {
        "ab".repeat(32)
    }

    #[test]
    fn windows_show_milliseconds_and_shares() {
        let window = json!({
            "device": "d-1", "class": "x8664-avx512-1t-q600", "number": 7, "bundle": digest(), "rung": "full",
            "start_ms": NOW_MS - 4_000, "duration_ms": 2_000, "requests": 12, "errors": 0, "p50_us": 7_120, "p95_us": 9_480,
            "labelled": 192, "accuracy": 0.9114, "recall": 0.9087, "f1": null
        });
        insta::assert_snapshot!("windows", render(Noun::Windows, vec![window], NOW_MS).unwrap());
    }

    #[test]
    fn variants_show_what_was_made_or_why_not() {
        let variant = |id: &str| {
            json!({
                "id": id, "class": "x8664-avx512-1t", "model": "fashion", "model_version": 1, "budget_revision": 2, "budget_us": 8_500.0,
                "state": "made", "digest": digest(), "rejection": null, "created_at_ms": NOW_MS - 3_600_000,
                "report": { "pruned": { "accuracy": 0.9021, "macs": 9_120_000, "size_bytes": 1_204_000 } }
            })
        };
        let mut rejected = variant("v-2");
        rejected["state"] = json!("rejected");
        rejected["report"] = json!({});
        rejected["rejection"] = json!("latency budget 900 us: the fastest variant needs 1400 us");
        insta::assert_snapshot!("variants", render(Noun::Variants, vec![variant("v-1"), rejected], NOW_MS).unwrap());
    }

    #[test]
    fn decisions_show_their_reason() {
        let decision = json!({
            "id": "c-1", "class": "x8664-avx512-1t", "model": "fashion", "policy": "fashion",
            "outcome": { "outcome": "prune-more", "budget_us": 4_250.0, "reason": "p95 14000 us breaks the SLO of 10000 us" },
            "evidence": { "devices": [], "planned_us": 7_000.0, "budget_us": 7_000.0, "front": [], "proven_seconds": 10 },
            "budget_revision": 2, "at_ms": NOW_MS - 200_000_000
        });
        insta::assert_snapshot!("decisions", render(Noun::Decisions, vec![decision], NOW_MS).unwrap());
    }

    #[test]
    fn an_empty_list_still_names_its_columns() {
        for noun in <Noun as clap::ValueEnum>::value_variants() {
            assert!(!render(*noun, Vec::new(), NOW_MS).unwrap().is_empty(), "{noun:?}");
        }
        assert!(render(Noun::Devices, vec![json!({"id": 5})], NOW_MS).is_err());
    }

    #[test]
    fn units_suit_the_number() {
        assert_eq!([bytes(950), bytes(1_204_000), bytes(24_000_000)], ["950 B", "1204 kB", "24.0 MB"]);
        assert_eq!([count(1_700), count(694_000), count(22_100_000)], ["1700", "694 k", "22.1 M"]);
        assert_eq!([age(-5), age(119_999), age(120_000), age(200_000_000)], ["0s", "119s", "2m", "2d"]);
    }
}
