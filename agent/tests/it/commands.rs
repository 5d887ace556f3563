//! What a person on the device asks for, and what the device waits for.

use std::fs;

use pleach_proto::fleet::event::State;
use rustix::fs::{FlockOperation, flock};

use crate::agent::Agent;
use crate::bundle::bundle;
use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn rollback_gives_up_what_is_tried_then_goes_back_to_what_was_proven_before() {
    let lab = Lab::start().await;
    let (first, second, third) = (bundle(1), bundle(2), bundle(3));
    let agent = Agent::proven(&lab, &first).await;
    let (done, words) = agent.ask("rollback", &[]);
    assert!(!done && words.contains("no other bundle was proven"), "{words}");
    lab.assign(&second, 2);
    lab.wait_event(2, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(2, State::Proven).await;

    lab.assign(&third, 3);
    lab.wait_event(3, State::Probation).await;
    assert!(agent.ask("rollback", &[]).0);
    assert_eq!(lab.wait_event(3, State::Failed).await.check, "rolled-back");
    agent.serves(&second).await;

    assert!(agent.ask("rollback", &[]).0);
    assert_eq!(lab.wait_event(2, State::Failed).await.check, "rolled-back");
    let digest = first.digest.to_string();
    agent.wait_status("back on probation", |s| s.bundle == digest).await;
    agent.infer(5).await;
    agent.serves(&first).await;
    // The fleet's wish is the same as before, and is not followed again by itself.
    lab.touch();
    agent.infer(3).await;
    agent.serves(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_from_a_file_is_installed_without_a_controller_and_only_as_it_was_signed() {
    let lab = Lab::start().await;
    let (first, second) = (bundle(1), bundle(2));
    let agent = Agent::proven(&lab, &first).await;
    let whole = lab.offline(&second, 2);
    lab.stop();
    let file = agent.dir.path().join("bundle.file");
    let install = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        agent.ask("install", &[file.to_str().unwrap()])
    };
    let mut flipped = whole.clone();
    let at = flipped.len() - 1000;
    flipped[at] ^= 1;
    for (bytes, check) in [(&flipped[..], "chunk-hash"), (&whole[..whole.len() - 1], "length"), (&whole[..20], "message"), (b"", "message")]
    {
        let (done, words) = install(bytes);
        assert!(!done && words.contains(check), "{check}: {words}");
        agent.serves(&first).await;
    }
    let (done, words) = install(&whole);
    assert!(done && words.contains("sequence 2"), "{words}");
    let digest = second.digest.to_string();
    agent.wait_status("on probation", |s| s.bundle == digest).await;
    agent.infer(5).await;
    agent.serves(&second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_how_the_device_stands_and_reset_makes_it_new() {
    let lab = Lab::start().await;
    let first = bundle(1);
    let mut agent = Agent::new(&lab);
    fs::create_dir(agent.state()).unwrap();
    let (done, words) = agent.ask("check", &[]);
    assert!(done && words.contains("this device is not enrolled") && words.contains("does not run"), "{words}");
    agent.start_again();
    lab.wait_report("a profile", |r| r.profile.is_some()).await;
    lab.assign(&first, 1);
    lab.wait_event(1, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(1, State::Proven).await;
    let (done, words) = agent.ask("check", &["--output", "json"]);
    assert!(done && words.contains("fm-resnet version 1 is proven") && words.contains("is whole"), "{words}");
    let (done, words) = agent.ask("reset", &["--yes"]);
    assert!(!done && words.contains("in use by another agent"), "{words}");
    assert!(agent.terminate());
    let path = agent.state().join(format!("bundles/{}.bundle", first.digest));
    fs::write(&path, b"rotten").unwrap();
    let (done, words) = agent.ask("check", &[]);
    assert!(!done && words.contains("has digest"), "{words}");
    assert!(!agent.ask("reset", &[]).0, "it asks for --yes");
    assert!(agent.ask("reset", &["--yes"]).0);
    let left = |folder: &str| fs::read_dir(agent.state().join(folder)).unwrap().count();
    assert_eq!(["keys", "trust", "bundles", "spool"].map(left), [0; 4]);
    assert!(!agent.state().join("identity.json").exists() && !agent.state().join("ledger.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_bundle_waits_until_the_application_lets_go_of_its_lock() {
    let lab = Lab::start().await;
    let (first, second) = (bundle(1), bundle(2));
    let mut agent = Agent::proven(&lab, &first).await;
    assert!(agent.terminate());
    let lock = agent.dir.path().join("lock");
    let file = fs::File::create(&lock).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    agent.variables = vec![("PLEACH_AGENT_UPDATE_LOCK_FILE".to_owned(), lock.to_str().unwrap().to_owned())];
    agent.start_again();
    lab.assign(&second, 2);
    lab.wait_event(2, State::Staged).await;
    agent.serves(&first).await;
    assert!(!lab.states(2).contains(&State::Probation) && agent.log().contains("the application holds"), "{}", agent.log());
    drop(file);
    lab.wait_event(2, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(2, State::Proven).await;
}
