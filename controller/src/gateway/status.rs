//! Failures of the controller itself as gRPC statuses: logged here, told without their inside.

use pleach_store::StoreError;
use tonic::Status;
use tracing::error;

use crate::rest::problem::chain;

/// A failure that is not the caller's.
pub(super) fn internal(source: impl std::error::Error + 'static) -> Status {
    error!(error = %chain(&source), "call failed");
    Status::internal("the controller failed; its log says why")
}

/// A failure of the store: most often a database that is away for a while.
pub(super) fn store(source: StoreError) -> Status {
    error!(error = %chain(&source), "call failed at the store");
    Status::unavailable("the controller's store does not answer; try again")
}
