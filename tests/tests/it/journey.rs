//! The whole journey through real processes: upload, enrol, plan, prune, seal, deliver, run, report, adapt.

use std::time::Duration;

use pleach_domain::adapt::Outcome;
use pleach_proto::rest::{AuditView, ClassView, DecisionView, DeviceView, RolloutView, WindowView};
use serde_json::json;

use crate::harness::cluster::{Cluster, Database};
use crate::harness::{eventually, tiny};

/// A policy whose first budget is far too careful, so that the loop has something to give back.
fn careful_policy() -> serde_json::Value {
    json!({
        "name": "careful", "model": "tiny", "slo_p95_us": 200_000, "request_batch": 16, "accuracy_floor": 0.05,
        "rollout": {"probation_inferences": 5, "probation_seconds": 60},
        "adaptation": {"window_seconds": 1, "min_windows": 2, "min_requests": 20, "cooldown_seconds": 1, "first_target_share": 0.0005}
    })
}

async fn travels(database: Database) {
    let mut cluster = Cluster::start(database).await;
    let model = cluster.push_model("tiny", &tiny::write_files(cluster.dir())).await;
    assert_eq!((model.version, model.parameters), (1, 160 + 128 * 2304 + 128 + 1290));
    cluster.apply_policy(careful_policy()).await;
    let agent = cluster.agent("press-1").await;

    let first = cluster.deployment("press-1", "gets into probation", |d| d.state.as_str() == "probation").await;
    let input = tiny::input(21, 16);
    let labels = tiny::labels(&input);
    let mut sent = 0u32;
    let mut drive = async || {
        for _ in 0..10 {
            let id = format!("r{sent}");
            agent.infer(&id, &input).await.unwrap();
            assert!(agent.feedback(&id, &labels).await);
            sent += 1;
        }
    };
    drive().await;
    let proven = cluster.proven("press-1").await;
    assert_eq!(proven.digest, first.digest);

    let second = eventually("the loop prunes less and the device proves it", Duration::from_secs(120), || {
        let done = cluster.client.list::<pleach_proto::rest::DeploymentView>("deployments", &[]);
        async {
            let newest = done.await.map_err(|e| e.to_string())?.into_iter().max_by_key(|d| d.sequence).ok_or("none")?;
            if newest.sequence > first.sequence && newest.state.as_str() == "proven" { Ok(newest) } else { Err(format!("{newest:?}")) }
        }
    });
    let keep_driving = async {
        loop {
            drive().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let second = tokio::select! { d = second => d, () = keep_driving => unreachable!() };

    let decisions: Vec<DecisionView> = cluster.client.list("decisions", &[]).await.unwrap();
    assert!(decisions.iter().any(|d| matches!(d.outcome, Outcome::PruneLess { .. })), "{decisions:?}");
    let before = cluster.variant("the first variant", |v| v.id == first.variant).await;
    let after = cluster.variant("the second variant", |v| v.id == second.variant).await;
    assert!(after.budget_us > before.budget_us);
    let macs = |v: &pleach_proto::rest::VariantView| v.report["pruned"]["macs"].as_u64().unwrap();
    assert!(macs(&after) > macs(&before) && macs(&before) < model.macs);

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
    assert!(cluster.stop_controller(), "the controller drains and ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_travels_to_a_device_and_adapts_on_sqlite() {
    travels(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_travels_to_a_device_and_adapts_on_postgresql() {
    travels(Database::Postgres).await;
}
