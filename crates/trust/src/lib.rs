//! TUF metadata (The Update Framework, specification 1.0.x): keys, roles, verification, authoring, and the agreement of
//! two signers on what one device may install.
//!
//! Knows nothing of the rest of Pleach: device ids, model names and classes are text here, bundles are digests and lengths.
//! No network, no clock (times are handed in as seconds UTC), no database. Its place in the journey is **seal** and **roll
//! out** on the controller, **verify** on the device; `docs/trust.md` has the roles and the table of attacks.

pub mod agreement;
pub mod cache;
pub mod canonical;
pub mod client;
pub mod error;
pub mod fleet;
pub mod hash;
pub mod key;
pub mod metadata;
pub mod payload;
pub mod rotation;
pub mod set;
pub mod signed;
pub mod time;

pub use agreement::{Accepted, Agreed, Recipient, verify_assignment};
pub use cache::Cache;
pub use client::{Client, Fetch};
pub use error::{Attack, ClientError, FetchError, TrustError};
pub use fleet::{BundleEntry, BundleFacts, FleetAuthor, FleetKeys, FleetMetadata};
pub use hash::Sha256Digest;
pub use key::{KeyId, PublicKey, SigningKey};
pub use metadata::{RoleKeys, Root, Snapshot, TargetFile, Targets, Timestamp};
pub use payload::{sign_payload, verify_payload};
pub use set::{Limits, Progress, TrustedSet};
pub use signed::{Signed, sign};
pub use time::UtcTime;
