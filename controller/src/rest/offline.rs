//! The file that carries a device's assignment where no network goes.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use pleach_domain::DeviceId;
use pleach_proto::fleet::FetchHeader;
use pleach_proto::offline;
use pleach_store::{StoreError, bundles, desired};

use super::extract::Path;
use super::problem::Failure;
use crate::controller::Shared;
use crate::gateway;

/// `GET /api/v1/devices/{id}/bundle`: what the device should run, signed and sealed for it alone, as a file for
/// `pleach-agent install`.
pub(super) async fn export(State(controller): State<Shared>, Path(id): Path<String>) -> Result<Response, Failure> {
    let id: DeviceId = id.parse()?;
    let mut session = controller.store.read().await?;
    let none = || Failure::not_found(format!("an assignment of device {id}"));
    // Every root: which the device has is not known here, and it skips those.
    let deployment = gateway::desired::build(&mut session, &id, 0).await?.deployment.ok_or_else(none)?;
    let digest = desired::of_device(&mut session, &id).await?.deployment.ok_or_else(none)?.digest;
    let bundle = bundles::find_by_digest(&mut session, &digest).await?.ok_or_else(none)?;
    let reading = controller.blobs.read(&digest, 0).await?.ok_or_else(none)?;
    let head = offline::head(&deployment, &FetchHeader { length: reading.length, leaves: bundle.leaves });
    let whole = stream::once(async { Ok::<_, StoreError>(Bytes::from(head)) }).chain(reading.bytes);
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(whole)).into_response())
}
