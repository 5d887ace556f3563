//! Listens: gRPC and REST share one Unix socket and, by choice, one loopback port.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use pleach_artifact::sha256;
use pleach_domain::Digest;
use pleach_proto::device::local_server::LocalServer;
use pleach_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::runtime::error::{RuntimeHalfError, ServeError};
use crate::runtime::grpc::Services;
use crate::runtime::host::Host;
use crate::runtime::rest;

/// Largest request of either protocol.
pub(crate) const MAX_REQUEST_BYTES: usize = 32 << 20;
pub(crate) const SERVER_NAME: &str = "pleach-agent";
pub(crate) const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");
pub(crate) const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];
pub(crate) const PLATFORM: &str = "onnxruntime_onnx";

/// Listeners that the control half handed over and that are not served yet.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) unix: OwnedFd,
    /// The loopback port, and what every request on it must carry.
    pub(crate) loopback: Option<(OwnedFd, String)>,
}

impl Listeners {
    /// Serves until `stop`, then lets requests in flight finish.
    pub(crate) async fn serve(self, host: Arc<Host>, stop: CancellationToken) -> Result<(), RuntimeHalfError> {
        let listen = |source| RuntimeHalfError::Start { what: "the listeners", source };
        let unix = UnixListener::from_std(self.unix.into()).map_err(listen)?;
        let loopback = self.loopback.map(|(file, token)| Ok((TcpListener::from_std(file.into())?, token))).transpose().map_err(listen)?;
        let router = routes(host).prepare().into_axum_router();
        let guarded = router.clone();
        let unix = Server::builder()
            .accept_http1(true)
            .add_routes(router.into())
            .serve_with_incoming_shutdown(UnixListenerStream::new(unix), stop.clone().cancelled_owned());
        let tcp = async {
            let Some((listener, token)) = loopback else { return Ok(()) };
            let routes = guarded.layer(from_fn_with_state(Arc::new(sha256(token.as_bytes())), authorize));
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            Server::builder()
                .accept_http1(true)
                .add_routes(routes.into())
                .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
                .await
        };
        tokio::try_join!(unix, tcp).map(drop).map_err(RuntimeHalfError::Serve)
    }
}

/// Lets a request pass that carries the token. Digests are compared, so time says nothing about the token.
async fn authorize(State(expected): State<Arc<Digest>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|token| sha256(token) == *expected) {
        return next.run(request).await;
    }
    let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let error = ServeError::Unauthorized;
    if is_grpc { Status::from(error).into_http() } else { error.into_response() }
}

fn routes(host: Arc<Host>) -> Routes {
    let services = Services(Arc::clone(&host));
    let inference = GrpcInferenceServiceServer::new(services.clone()).max_decoding_message_size(MAX_REQUEST_BYTES);
    Routes::from(Routes::new(inference).add_service(LocalServer::new(services)).into_axum_router().merge(rest::router(host)))
}
