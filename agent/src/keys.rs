//! The device's two keys: Ed25519 for its certificate and reports, X25519 for the content keys that are wrapped for it.

use std::path::Path;

use pleach_artifact::SealingKey;
use pleach_trust::{SigningKey, sign_payload};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::AgentError;
use crate::files;
use crate::state::StateDir;

const KEY_BYTES: u64 = 32;

/// The keys of one device. Both wipe their memory when dropped.
pub struct DeviceKeys {
    identity: SigningKey,
    sealing: SealingKey,
}

impl DeviceKeys {
    /// Reads the keys of a state folder, or makes them. They never leave it.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] for a file of another length: a key that changes silently would be another device.
    pub fn load_or_create(state: &StateDir) -> Result<Self, AgentError> {
        let identity = load_or_create(&state.identity_key(), || {
            let mut seed = Zeroizing::new([0; 32]);
            getrandom::fill(&mut *seed).map_err(|_| AgentError::Crypto("an identity key"))?;
            Ok(seed)
        })?;
        let sealing = load_or_create(&state.sealing_key(), || Ok(Zeroizing::new(*SealingKey::generate()?.secret_bytes())))?;
        Ok(Self { identity: SigningKey::from_seed(&identity), sealing: SealingKey::from_slice(&*sealing)? })
    }

    /// Reads the keys of a state folder; `None` where it has none.
    ///
    /// # Errors
    /// As [`DeviceKeys::load_or_create`].
    pub fn load(state: &StateDir) -> Result<Option<Self>, AgentError> {
        if state.identity_key().exists() && state.sealing_key().exists() { Self::load_or_create(state).map(Some) } else { Ok(None) }
    }

    /// The sealing key.
    pub fn sealing(&self) -> &SealingKey {
        &self.sealing
    }

    /// The public half of the identity key, 32 bytes.
    pub fn identity_public(&self) -> [u8; 32] {
        self.identity.public_key().ed25519_bytes().unwrap_or_default()
    }

    /// Signs with the identity key under a context that no other kind of message has.
    pub fn sign(&self, context: &str, message: &[u8]) -> Vec<u8> {
        sign_payload(&self.identity, context, message).to_vec()
    }

    /// A certificate request (PKCS #10) signed by the identity key. The controller chooses the names.
    ///
    /// # Errors
    /// [`AgentError::Crypto`].
    pub fn certificate_request(&self) -> Result<CertificateSigningRequestDer<'static>, AgentError> {
        let failed = || AgentError::Crypto("a certificate request");
        let pair = KeyPair::try_from(&self.pkcs8()?).map_err(|_| failed())?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&pair).map(|request| request.der().clone()).map_err(|_| failed())
    }

    /// The identity key as TLS wants it.
    ///
    /// # Errors
    /// [`AgentError::Crypto`].
    pub fn tls_key(&self) -> Result<PrivateKeyDer<'static>, AgentError> {
        Ok(PrivateKeyDer::Pkcs8(self.pkcs8()?))
    }

    fn pkcs8(&self) -> Result<PrivatePkcs8KeyDer<'static>, AgentError> {
        let der = self.identity.to_pkcs8_der().map_err(|_| AgentError::Crypto("a PKCS #8 key"))?;
        Ok(PrivatePkcs8KeyDer::from(der.to_vec()))
    }
}

fn load_or_create(
    path: &Path,
    create: impl FnOnce() -> Result<Zeroizing<[u8; 32]>, AgentError>,
) -> Result<Zeroizing<[u8; 32]>, AgentError> {
    if let Some(bytes) = files::read_bounded(path, KEY_BYTES)?.map(Zeroizing::new) {
        let form = || AgentError::Damaged { path: path.to_owned(), reason: format!("it has {} bytes, expected {KEY_BYTES}", bytes.len()) };
        return <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new).map_err(|_| form());
    }
    let key = create()?;
    files::write_atomic(path, &*key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_a_short_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let keys = DeviceKeys::load_or_create(&state).unwrap();
        let again = DeviceKeys::load_or_create(&state).unwrap();
        assert_eq!(keys.identity_public(), again.identity_public());
        assert_eq!(keys.sealing(), again.sealing());
        std::fs::write(state.identity_key(), [1; 31]).unwrap();
        assert!(matches!(DeviceKeys::load_or_create(&state), Err(AgentError::Damaged { .. })));
    }

    #[test]
    fn the_request_is_for_the_identity_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys = DeviceKeys::load_or_create(&StateDir::open(dir.path()).unwrap()).unwrap();
        let der = keys.certificate_request().unwrap();
        let (_, csr) =
            <x509_parser::certification_request::X509CertificationRequest<'_> as x509_parser::prelude::FromDer<_>>::from_der(&der).unwrap();
        csr.verify_signature().unwrap();
        assert_eq!(*csr.certification_request_info.subject_pki.subject_public_key.data, keys.identity_public());
    }
}
