//! The dashboard: one page and its assets, embedded when `controller/dashboard` was built before the controller was.

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use super::problem::{Code, Failure};

#[derive(RustEmbed)]
#[folder = "dashboard/dist"]
struct Assets;

const PAGE: &str = "index.html";
/// The page loads nothing from elsewhere, runs no inline script, and stands in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const NOT_BUILT: &str = "This controller was built without its dashboard. `cargo xtask dashboard` makes it; then build the controller again. \
     The same figures are shown by `pleach get`.\n";

/// Whatever no other route answers: an asset, or the page, which has its own routes.
pub(super) async fn serve(uri: Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    if path.starts_with("api/") {
        return Failure::new(Code::NotFound, "no such route: expected one under /api/v1").into_response();
    }
    // Names of assets hold a digest of their content; the page names the newest ones.
    let (name, cache) = match path.starts_with("assets/") {
        true => (path, "public, max-age=31536000, immutable"),
        false if Assets::get(path).is_some() => (path, "no-cache"),
        false => (PAGE, "no-cache"),
    };
    let Some(asset) = Assets::get(name) else {
        return (StatusCode::NOT_FOUND, if name == PAGE { NOT_BUILT } else { "no such file" }).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, media_type(name)),
        (header::CACHE_CONTROL, cache),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, asset.data).into_response()
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}
