//! Signatures over payloads that are no metadata: device reports, measurement results.
//!
//! What is signed is `"pleach payload v1"`, the context and the payload, each behind its length (u64, big endian), so a
//! signature made for one purpose never verifies for another, nor as TUF metadata (which begins with `{`).

use crate::error::TrustError;
use crate::key::{PublicKey, SigningKey};

const DOMAIN: &[u8] = b"pleach payload v1";

fn message(context: &str, payload: &[u8]) -> Vec<u8> {
    let parts = [DOMAIN, context.as_bytes(), payload];
    let mut out = Vec::with_capacity(payload.len() + context.len() + 48);
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Signs a payload for one purpose, e.g. `device report`.
pub fn sign_payload(key: &SigningKey, context: &str, payload: &[u8]) -> [u8; 64] {
    key.sign(&message(context, payload))
}

/// Verifies [`sign_payload`] for the same purpose.
///
/// # Errors
/// [`TrustError::PayloadSignature`] when it is not this key's signature over this payload for this purpose.
pub fn verify_payload(key: &PublicKey, context: &str, payload: &[u8], signature: &[u8]) -> Result<(), TrustError> {
    if key.verifies(&message(context, payload), signature) {
        Ok(())
    } else {
        Err(TrustError::PayloadSignature { context: context.to_owned() })
    }
}
