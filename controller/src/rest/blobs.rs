//! Uploads: a file under its digest.

use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use futures::{Stream, StreamExt};
use pleach_domain::Digest;
use pleach_proto::rest::{BlobView, DIGEST_HEADER};
use pleach_store::audit;
use thiserror::Error;

use super::auth::Actor;
use super::extract::Path;
use super::problem::Failure;
use crate::controller::Shared;
use crate::random;

/// Longest silence inside an upload.
const STALL: Duration = Duration::from_secs(30);

/// Why the bytes of an upload stopped coming.
#[derive(Debug, Error)]
enum Broken {
    #[error("the body broke off")]
    Body(#[source] axum::Error),
    #[error("no byte came for 30 seconds")]
    Stalled,
}

type Answer = (StatusCode, [(HeaderName, HeaderValue); 1], axum::Json<BlobView>);

/// `PUT /api/v1/blobs/{sha256}`: stores the body when it has this digest. Repeating it is harmless.
pub(super) async fn upload(
    State(controller): State<Shared>,
    Extension(Actor(actor)): Extension<Actor>,
    Path(digest): Path<String>,
    body: Body,
) -> Result<Answer, Failure> {
    let digest: Digest = digest.parse()?;
    let size_bytes = controller.blobs.put(&digest, controller.config.max_upload_bytes, steady(body)).await?;
    let mut session = controller.store.write().await?;
    let text = digest.to_string();
    let entry = audit::Entry { actor: &actor, action: "blob.upload", subject: &text, before: None, after: Some(digest) };
    audit::append(&mut session, &entry, random::now_ms()).await?;
    session.commit().await?;
    let header = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    Ok((StatusCode::CREATED, [(HeaderName::from_static(DIGEST_HEADER), header)], axum::Json(BlobView { digest, size_bytes })))
}

/// The bytes of a body, until it stalls.
fn steady(body: Body) -> impl Stream<Item = Result<Bytes, Broken>> + Send {
    futures::stream::unfold(Some(body.into_data_stream()), |state| async {
        let mut bytes = state?;
        match tokio::time::timeout(STALL, bytes.next()).await {
            Ok(item) => item.map(|item| (item.map_err(Broken::Body), Some(bytes))),
            Err(_) => Some((Err(Broken::Stalled), None)),
        }
    })
}
