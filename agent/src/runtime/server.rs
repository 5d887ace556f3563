//! Listens: gRPC and REST share one Unix socket and, by choice, one loopback port.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use pleach_proto::device::local_server::LocalServer;
use pleach_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::runtime::error::RuntimeHalfError;
use crate::runtime::grpc::Services;
use crate::runtime::host::Host;
use crate::runtime::rest;

/// Largest request of either protocol.
pub(crate) const MAX_REQUEST_BYTES: usize = 32 << 20;
pub(crate) const SERVER_NAME: &str = "pleach-agent";
pub(crate) const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");
pub(crate) const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];
pub(crate) const PLATFORM: &str = "onnxruntime_onnx";
/// Who may use the socket: the agent's user and group.
const SOCKET_MODE: u32 = 0o660;

/// Listeners that are bound but not served yet.
#[derive(Debug)]
pub(crate) struct Listeners {
    unix: UnixListener,
    tcp: Option<TcpListener>,
}

impl Listeners {
    /// Binds the socket, replacing one that an earlier runtime left, and the loopback address.
    pub(crate) async fn bind(socket: &Path, loopback: Option<SocketAddr>) -> Result<Self, RuntimeHalfError> {
        let unix = bind_socket(socket).map_err(|source| RuntimeHalfError::Listen { at: socket.to_owned(), source })?;
        let tcp = match loopback {
            Some(address) if !address.ip().is_loopback() => return Err(RuntimeHalfError::NotLoopback(address)),
            Some(address) => {
                let listening = TcpListener::bind(address).await;
                Some(listening.map_err(|source| RuntimeHalfError::Listen { at: address.to_string().into(), source })?)
            }
            None => None,
        };
        Ok(Self { unix, tcp })
    }

    /// Address of the loopback listener.
    pub(crate) fn loopback(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Serves until `stop`, then lets requests in flight finish.
    pub(crate) async fn serve(self, host: Arc<Host>, stop: CancellationToken) -> Result<(), RuntimeHalfError> {
        let routes = routes(host);
        let unix = Server::builder()
            .accept_http1(true)
            .add_routes(routes.clone())
            .serve_with_incoming_shutdown(UnixListenerStream::new(self.unix), stop.clone().cancelled_owned());
        let tcp = async {
            let Some(listener) = self.tcp else { return Ok(()) };
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            Server::builder().accept_http1(true).add_routes(routes).serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await
        };
        tokio::try_join!(unix, tcp).map(drop).map_err(RuntimeHalfError::Serve)
    }
}

fn routes(host: Arc<Host>) -> Routes {
    let services = Services(Arc::clone(&host));
    let inference = GrpcInferenceServiceServer::new(services.clone()).max_decoding_message_size(MAX_REQUEST_BYTES);
    Routes::from(Routes::new(inference).add_service(LocalServer::new(services)).into_axum_router().merge(rest::router(host)))
}

/// Binds beside the wanted path, sets the mode and renames: clients meet the old socket or the new one, never one that is too open.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = Path::new(&beside);
    if beside.exists() {
        fs::remove_file(beside)?;
    }
    let listener = UnixListener::bind(beside)?;
    fs::set_permissions(beside, Permissions::from_mode(SOCKET_MODE))?;
    fs::rename(beside, path)?;
    Ok(listener)
}
