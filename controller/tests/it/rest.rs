use pleach_controller::rest::Role;
use pleach_domain::state::DeviceState;
use pleach_proto::rest::{AuditView, DeviceView, List, TokenView};
use pleach_store::{api_tokens, audit};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Fixture, problem};

const ROUTES: [(&str, &str); 22] = [
    ("PUT", "/api/v1/blobs/00"),
    ("POST", "/api/v1/models"),
    ("GET", "/api/v1/models"),
    ("PUT", "/api/v1/policies/p"),
    ("GET", "/api/v1/policies"),
    ("POST", "/api/v1/tokens"),
    ("GET", "/api/v1/tokens"),
    ("POST", "/api/v1/tokens/t/revoke"),
    ("GET", "/api/v1/devices"),
    ("GET", "/api/v1/devices/d"),
    ("POST", "/api/v1/devices/d/revoke"),
    ("POST", "/api/v1/devices/d/approve"),
    ("GET", "/api/v1/classes"),
    ("GET", "/api/v1/variants"),
    ("GET", "/api/v1/bundles"),
    ("GET", "/api/v1/rollouts"),
    ("GET", "/api/v1/deployments"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/windows"),
    ("GET", "/api/v1/decisions"),
    ("GET", "/api/v1/trust/root"),
    ("GET", "/api/v1/audit"),
];

#[tokio::test]
async fn every_route_refuses_requests_without_a_token_or_with_a_wrong_one() {
    let fixture = Fixture::start().await;
    for (method, path) in ROUTES {
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
async fn a_viewer_reads_but_neither_uploads_nor_lets_devices_in() {
    let fixture = Fixture::start().await;
    let mut session = fixture.controller().store.write().await.unwrap();
    let viewer = api_tokens::ApiToken { id: "v".into(), role: Role::Viewer.as_str().into() };
    api_tokens::put(&mut session, &viewer, &pleach_artifact::sha256(b"secret"), None, 1).await.unwrap();
    session.commit().await.unwrap();
    for (method, path) in ROUTES {
        let response = fixture.anonymous(method.parse().unwrap(), path).bearer_auth("secret").send().await.unwrap();
        let reads = method == "GET" && path != "/api/v1/tokens";
        assert_eq!(response.status() != StatusCode::FORBIDDEN, reads, "{method} {path}");
    }
}

#[tokio::test]
async fn an_expired_api_token_is_refused() {
    let fixture = Fixture::start().await;
    let mut session = fixture.controller().store.write().await.unwrap();
    let token = api_tokens::ApiToken { id: "old".into(), role: Role::Admin.as_str().into() };
    api_tokens::put(&mut session, &token, &pleach_artifact::sha256(b"secret"), Some(1_000), 1).await.unwrap();
    session.commit().await.unwrap();
    let response = fixture.anonymous(Method::GET, "/api/v1/devices").bearer_auth("secret").send().await.unwrap();
    assert_eq!(problem(response).await.code, "unauthenticated");
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
