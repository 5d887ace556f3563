//! The service of devices: one stream down, blobs, reports.

use std::sync::Arc;

use pleach_proto::fleet::fleet_server::Fleet;
use pleach_proto::fleet::{AgentMessage, ControllerMessage, FetchRequest, FetchResponse, ReportAck, SignedReport};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::ingest::Ingest;
use super::report::Incoming;
use super::{fetch, peer, sync};
use crate::controller::Shared;

/// The service, and the way of reports into the store.
pub(super) struct Service(pub(super) Shared, pub(super) Ingest);

#[tonic::async_trait]
impl Fleet for Service {
    type SyncStream = ReceiverStream<Result<ControllerMessage, Status>>;
    type FetchStream = ReceiverStream<Result<FetchResponse, Status>>;

    async fn sync(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let device = peer::device(&self.0, &request).await?;
        Ok(Response::new(ReceiverStream::new(sync::open(Arc::clone(&self.0), device, request.into_inner()))))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let device = peer::device(&self.0, &request).await?;
        let parts = fetch::open(Arc::clone(&self.0), device, request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn report(&self, request: Request<SignedReport>) -> Result<Response<ReportAck>, Status> {
        let device = peer::device(&self.0, &request).await?;
        let report = Incoming::new(&device, &request.into_inner())?;
        let sequence = self.1.store(report).await?;
        Ok(Response::new(ReportAck { sequence }))
    }
}
