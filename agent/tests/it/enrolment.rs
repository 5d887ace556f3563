//! A device joins its fleet.

use std::fs;
use std::process::Command;

use crate::agent::Agent;
use crate::lab::{Faults, Lab};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_enrols_and_sends_its_profile_once() {
    let lab = Lab::start().await;
    let mut agent = Agent::start(&lab);
    let report = lab.wait_report("a profile", |r| r.profile.is_some()).await;
    let profile = report.profile.unwrap();
    assert!(profile.kernels.len() > 3 && profile.inference_threads == 1 && profile.onnxruntime_version.starts_with("1."), "{profile:?}");
    assert!(agent.terminate());
    agent.start_again();
    agent.wait_status("up", |s| s.device == "d-1" && s.state == "empty").await;
    assert!(agent.terminate());
    assert_eq!(lab.reports().iter().filter(|r| r.profile.is_some()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_processors_change_sends_a_new_profile_without_a_restart() {
    let lab = Lab::start().await;
    let agent = Agent::start(&lab);
    let before = lab.wait_report("a profile", |r| r.profile.is_some()).await.profile.unwrap();
    if before.cores < 2 {
        eprintln!("skipped: one processor cannot become fewer");
        return;
    }
    let confined = Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", "0"]).arg(agent.pid().to_string()).output();
    if !confined.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: no taskset here, or processor 0 is not for this test");
        return;
    }
    lab.wait_report("a profile of one processor", |r| r.profile.as_ref().is_some_and(|p| p.cores == 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_authority_is_refused_in_words() {
    let (lab, other) = (Lab::start().await, Lab::start().await);
    let agent = Agent::new(&lab);
    fs::write(agent.dir.path().join("token"), other.token()).unwrap();
    assert!(!agent.command("enroll").status().unwrap().success());
    assert!(agent.log().contains("does not show the authority certificate"), "{}", agent.log());
    assert!(!agent.state().join("identity.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_root_and_identity_enrols_again_with_the_same_key() {
    let lab = Lab::start().await;
    let mut agent = Agent::start(&lab);
    lab.wait_report("a profile", |r| r.profile.is_some()).await;
    agent.kill();
    let key = fs::read(agent.state().join("keys/identity.key")).unwrap();
    fs::remove_file(agent.state().join("identity.json")).unwrap();
    agent.start_again();
    agent.wait_status("enrolled again", |s| s.device == "d-1").await;
    assert_eq!(fs::read(agent.state().join("keys/identity.key")).unwrap(), key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_slept_past_its_certificate_renews_it_once_and_comes_back() {
    let lab = Lab::start().await;
    lab.set_faults(Faults { expired: true, ..Faults::default() });
    let mut agent = Agent::start(&lab);
    lab.wait_renewal().await;
    lab.wait_report("a profile", |r| r.profile.is_some()).await;
    assert!(agent.terminate());
    agent.start_again();
    agent.wait_status("up again", |s| s.device == "d-1").await;
    assert!(agent.terminate());
    assert_eq!(lab.renewals(), 1);
}
