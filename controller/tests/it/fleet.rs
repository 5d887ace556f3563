use std::time::{Duration, Instant};

use pleach_domain::state::DeviceState;
use pleach_proto::PROTOCOL_VERSION;
use pleach_proto::fleet::agent_message::Message as Up;
use pleach_proto::fleet::controller_message::Message as Down;
use pleach_proto::fleet::{AgentMessage, FetchRequest, Ping, SignedReport};
use pleach_proto::rest::{AuditView, DeviceView, List};
use reqwest::Method;
use tonic::Code;

use crate::harness::{Fixture, next};

#[tokio::test]
async fn calls_without_a_certificate_are_refused() {
    let fixture = Fixture::start().await;
    let mut client = pleach_proto::fleet::fleet_client::FleetClient::new(fixture.channel(None).await);
    let status = client.fetch(FetchRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "no client certificate: enrol first"));
}

#[tokio::test]
async fn a_device_is_connected_while_its_stream_is_open_and_pings_are_answered() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let (sender, mut stream) = fixture.connect(&agent).await;
    sender.send(AgentMessage { message: Some(Up::Ping(Ping { sent_at_ms: 42 })) }).await.unwrap();
    assert!(matches!(next(&mut stream).await.unwrap(), Some(Down::Pong(p)) if p.sent_at_ms == 42 && p.server_time_ms > 0));
    let device: DeviceView = fixture.get("/api/v1/devices/dev-1").await;
    assert!(device.connected && device.last_seen_at_ms.is_some());
    drop((sender, stream));
    let until = Instant::now() + Duration::from_secs(10);
    while fixture.get::<DeviceView>("/api/v1/devices/dev-1").await.connected {
        assert!(Instant::now() < until, "the device still counts as connected");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_revoked_device_is_cut_off_within_a_second() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let (_sender, mut stream) = fixture.connect(&agent).await;
    let mut client = fixture.fleet(&agent).await;
    let start = Instant::now();
    fixture.revoke(&agent).await;
    assert!(matches!(next(&mut stream).await.unwrap(), Some(Down::Refusal(r)) if r.code == "revoked"));
    assert!(next(&mut stream).await.unwrap().is_none());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let status = client.report(agent.sign(&agent.report(1))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "the device is revoked"));
    assert_eq!(client.fetch(FetchRequest { digest: vec![0; 32], offset: 0 }).await.unwrap_err().code(), Code::PermissionDenied);
    let status = client.report(SignedReport::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn one_key_on_two_machines_is_noticed_and_neither_goes_on_before_a_person_looked() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let (_first_sender, _first) = fixture.connect(&agent).await;
    // A reboot: another boot id, and the old one does not come back.
    let (_second_sender, mut second) = fixture.sync_as(&agent, PROTOCOL_VERSION, "copy").await;
    assert!(matches!(next(&mut second).await.unwrap(), Some(Down::Desired(_))));
    let (_third_sender, mut third) = fixture.sync_as(&agent, PROTOCOL_VERSION, "boot").await;
    assert!(matches!(next(&mut third).await.unwrap(), Some(Down::Refusal(r)) if r.code == "cloned-key"));
    assert!(matches!(next(&mut second).await.unwrap(), Some(Down::Refusal(r)) if r.code == "not-approved"));
    let status = fixture.fleet(&agent).await.report(agent.sign(&agent.report(1))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "the device is not approved yet"));
    let log: List<AuditView> = fixture.get("/api/v1/audit").await;
    assert!(log.items.iter().any(|entry| entry.action == "device.cloned" && entry.subject == "dev-1"));
    assert_eq!(fixture.get::<DeviceView>("/api/v1/devices/dev-1").await.state, DeviceState::Pending);
    let approved = fixture.admin(Method::POST, "/api/v1/devices/dev-1/approve").send().await.unwrap();
    assert_eq!(approved.json::<DeviceView>().await.unwrap().state, DeviceState::Active);
    let (_fourth_sender, mut fourth) = fixture.sync_as(&agent, PROTOCOL_VERSION, "boot").await;
    assert!(matches!(next(&mut fourth).await.unwrap(), Some(Down::Desired(_))));
}

#[tokio::test]
async fn a_newer_stream_supersedes_the_older_one() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let (_older_sender, mut older) = fixture.connect(&agent).await;
    let (_newer_sender, _newer) = fixture.connect(&agent).await;
    assert!(matches!(next(&mut older).await.unwrap(), Some(Down::Refusal(r)) if r.code == "superseded-stream"));
    assert!(fixture.get::<DeviceView>("/api/v1/devices/dev-1").await.connected);
}

#[tokio::test]
async fn other_protocol_versions_are_refused_in_words() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    for (version, advice) in [(0, "update the agent"), (PROTOCOL_VERSION + 1, "update the controller")] {
        let (_sender, mut stream) = fixture.sync(&agent, version).await;
        let Some(Down::Refusal(refusal)) = next(&mut stream).await.unwrap() else { panic!("no refusal") };
        assert_eq!(refusal.code, "protocol-version");
        assert!(
            refusal.message.contains(&format!("version {version}: expected")) && refusal.message.contains(advice),
            "{}",
            refusal.message
        );
        assert!(next(&mut stream).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_refused() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(AgentMessage { message: Some(Up::Ping(Ping { sent_at_ms: 1 })) }).await.unwrap();
    let stream = fixture.fleet(&agent).await.sync(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap();
    let status = next(&mut stream.into_inner()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the first message is not Hello"));
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate() {
    let fixture = Fixture::start_with(|config| config.certificate_seconds = 2).await;
    let agent = fixture.agent("dev-1").await;
    let (_sender, mut stream) = fixture.connect(&agent).await;
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the client certificate has expired: renew it"));
}

#[tokio::test]
async fn shutdown_ends_open_streams() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let (_sender, mut stream) = fixture.connect(&agent).await;
    let Fixture { running, folder, .. } = fixture;
    let (ended, ()) = tokio::join!(next(&mut stream), running.shutdown());
    assert!(matches!(ended, Ok(None)));
    drop(folder);
}
