//! Things that go wrong: nothing is lost, the old bundle serves, and the words say what happened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pleach_domain::state::{Observed, VariantState};
use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::cluster::{Cluster, Database};
use crate::harness::{eventually, tiny};

fn policy(probation_inferences: u32, max_size_bytes: Option<u64>) -> serde_json::Value {
    json!({
        "name": "plain", "model": "tiny", "slo_p95_us": 1_000_000, "request_batch": 16, "accuracy_floor": 0.0, "max_size_bytes": max_size_bytes,
        "rollout": {"probation_inferences": probation_inferences, "probation_seconds": 60},
        "adaptation": {"window_seconds": 1}
    })
}

async fn cluster_with_model(settings: &[(&str, &str)], probation_inferences: u32) -> Cluster {
    let cluster = Cluster::start_with(Database::Sqlite, settings).await;
    cluster.push_model("tiny", &tiny::write_files(cluster.dir())).await;
    cluster.apply_policy(policy(probation_inferences, None)).await;
    cluster
}

async fn exercise(agent: &Agent) {
    let input = tiny::input(5, 16);
    for i in 0..5 {
        agent.infer(&format!("x{i}"), &input).await.unwrap();
    }
}

/// The file below `folder` whose name contains `part`.
fn find(folder: &Path, part: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries.map(|e| e.path()).find_map(|p| if p.is_dir() { find(&p, part) } else { p.file_name()?.to_str()?.contains(part).then_some(p) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_bundle_is_refused_before_it_is_written() {
    let cluster = cluster_with_model(&[], 0).await;
    let good = cluster.agent("good-1").await;
    let bundle = cluster.proven("good-1").await;
    let digest = bundle.digest.to_string();
    let blob = find(&cluster.dir().join("controller/blobs"), &digest).expect("the bundle's blob");
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();

    // A busy machine can measure a device into a class of its own, which gets another bundle: then the next one tries.
    let mut refused = None;
    for name in ["victim-1", "victim-2", "victim-3", "victim-4", "victim-5"] {
        let victim = cluster.agent(name).await;
        let end = cluster.deployment(name, "takes or refuses a bundle", |d| matches!(d.state, Observed::Failed | Observed::Proven)).await;
        if end.digest == bundle.digest {
            refused = Some((victim, end));
            break;
        }
    }
    let (victim, failed) = refused.expect("a device of the same class");
    assert_eq!((failed.state, failed.check.as_deref()), (Observed::Failed, Some("chunk-hash")), "{failed:?}");
    assert!(find(&victim.state_dir().join("bundles"), &digest).is_none_or(|p| p.extension().is_some_and(|e| e == "part")));
    good.serving(&digest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_resumes_after_the_controller_dies() {
    let mut cluster = cluster_with_model(&[("PLEACH_DELIVERY_BYTES_PER_SECOND", "200000")], 0).await;
    let agent = cluster.agent("slow-1").await;
    let bundles = agent.state_dir().join("bundles");
    let at_death = eventually("a third of the bundle arrives", Duration::from_secs(90), || async {
        let part = find(&bundles, ".part").ok_or("no .part file")?;
        let length = std::fs::metadata(&part).map_err(|e| e.to_string())?.len();
        if length > 400_000 { Ok(length) } else { Err(format!("{length} bytes")) }
    })
    .await;
    cluster.kill_controller();
    let kept = std::fs::metadata(find(&bundles, ".part").expect("the part stays")).unwrap().len();
    assert!(kept >= at_death);
    cluster.restart_controller(&[]).await;
    let proven = cluster.proven("slow-1").await;
    agent.serving(&proven.digest.to_string()).await;
    let log = std::fs::read_to_string(cluster.dir().join("slow-1/agent.log")).unwrap();
    let begun: Vec<_> = log.lines().filter(|l| l.contains("downloading")).collect();
    assert!(begun.len() == 2 && begun[0].contains("from_byte=0 ") && !begun[1].contains("from_byte=0 "), "the agent began anew\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_probation_serves_the_old_bundle() {
    let cluster = cluster_with_model(&[], 5).await;
    let mut agent = cluster.agent("shaky-1").await;
    cluster.deployment("shaky-1", "gets into probation", |d| d.state == Observed::Probation).await;
    exercise(&agent).await;
    let old = cluster.proven("shaky-1").await;

    cluster.apply_policy(policy(1_000_000, Some(700_000))).await;
    let new = cluster
        .deployment("shaky-1", "gets the next bundle into probation", |d| d.sequence > old.sequence && d.state == Observed::Probation)
        .await;
    let (old_digest, new_digest) = (old.digest.to_string(), new.digest.to_string());
    loop {
        let given_up = eventually("the new bundle serves again or is given up", Duration::from_secs(60), || async {
            let state = cluster.deployment("shaky-1", "has a state", |_| true).await.state;
            let serves = agent.status().await?.bundle_digest;
            (state == Observed::Failed || serves == new_digest).then_some(state == Observed::Failed).ok_or(serves)
        });
        if given_up.await {
            break;
        }
        agent.kill_and_restart();
        let serves = agent.serving("").await.bundle_digest;
        assert!(serves == old_digest || serves == new_digest, "{serves}");
    }
    let failed = cluster.deployment("shaky-1", "gives the attempt up", |d| d.state == Observed::Failed).await;
    assert_eq!((failed.sequence, failed.check.as_deref()), (new.sequence, Some("interrupted")), "{failed:?}");
    agent.serving(&old_digest).await;
    exercise(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_without_its_controller() {
    let mut cluster = cluster_with_model(&[], 0).await;
    let mut agent = cluster.agent("island-1").await;
    let proven = cluster.proven("island-1").await;
    cluster.kill_controller();
    agent.kill_and_restart();
    agent.serving(&proven.digest.to_string()).await;
    exercise(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slo_that_nothing_meets_names_the_nearest_feasible_point() {
    let cluster = Cluster::start(Database::Sqlite).await;
    cluster.push_model("tiny", &tiny::write_files(cluster.dir())).await;
    let mut impossible = policy(0, None);
    impossible["slo_p95_us"] = json!(2);
    cluster.apply_policy(impossible).await;
    let _agent = cluster.agent("hasty-1").await;
    let rejected = cluster.variant("a rejected variant", |v| v.state == VariantState::Rejected).await;
    let words = rejected.rejection.expect("a reason");
    assert!(words.contains("latency") && words.contains("nearest"), "{words}");
    let deployments = cluster.client.list_json("deployments", &[]).await.unwrap();
    assert!(deployments.is_empty(), "{deployments:?}");
}
