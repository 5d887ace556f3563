//! Listeners that speak TLS: handshakes run beside each other, are bounded in number and time, and hand over finished connections.
//!
//! Client certificates are asked for and verified against the authority, but may be absent: which calls need one is decided per call.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::authority::{Authority, ServerIdentity};
use crate::error::ControllerError;

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once on one listener.
const HANDSHAKES: usize = 256;

/// A finished connection.
pub(crate) type Connection = TlsStream<TcpStream>;

/// Whether a listener asks for client certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clients {
    /// Asks, and verifies what comes.
    MayCertify,
    /// Does not ask.
    Anonymous,
}

/// TLS configuration of a listener that offers the given application protocols (ALPN).
pub(crate) fn config(
    authority: &Authority,
    identity: &ServerIdentity,
    clients: Clients,
    protocols: &[&str],
) -> Result<Arc<ServerConfig>, ControllerError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(ControllerError::Tls)?;
    let builder = match clients {
        Clients::Anonymous => builder.with_no_client_auth(),
        Clients::MayCertify => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate().clone()).map_err(ControllerError::Tls)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(ControllerError::certificate("verify clients"))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(identity.chain.clone(), identity.key.clone_key()).map_err(ControllerError::Tls)?;
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// Accepts connections until `stop`, and hands over those whose handshake succeeded.
pub(crate) fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    stop: CancellationToken,
) -> mpsc::Receiver<(Connection, SocketAddr)> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(run(listener, TlsAcceptor::from(config), stop, sender));
    receiver
}

async fn run(listener: TcpListener, acceptor: TlsAcceptor, stop: CancellationToken, sender: mpsc::Sender<(Connection, SocketAddr)>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: let some close.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(connection)) => {
                    let _ = sender.send((connection, peer)).await;
                }
                Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => debug!(%peer, "TLS handshake took too long"),
            }
            drop(permit);
        });
    }
}

/// Finished connections as axum takes them.
pub(crate) struct TlsListener {
    connections: mpsc::Receiver<(Connection, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    pub(crate) fn new(connections: mpsc::Receiver<(Connection, SocketAddr)>, address: SocketAddr) -> Self {
        Self { connections, address }
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            // The acceptor has stopped; so will the server, by its own signal.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}
