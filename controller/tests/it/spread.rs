//! How a rollout spreads, by its reconcilers over real rows, on both databases: waves, selectors, approval, gates, the way back.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use pleach_controller::reconcile::{Progress, assign, classify, enlist, plan, progress, rollout};
use pleach_controller::rest;
use pleach_domain::DeviceId;
use pleach_domain::metrics::Confusion;
use pleach_domain::state::{Observed, RolloutState};
use pleach_domain::window::Window;
use pleach_domain::{BundleId, LatencyHistogram};
use pleach_proto::rest::{ApiTokenView, DeviceView, Problem, RolloutView, WhyView};
use pleach_store::rollouts::Rollout;
use pleach_store::{Page, assignments, bundles, desired, devices, rollouts, windows};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::reconcile::{Fleet, NOW_MS};

on_both!(
    waves_widen_on_proof_and_a_new_device_joins,
    a_selector_picks_by_label_and_follows_its_change,
    nothing_goes_out_before_a_second_person_agrees,
    a_failing_canary_is_halted_and_goes_back,
    a_gate_stops_a_canary_that_answers_worse,
    a_pause_holds_and_a_late_wave_pauses_itself,
    hours_and_rates_are_kept,
    people_steer_and_are_told_why,
);

impl Fleet {
    /// Five devices that run and have proved a first bundle, and a second one under these rules, begun at `NOW_MS + 1`.
    async fn second_rollout(&self, rules: Value) -> (Vec<DeviceId>, [BundleId; 2]) {
        let (enrolled, budget) = self.planned_of(&[10.0; 5]).await;
        let ids: Vec<DeviceId> = enrolled.into_iter().map(|(id, _)| id).collect();
        let first = self.seal(&budget, NOW_MS).await;
        self.spread(NOW_MS).await;
        for id in &ids {
            self.prove(id, NOW_MS).await;
        }
        self.spread(NOW_MS).await;
        self.apply_rollout(rules).await;
        plan::run(&self.context, NOW_MS).await.unwrap();
        let second = self.seal(&self.newest().await, NOW_MS + 1).await;
        self.spread(NOW_MS + 1).await;
        (ids, [first, second])
    }

    /// Every reconciler of rollouts until nothing is left to do.
    async fn spread(&self, at_ms: i64) {
        for _ in 0..50 {
            let done = [
                rollout::run(&self.context, at_ms).await.unwrap(),
                enlist::run(&self.context, at_ms).await.unwrap(),
                assign::run(&self.context, at_ms).await.unwrap(),
                progress::run(&self.context, at_ms).await.unwrap(),
            ];
            if done.iter().all(|p| *p == Progress::Nothing) {
                return;
            }
        }
        panic!("the reconcilers do not come to rest");
    }

    async fn rollout_of(&self, bundle: &BundleId) -> Rollout {
        let listed = rollouts::list(&mut self.store().read().await.unwrap(), Page::default()).await.unwrap();
        listed.into_iter().find(|r| r.bundle == *bundle).unwrap()
    }

    /// Devices whose newest assignment is this bundle.
    async fn holders(&self, bundle: &BundleId) -> Vec<DeviceId> {
        let all = assignments::deployments(&mut self.store().read().await.unwrap(), Page::default()).await.unwrap();
        all.into_iter().filter(|d| d.bundle == *bundle).map(|d| d.device).collect()
    }

    async fn settle(&self, device: &DeviceId, state: Observed, at_ms: i64) {
        let mut session = self.store().write().await.unwrap();
        let assigned = desired::of_device(&mut session, device).await.unwrap().deployment.unwrap();
        let event = assignments::Event {
            device,
            sequence: assigned.sequence,
            digest: &assigned.digest,
            state,
            failed_check: Some("known-answer"),
            detail: None,
        };
        assert!(assignments::observe(&mut session, &event, at_ms).await.unwrap().is_some());
        session.commit().await.unwrap();
    }

    async fn steer(&self, rollout: &Rollout, to: RolloutState, at_ms: i64) {
        let mut session = self.store().write().await.unwrap();
        let from = rollouts::find(&mut session, &rollout.id).await.unwrap().unwrap().state;
        assert!(rollouts::change(&mut session, &rollout.id, (from, to), "told to", at_ms).await.unwrap());
        session.commit().await.unwrap();
    }

    /// A window of 1,000 labelled requests from a device that has the bundle.
    async fn window(&self, device: &DeviceId, bundle: &BundleId, number: u64, wrong: u64, at_ms: i64) {
        let mut session = self.store().write().await.unwrap();
        let digest = bundles::find(&mut session, bundle).await.unwrap().unwrap().digest;
        let mut latency = LatencyHistogram::new();
        (0..1_000).for_each(|i| latency.record_us(1_000 + i));
        let window = Window {
            number,
            bundle: digest,
            rung: "full".into(),
            start_ms: at_ms,
            duration_ms: 1_000,
            requests: 1_000,
            errors: 0,
            latency,
            confusion: Some(Confusion::from_counts(2, vec![1_000 - wrong, wrong, 0, 0]).unwrap()),
            cpu_us: 1,
            memory_bytes: 1,
        };
        assert!(windows::insert(&mut session, device, &window, at_ms).await.unwrap());
        session.commit().await.unwrap();
    }
}

async fn waves_widen_on_proof_and_a_new_device_joins(fleet: Fleet) {
    let (ids, [first, second]) = fleet.second_rollout(json!({"waves": ["1", "60%"], "soak_seconds": 60})).await;
    let canary = fleet.holders(&second).await;
    assert_eq!(canary.len(), 1);
    assert_eq!(fleet.rollout_of(&first).await.state, RolloutState::Completed);
    fleet.settle(&canary[0], Observed::Proven, NOW_MS + 2).await;
    fleet.spread(NOW_MS + 2).await;
    assert_eq!(fleet.holders(&second).await.len(), 1, "the wave is watched for a minute");
    let later_ms = NOW_MS + 60_001;
    fleet.spread(later_ms).await;
    let wave = fleet.holders(&second).await;
    assert_eq!((wave.len(), fleet.rollout_of(&second).await.wave), (3, 1));
    let (new, _) = fleet.enrol_one("late", 10.0).await;
    classify::run(&fleet.context, later_ms).await.unwrap();
    fleet.spread(later_ms).await;
    assert_eq!(fleet.holders(&first).await.len() + fleet.holders(&second).await.len(), 6, "it gets the proven bundle at least");
    for id in fleet.holders(&second).await.iter().filter(|id| **id != canary[0]) {
        fleet.settle(id, Observed::Proven, later_ms).await;
    }
    let end_ms = later_ms + 60_000;
    fleet.spread(end_ms).await;
    let everybody = fleet.holders(&second).await;
    assert!(everybody.len() == 6 && everybody.contains(&new), "{everybody:?}");
    for id in ids.iter().chain([&new]) {
        let state = assignments::of_device(&mut fleet.store().read().await.unwrap(), id).await.unwrap().unwrap().state;
        if state != Observed::Proven {
            assert_eq!(fleet.rollout_of(&second).await.state, RolloutState::Running, "no success before the last proof");
            fleet.settle(id, Observed::Proven, end_ms).await;
            fleet.spread(end_ms).await;
        }
    }
    assert_eq!(fleet.rollout_of(&second).await.state, RolloutState::Completed);
}

async fn a_selector_picks_by_label_and_follows_its_change(fleet: Fleet) {
    let (ids, [first, second]) = fleet.second_rollout(json!({"selector": "site=berlin"})).await;
    assert!(fleet.holders(&second).await.is_empty() && fleet.rollout_of(&second).await.reason.contains("no device"));
    let mut session = fleet.store().write().await.unwrap();
    let labels = [("site".to_owned(), "berlin".to_owned())].into();
    devices::set_labels(&mut session, &ids[3], &labels, NOW_MS + 2).await.unwrap();
    session.commit().await.unwrap();
    fleet.spread(NOW_MS + 2).await;
    assert_eq!(fleet.holders(&second).await, [ids[3].clone()]);
    fleet.settle(&ids[3], Observed::Proven, NOW_MS + 3).await;
    fleet.spread(NOW_MS + 3).await;
    assert_eq!(fleet.rollout_of(&second).await.state, RolloutState::Completed);
    assert_eq!(fleet.holders(&first).await.len(), 4);
}

async fn nothing_goes_out_before_a_second_person_agrees(fleet: Fleet) {
    let (_, [_, second]) = fleet.second_rollout(json!({"approval": "second-person", "deadline_seconds": 60})).await;
    let waiting = fleet.rollout_of(&second).await;
    assert_eq!((waiting.state, waiting.begun_by.as_str()), (RolloutState::WaitingForApproval, "token:first"));
    assert!(fleet.holders(&second).await.is_empty());
    let mut session = fleet.store().write().await.unwrap();
    assert!(rollouts::approve(&mut session, &waiting.id, "token:second", NOW_MS + 2).await.unwrap());
    assert!(!rollouts::approve(&mut session, &waiting.id, "token:third", NOW_MS + 2).await.unwrap());
    session.commit().await.unwrap();
    fleet.spread(NOW_MS + 2).await;
    assert_eq!(fleet.holders(&second).await.len(), 5);
}

async fn a_failing_canary_is_halted_and_goes_back(fleet: Fleet) {
    let (_, [first, second]) = fleet.second_rollout(json!({"waves": ["2"], "max_failed_share": 0.25})).await;
    let canary = fleet.holders(&second).await;
    assert_eq!(canary.len(), 2);
    fleet.settle(&canary[0], Observed::Failed, NOW_MS + 2).await;
    fleet.spread(NOW_MS + 2).await;
    let halting = fleet.rollout_of(&second).await;
    assert!(halting.state == RolloutState::Halting && halting.reason.contains("2 devices"), "{halting:?}");
    assert_eq!(fleet.holders(&first).await.len(), 5, "everybody is told to run the proven bundle");
    fleet.settle(&canary[0], Observed::Proven, NOW_MS + 3).await;
    fleet.spread(NOW_MS + 3).await;
    assert_eq!(fleet.rollout_of(&second).await.state, RolloutState::Halting, "one has not said that it is back");
    fleet.settle(&canary[1], Observed::Proven, NOW_MS + 4).await;
    fleet.spread(NOW_MS + 4).await;
    assert_eq!(fleet.rollout_of(&second).await.state, RolloutState::Reverted);
    // The first one, done for long, can be taken back as well; there is nothing before it.
    fleet.steer(&fleet.rollout_of(&first).await, RolloutState::Halting, NOW_MS + 5).await;
    fleet.spread(NOW_MS + 5).await;
    assert_eq!((fleet.rollout_of(&first).await.state, fleet.holders(&first).await.len()), (RolloutState::Reverted, 5));
}

async fn a_gate_stops_a_canary_that_answers_worse(fleet: Fleet) {
    let gates = json!({"waves": ["1"], "gates": {"max_accuracy_drop": 0.05, "max_p95_rise": 0.2}});
    let (ids, [first, second]) = fleet.second_rollout(gates).await;
    let canary = fleet.holders(&second).await.remove(0);
    fleet.settle(&canary, Observed::Proven, NOW_MS + 2).await;
    fleet.spread(NOW_MS + 2).await;
    let waiting = fleet.rollout_of(&second).await;
    assert!(waiting.state == RolloutState::Running && waiting.wave == 0 && waiting.reason.contains("undecided"), "{waiting:?}");
    for number in 1..=5 {
        for id in ids.iter().filter(|id| **id != canary) {
            fleet.window(id, &first, number, 100, NOW_MS + 3).await;
        }
        fleet.window(&canary, &second, number, 160, NOW_MS + 3).await;
    }
    fleet.spread(NOW_MS + 4).await;
    let halting = fleet.rollout_of(&second).await;
    assert!(halting.state == RolloutState::Halting && halting.reason.contains("accuracy"), "{halting:?}");
    assert_eq!((halting.readings.len(), fleet.holders(&first).await.len()), (2, 5));
}

async fn a_pause_holds_and_a_late_wave_pauses_itself(fleet: Fleet) {
    let (_, [_, second]) = fleet.second_rollout(json!({"waves": ["1"], "deadline_seconds": 60})).await;
    let canary = fleet.holders(&second).await.remove(0);
    fleet.steer(&fleet.rollout_of(&second).await, RolloutState::Paused, NOW_MS + 2).await;
    fleet.settle(&canary, Observed::Proven, NOW_MS + 3).await;
    fleet.spread(NOW_MS + 3).await;
    assert_eq!(fleet.holders(&second).await.len(), 1);
    fleet.steer(&fleet.rollout_of(&second).await, RolloutState::Running, NOW_MS + 4).await;
    fleet.spread(NOW_MS + 4).await;
    assert_eq!((fleet.holders(&second).await.len(), fleet.rollout_of(&second).await.wave), (5, 1));
    fleet.spread(NOW_MS + 4 + 60_000).await;
    let late = fleet.rollout_of(&second).await;
    assert!(late.state == RolloutState::Paused && late.reason.contains("1 of 5 devices have proved it"), "{late:?}");
    fleet.spread(NOW_MS + 4 + 120_000).await;
    assert_eq!(fleet.rollout_of(&second).await.state, RolloutState::Aborted);
}

async fn hours_and_rates_are_kept(fleet: Fleet) {
    let minute = u16::try_from(NOW_MS.rem_euclid(86_400_000) / 60_000).unwrap();
    let hours = json!({"from_minute": (minute + 10) % 1_440, "to_minute": (minute + 20) % 1_440});
    let (_, [_, second]) = fleet.second_rollout(json!({"maintenance": hours, "max_per_minute": 2})).await;
    assert!(fleet.holders(&second).await.is_empty(), "not before the hours begin");
    let open_ms = NOW_MS + 11 * 60_000;
    for (at_ms, expected) in [(open_ms, 2), (open_ms + 59_000, 2), (open_ms + 60_000, 4), (NOW_MS + 21 * 60_000, 4)] {
        fleet.spread(at_ms).await;
        assert_eq!(fleet.holders(&second).await.len(), expected);
    }
}

impl Fleet {
    /// A request to the REST interface over these rows.
    async fn call<T: DeserializeOwned>(&self, token: &str, method: &str, path: &str, body: Value) -> (StatusCode, T) {
        let request = Request::builder().method(method).uri(format!("/api/v1/{path}")).header("authorization", format!("Bearer {token}"));
        let request = request.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap();
        let response = rest::router(self.context.controller.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{path}: {e}: {}", String::from_utf8_lossy(&bytes))))
    }

    async fn why(&self, token: &str, device: &DeviceId, rollout: &Rollout) -> WhyView {
        self.call(token, "GET", &format!("devices/{device}/why?rollout={}", rollout.id), json!({})).await.1
    }
}

async fn people_steer_and_are_told_why(fleet: Fleet) {
    // People act by the clock of this machine, which is behind that of these rows: no deadline counts.
    let rules = json!({"approval": "second-person", "waves": ["1"], "selector": "site!=bonn", "deadline_seconds": u32::MAX});
    let (ids, [_, second]) = fleet.second_rollout(rules).await;
    let rollout = fleet.rollout_of(&second).await;
    let file = fleet.context.config.admin_token_file();
    rest::first_admin(fleet.store(), &file).await.unwrap();
    let admin = std::fs::read_to_string(file).unwrap();
    let mut tokens = Vec::new();
    for (id, role) in [("first", "operator"), ("second", "operator"), ("reader", "viewer")] {
        let (status, made): (_, ApiTokenView) = fleet.call(&admin, "POST", "api-tokens", json!({"name": id, "role": role})).await;
        assert_eq!((status, made.name.as_str()), (StatusCode::CREATED, id));
        tokens.push(made.token.unwrap());
    }
    let (first, person, reader) = (&tokens[0], &tokens[1], &tokens[2]);
    let deed = |deed: &str| format!("rollouts/{}/{deed}", rollout.id);
    assert_eq!(fleet.why(reader, &ids[0], &rollout).await.answer, "the rollout is waiting-for-approval");
    for (who, code) in [(first, "forbidden"), (reader, "forbidden")] {
        let (status, problem): (_, Problem) = fleet.call(who, "POST", &deed("approve"), json!({})).await;
        assert_eq!((status, problem.code.as_str()), (StatusCode::FORBIDDEN, code));
    }
    for _ in 0..2 {
        let (status, view): (_, RolloutView) = fleet.call(person, "POST", &deed("approve"), json!({})).await;
        assert_eq!((status, view.state, view.approved_by.as_str()), (StatusCode::OK, RolloutState::Running, "token:second"));
    }
    fleet.spread(NOW_MS + 2).await;
    let canary = fleet.holders(&second).await.remove(0);
    assert!(fleet.why(reader, &canary, &rollout).await.answer.contains("has not answered yet"));
    let other = ids.iter().find(|id| **id != canary).unwrap();
    let why = fleet.why(reader, other, &rollout).await;
    assert!(why.answer.contains("a later wave") && why.facts.iter().any(|f| f.contains("is running")), "{why:?}");
    let path = format!("devices/{other}/labels");
    let (_, device): (_, DeviceView) = fleet.call(person, "POST", &path, json!({"set": {"site": "bonn"}})).await;
    assert_eq!(device.labels["site"], "bonn");
    assert!(fleet.why(reader, other, &rollout).await.answer.contains("asks for site!=bonn"));
    let (status, problem): (_, Problem) = fleet.call(person, "POST", &path, json!({"set": {"class": "x"}})).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "field-invalid"));
    for (deed_of, state) in [("pause", RolloutState::Paused), ("resume", RolloutState::Running), ("undo", RolloutState::Halting)] {
        for _ in 0..2 {
            let (status, view): (_, RolloutView) = fleet.call(person, "POST", &deed(deed_of), json!({})).await;
            assert_eq!((status, view.state), (StatusCode::OK, state));
        }
    }
    let (status, problem): (_, Problem) = fleet.call(person, "POST", &deed("resume"), json!({})).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::CONFLICT, "conflict"));
    fleet.spread(NOW_MS + 3).await;
    assert!(fleet.why(reader, &canary, &rollout).await.answer.contains("goes back to"));
    let (_, view): (_, RolloutView) = fleet.call(reader, "GET", &format!("rollouts/{}", rollout.id), json!({})).await;
    assert_eq!((view.given, view.returning), (0, 1));
    let (status, _): (_, Problem) = fleet.call(reader, "GET", "devices/nobody/why", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
