//! The power goes at every single step that the control half makes on its disk: in the middle of each write, around each rename and
//! each removal. The steps are counted in debug builds alone.

use pleach_proto::fleet::event::State;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::bundle::bundle;
use crate::lab::{Faults, Lab};

const STEP: &str = "PLEACH_DRILL_FILE_STEP";

/// Devices that go through the steps side by side.
const LANES: u64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_step_of_an_installation_leaves_a_verified_model_serving_and_the_truth_told() {
    let mut lanes = JoinSet::new();
    for first in 1..=LANES {
        lanes.spawn(lane(first));
    }
    let last = lanes.join_all().await.into_iter().max().unwrap();
    assert!(last > 20, "only {last} steps");
}

/// Cuts the power at every third step, an installation for each; gives the first step that no installation reaches.
async fn lane(first: u64) -> u64 {
    let lab = Lab::start().await;
    let mut last = bundle(1);
    let mut agent = Agent::proven(&lab, &last).await;
    assert!(agent.terminate());
    for sequence in 2.. {
        let step = first + (sequence - 2) * LANES;
        let next = bundle(sequence);
        let proven = || lab.states(sequence).contains(&State::Proven);
        agent.variables = vec![(STEP.to_owned(), step.to_string())];
        agent.start_again();
        lab.assign(&next, sequence);
        let whole = agent.offers_until(proven).await && agent.terminate();
        agent.variables.clear();
        agent.start_again();
        let verified = [last.digest.to_string(), next.digest.to_string()];
        agent.wait_status("serving a verified model", |s| verified.contains(&s.bundle)).await;
        assert!(agent.offers_until(proven).await, "step {step}");
        agent.serves(&next).await;
        assert!(agent.terminate());
        assert!(!lab.states(sequence).contains(&State::Failed), "step {step}: {:?}", lab.states(sequence));
        if whole {
            return step;
        }
        last = next;
    }
    unreachable!("sequences do not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_step_of_enrolment_and_renewal_leaves_a_device_that_comes_back() {
    let lab = Lab::start().await;
    lab.set_faults(Faults { expired: true, ..Faults::default() });
    for step in 1.. {
        let mut agent = Agent::new(&lab);
        let before = lab.connections();
        agent.variables = vec![(STEP.to_owned(), step.to_string())];
        agent.start_again();
        // Connected is past enrolment and renewal.
        let cut = !agent.lives_until(|| lab.connections() > before).await;
        if cut {
            agent.variables.clear();
            agent.start_again();
            assert!(agent.lives_until(|| lab.connections() > before).await, "step {step}");
        }
        agent.kill();
        if !cut {
            assert!(step > 20, "only {step} steps");
            return;
        }
    }
}
