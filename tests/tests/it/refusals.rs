//! Bad input through the public interfaces: a clear refusal, and nothing half-written.

use std::path::Path;

use pleach_cli::error::ClientError;
use pleach_domain::Tensor;
use pleach_onnx::proto::OperatorSetIdProto;
use pleach_proto::rest::{NewModel, Problem};
use prost::Message;

use crate::harness::agent::Agent;
use crate::harness::cluster::{Cluster, Database};
use crate::harness::{eventually, tiny};

async fn refused(cluster: &Cluster, onnx: &Path, calibration: &Path, validation: &Path) -> Problem {
    let (onnx, calibration, validation) = (cluster.upload(onnx).await, cluster.upload(calibration).await, cluster.upload(validation).await);
    let model = NewModel { name: "bad".into(), task: "classification".into(), onnx, calibration, validation };
    match cluster.client.create_model(&model).await {
        Err(ClientError::Refused { problem }) => problem,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_models_and_data_are_refused_in_words() {
    let cluster = Cluster::start(Database::Sqlite).await;
    let dir = cluster.dir().to_path_buf();
    let good = tiny::write_files(&dir);
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let onnx = std::fs::read(&good.onnx).unwrap();

    let problem = refused(&cluster, &file("text.onnx", b"this is no model"), &good.calibration, &good.validation).await;
    assert_eq!(problem.code, "model-invalid", "{problem:?}");
    let problem = refused(&cluster, &file("short.onnx", &onnx[..onnx.len() / 2]), &good.calibration, &good.validation).await;
    assert_eq!(problem.code, "model-invalid", "{problem:?}");
    assert!(problem.detail.contains("truncated"), "{problem:?}");

    let mut alien = pleach_onnx::proto::ModelProto::decode(&onnx[..]).unwrap();
    alien.opset_import.push(OperatorSetIdProto { domain: Some("org.example.alien".into()), version: Some(1) });
    alien.graph.as_mut().unwrap().node[0].domain = Some("org.example.alien".into());
    let problem = refused(&cluster, &file("alien.onnx", &alien.encode_to_vec()), &good.calibration, &good.validation).await;
    assert_eq!(problem.code, "model-operator-set", "{problem:?}");
    assert!(problem.detail.contains("org.example.alien"), "{problem:?}");

    let narrow = dir.join("narrow.npz");
    tiny::write_npz(&narrow, &[("input", &Tensor::fp32(vec![4, 1, 8, 8], vec![0.5; 256]).unwrap())], None);
    let problem = refused(&cluster, &good.onnx, &narrow, &good.validation).await;
    assert_eq!(problem.code, "dataset-invalid", "{problem:?}");
    assert!(problem.detail.contains("12") && problem.detail.contains('8'), "expected and got are named: {problem:?}");

    let misnamed = dir.join("misnamed.npz");
    tiny::write_npz(&misnamed, &[("picture", &tiny::input(1, 4))], None);
    let problem = refused(&cluster, &good.onnx, &misnamed, &good.validation).await;
    assert!(problem.code == "dataset-invalid" && problem.detail.contains("input"), "{problem:?}");

    let problem = refused(&cluster, &good.onnx, &good.calibration, &good.calibration).await;
    assert!(problem.code == "dataset-invalid" && problem.detail.contains("labels"), "{problem:?}");
    assert!(cluster.client.list_json("models", &[]).await.unwrap().is_empty());
}

async fn refusal_in_log(cluster: &Cluster, name: &str, token: &Path, words: &str) {
    let agent = Agent::start(&cluster.dir().join(name), name, cluster.agents_url(), token);
    let log = cluster.dir().join(name).join("agent.log");
    eventually(&format!("{name} is refused"), std::time::Duration::from_secs(30), || async {
        let text = std::fs::read_to_string(&log).map_err(|e| e.to_string())?;
        if text.contains(words) { Ok(()) } else { Err(text) }
    })
    .await;
    drop(agent);
    let devices = cluster.client.list_json("devices", &[]).await.unwrap();
    assert!(devices.iter().all(|d| d["id"] != name), "{devices:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_and_used_tokens_enrol_nobody() {
    let cluster = Cluster::start(Database::Sqlite).await;
    let token = cluster.token_file(1, 600).await;
    let _first = Agent::start(&cluster.dir().join("first-1"), "first-1", cluster.agents_url(), &token);
    eventually("the first device enrols", std::time::Duration::from_secs(30), || async {
        let devices = cluster.client.list_json("devices", &[]).await.map_err(|e| format!("{e:?}"))?;
        if devices.is_empty() { Err("no device".to_owned()) } else { Ok(()) }
    })
    .await;
    refusal_in_log(&cluster, "second-1", &token, "used").await;

    let brief = cluster.token_file(1, 1).await;
    let written = std::fs::metadata(&brief).unwrap().modified().unwrap();
    eventually("the token's second passes", std::time::Duration::from_secs(10), || async {
        let age = written.elapsed().map_err(|e| e.to_string())?;
        if age.as_millis() > 1_100 { Ok(()) } else { Err(format!("{age:?}")) }
    })
    .await;
    refusal_in_log(&cluster, "late-1", &brief, "expired").await;
}
