//! The supervisor with the real executable as its child. `ORT_DYLIB_PATH` must name libonnxruntime.so.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may fail by panicking

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pleach_agent::listeners::Listeners;
use pleach_agent::supervisor::{RuntimeHandle, RuntimeOptions, SealedMemory, ServingOptions, Standing, SupervisorError};
use pleach_domain::Digest;
use tempfile::TempDir;

const BUNDLE: Digest = Digest::new([1; 32]);

fn options(folder: &Path) -> RuntimeOptions {
    RuntimeOptions {
        executable: PathBuf::from(env!("CARGO_BIN_EXE_pleach-agent")),
        listeners: Arc::new(Listeners::bind(&folder.join("inference.sock"), None).unwrap()),
        threads: 1,
        onnxruntime: None,
        device_id: "device-1".parse().unwrap(),
        serving: ServingOptions { queue: 8, batch_max_rows: 1, step_down_wait_ms: 250, cascade_confidence: None, audit_share: 0.0 },
        call_limit: Duration::from_secs(30),
        expects_bundle: false,
        memory_max_bytes: None,
    }
}

#[tokio::test]
async fn child_answers_fails_in_words_and_ends_with_its_handle() {
    let folder = TempDir::new().unwrap();
    let runtime = RuntimeHandle::spawn(&options(folder.path())).await.unwrap();
    let stats = runtime.stats().await.unwrap();
    assert_eq!((stats.bundle, stats.requests), (None, 0));
    assert!(stats.onnxruntime_version.starts_with("1."), "{stats:?}");
    let memory = SealedMemory::from_writer(|w| w.write_all(b"no payload")).unwrap();
    let error = runtime.load(memory, BUNDLE).await.unwrap_err();
    assert!(matches!(&error, SupervisorError::Failed { check, .. } if check == "payload"), "{error}");
    let error = runtime.activate(BUNDLE, Standing::Probation).await.unwrap_err();
    assert!(matches!(&error, SupervisorError::Failed { check, .. } if check == "activate"), "{error}");
    assert!(runtime.collect_windows().await.unwrap().is_empty());
    assert!(!runtime.profile(Duration::ZERO).await.unwrap().is_empty());

    let mut exited = runtime.exited();
    drop(runtime);
    let exit = exited.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(exit.detail, "exit status: 0");
}

#[tokio::test]
async fn death_of_the_child_fails_requests_and_is_told() {
    let folder = TempDir::new().unwrap();
    let runtime = RuntimeHandle::spawn(&options(folder.path())).await.unwrap();
    let measuring = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.profile(Duration::from_secs(60)).await }
    });
    runtime.stats().await.unwrap();
    runtime.kill();
    let exit = runtime.exited().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(exit.detail.starts_with("signal: 9"), "{exit:?}");
    assert!(matches!(measuring.await.unwrap(), Err(SupervisorError::Exited { .. } | SupervisorError::Send { .. })));
    assert!(matches!(runtime.stats().await, Err(SupervisorError::Exited { .. } | SupervisorError::Send { .. })));
}

#[tokio::test]
async fn child_that_cannot_come_up_is_an_error() {
    let folder = TempDir::new().unwrap();
    let missing = RuntimeOptions { onnxruntime: Some("/nonexistent/libonnxruntime.so".into()), ..options(folder.path()) };
    let error = RuntimeHandle::spawn(&missing).await.unwrap_err();
    assert!(matches!(&error, SupervisorError::Exited { detail } if detail.starts_with("exit status: ")), "{error}");
    let nowhere = RuntimeOptions { executable: "/nonexistent/pleach-agent".into(), ..options(folder.path()) };
    assert!(matches!(RuntimeHandle::spawn(&nowhere).await, Err(SupervisorError::Spawn(_))));
}
