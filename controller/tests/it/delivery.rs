use std::time::Instant;

use bytes::Bytes;
use pleach_domain::Digest;
use pleach_domain::class::Class;
use pleach_proto::fleet::FetchRequest;
use pleach_proto::fleet::controller_message::Message as Down;
use pleach_proto::fleet::fetch_response::Part;
use pleach_store::measurements::{self, AtlasKey};
use pleach_store::{classes, devices};
use tonic::{Code, Status};

use crate::harness::{Agent, Fixture, next};

/// Stores a blob and a measurement task that has the agent's desired state name it.
async fn desire(fixture: &Fixture, agent: &Agent, content: Vec<u8>) -> Digest {
    let controller = fixture.controller();
    let length = content.len() as u64;
    let blob = controller.blobs.put_bytes(Bytes::from(content)).await.unwrap();
    let class = Class {
        id: "c".parse().unwrap(),
        architecture: "x86_64".into(),
        vector: "base".into(),
        inference_threads: 1,
        kernel_mean_us: Default::default(),
    };
    let mut session = controller.store.write().await.unwrap();
    classes::insert(&mut session, &class, 1).await.unwrap();
    devices::classify(&mut session, &agent.id(), &class.id, "test", 1).await.unwrap();
    let key = AtlasKey { class: class.id, model: "m".parse().unwrap(), model_version: 1, batch: 1 };
    let task = measurements::Task { id: "t".into(), key, device: agent.id(), blob, length, budget_ms: 10, deadline_at_ms: i64::MAX };
    measurements::insert(&mut session, &task, 1).await.unwrap();
    session.commit().await.unwrap();
    controller.wake.all();
    blob
}

async fn fetch(fixture: &Fixture, agent: &Agent, digest: Vec<u8>, offset: u64) -> Result<(u64, Vec<usize>, Vec<u8>), Status> {
    let mut parts = fixture.fleet(agent).await.fetch(FetchRequest { digest, offset }).await?.into_inner();
    let Some(Part::Header(header)) = parts.message().await?.and_then(|p| p.part) else { panic!("no header") };
    let (mut sizes, mut content) = (Vec::new(), Vec::new());
    while let Some(Part::Data(data)) = parts.message().await?.and_then(|p| p.part) {
        sizes.push(data.len());
        content.extend_from_slice(&data);
    }
    Ok((header.length, sizes, content))
}

#[tokio::test]
async fn a_new_task_reaches_the_open_stream_and_its_blob_downloads_from_any_offset() {
    let fixture = Fixture::start().await;
    let agent = fixture.agent("dev-1").await;
    let (_sender, mut stream) = fixture.connect(&agent).await;
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let digest = desire(&fixture, &agent, content.clone()).await;
    let Some(Down::Desired(desired)) = next(&mut stream).await.unwrap() else { panic!("no desired state") };
    assert_eq!((desired.generation, desired.measurements.len()), (2, 1));
    assert_eq!(desired.measurements[0].digest, digest.as_bytes());
    let (length, sizes, whole) = fetch(&fixture, &agent, digest.as_bytes().to_vec(), 0).await.unwrap();
    assert_eq!((length, whole == content), (300_000, true));
    assert_eq!(sizes, [131_072, 131_072, 300_000 - 262_144]);
    let (length, _, rest) = fetch(&fixture, &agent, digest.as_bytes().to_vec(), 299_990).await.unwrap();
    assert_eq!((length, rest.as_slice()), (300_000, &content[299_990..]));
    assert!(fetch(&fixture, &agent, digest.as_bytes().to_vec(), 300_000).await.unwrap().2.is_empty());
    assert_eq!(fetch(&fixture, &agent, digest.as_bytes().to_vec(), 300_001).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn blobs_of_others_cannot_be_told_from_blobs_that_are_not_there() {
    let fixture = Fixture::start().await;
    let (agent, other) = (fixture.agent("dev-1").await, fixture.agent("dev-2").await);
    let digest = desire(&fixture, &agent, vec![1; 100]).await;
    let refusal = async |digest: &Digest| {
        let status = fetch(&fixture, &other, digest.as_bytes().to_vec(), 0).await.unwrap_err();
        (status.code(), status.message().replace(&digest.to_string(), ""))
    };
    let absent = refusal(&Digest::new([9; 32])).await;
    assert_eq!(absent.0, Code::NotFound);
    assert_eq!(refusal(&digest).await, absent);
    assert_eq!(fetch(&fixture, &other, vec![1; 31], 0).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_bounded_rate_is_kept() {
    let fixture = Fixture::start_with(|config| config.delivery_bytes_per_second = Some(100_000)).await;
    let agent = fixture.agent("dev-1").await;
    let digest = desire(&fixture, &agent, vec![1; 60_000]).await;
    let start = Instant::now();
    let (_, sizes, content) = fetch(&fixture, &agent, digest.as_bytes().to_vec(), 0).await.unwrap();
    assert_eq!(content.len(), 60_000);
    assert!(sizes.iter().all(|&n| n <= 12_500), "{sizes:?}");
    // The last part may come as soon as those before it were due.
    assert!(start.elapsed().as_secs_f64() > 0.45, "{:?}", start.elapsed());
}
