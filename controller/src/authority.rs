//! The certificate authority of one fleet: the controller's own certificate and those of the devices.
//!
//! The authority and the server have ECDSA P-256 keys, which every TLS client knows; devices have Ed25519 identity keys.
//! Of a device's request only the public key is taken, after its proof of possession; subject and names are ours.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ed25519_dalek::{Signature, VerifyingKey};
use pleach_domain::{DeviceId, Digest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::error::ControllerError;
use crate::files::{self, Access};
use crate::random;

/// Prefix of the name in a device's certificate.
pub const DEVICE_URI: &str = "spiffe://pleach/device/";
/// Longest certification request that is read.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// Longest certificate that is read.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

const DAY_MS: i64 = 24 * 3_600 * 1_000;
const AUTHORITY_LIFE_MS: i64 = 20 * 365 * DAY_MS;
const SERVER_LIFE_MS: i64 = 90 * DAY_MS;
/// The server's certificate is renewed at start when less than this is left.
const SERVER_RENEW_MS: i64 = 30 * DAY_MS;
/// Certificates begin this much in the past, for devices whose clock is a little slow.
const BACKDATE_MS: i64 = 3_600 * 1_000;

/// A device's Ed25519 identity key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityKey([u8; 32]);

impl IdentityKey {
    /// Takes 32 bytes.
    ///
    /// # Errors
    /// [`ControllerError::Certificate`] when they are no Ed25519 public key, or a weak one.
    pub fn new(bytes: [u8; 32]) -> Result<Self, ControllerError> {
        let refused = |reason: &str| ControllerError::Certificate { doing: "read the identity key", reason: reason.to_owned() };
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| refused("no Ed25519 public key"))?;
        if key.is_weak() { Err(refused("a key of low order")) } else { Ok(Self(bytes)) }
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` over `message` is this key's (RFC 8032, strict).
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = VerifyingKey::from_bytes(&self.0);
        let signature = Signature::from_slice(signature);
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify_strict(message, &signature).is_ok())
    }
}

impl PublicKeyData for IdentityKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// What a device's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCertificate {
    /// The device.
    pub device: DeviceId,
    /// Its identity key.
    pub key: IdentityKey,
    /// When the certificate ends, milliseconds since 1970 UTC.
    pub not_after_ms: i64,
}

/// The fleet's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    device_life_ms: i64,
}

/// The controller's own certificate and key.
pub struct ServerIdentity {
    /// Leaf, then authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Secret key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl Authority {
    /// Opens the authority whose key is in `key_dir` and whose certificate is `ca_file`, or founds it.
    ///
    /// # Errors
    /// [`ControllerError`] when a file cannot be read, written or used.
    pub fn open(key_dir: &Path, ca_file: &Path, device_life: Duration, now_ms: i64) -> Result<Self, ControllerError> {
        let key_pair = open_key(&key_dir.join("authority.pem"))?;
        if files::read(ca_file, Access::Public)?.is_none() {
            let params = authority_params(now_ms)?;
            let certificate = params.self_signed(&key_pair).map_err(ControllerError::certificate("sign the authority's certificate"))?;
            files::create(ca_file, certificate.pem().as_bytes(), Access::Public)?;
        }
        let certificate = read_certificate(ca_file)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key_pair).map_err(ControllerError::certificate("use the authority"))?;
        let device_life_ms = i64::try_from(device_life.as_millis()).unwrap_or(i64::MAX);
        let authority = Self { issuer, certificate, device_life_ms };
        authority.check_pair(ca_file)?;
        Ok(authority)
    }

    /// The authority's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the authority's certificate.
    pub fn fingerprint(&self) -> Digest {
        pleach_artifact::sha256(&self.certificate)
    }

    /// Opens the controller's own certificate, or makes a new one when there is none, when it is near its end, or when it is not for exactly these names.
    ///
    /// # Errors
    /// [`ControllerError`] when a file cannot be read, written or used, or a name is none.
    pub fn server_identity(&self, key_dir: &Path, names: &[String], now_ms: i64) -> Result<ServerIdentity, ControllerError> {
        let key_pair = open_key(&key_dir.join("server.pem"))?;
        let path = key_dir.join("server.crt");
        let wanted = server_names(names)?;
        let present = files::read(&path, Access::Public)?.is_some().then(|| read_certificate(&path)).transpose()?;
        let certificate = match present.filter(|c| self.is_current(c, &key_pair, &wanted, now_ms)) {
            Some(certificate) => certificate,
            None => {
                let mut params = params("Pleach controller", now_ms - BACKDATE_MS, now_ms + SERVER_LIFE_MS)?;
                params.subject_alt_names = wanted;
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                let certificate =
                    params.signed_by(&key_pair, &self.issuer).map_err(ControllerError::certificate("sign the server's certificate"))?;
                files::replace(&path, certificate.pem().as_bytes(), Access::Public)?;
                certificate.into()
            }
        };
        Ok(ServerIdentity { chain: vec![certificate, self.certificate.clone()], key: key_pair.into() })
    }

    /// Issues a certificate for a device's identity key.
    ///
    /// # Errors
    /// [`ControllerError::Certificate`] when it cannot be signed.
    pub fn issue(&self, device: &DeviceId, key: &IdentityKey, now_ms: i64) -> Result<CertificateDer<'static>, ControllerError> {
        let mut params = params(device.as_str(), now_ms - BACKDATE_MS, now_ms.saturating_add(self.device_life_ms))?;
        let uri = format!("{DEVICE_URI}{device}").try_into().map_err(ControllerError::certificate("name the device"))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(key, &self.issuer).map_err(ControllerError::certificate("sign a device's certificate"))?;
        Ok(certificate.into())
    }

    /// Reads a device's certificate, whether or not it has ended, when this authority signed it.
    ///
    /// # Errors
    /// [`ControllerError::Certificate`] for anything else.
    pub fn read_device(&self, der: &[u8]) -> Result<DeviceCertificate, ControllerError> {
        let refused = |reason: String| ControllerError::Certificate { doing: "read the device certificate", reason };
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(refused(format!("{} bytes: expected at most {MAX_CERTIFICATE_BYTES}", der.len())));
        }
        let certificate = parse(der)?;
        let authority = parse(&self.certificate)?;
        certificate
            .verify_signature(Some(authority.public_key()))
            .map_err(|_| refused("another authority signed it, or it was altered".into()))?;
        device_of(&certificate)
    }

    fn is_current(&self, der: &CertificateDer<'_>, key: &KeyPair, wanted: &[SanType], now_ms: i64) -> bool {
        let (Ok(certificate), Ok(authority)) = (parse(der), parse(&self.certificate)) else { return false };
        let names = certificate.subject_alternative_name().ok().flatten();
        let names: Vec<String> = names.iter().flat_map(|n| &n.value.general_names).filter_map(name_text).collect();
        let wanted: Vec<String> = wanted.iter().filter_map(san_text).collect();
        certificate.verify_signature(Some(authority.public_key())).is_ok()
            && certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
            && certificate.validity().not_after.timestamp().saturating_mul(1_000) - now_ms > SERVER_RENEW_MS
            && names == wanted
    }

    fn check_pair(&self, ca_file: &Path) -> Result<(), ControllerError> {
        let certificate = parse(&self.certificate)?;
        if certificate.public_key().subject_public_key.data.as_ref() == self.issuer.key().public_key_raw() {
            return Ok(());
        }
        Err(ControllerError::Key { path: ca_file.to_owned(), reason: "is not the certificate of keys/authority.pem".into() })
    }
}

/// Reads a device's certificate that TLS has already verified.
///
/// # Errors
/// [`ControllerError::Certificate`] when it names no device.
pub fn verified_device(der: &CertificateDer<'_>) -> Result<DeviceCertificate, ControllerError> {
    device_of(&parse(der)?)
}

/// Serial number of a certificate, hexadecimal.
///
/// # Errors
/// [`ControllerError::Certificate`] when it cannot be read.
pub fn serial(der: &CertificateDer<'_>) -> Result<String, ControllerError> {
    Ok(hex::encode(parse(der)?.tbs_certificate.raw_serial()))
}

/// Takes the identity key out of a certification request (PKCS #10, DER), after its proof of possession. Nothing else of it is used.
///
/// # Errors
/// [`ControllerError::Certificate`] when it is malformed, not for an Ed25519 key, or not signed by it.
pub fn request_key(der: &[u8]) -> Result<IdentityKey, ControllerError> {
    let refused = |reason: &str| ControllerError::Certificate { doing: "read the certification request", reason: reason.to_owned() };
    if der.len() > MAX_REQUEST_BYTES {
        return Err(refused("more than 8192 bytes"));
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| refused("no PKCS #10 request in DER"))?;
    if !rest.is_empty() {
        return Err(refused("bytes behind its end"));
    }
    let info = &request.certification_request_info;
    let key = ed25519_key(&info.subject_pki).ok_or_else(|| refused("its key is not Ed25519"))?;
    let key = IdentityKey::new(key)?;
    if key.verifies(info.raw, request.signature_value.data.as_ref()) { Ok(key) } else { Err(refused("its signature is not by its key")) }
}

fn device_of(certificate: &X509Certificate<'_>) -> Result<DeviceCertificate, ControllerError> {
    let refused = |reason: &str| ControllerError::Certificate { doing: "read the device certificate", reason: reason.to_owned() };
    let names = certificate.subject_alternative_name().ok().flatten().ok_or_else(|| refused("it has no names"))?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err(refused("it has not exactly one URI name"));
    };
    let device = uri.strip_prefix(DEVICE_URI).and_then(|id| id.parse().ok()).ok_or_else(|| refused("its URI names no device"))?;
    let key = ed25519_key(certificate.public_key()).ok_or_else(|| refused("its key is not Ed25519"))?;
    let not_after_ms = certificate.validity().not_after.timestamp().saturating_mul(1_000);
    Ok(DeviceCertificate { device, key: IdentityKey::new(key)?, not_after_ms })
}

fn ed25519_key(info: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Option<[u8; 32]> {
    let is_ed25519 = info.algorithm.algorithm.to_id_string() == "1.3.101.112";
    is_ed25519.then(|| info.subject_public_key.data.as_ref().try_into().ok()).flatten()
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, ControllerError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(ControllerError::certificate("read a certificate"))?;
    Ok(certificate)
}

fn open_key(path: &Path) -> Result<KeyPair, ControllerError> {
    let refused = |e: rcgen::Error| ControllerError::Key { path: path.to_owned(), reason: e.to_string() };
    if files::read(path, Access::Secret)?.is_none() {
        let fresh = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused)?;
        let pem = zeroize::Zeroizing::new(fresh.serialize_pem());
        files::create(path, pem.as_bytes(), Access::Secret)?;
    }
    let pem = files::read(path, Access::Secret)?.unwrap_or_default();
    let text = std::str::from_utf8(&pem).map_err(|_| ControllerError::Key { path: path.to_owned(), reason: "is no PEM".into() })?;
    KeyPair::from_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256).map_err(refused)
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, ControllerError> {
    let pem = files::read(path, Access::Public)?.unwrap_or_default();
    CertificateDer::from_pem_slice(&pem).map_err(|e| ControllerError::Key { path: path.to_owned(), reason: e.to_string() })
}

fn params(name: &str, not_before_ms: i64, not_after_ms: i64) -> Result<CertificateParams, ControllerError> {
    let mut params = CertificateParams::default();
    let at = |ms: i64| date_time_ymd(1970, 1, 1) + Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    (params.not_before, params.not_after) = (at(not_before_ms), at(not_after_ms));
    let mut serial = random::bytes::<16>()?;
    serial[0] = serial[0] & 0x7f | 0x40; // positive and of full length
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn authority_params(now_ms: i64) -> Result<CertificateParams, ControllerError> {
    let mut params = params("Pleach fleet authority", now_ms - BACKDATE_MS, now_ms + AUTHORITY_LIFE_MS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn server_names(names: &[String]) -> Result<Vec<SanType>, ControllerError> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    for name in names {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    all.iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => {
                let refused = || ControllerError::Config(format!("hostname {name:?}: expected a DNS name or an IP address"));
                let name = DnsName::try_from(name.as_str()).map_err(|_| refused())?;
                name.as_ref().try_into().map(SanType::DnsName).map_err(|_| refused())
            }
        })
        .collect()
}

fn san_text(san: &SanType) -> Option<String> {
    match san {
        SanType::DnsName(name) => Some(name.as_str().to_owned()),
        SanType::IpAddress(ip) => Some(ip.to_string()),
        _ => None,
    }
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn authority(folder: &Path) -> Authority {
        files::private_folder(&folder.join("keys")).unwrap();
        Authority::open(&folder.join("keys"), &folder.join("ca.pem"), Duration::from_secs(3_600), NOW).unwrap()
    }

    fn request(key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "someone else");
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn opening_again_gives_the_same_authority_and_server() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (authority(folder.path()), authority(folder.path()));
        assert_eq!(a.fingerprint(), b.fingerprint());
        let keys = folder.path().join("keys");
        let first = a.server_identity(&keys, &["pleach.example".to_owned()], NOW).unwrap();
        let second = b.server_identity(&keys, &["pleach.example".to_owned()], NOW + DAY_MS).unwrap();
        assert_eq!(first.chain, second.chain);
    }

    #[test]
    fn the_server_certificate_is_renewed_near_its_end_and_for_other_names() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, keys) = (authority(folder.path()), folder.path().join("keys"));
        let first = authority.server_identity(&keys, &[], NOW).unwrap();
        let later = authority.server_identity(&keys, &[], NOW + 61 * DAY_MS).unwrap();
        assert_ne!(first.chain, later.chain);
        let named = authority.server_identity(&keys, &["10.0.0.7".to_owned()], NOW + 61 * DAY_MS).unwrap();
        assert_ne!(later.chain, named.chain);
        assert!(authority.server_identity(&keys, &["not a name".to_owned()], NOW).is_err());
    }

    #[test]
    fn a_device_certificate_carries_our_name_and_the_requested_key_only() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = request_key(&request(&pair)).unwrap();
        assert_eq!(key.as_bytes(), pair.public_key_raw());
        let device: DeviceId = "dev-1".parse().unwrap();
        let der = authority.issue(&device, &key, NOW).unwrap();
        let read = authority.read_device(&der).unwrap();
        assert_eq!(read, DeviceCertificate { device, key, not_after_ms: NOW + 3_600_000 });
        assert!(!der.windows(12).any(|w| w == b"evil.example"));
    }

    #[test]
    fn refuses_requests_without_proof_of_possession_or_with_other_keys() {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut altered = request(&pair);
        *altered.last_mut().unwrap() ^= 1;
        assert!(request_key(&altered).unwrap_err().to_string().contains("its signature is not by its key"));
        let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        assert!(request_key(&request(&other)).unwrap_err().to_string().contains("not Ed25519"));
        assert!(request_key(b"nonsense").is_err());
        assert!(request_key(&[request(&pair), vec![0]].concat()).is_err());
    }

    #[test]
    fn refuses_certificates_of_another_authority() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = request_key(&request(&KeyPair::generate_for(&PKCS_ED25519).unwrap())).unwrap();
        let foreign = authority(there.path()).issue(&"dev-1".parse().unwrap(), &key, NOW).unwrap();
        let refusal = authority(here.path()).read_device(&foreign).unwrap_err().to_string();
        assert!(refusal.contains("another authority signed it"), "{refusal}");
    }
}
