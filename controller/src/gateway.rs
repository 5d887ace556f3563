//! The servers of agents: enrolment for machines that want in, the fleet for devices that are.
//!
//! The TLS layer verifies client certificates where they come; here every call and every open stream also asks the database
//! whether the device is still active.

mod deliver;
pub(crate) mod desired;
mod enrollment;
mod fetch;
mod fleet;
mod ingest;
mod peer;
mod report;
mod status;
mod sync;

use std::net::SocketAddr;
use std::time::Duration;

use pleach_proto::MAX_MESSAGE_BYTES;
use pleach_proto::fleet::enrollment_server::EnrollmentServer;
use pleach_proto::fleet::fleet_server::FleetServer;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::controller::Shared;
use crate::error::ControllerError;
use crate::tls::Connection;

/// Silence after which a connection is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls at once on one connection.
const MAX_STREAMS: u32 = 32;
/// Largest message of an enrolment.
const MAX_ENROLMENT_BYTES: usize = 64 * 1024;

/// Serves agents on finished connections until the controller stops.
pub(crate) async fn run(controller: Shared, connections: mpsc::Receiver<(Connection, SocketAddr)>) -> Result<(), ControllerError> {
    let stop = controller.stop.clone();
    let watcher = tokio::spawn(deliver::run(controller.clone()));
    let enrollment = EnrollmentServer::new(enrollment::Service(controller.clone())).max_decoding_message_size(MAX_ENROLMENT_BYTES);
    let fleet =
        FleetServer::new(fleet::Service(controller.clone(), ingest::start(controller))).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let incoming = ReceiverStream::new(connections).map(|(connection, _)| Ok::<_, std::io::Error>(connection));
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(enrollment)
        .add_service(fleet)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await;
    watcher.abort();
    served.map_err(ControllerError::Gateway)
}
