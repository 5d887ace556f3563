use pleach_domain::Digest;
use pleach_proto::rest::{DeviceView, List, TokenView};
use pleach_store::tokens;
use reqwest::Method;
use tonic::Code;

use crate::harness::{Agent, Fixture};

async fn devices(fixture: &Fixture) -> usize {
    fixture.get::<List<DeviceView>>("/api/v1/devices").await.items.len()
}

#[tokio::test]
async fn a_token_and_a_proof_make_a_device_with_the_tokens_labels() {
    let fixture = Fixture::start().await;
    let token = fixture.token(1).await;
    let response = fixture.enroll(&Agent::new("dev-1"), &token).await.unwrap();
    assert_eq!(response.device_id, "dev-1");
    let fingerprint = pleach_artifact::sha256(&response.authority_der);
    assert_eq!(fingerprint, fixture.controller().authority.fingerprint());
    assert!(String::from_utf8(response.root_metadata).unwrap().contains("\"_type\":\"root\""));
    let device: DeviceView = fixture.get("/api/v1/devices/dev-1").await;
    assert_eq!(device.labels["site"], "north");
    let chosen = fixture.enroll(&Agent::new(""), &fixture.token(1).await).await.unwrap();
    assert!(chosen.device_id.starts_with("device-"));
}

#[tokio::test]
async fn repeating_with_the_same_key_answers_again_and_takes_no_use() {
    let fixture = Fixture::start().await;
    let (token, agent) = (fixture.token(2).await, Agent::new("dev-1"));
    let first = fixture.enroll(&agent, &token).await.unwrap();
    let again = fixture.enroll(&agent, &token).await.unwrap();
    assert_eq!((first.device_id, first.root_metadata), (again.device_id, again.root_metadata));
    let left = fixture.get::<List<TokenView>>("/api/v1/tokens").await.items[0].uses_left;
    assert_eq!((left, devices(&fixture).await), (1, 1));
}

#[tokio::test]
async fn a_counted_token_lets_in_so_many_and_then_another_key_is_refused() {
    let fixture = Fixture::start().await;
    let token = fixture.token(2).await;
    fixture.enroll(&Agent::new("dev-1"), &token).await.unwrap();
    fixture.enroll(&Agent::new("dev-2"), &token).await.unwrap();
    let refused = fixture.enroll(&Agent::new("dev-3"), &token).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "the enrolment token is used up: ask for a new one"));
    assert_eq!(devices(&fixture).await, 2);
}

#[tokio::test]
async fn a_revoked_token_lets_nobody_in_and_cuts_nobody_off() {
    let fixture = Fixture::start().await;
    let (token, member) = (fixture.token(2).await, Agent::new("dev-1"));
    fixture.enroll(&member, &token).await.unwrap();
    let id = token.split('.').nth(1).unwrap();
    for _ in 0..2 {
        let response = fixture.admin(Method::POST, &format!("/api/v1/tokens/{id}/revoke")).send().await.unwrap();
        assert_eq!(response.json::<TokenView>().await.unwrap().uses_left, 0);
    }
    let refused = fixture.enroll(&Agent::new("dev-2"), &token).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "the enrolment token is used up: ask for a new one"));
    assert_eq!(devices(&fixture).await, 1);
}

#[tokio::test]
async fn expired_unknown_and_malformed_tokens_are_told_apart() {
    let fixture = Fixture::start().await;
    let token = fixture.token(1).await;
    let refusal = async |token: &str| {
        let status = fixture.enroll(&Agent::new("dev-1"), token).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let malformed = refusal("plt1.nonsense").await;
    assert!(malformed.0 == Code::InvalidArgument && malformed.1.contains("malformed: expected plt1."), "{malformed:?}");
    let mut parts: Vec<&str> = token.split('.').collect();
    let other = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    parts[2] = other;
    let unknown = (Code::Unauthenticated, "the enrolment token is not known here".to_owned());
    assert_eq!(refusal(&parts.join(".")).await, unknown);
    parts[1] = "0123";
    assert_eq!(refusal(&parts.join(".")).await, unknown);
    let mut session = fixture.controller().store.write().await.unwrap();
    let expired = tokens::Token {
        id: "old".parse().unwrap(),
        secret_sha256: pleach_artifact::sha256(&[0; 32]),
        labels: Default::default(),
        uses_left: 1,
        expires_at_ms: 1_000,
        created_at_ms: 1,
    };
    tokens::insert(&mut session, &expired).await.unwrap();
    session.commit().await.unwrap();
    parts[1] = "old";
    assert_eq!(
        refusal(&parts.join(".")).await,
        (Code::FailedPrecondition, "the enrolment token has expired: ask for a new one".to_owned())
    );
    assert_eq!(devices(&fixture).await, 0);
}

#[tokio::test]
async fn a_taken_name_or_another_keys_sealing_proof_takes_no_use_of_the_token() {
    let fixture = Fixture::start().await;
    fixture.agent("dev-1").await;
    let token = fixture.token(1).await;
    let taken = fixture.enroll(&Agent::new("dev-1"), &token).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let mut request = Agent::new("dev-2").enroll_request(&token);
    request.sealing_signature = Agent::new("x").enroll_request(&token).sealing_signature;
    let status = fixture.enroll_request(request).await.unwrap_err();
    assert_eq!(status.message(), "the sealing key is not signed by the identity key");
    let mut request = Agent::new("dev-2").enroll_request(&token);
    request.csr_der.pop();
    assert_eq!(fixture.enroll_request(request).await.unwrap_err().code(), Code::InvalidArgument);
    let mut request = Agent::new("dev-2").enroll_request(&token);
    request.requested_id = "Not An Id".into();
    assert_eq!(fixture.enroll_request(request).await.unwrap_err().code(), Code::InvalidArgument);
    fixture.enroll(&Agent::new("dev-2"), &token).await.unwrap();
}

#[tokio::test]
async fn renewal_needs_the_certificate_its_key_and_a_device_that_is_active() {
    let fixture = Fixture::start().await;
    let (mut agent, other) = (fixture.agent("dev-1").await, fixture.agent("dev-2").await);
    let old = agent.certificate();
    agent.keep(fixture.renew(agent.renew_request()).await.unwrap());
    assert_ne!(agent.certificate(), old);
    fixture.connect(&agent).await;
    let mut stolen = agent.renew_request();
    stolen.csr_der = other.csr();
    let status = fixture.renew(stolen).await.unwrap_err();
    assert!(status.code() == Code::PermissionDenied && status.message().contains("another key"), "{status:?}");
    let mut altered = agent.renew_request();
    *altered.certificate_der.last_mut().unwrap() ^= 1;
    assert_eq!(fixture.renew(altered).await.unwrap_err().code(), Code::InvalidArgument);
    fixture.revoke(&agent).await;
    assert_eq!(fixture.renew(agent.renew_request()).await.unwrap_err().message(), "the device is revoked");
}

#[tokio::test]
async fn renewal_is_possible_within_the_grace_after_expiry_only() {
    let fixture = Fixture::start().await;
    let mut agent = fixture.agent("dev-1").await;
    let key = pleach_controller::authority::request_key(&agent.csr()).unwrap();
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let mut renew_after = async |days: i64| {
        let certificate = fixture.controller().authority.issue(&agent.id(), &key, now_ms - (days + 1) * 86_400_000).unwrap();
        let mut response = pleach_proto::fleet::EnrollResponse { device_id: "dev-1".into(), ..Default::default() };
        response.certificate_chain_der = vec![certificate.to_vec()];
        agent.keep(response);
        fixture.renew(agent.renew_request()).await
    };
    renew_after(89).await.unwrap();
    let refused = renew_after(91).await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("90 days"), "{refused:?}");
    assert_ne!(fixture.controller().authority.fingerprint(), Digest::new([0; 32]));
}
