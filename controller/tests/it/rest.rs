use pleach_domain::role::Role;
use pleach_domain::state::DeviceState;
use pleach_proto::rest::{ApiTokenView, AuditView, DeviceCount, DeviceView, FleetView, List, TokenView};
use pleach_store::{api_tokens, audit};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Fixture, problem};

/// Every guarded route with the least role that may use it.
const ROUTES: [(&str, &str, Role); 36] = [
    ("PUT", "/api/v1/blobs/00", Role::Operator),
    ("POST", "/api/v1/models", Role::Operator),
    ("GET", "/api/v1/models", Role::Viewer),
    ("PUT", "/api/v1/policies/p", Role::Operator),
    ("GET", "/api/v1/policies", Role::Viewer),
    ("POST", "/api/v1/api-tokens", Role::Admin),
    ("GET", "/api/v1/api-tokens", Role::Admin),
    ("DELETE", "/api/v1/api-tokens/t", Role::Admin),
    ("POST", "/api/v1/tokens", Role::Admin),
    ("GET", "/api/v1/tokens", Role::Admin),
    ("POST", "/api/v1/tokens/t/revoke", Role::Admin),
    ("GET", "/api/v1/events", Role::Viewer),
    ("GET", "/api/v1/fleet", Role::Viewer),
    ("GET", "/api/v1/devices", Role::Viewer),
    ("GET", "/api/v1/devices/d", Role::Viewer),
    ("POST", "/api/v1/devices/d/revoke", Role::Admin),
    ("POST", "/api/v1/devices/d/approve", Role::Admin),
    ("POST", "/api/v1/devices/d/labels", Role::Operator),
    ("GET", "/api/v1/devices/d/why", Role::Viewer),
    ("GET", "/api/v1/rollouts/r", Role::Viewer),
    ("POST", "/api/v1/rollouts/r/pause", Role::Operator),
    ("POST", "/api/v1/rollouts/r/resume", Role::Operator),
    ("POST", "/api/v1/rollouts/r/abort", Role::Operator),
    ("POST", "/api/v1/rollouts/r/undo", Role::Operator),
    ("POST", "/api/v1/rollouts/r/approve", Role::Operator),
    ("GET", "/api/v1/classes", Role::Viewer),
    ("GET", "/api/v1/variants", Role::Viewer),
    ("GET", "/api/v1/bundles", Role::Viewer),
    ("GET", "/api/v1/rollouts", Role::Viewer),
    ("GET", "/api/v1/deployments", Role::Viewer),
    ("GET", "/api/v1/jobs", Role::Viewer),
    ("GET", "/api/v1/windows", Role::Viewer),
    ("GET", "/api/v1/rollups", Role::Viewer),
    ("GET", "/api/v1/decisions", Role::Viewer),
    ("GET", "/api/v1/trust/root", Role::Viewer),
    ("GET", "/api/v1/audit", Role::Viewer),
];

#[tokio::test]
async fn every_route_refuses_requests_without_a_token_or_with_a_wrong_one() {
    let fixture = Fixture::start().await;
    for (method, path, _) in ROUTES {
        let method: Method = method.parse().unwrap();
        let without = fixture.anonymous(method.clone(), path).send().await.unwrap();
        assert_eq!(without.headers()["www-authenticate"], "Bearer");
        assert_eq!(problem(without).await.code, "unauthenticated", "{method} {path}");
        let wrong = fixture.anonymous(method.clone(), path).bearer_auth("pla1.wrong").send().await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    assert_eq!(fixture.anonymous(Method::GET, "/healthz").send().await.unwrap().text().await.unwrap(), "ok");
    assert_eq!(fixture.anonymous(Method::GET, "/readyz").send().await.unwrap().text().await.unwrap(), "ready");
}

#[tokio::test]
async fn every_route_asks_for_its_role_and_no_more() {
    let fixture = Fixture::start().await;
    for role in Role::ALL {
        let token = fixture.api_token(json!({"name": format!("a-{role}"), "role": role})).await;
        for (method, path, least) in ROUTES {
            let response = fixture.anonymous(method.parse().unwrap(), path).bearer_auth(&token).send().await.unwrap();
            assert_eq!(response.status() != StatusCode::FORBIDDEN, role >= least, "{role}: {method} {path}");
        }
    }
}

#[tokio::test]
async fn api_tokens_end_when_they_expire_or_are_taken_back_and_the_last_administrator_stays() {
    let fixture = Fixture::start().await;
    let code =
        async |method: Method, path: &str, body: Value| problem(fixture.admin(method, path).json(&body).send().await.unwrap()).await.code;
    let old = api_tokens::ApiToken { id: "old".parse().unwrap(), role: Role::Admin, created_at_ms: 1, expires_at_ms: Some(1_000) };
    let mut session = fixture.controller().store.write().await.unwrap();
    assert!(api_tokens::insert(&mut session, &old, &pleach_artifact::sha256(b"secret")).await.unwrap());
    session.commit().await.unwrap();
    let refused = async |token: &str| {
        let response = fixture.anonymous(Method::GET, "/api/v1/devices").bearer_auth(token).send().await.unwrap();
        response.status() == StatusCode::UNAUTHORIZED
    };
    assert!(refused("secret").await, "an expired token is refused");

    let wall = json!({"name": "wall", "role": "viewer", "ttl_seconds": 600});
    let token = fixture.api_token(wall.clone()).await;
    assert!(!refused(&token).await);
    assert_eq!(code(Method::POST, "/api/v1/api-tokens", wall).await, "conflict");
    let listed: List<ApiTokenView> = fixture.get("/api/v1/api-tokens").await;
    assert!(listed.items.iter().all(|t| t.token.is_none()), "texts are shown once");
    let gone = fixture.admin(Method::DELETE, "/api/v1/api-tokens/wall").send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert!(refused(&token).await, "a token that was taken back is refused at once");
    assert_eq!(code(Method::DELETE, "/api/v1/api-tokens/wall", json!({})).await, "not-found");
    assert_eq!(code(Method::DELETE, "/api/v1/api-tokens/admin", json!({})).await, "conflict");
    for bad in [json!({"name": "Not A Name", "role": "viewer"}), json!({"name": "x", "role": "root"}), json!({"name": "x"})] {
        assert_eq!(code(Method::POST, "/api/v1/api-tokens", bad).await, "request-invalid");
    }
    assert_eq!(code(Method::POST, "/api/v1/api-tokens", json!({"name": "x", "role": "viewer", "ttl_seconds": 0})).await, "field-invalid");
}

#[tokio::test]
async fn the_stream_of_events_says_when_something_changed() {
    let fixture = Fixture::start().await;
    let mut events = fixture.admin(Method::GET, "/api/v1/events").send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let mut changed = async || {
        let mut text = String::new();
        while !text.contains("event: changed") {
            text += std::str::from_utf8(&events.chunk().await.unwrap().expect("the stream stays open")).unwrap();
        }
    };
    changed().await;
    fixture.agent("dev-1").await;
    changed().await;
    let fleet: FleetView = fixture.get("/api/v1/fleet").await;
    assert_eq!(fleet.devices, [DeviceCount { state: DeviceState::Active, count: 1 }]);
    let slim: List<DeviceView> = fixture.get("/api/v1/devices?profile=false").await;
    assert!(slim.items[0].profile.is_none());
    fixture.running.shutdown().await;
    while events.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
}

#[tokio::test]
async fn the_dashboard_is_served_with_a_strict_policy_and_knows_nothing() {
    let fixture = Fixture::start().await;
    for path in ["/", "/devices/dev-1", "/classes"] {
        let page = fixture.anonymous(Method::GET, path).send().await.unwrap();
        assert_eq!(page.status(), StatusCode::OK, "{path}: run `cargo xtask dashboard`");
        let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(page.text().await.unwrap().contains("<title>Pleach</title>"));
    }
    let missing = fixture.anonymous(Method::GET, "/assets/none.js").send().await.unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn foreign_routes_methods_queries_and_bodies_are_problems() {
    let fixture = Fixture::start().await;
    let code = async |method: Method, path: &str, body: &str| {
        let request = fixture.admin(method, path).header("content-type", "application/json").body(body.to_owned());
        problem(request.send().await.unwrap()).await.code
    };
    assert_eq!(code(Method::GET, "/api/v2/devices", "").await, "not-found");
    assert_eq!(code(Method::DELETE, "/api/v1/devices", "").await, "method-not-allowed");
    assert_eq!(code(Method::GET, "/api/v1/devices/none", "").await, "not-found");
    assert_eq!(code(Method::POST, "/api/v1/devices/none/revoke", "").await, "not-found");
    assert_eq!(code(Method::GET, "/api/v1/windows?limit=x", "").await, "request-invalid");
    assert_eq!(code(Method::GET, "/api/v1/windows?colour=red", "").await, "request-invalid");
    assert_eq!(code(Method::GET, "/api/v1/windows?device=NO%20ID", "").await, "request-invalid");
    assert_eq!(code(Method::POST, "/api/v1/tokens", "{").await, "request-invalid");
    assert_eq!(code(Method::POST, "/api/v1/tokens", &" ".repeat(300_000)).await, "too-large");
    assert_eq!(code(Method::POST, "/api/v1/tokens", r#"{"uses":0,"ttl_seconds":5}"#).await, "field-invalid");
    assert_eq!(code(Method::POST, "/api/v1/tokens", r#"{"uses":1,"ttl_seconds":0}"#).await, "field-invalid");
    assert_eq!(code(Method::POST, "/api/v1/tokens", r#"{"uses":1,"ttl_seconds":5,"labels":{"":"x"}}"#).await, "field-invalid");
}

#[tokio::test]
async fn policies_need_a_model_their_own_name_and_numbers_in_range() {
    let fixture = Fixture::start().await;
    let apply = async |body: Value| {
        let response = fixture.admin(Method::PUT, "/api/v1/policies/p").json(&body).send().await.unwrap();
        problem(response).await.detail
    };
    let policy = json!({"name": "p", "model": "m", "slo_p95_us": 1000, "accuracy_floor": 0.5});
    assert_eq!(apply(policy.clone()).await, r#"model is "m": expected a registered one"#);
    let with = |field: &str, value: Value| {
        let mut changed = policy.clone();
        changed[field] = value;
        changed
    };
    assert_eq!(apply(with("name", json!("q"))).await, r#"name is "q": expected "p", as in the address"#);
    assert!(apply(with("accuracy_floor", json!(1.5))).await.contains("accuracy_floor is 1.5: expected 0 to 1"));
    assert!(apply(with("class_recall_floor", json!(-0.1))).await.contains("class_recall_floor is -0.1: expected 0 to 1"));
    assert!(apply(with("colour", json!("red"))).await.contains("colour"));
}

#[tokio::test]
async fn token_texts_are_shown_once_and_changes_stand_in_a_sound_audit_log() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let listed: List<TokenView> = fixture.get("/api/v1/tokens").await;
    assert!(listed.items.len() == 1 && listed.items[0].token.is_none() && listed.items[0].uses_left == 0);
    fixture.revoke(&agent).await;
    fixture.revoke(&agent).await;
    let device: DeviceView = fixture.get("/api/v1/devices/dev-1").await;
    assert_eq!(device.state, DeviceState::Revoked);
    assert_eq!(device.labels["site"], "north");
    let log: List<AuditView> = fixture.get("/api/v1/audit").await;
    let actions: Vec<_> = log.items.iter().map(|e| (e.action.as_str(), e.actor.as_str())).collect();
    let token = format!("token:{}", listed.items[0].id);
    let expected = [("token.create", "token:admin"), ("device.enrol", token.as_str()), ("device.revoke", "token:admin")];
    let own: Vec<_> = actions.into_iter().filter(|(_, actor)| *actor != "controller").collect();
    assert_eq!(own, expected);
    let mut session = fixture.controller().store.read().await.unwrap();
    assert_eq!(audit::verify(&mut session).await.unwrap(), log.items.len() as u64);
}

#[tokio::test]
async fn a_restart_keeps_the_authority_the_token_and_the_devices() {
    let fixture = Fixture::start().await;
    fixture.agent("dev-1").await;
    let ready = fixture.folder.path().join("ready.json");
    let text: Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    assert_eq!(text["api"], format!("https://{}", fixture.running.api));
    let admin = std::fs::read_to_string(text["admin_token_file"].as_str().unwrap()).unwrap();
    let fingerprint = fixture.controller().authority.fingerprint();
    let Fixture { folder, running, http, .. } = fixture;
    running.shutdown().await;
    assert!(!ready.exists());
    let running = pleach_controller::serve::start(crate::harness::config(folder.path())).await.unwrap();
    assert_eq!(running.controller().authority.fingerprint(), fingerprint);
    let url = format!("https://127.0.0.1:{}/api/v1/devices/dev-1", running.api.port());
    assert_eq!(http.get(url).bearer_auth(admin).send().await.unwrap().status(), StatusCode::OK);
    running.shutdown().await;
}
