//! Checks each chunk of a download before it is written.

use pleach_domain::Digest;

use crate::error::ArtifactError;
use crate::header::Layout;
use crate::tree::{self, Leaves};

/// Knows what every chunk of one bundle must be; holds 32 bytes for each.
#[derive(Clone, Debug)]
pub struct ChunkVerifier {
    layout: Layout,
    leaves: Leaves,
}

impl ChunkVerifier {
    /// Takes the length and tree root from signed metadata and the leaf list from wherever it came.
    ///
    /// # Errors
    /// [`ArtifactError::Length`], [`ArtifactError::LeafCount`] or [`ArtifactError::TreeRoot`] when they do not fit each other.
    pub fn new(sealed_bytes: u64, root: &Digest, leaf_list: &[u8]) -> Result<Self, ArtifactError> {
        let layout = Layout::of_sealed(sealed_bytes)?;
        let leaves = Leaves::verify(leaf_list, layout.chunk_count(), root)?;
        Ok(Self { layout, leaves })
    }

    /// Where the chunks lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Checks that `chunk` is chunk `index`. Chunks may come in any order and any number of times.
    ///
    /// # Errors
    /// [`ArtifactError::ChunkIndex`], [`ArtifactError::ChunkLength`] or [`ArtifactError::ChunkHash`].
    pub fn verify(&self, index: u32, chunk: &[u8]) -> Result<(), ArtifactError> {
        let expected = self.layout.chunk_len(index)?;
        if chunk.len() != expected {
            return Err(ArtifactError::ChunkLength { index, got: chunk.len(), expected });
        }
        if self.leaves.get(index) == Some(&tree::leaf(chunk)) { Ok(()) } else { Err(ArtifactError::ChunkHash { index }) }
    }
}
