//! Sealed bundles: the payload layout, streaming encryption in chunks, the hash tree over them, and the wraps that hand
//! the content key to one device each.
//!
//! Knows nothing of signatures (the bundle digest and the tree root are signed by `pleach-trust`'s metadata), of files, of
//! networks or of databases: everything reads from a [`std::io::Read`] and writes to a [`std::io::Write`].
//! Its place in the journey is **seal** on the controller and **verify** on the device; `docs/artifact-format.md` has the bytes.

pub mod error;
pub mod header;
pub mod key;
pub mod manifest;
pub mod open;
pub mod payload;
pub mod seal;
pub mod tree;
pub mod verify;
pub mod wrap;

pub use error::ArtifactError;
pub use header::{CHUNK_BYTES, HEADER_BYTES, Header, Layout, Suite};
pub use key::{ContentKey, KeyEncryptionKey, SealingKey, SealingPublicKey};
pub use manifest::{BundleManifest, KnownAnswer, NamedTensor, Rung};
pub use open::{Opener, open};
pub use payload::{Payload, PayloadReader, RungSource};
pub use seal::{Sealed, seal};
pub use tree::{Leaves, sha256};
pub use verify::ChunkVerifier;
pub use wrap::{WrapContext, WrappedKey, unwrap, wrap};
