//! Which device a call comes from.

use pleach_domain::state::DeviceState;
use pleach_store::devices;
use tonic::{Request, Status};

use super::status;
use crate::authority::{self, DeviceCertificate};
use crate::controller::Controller;
use crate::random;

/// The device behind a call's client certificate, when it is active now.
pub(super) async fn device<T>(controller: &Controller, request: &Request<T>) -> Result<DeviceCertificate, Status> {
    let chain = request.peer_certs();
    let leaf = chain.as_ref().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Status::unauthenticated("no client certificate: enrol first"))?;
    let certificate = authority::verified_device(leaf).map_err(|e| Status::unauthenticated(e.to_string()))?;
    // TLS looked at the time when the connection began, which may be long ago.
    if certificate.not_after_ms <= random::now_ms() {
        return Err(Status::unauthenticated("the client certificate has expired: renew it"));
    }
    active(controller, &certificate).await?;
    Ok(certificate)
}

/// Refuses devices that are not active now.
pub(super) async fn active(controller: &Controller, certificate: &DeviceCertificate) -> Result<(), Status> {
    let mut session = controller.store.read().await.map_err(status::store)?;
    let state = devices::state(&mut session, &certificate.device).await.map_err(status::store)?;
    match state {
        Some(DeviceState::Active) => Ok(()),
        Some(DeviceState::Pending) => Err(Status::permission_denied("the device is not approved yet")),
        Some(DeviceState::Revoked) => Err(Status::permission_denied("the device is revoked")),
        None => Err(Status::unauthenticated("the device is not known here")),
    }
}
