//! What every server and reconciler of one controller process shares.

use std::sync::Arc;

use pleach_inference::OrtRuntime;
use pleach_store::{Blobs, Store};
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::config::Config;
use crate::keys::Keys;
use crate::presence::Presence;
use crate::wake::Wake;

/// The parts of a running controller. Everything that lasts is in the store; the rest can be made again.
pub struct Controller {
    /// How it was started.
    pub config: Config,
    /// Rows.
    pub store: Store,
    /// Files under their digest.
    pub blobs: Blobs,
    /// Signing keys and the key-encryption key.
    pub keys: Keys,
    /// Certificate authority of the fleet.
    pub authority: Authority,
    /// ONNX Runtime on this machine.
    pub runtime: OrtRuntime,
    /// Devices connected here.
    pub presence: Presence,
    /// Wakes the reconcilers.
    pub wake: Wake,
    /// Cancelled when the controller ends.
    pub stop: CancellationToken,
}

/// A controller as it is handed around.
pub type Shared = Arc<Controller>;
