//! Assignments arrive, are proven or fail, and the device never stops serving what it had.

use std::collections::BTreeSet;
use std::ffi::OsString;

use pleach_proto::fleet::event::State;
use pleach_proto::fleet::{MeasurementInput, MeasurementModel, MeasurementSet};
use prost::Message;

use crate::agent::Agent;
use crate::bundle::{bundle, fixture, wrong_answer};
use crate::lab::{Faults, Lab};

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_is_delivered_proven_and_measured() {
    let lab = Lab::start().await;
    let (first, second) = (bundle(1), bundle(2));
    let agent = Agent::proven(&lab, &first).await;
    assert_eq!(lab.states(1), [State::Delivering, State::Staged, State::Probation, State::Proven]);
    let report = lab.wait_report("a window", |r| !r.windows.is_empty()).await;
    assert_eq!((report.windows[0].bundle_digest.as_slice(), report.windows[0].number), (&first.digest.as_bytes()[..], 1));
    lab.assign(&second, 2);
    lab.wait_event(2, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(2, State::Proven).await;
    agent.serves(&second).await;
    // The one before is kept to go back to, and nothing else.
    let files: BTreeSet<_> = std::fs::read_dir(agent.state().join("bundles")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files, [first.digest, second.digest].map(|d| OsString::from(format!("{d}.bundle"))).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_fails_with_its_check_and_the_proven_bundle_serves() {
    let lab = Lab::start().await;
    let first = bundle(1);
    let agent = Agent::proven(&lab, &first).await;

    lab.set_faults(Faults { flip_at: Some(100_000), ..Faults::default() });
    lab.assign(&bundle(2), 2);
    assert_eq!(lab.wait_event(2, State::Failed).await.check, "chunk-hash");
    agent.serves(&first).await;
    lab.set_faults(Faults::default());

    lab.assign(&wrong_answer(3), 3);
    assert_eq!(lab.wait_event(3, State::Failed).await.check, "known-answer");
    agent.serves(&first).await;

    lab.assign_with(&bundle(4), 4, |d| d.wrap_ciphertext[0] ^= 1);
    assert_eq!(lab.wait_event(4, State::Failed).await.check, "unwrap");

    lab.assign_with(&bundle(5), 5, |d| d.assignment = d.assignment.iter().map(|b| if *b == b'd' { b'e' } else { *b }).collect());
    assert_eq!(lab.wait_event(0, State::Refused).await.check, "metadata");

    lab.assign(&first, 1);
    assert_eq!(lab.wait_event(1, State::Refused).await.check, "rollback");
    agent.serves(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_cut_again_and_again_resumes_at_whole_chunks() {
    let lab = Lab::start().await;
    lab.set_faults(Faults { cut_after: Some(900_000), ..Faults::default() });
    Agent::proven(&lab, &bundle(1)).await;
    let offsets = lab.fetches();
    assert!(offsets.len() >= 3 && offsets[0] == 0 && offsets.windows(2).all(|w| w[0] < w[1]), "{offsets:?}");
    assert!(offsets[1..].iter().all(|o| (o - 32) % (65_536 + 16) == 0), "{offsets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_assignment_supersedes_a_download_on_its_way() {
    let lab = Lab::start().await;
    let (first, stuck, newest) = (bundle(1), bundle(2), bundle(3));
    let agent = Agent::proven(&lab, &first).await;
    lab.set_faults(Faults { stall_at: Some(500_000), ..Faults::default() });
    lab.assign(&stuck, 2);
    lab.wait_event(2, State::Delivering).await;
    lab.set_faults(Faults::default());
    lab.assign(&newest, 3);
    lab.wait_event(3, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(3, State::Proven).await;
    assert_eq!(lab.states(2), [State::Delivering]);
    agent.serves(&newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proven_bundle_under_a_new_sequence_is_proven_without_a_download() {
    let lab = Lab::start().await;
    let first = bundle(1);
    let agent = Agent::proven(&lab, &first).await;
    let before = lab.fetches().len();
    lab.assign(&first, 2);
    lab.wait_event(2, State::Proven).await;
    assert_eq!((lab.states(2), lab.fetches().len()), (vec![State::Proven], before));
    agent.serves(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_measurement_is_done_once() {
    let lab = Lab::start().await;
    let agent = Agent::start(&lab);
    lab.wait_report("a profile", |r| r.profile.is_some()).await;
    let input = &fixture().input;
    let shape = input.tensor.shape().iter().map(|&d| d as u32).collect();
    let inputs = vec![MeasurementInput { name: input.name.clone(), datatype: "FP32".into(), shape }];
    let model = |key: &str| MeasurementModel { key: key.into(), onnx: fixture().onnx.clone(), inputs: inputs.clone() };
    lab.measure("m-1", MeasurementSet { models: vec![model("a"), model("b")] }.encode_to_vec());
    let report = lab.wait_report("a measurement", |r| !r.measurements.is_empty()).await;
    let measured = &report.measurements[0];
    let keys: Vec<_> = measured.timings.iter().map(|t| t.key.as_str()).collect();
    assert!(measured.error.is_empty() && keys == ["a", "b"] && measured.timings.iter().all(|t| t.mean_us > 0.0), "{measured:?}");
    lab.measure("m-2", b"nonsense".to_vec());
    let report = lab.wait_report("the second", |r| r.measurements.iter().any(|m| m.task_id == "m-2")).await;
    assert!(!report.measurements[0].error.is_empty());
    assert_eq!(lab.reports().iter().flat_map(|r| &r.measurements).count(), 2);
    drop(agent);
}
