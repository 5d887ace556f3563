//! What a model that broke out could reach, and what one that breaks down costs. The drills are in debug builds alone.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use pleach_proto::fleet::event::State;
use tonic::Code;

use crate::agent::Agent;
use crate::bundle::bundle;
use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_reaches_no_key_no_state_no_socket_no_program_and_no_process() {
    let lab = Lab::start().await;
    let agent = Agent::proven(&lab, &bundle(1)).await;
    let (state, other) = (agent.state(), agent.dir.path().join("other.sock"));
    let _listens = UnixListener::bind(&other).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = [
        format!("read {}", state.join("keys/identity.key").display()),
        format!("read {}", state.join("keys/sealing.key").display()),
        format!("read {}", state.join("ledger.json").display()),
        format!("read {}", agent.dir.path().join("token").display()),
        format!("list {}", state.display()),
        format!("list {}", state.join("bundles").display()),
        format!("write {}", agent.dir.path().join("new").display()),
        "write /proc/self/oom_score_adj".to_owned(),
        "read /etc/passwd".to_owned(),
        format!("unix {}", other.display()),
        format!("tcp {tcp}"),
        "udp 127.0.0.1:0".to_owned(),
        "listen 127.0.0.1:0".to_owned(),
        "exec /bin/true".to_owned(),
        "signal".to_owned(),
    ];
    for drill in refused {
        let name = drill.split(' ').next().unwrap();
        let words = agent.drill(&drill).await;
        assert_eq!((words.code(), words.message()), (Code::InvalidArgument, format!("{name}: permission denied").as_str()), "{drill}");
    }
    assert!(fs::exists(state.join("keys/identity.key")).unwrap());
    // What it may still do shows that the refusals are the sandbox's.
    assert_eq!(agent.drill("read /proc/cpuinfo").await.message(), "read: done");
    assert!(agent.log().contains("the runtime is sandboxed"), "{}", agent.log());
    agent.infer(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_crashes_hangs_or_eats_memory_costs_its_own_request_alone() {
    let lab = Lab::start().await;
    let first = bundle(1);
    let agent = Agent::proven(&lab, &first).await;
    for (drill, exit) in [("segfault", "signal: 11 (SIGSEGV)"), ("hang", "exit status: 70"), ("memory", "signal: 6 (SIGABRT)")] {
        agent.serves(&first).await;
        let lost = agent.drill(drill).await;
        assert!(matches!(lost.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled), "{drill}: {lost:?}");
        // Whoever comes meanwhile waits for the next runtime, and is answered.
        agent.infer(1).await;
        assert!(agent.log().contains(exit), "{drill}: {}", agent.log());
    }
    assert_eq!(lab.wait_event(1, State::Failed).await.check, "crash");
    lab.wait_last(1, State::Proven).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_crashes_on_probation_gives_way_to_the_proven_one() {
    let lab = Lab::start().await;
    let (first, second) = (bundle(1), bundle(2));
    let agent = Agent::proven(&lab, &first).await;
    for (sequence, drill) in [(2, "segfault"), (3, "hang"), (4, "memory")] {
        lab.assign(&second, sequence);
        lab.wait_event(sequence, State::Probation).await;
        agent.drill(drill).await;
        assert_eq!(lab.wait_event(sequence, State::Failed).await.check, "crash", "{drill}");
        agent.serves(&first).await;
    }
}
