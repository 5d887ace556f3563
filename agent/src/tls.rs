//! TLS to the controller: its certificate must come from the one authority that the enrolment token names.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pleach_artifact::sha256;
use pleach_domain::Digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Uri};
use tower::service_fn;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::Clock;
use crate::config::Endpoint;
use crate::error::AgentError;

/// Longest time for a TCP connection and for a TLS handshake, each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A certificate chain without the one authority that is trusted.
struct ForeignAuthority {
    expected: Digest,
}

impl fmt::Display for ForeignAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the controller does not show the authority certificate with SHA-256 {} that this device trusts", self.expected)
    }
}

// rustls shows foreign errors by their debug text only.
impl fmt::Debug for ForeignAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ForeignAuthority {}

/// Accepts a server certificate that one pinned authority signed for the name that was dialled.
#[derive(Debug)]
pub struct PinnedAuthority {
    fingerprint: Digest,
    known: Option<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl PinnedAuthority {
    /// Pins by the SHA-256 of the authority's certificate; the server must send that certificate in its chain.
    pub fn by_fingerprint(fingerprint: Digest) -> Self {
        Self { fingerprint, known: None, provider: Arc::new(ring::default_provider()) }
    }

    /// Pins a certificate that is already here.
    pub fn known(authority: CertificateDer<'static>) -> Self {
        Self { fingerprint: sha256(&authority), known: Some(authority), provider: Arc::new(ring::default_provider()) }
    }

    fn verifier(&self, sent: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let sent = || sent.iter().find(|c| sha256(c) == self.fingerprint).cloned().map(CertificateDer::into_owned);
        let foreign = || CertificateError::Other(OtherError(Arc::new(ForeignAuthority { expected: self.fingerprint })));
        let authority = self.known.clone().or_else(sent).ok_or_else(foreign)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority)?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // A device whose clock is behind, or that has none, is not locked out: the authority vouches for the later time.
        let now = not_before(end_entity).map_or(now, |begin| now.max(begin));
        self.verifier(intermediates)?.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn not_before(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_before.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

/// TLS as a client of the controller, HTTP/2, with a client certificate or without.
///
/// # Errors
/// [`AgentError::Tls`] when key and certificate do not fit each other.
pub fn client_config(
    verifier: PinnedAuthority,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>, AgentError> {
    let provider = verifier.provider.clone();
    let builder = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(AgentError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(AgentError::Tls)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Connects to the controller.
///
/// # Errors
/// [`AgentError::Connect`] with the TCP, TLS or HTTP/2 error as its source.
pub async fn connect(endpoint: &Endpoint, config: Arc<ClientConfig>) -> Result<Channel, AgentError> {
    let (host, port) = (endpoint.host.clone(), endpoint.port);
    let controller = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let name = ServerName::try_from(host.clone()).map_err(|_| AgentError::Config {
        key: "controller",
        got: host.clone(),
        expected: "a host name or address",
    })?;
    let connector = service_fn(move |_: Uri| {
        let (host, name, config) = (host.clone(), name.clone(), config.clone());
        async move {
            let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), port))).await??;
            tcp.set_nodelay(true)?;
            let tls = tokio::time::timeout(CONNECT_TIMEOUT, TlsConnector::from(config).connect(name, tcp)).await??;
            Ok::<_, std::io::Error>(TokioIo::new(tls))
        }
    });
    // TLS is the connector's own, so tonic is told plain HTTP.
    let failed = |source| AgentError::Connect { controller: controller.clone(), source };
    let channel = Channel::from_shared(format!("http://{controller}")).map_err(|_| AgentError::Config {
        key: "controller",
        got: controller.clone(),
        expected: "a host name or address",
    })?;
    channel.connect_with_connector(connector).await.map_err(failed)
}

#[cfg(test)]
mod tests;
