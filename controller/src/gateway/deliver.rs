//! Delivery: finds the devices whose desired state may have changed, and has their streams look.
//!
//! One cheap query for all devices, woken by whoever wrote a row, instead of one for each open stream.

use std::collections::HashMap;
use std::time::Duration;

use pleach_domain::DeviceId;
use pleach_store::StoreError;
use pleach_store::desired::{self, Mark};
use tracing::warn;

use crate::controller::{Controller, Shared};
use crate::rest::problem::chain;

/// Shortest time between two looks, however often they are asked for.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs until it is aborted.
pub(super) async fn run(controller: Shared) {
    let mut wake = controller.wake.listen();
    let mut known = HashMap::new();
    let interval = Duration::from_millis(controller.config.reconcile_interval_ms);
    loop {
        if let Err(error) = look(&controller, &mut known).await {
            warn!(error = %chain(&error), "cannot look for deliveries");
        }
        tokio::time::sleep(PAUSE).await;
        // A timeout is as good as a signal: other controllers write rows too.
        let _ = tokio::time::timeout(interval, wake.changed()).await;
    }
}

async fn look(controller: &Controller, known: &mut HashMap<DeviceId, Mark>) -> Result<(), StoreError> {
    let connected = controller.presence.connected();
    known.retain(|device, _| controller.presence.is_connected(device));
    if connected.is_empty() {
        return Ok(());
    }
    let mut session = controller.store.read().await?;
    let marks: HashMap<DeviceId, Mark> = desired::marks(&mut session).await?.into_iter().collect();
    drop(session);
    for device in connected {
        let Some(mark) = marks.get(&device) else { continue };
        if known.get(&device) != Some(mark) {
            controller.presence.nudge(&device);
            known.insert(device, *mark);
        }
    }
    Ok(())
}
