//! The file that carries an assignment to a device without a network: what the controller signed for it, then the sealed bundle.
//!
//! [`MAGIC`]; the encoded [`Deployment`], then the encoded [`FetchHeader`] with length and leaves, each behind its length as four
//! little-endian bytes; the bundle. Nothing in it is trusted more than what comes over the network.

use prost::Message;

use crate::fleet::{Deployment, FetchHeader};

/// How the file begins.
pub const MAGIC: &[u8; 16] = b"pleach-bundle-1\n";

/// Everything in front of the sealed bundle.
pub fn head(deployment: &Deployment, header: &FetchHeader) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    for part in [deployment.encode_to_vec(), header.encode_to_vec()] {
        head.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        head.extend(part);
    }
    head
}
