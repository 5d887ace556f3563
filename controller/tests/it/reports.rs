use pleach_domain::window::Window;
use pleach_domain::{Digest, LatencyHistogram};
use pleach_proto::fleet::{Event, HardwareProfile, Report};
use pleach_proto::rest::{DeviceView, List, WindowView};
use tonic::{Code, Status};

use crate::harness::{Agent, Fixture};

fn window(number: u64) -> pleach_proto::fleet::Window {
    let mut latency = LatencyHistogram::new();
    (1..=100).for_each(|i| latency.record_us(i * 100));
    let window = Window {
        number,
        bundle: Digest::new([1; 32]),
        rung: "full".into(),
        start_ms: 1_000,
        duration_ms: 500,
        requests: 100,
        errors: 0,
        latency,
        confusion: None,
        cpu_us: 5,
        memory_bytes: 6,
    };
    (&window).into()
}

async fn send(fixture: &Fixture, agent: &Agent, report: &Report) -> Result<u64, Status> {
    fixture.fleet(agent).await.report(agent.sign(report)).await.map(|ack| ack.into_inner().sequence)
}

async fn windows(fixture: &Fixture) -> Vec<WindowView> {
    fixture.get::<List<WindowView>>("/api/v1/windows?device=dev-1").await.items
}

#[tokio::test]
async fn a_signed_report_is_stored_and_acknowledged() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let profile = HardwareProfile { architecture: "x86_64".into(), cores: 4, inference_threads: 2, ..HardwareProfile::default() };
    let report = Report { windows: vec![window(1), window(2)], profile: Some(profile), ..agent.report(1) };
    assert_eq!(send(&fixture, &agent, &report).await.unwrap(), 1);
    let stored = windows(&fixture).await;
    assert_eq!(stored.iter().map(|w| w.number).collect::<Vec<_>>(), [1, 2]);
    assert!((5_000..5_100).contains(&stored[0].p50_us) && stored[0].requests == 100, "{stored:?}");
    assert_eq!(fixture.get::<DeviceView>("/api/v1/devices/dev-1").await.profile.unwrap().cores, 4);
}

#[tokio::test]
async fn a_replayed_sequence_is_acknowledged_and_otherwise_ignored() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    send(&fixture, &agent, &agent.report(5)).await.unwrap();
    let late = Report { windows: vec![window(1)], ..agent.report(4) };
    assert_eq!(send(&fixture, &agent, &late).await.unwrap(), 5);
    let again = Report { windows: vec![window(1)], ..agent.report(5) };
    assert_eq!(send(&fixture, &agent, &again).await.unwrap(), 5);
    assert!(windows(&fixture).await.is_empty());
}

#[tokio::test]
async fn a_report_that_is_forged_of_another_device_or_out_of_range_is_refused() {
    let fixture = Fixture::start().await;
    let (agent, other) = (fixture.agent("dev-1").await, fixture.agent("dev-2").await);
    let good = Report { windows: vec![window(1)], ..agent.report(1) };
    let mut client = fixture.fleet(&agent).await;
    let mut flipped = agent.sign(&good);
    flipped.body[3] ^= 1;
    let unsigned = (Code::InvalidArgument, "the report is not signed by this device's key".to_owned());
    for forged in [flipped, other.sign(&good)] {
        let status = client.report(forged).await.unwrap_err();
        assert_eq!((status.code(), status.message().to_owned()), unsigned);
    }
    let status = send(&fixture, &agent, &Report { device_id: "dev-2".into(), ..good.clone() }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, r#"the report is of device "dev-2": expected "dev-1""#));
    let mut histogram = good.clone();
    histogram.windows[0].latency_histogram = vec![1, 2, 3];
    let event = Event { assignment_sequence: 1, bundle_digest: vec![1; 32], state: 99, ..Event::default() };
    let cases = [
        (agent.report(0), "sequence is 0: expected at least 1"),
        (histogram, "latency histogram"),
        (Report { events: vec![event], ..good.clone() }, "event.state has the unknown value 99"),
        (Report { windows: vec![window(1); 1_001], ..agent.report(1) }, "windows has 1001: expected at most 1000"),
        (Report { profile: Some(HardwareProfile::default()), ..good.clone() }, "architecture is empty"),
        (Report { boot_id: "x".repeat(65), ..good.clone() }, "boot id has 65 bytes"),
    ];
    for (report, words) in cases {
        let status = send(&fixture, &agent, &report).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().contains(words), "{status:?}");
    }
    assert!(windows(&fixture).await.is_empty());
    assert_eq!(send(&fixture, &agent, &good).await.unwrap(), 1);
}
