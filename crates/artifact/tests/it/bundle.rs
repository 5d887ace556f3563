//! Bundles sealed in memory.

use pleach_artifact::{ArtifactError, ContentKey, Sealed, Suite, open, seal};
use pleach_domain::Digest;

pub(crate) const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

/// Bytes that differ everywhere, so that a swapped chunk cannot go unseen.
pub(crate) fn payload(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

pub(crate) fn sealed(plain: &[u8], suite: Suite) -> (Sealed, Vec<u8>) {
    let mut bytes = Vec::new();
    let sealed = seal(&mut &*plain, plain.len() as u64, suite, &mut bytes).unwrap();
    assert_eq!(sealed.length, bytes.len() as u64);
    (sealed, bytes)
}

pub(crate) fn opened(bytes: &[u8], digest: &Digest, key: &ContentKey) -> Result<Vec<u8>, ArtifactError> {
    let mut plain = Vec::new();
    open(&mut &*bytes, bytes.len() as u64, digest, key.clone(), &mut plain).map(|()| plain)
}
