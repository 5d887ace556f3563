//! The dashboard in a real browser, against a real controller with a device that serves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pleach_domain::role::Role;
use pleach_domain::state::RolloutState;
use pleach_proto::rest::{NewApiToken, RolloutView};
use serde_json::json;

use crate::harness::cluster::{Cluster, Database};
use crate::harness::{self, tiny};

/// Inferences with labels before anyone looks, and again, so that there are windows to draw.
async fn some_windows(cluster: &Cluster, agent: &harness::agent::Agent) {
    let input = tiny::input(21, 16);
    let labels = tiny::labels(&input);
    let mut sent = 0;
    harness::eventually("four windows with requests", Duration::from_secs(60), || {
        sent += 1;
        let (id, input, labels) = (format!("r{sent}"), &input, &labels);
        async move {
            agent.infer(&id, input).await?;
            agent.feedback(&id, labels).await;
            let windows = cluster.client.list_json("windows", &[("device", "press-1")]).await.map_err(|e| e.to_string())?;
            let served = windows.iter().filter(|w| w["requests"].as_u64() > Some(0)).count();
            if served >= 4 { Ok(()) } else { Err(format!("{served} windows")) }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_see_the_fleet_in_a_browser_and_act_on_it() {
    let cluster = Cluster::start(Database::Sqlite).await;
    cluster.push_model("tiny", &tiny::write_files(cluster.dir())).await;
    cluster
        .apply_policy(json!({
            "name": "careful", "model": "tiny", "slo_p95_us": 200_000, "request_batch": 16, "accuracy_floor": 0.05,
            "rollout": {"probation_inferences": 2, "probation_seconds": 60, "waves": ["1"], "approval": "second-person"},
            "adaptation": {"window_seconds": 1, "min_windows": 2, "min_requests": 5, "cooldown_seconds": 1}
        }))
        .await;
    let agent = cluster.agent("press-1").await;
    harness::eventually("a rollout waits for a second person", Duration::from_secs(120), || async {
        let rollouts: Vec<RolloutView> = cluster.client.list("rollouts", &[]).await.map_err(|e| e.to_string())?;
        match &*rollouts {
            [one] if one.state == RolloutState::WaitingForApproval => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let second = NewApiToken { name: "second".parse().unwrap(), role: Role::Operator, ttl_seconds: None };
    let second = cluster.client.create_api_token(&second).await.unwrap().token.unwrap();
    let token = cluster.dir().join("second.token");
    std::fs::write(&token, second).unwrap();
    browse(&cluster, &token, &["approve"]).await;

    agent.serving("").await;
    some_windows(&cluster, &agent).await;
    cluster.proven("press-1").await;
    browse(&cluster, cluster.token_path(), &[]).await;
}

/// What the browser's script finds, in `controller/dashboard/test`.
async fn browse(cluster: &Cluster, token: &Path, args: &[&str]) {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../controller/dashboard"));
    assert!(folder.join("node_modules").is_dir(), "the dashboard is not installed: run `cargo xtask dashboard`");
    let mut browser = Command::new("node");
    browser.current_dir(folder).arg("test/dashboard.mjs").args(args).env("PLEACH_API", cluster.api_url());
    browser.env("PLEACH_TOKEN_FILE", token).env("PLEACH_DEVICE", "press-1");
    let seen = tokio::task::spawn_blocking(move || browser.output()).await.unwrap().expect("node starts");
    let text = [seen.stdout, seen.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    assert!(seen.status.success(), "{text}");
}
