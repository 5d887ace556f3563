//! A controller, agents and databases as real processes, driven through their public interfaces.

pub mod agent;
pub mod cluster;
pub mod process;
pub mod tiny;

use std::future::Future;
use std::time::{Duration, Instant};

/// Polls `probe` until it gives a value; panics with `what` and the last miss at the deadline.
pub async fn eventually<T, F>(what: &str, deadline: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(miss) => assert!(start.elapsed() < deadline, "{what}: not after {deadline:?}; last seen: {miss}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
