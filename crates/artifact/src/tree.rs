//! The hash tree over the chunks of a sealed bundle: RFC 9162 section 2.1.1 with SHA-256.
//!
//! A leaf is `SHA-256(0x00 || chunk)`, a node `SHA-256(0x01 || left || right)`, and a list of n leaves is split at the
//! largest power of two below n. The root is signed with the bundle; the leaf list travels beside it and proves itself.

use std::fmt;

use pleach_domain::Digest;
use ring::digest::{Context, SHA256};

use crate::error::ArtifactError;

const LEAF_BYTES: usize = 32;

/// Digest of everything the context has seen.
pub(crate) fn finish(context: Context) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Digest::new(bytes)
}

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    finish(context)
}

/// The leaf of one chunk.
pub(crate) fn leaf(chunk: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(&[0]);
    context.update(chunk);
    finish(context)
}

fn node(left: &Digest, right: &Digest) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(&[1]);
    context.update(left.as_bytes());
    context.update(right.as_bytes());
    finish(context)
}

fn root_of(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => sha256(&[]),
        [only] => *only,
        many => {
            let (left, right) = many.split_at(many.len().div_ceil(2).next_power_of_two());
            node(&root_of(left), &root_of(right))
        }
    }
}

/// The leaves of a bundle's hash tree, one for each chunk, in order.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaves(Vec<Digest>);

impl Leaves {
    pub(crate) fn new(leaves: Vec<Digest>) -> Self {
        Self(leaves)
    }

    /// The root that gets signed.
    pub fn root(&self) -> Digest {
        root_of(&self.0)
    }

    /// Number of chunks.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The leaf of chunk `index`.
    pub fn get(&self, index: u32) -> Option<&Digest> {
        self.0.get(index as usize)
    }

    /// The leaves one after the other, 32 bytes each: what travels to the device.
    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|leaf| *leaf.as_bytes()).collect()
    }

    /// Parses a leaf list for `count` chunks and checks it against the signed root.
    ///
    /// # Errors
    /// [`ArtifactError::LeafCount`] for another length, [`ArtifactError::TreeRoot`] for another root.
    pub fn verify(bytes: &[u8], count: u32, root: &Digest) -> Result<Self, ArtifactError> {
        let (leaves, rest) = bytes.as_chunks::<LEAF_BYTES>();
        if leaves.len() != count as usize || !rest.is_empty() {
            return Err(ArtifactError::LeafCount { got: bytes.len(), expected: count as usize * LEAF_BYTES });
        }
        let leaves = Self(leaves.iter().map(|leaf| Digest::new(*leaf)).collect());
        let got = leaves.root();
        if got == *root { Ok(leaves) } else { Err(ArtifactError::TreeRoot { got, expected: *root }) }
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaves({} of {})", self.0.len(), self.root())
    }
}
