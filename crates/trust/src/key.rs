//! Keys: public ones as TUF writes them, of the three types it defines, and our own Ed25519 secrets.

use std::fmt;

use ed25519_dalek::pkcs8::spki::{Document, SubjectPublicKeyInfoRef};
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, ObjectIdentifier};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use ring::signature::{ECDSA_P256_SHA256_ASN1, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::canonical;
use crate::error::TrustError;
use crate::hash::Sha256Digest;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// Identifies a key in metadata. Ours are the SHA-256 of the canonical key; of others it is only a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public key as it stands in metadata. A type or scheme we do not know is kept, and verifies nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// `ed25519`, `ecdsa` or `rsa`.
    pub keytype: String,
    /// `ed25519`, `ecdsa-sha2-nistp256` or `rsassa-pss-sha256`.
    pub scheme: String,
    /// The key itself.
    pub keyval: KeyValue,
    /// Fields we do not know, kept for the signature's sake.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The `keyval` of a [`PublicKey`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Hexadecimal for Ed25519, PEM of a SubjectPublicKeyInfo otherwise.
    pub public: String,
    /// Fields we do not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Key material ready to verify; equal material is the same key, whatever its id says.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Material {
    Ed25519([u8; 32]),
    EcdsaP256(Vec<u8>),
    RsaPss(Vec<u8>),
}

impl PublicKey {
    /// The metadata form of 32 Ed25519 bytes.
    pub fn ed25519(bytes: &[u8; 32]) -> Self {
        let keyval = KeyValue { public: hex::encode(bytes), extra: Map::new() };
        Self { keytype: "ed25519".into(), scheme: "ed25519".into(), keyval, extra: Map::new() }
    }

    /// The 32 bytes, when this is an Ed25519 key.
    pub fn ed25519_bytes(&self) -> Option<[u8; 32]> {
        match self.material()? {
            Material::Ed25519(bytes) => Some(bytes),
            Material::EcdsaP256(_) | Material::RsaPss(_) => None,
        }
    }

    /// SHA-256 of the canonical JSON of the key, hexadecimal (TUF specification, section 4.2).
    ///
    /// # Errors
    /// [`TrustError::Key`] when the unknown fields hold something that has no canonical form.
    pub fn key_id(&self) -> Result<KeyId, TrustError> {
        let bytes = serde_json::to_value(self).and_then(|value| canonical::encode(&value));
        let bytes = bytes.map_err(|_| TrustError::Key { what: "public key", reason: "it has no canonical form" })?;
        Ok(KeyId(Sha256Digest::of(&bytes).to_string()))
    }

    /// Whether `signature` is this key's over `message`. Ed25519 is checked strictly (no small-order keys, canonical encodings).
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.material().is_some_and(|material| material.verifies(message, signature))
    }

    pub(crate) fn material(&self) -> Option<Material> {
        match (self.keytype.as_str(), self.scheme.as_str()) {
            ("ed25519", "ed25519") => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(&self.keyval.public, &mut bytes).ok()?;
                Some(Material::Ed25519(bytes))
            }
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => spki(&self.keyval.public, EC, Some(P256)).map(Material::EcdsaP256),
            ("rsa", "rsassa-pss-sha256") => spki(&self.keyval.public, RSA, None).map(Material::RsaPss),
            _ => None,
        }
    }
}

impl Material {
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => match (VerifyingKey::from_bytes(key), Signature::from_slice(signature)) {
                (Ok(key), Ok(signature)) => key.verify_strict(message, &signature).is_ok(),
                (Err(_), _) | (_, Err(_)) => false,
            },
            Self::EcdsaP256(key) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(message, signature).is_ok(),
            Self::RsaPss(key) => UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key).verify(message, signature).is_ok(),
        }
    }
}

/// The key bits of a PEM SubjectPublicKeyInfo of the given algorithm and curve.
fn spki(pem: &str, algorithm: ObjectIdentifier, curve: Option<ObjectIdentifier>) -> Option<Vec<u8>> {
    // A key without its last line break is common in metadata and harmless.
    let (label, document) = Document::from_pem(pem.trim_end()).ok()?;
    let info = SubjectPublicKeyInfoRef::try_from(document.as_bytes()).ok()?;
    let right = label == "PUBLIC KEY" && info.algorithm.oid == algorithm;
    let curve_right = curve.is_none_or(|curve| info.algorithm.parameters_oid().ok() == Some(curve));
    if right && curve_right { info.subject_public_key.as_bytes().map(<[u8]>::to_vec) } else { None }
}

/// An Ed25519 secret key. Its memory is wiped when it is dropped, and it prints nothing of itself.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// [`TrustError::Randomness`].
    pub fn generate() -> Result<Self, TrustError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|_| TrustError::Randomness)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a 32-byte seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Parses a PKCS#8 `PRIVATE KEY` in PEM.
    ///
    /// # Errors
    /// [`TrustError::Key`]; it never repeats the material.
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        let wrong = TrustError::Key { what: "signing key", reason: "expected an Ed25519 PKCS#8 key in PEM" };
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem).map(Self).map_err(|_| wrong)
    }

    /// Parses a PKCS#8 key in DER.
    ///
    /// # Errors
    /// [`TrustError::Key`]; it never repeats the material.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, TrustError> {
        let wrong = TrustError::Key { what: "signing key", reason: "expected an Ed25519 PKCS#8 key in DER" };
        ed25519_dalek::SigningKey::from_pkcs8_der(der).map(Self).map_err(|_| wrong)
    }

    /// The key as PKCS#8 in PEM (RFC 8410, with the public key), for a file only its owner reads.
    ///
    /// # Errors
    /// [`TrustError::Key`] when encoding fails.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, TrustError> {
        self.0.to_pkcs8_pem(Default::default()).map_err(|_| TrustError::Key { what: "signing key", reason: "it does not encode" })
    }

    /// The key as PKCS#8 in DER (RFC 8410, with the public key), as rustls, rcgen and ring read it.
    ///
    /// # Errors
    /// [`TrustError::Key`] when encoding fails.
    pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, TrustError> {
        let der = self.0.to_pkcs8_der().map_err(|_| TrustError::Key { what: "signing key", reason: "it does not encode" })?;
        Ok(Zeroizing::new(der.as_bytes().to_vec()))
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::ed25519(self.0.verifying_key().as_bytes())
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}
