//! The secrets of this crate: content keys, the controller's key-encryption key, and the devices' sealing keys.
//!
//! All of them wipe their memory when dropped and print nothing of themselves. Keys that ring and hpke expand from them
//! live only inside one call or one [`crate::Opener`].

use std::fmt;

use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, Serializable};
use pleach_domain::Digest;
use ring::aead;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::ArtifactError;

const NONCE_BYTES: usize = 12;
const STORED_BYTES: usize = NONCE_BYTES + 32 + aead::MAX_TAG_LEN;
const STORED_CONTEXT: &[u8] = b"pleach stored content key v1\0";

pub(crate) fn random<const N: usize>() -> Result<[u8; N], ArtifactError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| ArtifactError::Crypto("randomness of the operating system"))?;
    Ok(bytes)
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes 32 secret bytes, e.g. from a key file.
            ///
            /// # Errors
            /// [`ArtifactError::KeyForm`] for any other length.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, ArtifactError> {
                let form = ArtifactError::KeyForm { what: $what, expected: "32 bytes" };
                <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| form)
            }

            /// The 32 secret bytes. Keep them in memory that is wiped.
            pub fn secret_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }

        impl Eq for $name {}
    };
}

secret!(
    /// The key that one bundle is sealed under. Fresh for each bundle: [`crate::seal()`] makes it.
    ContentKey, "content key");
secret!(
    /// The controller's key for keeping content keys at rest (AES-256-GCM).
    KeyEncryptionKey, "key-encryption key");
secret!(
    /// A device's X25519 secret key, which opens the wraps made for it.
    SealingKey, "sealing key");

impl ContentKey {
    pub(crate) fn generate() -> Result<Self, ArtifactError> {
        random().map(Self)
    }
}

impl SealingKey {
    /// Makes a fresh key (RFC 9180, section 7.1.3 DeriveKeyPair over 32 random bytes).
    ///
    /// # Errors
    /// [`ArtifactError::Crypto`] when the operating system gives no randomness.
    pub fn generate() -> Result<Self, ArtifactError> {
        let seed = Zeroizing::new(random::<32>()?);
        let (secret, _) = X25519HkdfSha256::derive_keypair(&*seed);
        let bytes = Zeroizing::new(<[u8; 32]>::from(secret.to_bytes()));
        Ok(Self(*bytes))
    }

    /// The public half, for the controller.
    ///
    /// # Errors
    /// [`ArtifactError::KeyForm`] when the stored bytes are no X25519 secret.
    pub fn public_key(&self) -> Result<SealingPublicKey, ArtifactError> {
        let public = X25519HkdfSha256::sk_to_pk(&self.hpke()?);
        Ok(SealingPublicKey(public.to_bytes().into()))
    }

    pub(crate) fn hpke(&self) -> Result<<X25519HkdfSha256 as Kem>::PrivateKey, ArtifactError> {
        Deserializable::from_bytes(&self.0).map_err(|_| ArtifactError::KeyForm { what: "sealing key", expected: "an X25519 secret key" })
    }
}

/// A device's X25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SealingPublicKey([u8; 32]);

impl SealingPublicKey {
    /// Parses 32 bytes as they came from a device.
    ///
    /// # Errors
    /// [`ArtifactError::KeyForm`] for another length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let form = ArtifactError::KeyForm { what: "sealing public key", expected: "32 bytes" };
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| form)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn hpke(&self) -> Result<<X25519HkdfSha256 as Kem>::PublicKey, ArtifactError> {
        Deserializable::from_bytes(&self.0)
            .map_err(|_| ArtifactError::KeyForm { what: "sealing public key", expected: "an X25519 public key" })
    }
}

impl KeyEncryptionKey {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// [`ArtifactError::Crypto`] when the operating system gives no randomness.
    pub fn generate() -> Result<Self, ArtifactError> {
        random().map(Self)
    }

    /// Encrypts a content key for storage, bound to its bundle: nonce (12) || ciphertext (32) || tag (16).
    ///
    /// # Errors
    /// [`ArtifactError::Crypto`] when the operating system gives no randomness.
    pub fn encrypt(&self, key: &ContentKey, bundle: &Digest) -> Result<Vec<u8>, ArtifactError> {
        let nonce = random::<NONCE_BYTES>()?;
        let mut body = Zeroizing::new(key.0);
        let tag = self
            .aead()?
            .seal_in_place_separate_tag(aead::Nonce::assume_unique_for_key(nonce), stored_aad(bundle), &mut *body)
            .map_err(|_| ArtifactError::Crypto("encryption of a content key"))?;
        Ok([&nonce[..], &body[..], tag.as_ref()].concat())
    }

    /// Opens what [`KeyEncryptionKey::encrypt`] gave for the same bundle.
    ///
    /// # Errors
    /// [`ArtifactError::StoredKey`] when it was made by another key or for another bundle, or was altered.
    pub fn decrypt(&self, stored: &[u8], bundle: &Digest) -> Result<ContentKey, ArtifactError> {
        let refused = || ArtifactError::StoredKey { bundle: *bundle };
        let stored: &[u8; STORED_BYTES] = stored.try_into().map_err(|_| refused())?;
        let (nonce, body) = stored.split_first_chunk::<NONCE_BYTES>().ok_or_else(refused)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain =
            self.aead()?.open_in_place(aead::Nonce::assume_unique_for_key(*nonce), stored_aad(bundle), &mut body).map_err(|_| refused())?;
        ContentKey::from_slice(plain)
    }

    fn aead(&self) -> Result<aead::LessSafeKey, ArtifactError> {
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &self.0).map_err(|_| ArtifactError::Crypto("key-encryption key"))?;
        Ok(aead::LessSafeKey::new(key))
    }
}

fn stored_aad(bundle: &Digest) -> aead::Aad<Vec<u8>> {
    aead::Aad::from([STORED_CONTEXT, bundle.as_bytes()].concat())
}
