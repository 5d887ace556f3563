//! Who this device is: enrolment with a token, the certificate, and its renewal.
//!
//! Every step is safe to repeat. Keys are written first, the first root of trust next, the identity last: a crash in between
//! leaves a device that enrols again with the same key, which the controller answers again.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pleach_artifact::sha256;
use pleach_domain::{DeviceId, Digest};
use pleach_proto::SEALING_KEY_CONTEXT;
use pleach_proto::fleet::enrollment_client::EnrollmentClient;
use pleach_proto::fleet::{EnrollRequest, EnrollResponse, RenewRequest};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::Clock;
use crate::config::{Config, Endpoint};
use crate::error::AgentError;
use crate::keys::DeviceKeys;
use crate::state::StateDir;
use crate::tls::{self, PinnedAuthority};
use crate::token::{MAX_TOKEN_BYTES, Token};
use crate::{boot, files};

const MAX_IDENTITY_BYTES: u64 = 256 * 1024;
const MAX_ROOT_BYTES: usize = 512 * 1024;
const MAX_CHAIN: usize = 8;
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The name that a device's certificate carries, before the device id.
pub const DEVICE_URI: &str = "spiffe://pleach/device/";

/// An enrolled device: its id, its certificate, and the authority it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    device: DeviceId,
    chain: Vec<CertificateDer<'static>>,
    authority: CertificateDer<'static>,
    not_before_ms: i64,
    not_after_ms: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    device: DeviceId,
    chain_der: Vec<String>,
    authority_der: String,
}

impl Identity {
    /// Checks that a chain is this device's: its key, its name, and the pinned authority's signature.
    ///
    /// # Errors
    /// [`AgentError::Certificate`] says what does not fit.
    pub fn new(
        device: DeviceId,
        chain: Vec<CertificateDer<'static>>,
        authority: CertificateDer<'static>,
        key: &[u8; 32],
    ) -> Result<Self, AgentError> {
        let refuse = |why: String| AgentError::Certificate(why);
        if chain.len() > MAX_CHAIN {
            return Err(refuse(format!("its chain has {} certificates, expected at most {MAX_CHAIN}", chain.len())));
        }
        let leaf = chain.first().ok_or_else(|| refuse("its chain is empty".into()))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| refuse(format!("it is not X.509: {e}")))?;
        let (_, issuer) = X509Certificate::from_der(&authority).map_err(|e| refuse(format!("its authority is not X.509: {e}")))?;
        parsed
            .verify_signature(Some(issuer.public_key()))
            .map_err(|_| refuse("it is not signed by the authority that the token names".into()))?;
        if *parsed.public_key().subject_public_key.data != key[..] {
            return Err(refuse("it is for another key".into()));
        }
        let name = format!("{DEVICE_URI}{device}");
        let names = parsed.subject_alternative_name().ok().flatten();
        let named = names.is_some_and(|n| n.value.general_names.iter().any(|g| matches!(g, GeneralName::URI(uri) if *uri == name)));
        if !named {
            return Err(refuse(format!("it does not carry the name {name}")));
        }
        let validity = parsed.validity();
        let (not_before_ms, not_after_ms) =
            (validity.not_before.timestamp().saturating_mul(1000), validity.not_after.timestamp().saturating_mul(1000));
        Ok(Self { device, not_before_ms, not_after_ms, chain, authority })
    }

    /// Reads the identity of a state folder; `None` before enrolment.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] when the file does not hold an identity of this device's key.
    pub fn load(state: &StateDir, key: &[u8; 32]) -> Result<Option<Self>, AgentError> {
        let path = state.identity();
        let Some(bytes) = files::read_bounded(&path, MAX_IDENTITY_BYTES)? else { return Ok(None) };
        let damaged = |reason: String| AgentError::Damaged { path: path.clone(), reason };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let der = |text: &String| STANDARD.decode(text).map(CertificateDer::from).map_err(|e| damaged(e.to_string()));
        let chain = stored.chain_der.iter().map(der).collect::<Result<_, _>>()?;
        let identity = Self::new(stored.device, chain, der(&stored.authority_der)?, key).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(identity))
    }

    /// Keeps the identity, atomically.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn save(&self, state: &StateDir) -> Result<(), AgentError> {
        let stored = Stored {
            device: self.device.clone(),
            chain_der: self.chain.iter().map(|c| STANDARD.encode(c)).collect(),
            authority_der: STANDARD.encode(&self.authority),
        };
        let json = serde_json::to_vec_pretty(&stored).map_err(|_| AgentError::Crypto("the identity's JSON"))?;
        files::write_atomic(&state.identity(), &json)
    }

    /// Until when the certificate is valid, milliseconds since 1970 UTC.
    pub fn not_after_ms(&self) -> i64 {
        self.not_after_ms
    }

    /// The device's id.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// Whether the certificate should be replaced: two thirds of its life, and up to a tenth less by `random`, are over.
    pub fn renewal_due(&self, now_ms: i64, random: u64) -> bool {
        now_ms >= self.renewal_at_ms(random)
    }

    /// When the certificate should be replaced, milliseconds since 1970 UTC. `random` stays the same for one certificate.
    pub fn renewal_at_ms(&self, random: u64) -> i64 {
        let life_ms = self.not_after_ms.saturating_sub(self.not_before_ms).max(0);
        let early = i64::try_from(random % 1000).unwrap_or(0);
        self.not_before_ms.saturating_add(life_ms / 3 * 2).saturating_sub(life_ms / 10_000 * early)
    }

    /// TLS with this device's certificate.
    ///
    /// # Errors
    /// [`AgentError::Tls`], [`AgentError::Crypto`].
    pub fn client_config(&self, keys: &DeviceKeys, clock: &Clock) -> Result<Arc<ClientConfig>, AgentError> {
        let client = (self.chain.clone(), keys.tls_key()?);
        tls::client_config(PinnedAuthority::known(self.authority.clone()), Some(client), clock)
    }
}

/// The identity of this device: kept from before, or got with the configured token.
///
/// # Errors
/// [`AgentError::NotEnrolled`] without both; [`AgentError::Token`], [`AgentError::Call`] when the token or the controller refuses.
pub async fn load_or_enrol(config: &Config, state: &StateDir, keys: &DeviceKeys, clock: &Clock) -> Result<Identity, AgentError> {
    match Identity::load(state, &keys.identity_public()) {
        Ok(Some(identity)) => return Ok(identity),
        Ok(None) => {}
        Err(error) if config.token_file.is_some() => {
            tracing::warn!(%error, "the identity is unreadable; enrolling again with the same key")
        }
        Err(error) => return Err(error),
    }
    let path = config.token_file.as_deref().ok_or(AgentError::NotEnrolled)?;
    let text = files::read_bounded(path, MAX_TOKEN_BYTES)?.map(zeroize::Zeroizing::new).ok_or(AgentError::NotEnrolled)?;
    let text = std::str::from_utf8(&text).map_err(|_| AgentError::Token("it is not text"))?;
    enrol(config, state, keys, clock, &Token::parse(text)?).await
}

/// Enrols with a token.
///
/// # Errors
/// [`AgentError::Connect`] when the authority is not the token's, [`AgentError::Call`] with the controller's words,
/// [`AgentError::Certificate`] for an answer that is not for this device.
pub async fn enrol(config: &Config, state: &StateDir, keys: &DeviceKeys, clock: &Clock, token: &Token) -> Result<Identity, AgentError> {
    let tls = tls::client_config(PinnedAuthority::by_fingerprint(*token.authority()), None, clock)?;
    let sealing_public_key = keys.sealing().public_key()?.as_bytes().to_vec();
    let request = EnrollRequest {
        token: token.secret_text().to_owned(),
        csr_der: keys.certificate_request()?.to_vec(),
        sealing_signature: keys.sign(SEALING_KEY_CONTEXT, &sealing_public_key),
        sealing_public_key,
        requested_id: config.device_id.clone().unwrap_or_default(),
        boot_id: boot::id(),
    };
    let mut client = EnrollmentClient::new(tls::connect(&config.endpoint()?, tls).await?);
    let response = within("Enroll", client.enroll(request)).await?;
    if response.root_metadata.is_empty() || response.root_metadata.len() > MAX_ROOT_BYTES {
        let got = response.root_metadata.len();
        return Err(AgentError::Certificate(format!("the root of trust beside it has {got} bytes, expected 1 to {MAX_ROOT_BYTES}")));
    }
    let root = response.root_metadata.clone();
    let identity = adopt(response, token.authority(), keys)?;
    files::write_atomic(&state.trusted_root(), &root)?;
    identity.save(state)?;
    tracing::info!(device.id = %identity.device, token.id = %token.id(), "enrolled");
    Ok(identity)
}

/// Exchanges the certificate for a new one.
///
/// # Errors
/// Those of [`enrol`]; the old certificate stays then.
pub async fn renew(
    endpoint: &Endpoint,
    state: &StateDir,
    keys: &DeviceKeys,
    clock: &Clock,
    old: &Identity,
) -> Result<Identity, AgentError> {
    let tls = tls::client_config(PinnedAuthority::known(old.authority.clone()), None, clock)?;
    let certificate_der = old.chain.first().map(|c| c.to_vec()).unwrap_or_default();
    let request = RenewRequest { csr_der: keys.certificate_request()?.to_vec(), certificate_der, boot_id: boot::id() };
    let mut client = EnrollmentClient::new(tls::connect(endpoint, tls).await?);
    let response = within("Renew", client.renew(request)).await?;
    let identity = adopt(response, &sha256(&old.authority), keys)?;
    if identity.device != old.device {
        return Err(AgentError::Certificate(format!("it is for {}, this device is {}", identity.device, old.device)));
    }
    identity.save(state)?;
    tracing::info!(device.id = %identity.device, not_after_ms = identity.not_after_ms, "certificate renewed");
    Ok(identity)
}

async fn within<T>(call: &'static str, answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, AgentError> {
    let deadline = |_| AgentError::Deadline { call, seconds: CALL_TIMEOUT.as_secs() };
    timeout(CALL_TIMEOUT, answer).await.map_err(deadline)?.map(tonic::Response::into_inner).map_err(AgentError::call(call))
}

fn adopt(response: EnrollResponse, authority: &Digest, keys: &DeviceKeys) -> Result<Identity, AgentError> {
    let got = sha256(&response.authority_der);
    if got != *authority {
        return Err(AgentError::Certificate(format!("its authority has SHA-256 {got}, expected {authority}")));
    }
    let chain = response.certificate_chain_der.into_iter().map(CertificateDer::from).collect();
    Identity::new(response.device_id.parse()?, chain, response.authority_der.into(), &keys.identity_public())
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519, SanType,
    };

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap()
    }

    fn certificate(keys: &DeviceKeys, authority: &Authority, name: &str) -> CertificateDer<'static> {
        let mut csr = CertificateSigningRequestParams::from_der(&keys.certificate_request().unwrap()).unwrap();
        csr.params.subject_alt_names = vec![SanType::URI(name.to_owned().try_into().unwrap())];
        (csr.params.not_before, csr.params.not_after) = (rcgen::date_time_ymd(2030, 1, 1), rcgen::date_time_ymd(2030, 1, 31));
        csr.signed_by(authority).unwrap().der().clone()
    }

    struct Device {
        _dir: tempfile::TempDir,
        state: StateDir,
        keys: DeviceKeys,
    }

    fn device() -> Device {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let keys = DeviceKeys::load_or_create(&state).unwrap();
        Device { _dir: dir, state, keys }
    }

    fn response(device: &Device, authority: &Authority, name: &str) -> EnrollResponse {
        EnrollResponse {
            device_id: "d-1".into(),
            certificate_chain_der: vec![certificate(&device.keys, authority, name).to_vec()],
            authority_der: authority.der().to_vec(),
            ..EnrollResponse::default()
        }
    }

    #[test]
    fn an_identity_is_kept_and_read_again() {
        let (d, ca) = (device(), authority());
        let identity = adopt(response(&d, &ca, "spiffe://pleach/device/d-1"), &sha256(ca.der()), &d.keys).unwrap();
        identity.save(&d.state).unwrap();
        assert_eq!(Identity::load(&d.state, &d.keys.identity_public()).unwrap(), Some(identity.clone()));
        identity.client_config(&d.keys, &Clock::default()).unwrap();
    }

    #[test]
    fn refuses_another_authority_name_or_key() {
        let (d, ca, other) = (device(), authority(), authority());
        let good = || response(&d, &ca, "spiffe://pleach/device/d-1");
        let words = |r: EnrollResponse, pin: &Authority, d: &Device| adopt(r, &sha256(pin.der()), &d.keys).unwrap_err().to_string();
        assert!(words(good(), &other, &d).contains("its authority has SHA-256"));
        assert!(words(EnrollResponse { authority_der: other.der().to_vec(), ..good() }, &other, &d).contains("not signed"));
        assert!(words(response(&d, &ca, "spiffe://pleach/device/d-2"), &ca, &d).contains("name spiffe://pleach/device/d-1"));
        assert!(words(good(), &ca, &device()).contains("another key"));
        assert!(words(EnrollResponse { certificate_chain_der: vec![], ..good() }, &ca, &d).contains("empty"));
    }

    #[test]
    fn renews_at_two_thirds_or_a_little_earlier_and_still_after_expiry() {
        let (d, ca) = (device(), authority());
        let identity = adopt(response(&d, &ca, "spiffe://pleach/device/d-1"), &sha256(ca.der()), &d.keys).unwrap();
        let day_ms = 86_400_000;
        let at = |days: i64| identity.not_before_ms + days * day_ms;
        assert_eq!(identity.renewal_at_ms(0), at(20));
        assert!(identity.renewal_at_ms(999) > at(17) - day_ms / 10);
        assert!(!identity.renewal_due(at(16), u64::MAX) && identity.renewal_due(at(20), 0) && identity.renewal_due(at(300), 0));
    }

    #[test]
    fn a_damaged_identity_says_so() {
        let d = device();
        std::fs::write(d.state.identity(), b"{\"device\"").unwrap();
        assert!(matches!(Identity::load(&d.state, &d.keys.identity_public()), Err(AgentError::Damaged { .. })));
    }
}
