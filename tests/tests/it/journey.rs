//! The whole journey through real processes: upload, enrol, plan, prune, seal, deliver, run, report, adapt.

use std::time::Duration;

use pleach_domain::adapt::Outcome;
use pleach_domain::state::Observed;
use pleach_proto::rest::{AuditView, ClassView, DecisionView, DeviceView, RolloutView, WindowView};
use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::cluster::{Cluster, Database};
use crate::harness::tiny;

/// A policy whose objective is generous and whose first budget is `first_us`.
fn policy(first_us: f64) -> serde_json::Value {
    json!({
        "name": "careful", "model": "tiny", "slo_p95_us": SLO_US, "request_batch": 16, "accuracy_floor": 0.05,
        "rollout": {"probation_inferences": 5, "probation_seconds": 60},
        "adaptation": {
            "window_seconds": 1, "min_windows": 2, "min_requests": 20, "cooldown_seconds": 1, "first_target_share": first_us / SLO_US as f64
        }
    })
}

const SLO_US: u64 = 200_000;

/// The device's application: inference and labels at a steady rate, until it is dropped.
async fn drive(agent: &Agent) {
    let input = tiny::input(21, 16);
    let labels = tiny::labels(&input);
    for n in 0u64.. {
        let id = format!("r{n}");
        // Nothing serves before the first bundle; the labels of an answer always find it.
        if agent.infer(&id, &input).await.is_ok() {
            assert!(agent.feedback(&id, &labels).await);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn travels(database: Database) {
    let mut cluster = Cluster::start(database).await;
    let model = cluster.push_model("tiny", &tiny::write_files(cluster.dir())).await;
    assert_eq!((model.version, model.parameters), (1, 160 + 128 * 2304 + 128 + 1290));
    cluster.apply_policy(policy(SLO_US as f64)).await;
    let agent = cluster.agent("press-1").await;
    tokio::select! {
        () = adapts(&cluster, model.macs) => {}
        () = drive(&agent) => unreachable!(),
    }
    answers(&cluster).await;
    comes_as_a_file(&cluster, &agent).await;
    assert!(cluster.stop_controller(), "the controller drains and ends well");
}

/// The whole model is delivered where it fits; a tight first budget prunes it; the loop gives back what the objective allows.
async fn adapts(cluster: &Cluster, dense_macs: u64) {
    let whole = cluster.proven("press-1").await;
    let report = cluster.variant("the first variant", |v| v.id == whole.variant).await.report;
    assert_eq!(macs(&report), dense_macs);
    let (fastest_us, dense_us) =
        (report["front"][0]["latency_us"].as_f64().unwrap(), report["predicted_dense_latency_us"].as_f64().unwrap());
    assert!(fastest_us < dense_us, "{report}");

    cluster.apply_policy(policy((fastest_us + dense_us) / 2.0)).await;
    let pruned =
        cluster.deployment("press-1", "proves a pruned bundle", |d| d.sequence > whole.sequence && d.state == Observed::Proven).await;
    let before = cluster.variant("the pruned variant", |v| v.id == pruned.variant).await;
    assert!(macs(&before.report) < dense_macs, "{}", before.report);

    let fuller =
        cluster.deployment("press-1", "proves a fuller bundle", |d| d.sequence > pruned.sequence && d.state == Observed::Proven).await;
    let after = cluster.variant("the fuller variant", |v| v.id == fuller.variant).await;
    assert!(after.budget_us > before.budget_us && macs(&after.report) > macs(&before.report));
    let decisions: Vec<DecisionView> = cluster.client.list("decisions", &[]).await.unwrap();
    let decision = decisions.iter().find(|d| d.budget_revision == Some(after.budget_revision)).expect("a decision set the budget");
    assert!(matches!(decision.outcome, Outcome::PruneLess { .. }), "{decision:?}");
}

fn macs(report: &serde_json::Value) -> u64 {
    report["pruned"]["macs"].as_u64().unwrap()
}

/// What dashboards read.
async fn answers(cluster: &Cluster) {
    let windows: Vec<WindowView> = cluster.client.list("windows", &[("device", "press-1")]).await.unwrap();
    assert!(windows.iter().any(|w| w.labelled > 0 && w.p95_us >= w.p50_us && w.accuracy.is_some()), "{windows:?}");
    let devices: Vec<DeviceView> = cluster.client.list("devices", &[]).await.unwrap();
    assert!(devices[0].connected && devices[0].profile.as_ref().is_some_and(|p| !p.kernels.is_empty()), "{devices:?}");
    let classes: Vec<ClassView> = cluster.client.list("classes", &[]).await.unwrap();
    assert_eq!((classes.len(), classes[0].devices), (1, 1));
    let rollouts: Vec<RolloutView> = cluster.client.list("rollouts", &[]).await.unwrap();
    assert!(rollouts.iter().any(|r| r.state.as_str() == "completed" && r.proven == 1), "{rollouts:?}");
    let audit: Vec<AuditView> = cluster.client.list("audit", &[]).await.unwrap();
    assert!(audit.iter().any(|a| a.action == "policy.apply") && audit.windows(2).all(|p| p[0].sequence < p[1].sequence));
}

/// What the device should run also comes as a file, which the agent verifies as it does a download.
async fn comes_as_a_file(cluster: &Cluster, agent: &Agent) {
    let mut answer = cluster.client.export_device("press-1").await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    let (done, words) = agent.install(&bytes);
    assert!(done && words.contains("is taken over"), "{words}");
    *bytes.last_mut().unwrap() ^= 1;
    let (done, words) = agent.install(&bytes);
    assert!(!done && words.contains("chunk-hash"), "{words}");
    assert!(cluster.client.export_device("nobody").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_travels_to_a_device_and_adapts_on_sqlite() {
    travels(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_travels_to_a_device_and_adapts_on_postgresql() {
    travels(Database::Postgres).await;
}
