//! Wraps: the content key of a bundle, encrypted for one device and one assignment.
//!
//! HPKE (RFC 9180) in base mode, single shot, with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM. Everything that
//! the wrap is for is bound in `info`; a wrap opens for nothing else.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use pleach_domain::id::ModelName;
use pleach_domain::{ClassId, DeviceId, Digest};
use zeroize::Zeroizing;

use crate::error::ArtifactError;
use crate::key::{ContentKey, SealingKey, SealingPublicKey};

const CONTEXT: &[u8] = b"pleach content key wrap v1";
const ENCAPPED_BYTES: usize = 32;

/// Length of a wrap: encapsulated key (32), ciphertext (32), tag (16).
pub const WRAP_BYTES: usize = ENCAPPED_BYTES + 48;

/// What a wrap is for. Both sides state it from what they know, and it must be the same.
#[derive(Clone, Copy, Debug)]
pub struct WrapContext<'a> {
    /// The device it is for.
    pub device: &'a DeviceId,
    /// SHA-256 of the sealed bundle.
    pub bundle: &'a Digest,
    /// Name of the model.
    pub model: &'a ModelName,
    /// Version of the model.
    pub model_version: u64,
    /// Class the bundle was made for.
    pub class: &'a ClassId,
    /// Sequence of the assignment.
    pub sequence: u64,
}

impl WrapContext<'_> {
    /// `info`: each part behind its length (u32, big endian), so that no two contexts encode alike.
    fn info(&self) -> Vec<u8> {
        let version = self.model_version.to_be_bytes();
        let sequence = self.sequence.to_be_bytes();
        let parts: [&[u8]; 7] = [
            CONTEXT,
            self.device.as_str().as_bytes(),
            self.bundle.as_bytes(),
            self.model.as_str().as_bytes(),
            &version,
            self.class.as_str().as_bytes(),
            &sequence,
        ];
        parts.iter().flat_map(|part| (part.len() as u32).to_be_bytes().into_iter().chain(part.iter().copied())).collect()
    }
}

/// A content key wrapped for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrappedKey([u8; WRAP_BYTES]);

impl WrappedKey {
    /// Parses a wrap as it came.
    ///
    /// # Errors
    /// [`ArtifactError::KeyForm`] for another length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let form = ArtifactError::KeyForm { what: "wrapped content key", expected: "80 bytes" };
        <[u8; WRAP_BYTES]>::try_from(bytes).map(Self).map_err(|_| form)
    }

    /// The 80 bytes.
    pub fn as_bytes(&self) -> &[u8; WRAP_BYTES] {
        &self.0
    }
}

/// Wraps a content key for the device that holds the secret half of `device_key`.
///
/// # Errors
/// [`ArtifactError::KeyForm`] for a public key that HPKE refuses (such as one of low order).
pub fn wrap(key: &ContentKey, device_key: &SealingPublicKey, context: &WrapContext<'_>) -> Result<WrappedKey, ArtifactError> {
    let (encapped, sealed) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &device_key.hpke()?,
        &context.info(),
        key.secret_bytes(),
        &[],
    )
    .map_err(|_| ArtifactError::KeyForm { what: "sealing public key", expected: "an X25519 public key that is not of low order" })?;
    WrappedKey::from_slice(&[&encapped.to_bytes()[..], &sealed[..]].concat())
}

/// Opens a wrap on the device.
///
/// # Errors
/// [`ArtifactError::Unwrap`] when it was made for another key or another context, or was altered.
pub fn unwrap(wrapped: &WrappedKey, device_key: &SealingKey, context: &WrapContext<'_>) -> Result<ContentKey, ArtifactError> {
    let (encapped, sealed) = wrapped.0.split_at(ENCAPPED_BYTES);
    let encapped = Deserializable::from_bytes(encapped).map_err(|_| ArtifactError::Unwrap)?;
    let plain = hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &device_key.hpke()?,
        &encapped,
        &context.info(),
        sealed,
        &[],
    )
    .map(Zeroizing::new)
    .map_err(|_| ArtifactError::Unwrap)?;
    ContentKey::from_slice(&plain)
}
