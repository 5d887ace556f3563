//! The envelope: metadata, the canonical bytes its signatures are over, and the count of distinct keys.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::canonical;
use crate::error::TrustError;
use crate::key::{KeyId, SigningKey};
use crate::metadata::{KeyTable, Metadata, RoleKeys};

/// Most signatures one file may carry; each costs a verification.
pub const MAX_SIGNATURES: usize = 256;

/// Parsed metadata with its signatures. That it exists says nothing of trust: [`Signed::verify`] does.
#[derive(Clone, Debug)]
pub struct Signed<T> {
    content: T,
    canonical: Vec<u8>,
    signatures: Vec<RoleSignature>,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RoleSignature {
    keyid: KeyId,
    sig: String,
}

#[derive(Deserialize)]
struct Envelope {
    signatures: Vec<RoleSignature>,
    signed: Value,
}

impl<T: Metadata> Signed<T> {
    /// Parses a metadata file of at most `limit_bytes`. `role` is its name in errors.
    ///
    /// # Errors
    /// [`TrustError::TooLong`], [`TrustError::Malformed`] or [`TrustError::KeyTable`].
    pub fn parse(role: &str, bytes: &[u8], limit_bytes: usize) -> Result<Self, TrustError> {
        if bytes.len() > limit_bytes {
            return Err(TrustError::TooLong { role: role.to_owned(), limit_bytes });
        }
        let malformed = |e: serde_json::Error| TrustError::malformed(role, e);
        let envelope: Envelope = canonical::parse(bytes).and_then(serde_json::from_value).map_err(malformed)?;
        if envelope.signatures.len() > MAX_SIGNATURES {
            let reason = format!("{} signatures, expected at most {MAX_SIGNATURES}", envelope.signatures.len());
            return Err(TrustError::malformed(role, reason));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = envelope.signatures.iter().find(|s| !seen.insert(&s.keyid)) {
            return Err(TrustError::KeyTable { role: role.to_owned(), key: twice.keyid.clone(), problem: "signed twice" });
        }
        let canonical = canonical::encode(&envelope.signed).map_err(malformed)?;
        let content: T = serde_json::from_value(envelope.signed).map_err(malformed)?;
        content.validate()?;
        Ok(Self { content, canonical, signatures: envelope.signatures, bytes: bytes.to_vec() })
    }

    /// Checks that enough distinct keys of the role signed. Two ids of one key count once.
    ///
    /// # Errors
    /// [`TrustError::Threshold`].
    pub fn verify(&self, role: &str, keys: &KeyTable, allowed: &RoleKeys) -> Result<(), TrustError> {
        let mut valid = BTreeSet::new();
        for signature in self.signatures.iter().filter(|s| allowed.keyids.contains(&s.keyid)) {
            let material = keys.get(&signature.keyid).and_then(|key| key.material());
            let (Some(material), Ok(sig)) = (material, hex::decode(&signature.sig)) else { continue };
            if !valid.contains(&material) && material.verifies(&self.canonical, &sig) {
                valid.insert(material);
            }
        }
        let valid = valid.len() as u32;
        let threshold = allowed.threshold;
        if valid >= threshold { Ok(()) } else { Err(TrustError::Threshold { role: role.to_owned(), valid, threshold }) }
    }

    /// The metadata.
    pub fn content(&self) -> &T {
        &self.content
    }

    /// Version of the metadata.
    pub fn version(&self) -> u64 {
        self.content.common().version
    }

    /// The file as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Signs metadata with every given key and gives the file.
///
/// # Errors
/// [`TrustError::Malformed`] when the metadata would be refused by whoever reads it.
pub fn sign<T: Metadata>(content: &T, keys: &[&SigningKey]) -> Result<Vec<u8>, TrustError> {
    content.validate()?;
    let malformed = |e: serde_json::Error| TrustError::malformed(T::KIND, e);
    let signed = serde_json::to_value(content).map_err(malformed)?;
    let message = canonical::encode(&signed).map_err(malformed)?;
    let signature = |key: &&SigningKey| Ok(RoleSignature { keyid: key.public_key().key_id()?, sig: hex::encode(key.sign(&message)) });
    let signatures = keys.iter().map(signature).collect::<Result<Vec<_>, TrustError>>()?;
    serde_json::to_vec(&json!({ "signatures": signatures, "signed": signed })).map_err(malformed)
}
