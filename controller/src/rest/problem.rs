//! Refusals of the REST interface: one closed list of codes, each with its HTTP status.

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pleach_domain::DomainError;
use pleach_proto::rest::Problem;
use pleach_store::StoreError;
use tracing::error;

/// What a request can be refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// No token, or one that is not known.
    Unauthenticated,
    /// The token's role is not enough.
    Forbidden,
    /// There is no such thing, or no such route.
    NotFound,
    /// The route has no such method.
    MethodNotAllowed,
    /// A path, query or body that does not parse.
    RequestInvalid,
    /// A field out of its range.
    FieldInvalid,
    /// More bytes than are taken.
    TooLarge,
    /// The body has another digest than the address says.
    DigestMismatch,
    /// The body broke off.
    UploadIncomplete,
    /// A blob that was not uploaded.
    BlobMissing,
    /// A file that is no usable ONNX model.
    ModelInvalid,
    /// A model whose operator set is not known.
    ModelOperatorSet,
    /// Data that do not fit the model.
    DatasetInvalid,
    /// Somebody else changed the same thing at the same time.
    Conflict,
    /// The controller failed; its log says why.
    Internal,
    /// The controller cannot answer now.
    Unavailable,
}

impl Code {
    /// The text that stands in the answer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::RequestInvalid => "request-invalid",
            Self::FieldInvalid => "field-invalid",
            Self::TooLarge => "too-large",
            Self::DigestMismatch => "digest-mismatch",
            Self::UploadIncomplete => "upload-incomplete",
            Self::BlobMissing => "blob-missing",
            Self::ModelInvalid => "model-invalid",
            Self::ModelOperatorSet => "model-operator-set",
            Self::DatasetInvalid => "dataset-invalid",
            Self::Conflict => "conflict",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
        }
    }

    /// HTTP status of the answer.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestInvalid | Self::UploadIncomplete => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::FieldInvalid | Self::DigestMismatch | Self::BlobMissing => StatusCode::UNPROCESSABLE_ENTITY,
            Self::ModelInvalid | Self::ModelOperatorSet | Self::DatasetInvalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why, for machines.
    pub code: Code,
    /// Why, for people, with expected and got.
    pub detail: String,
}

impl Failure {
    /// A refusal in words.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// Something that is not there, e.g. `device "a"`.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("{what} does not exist"))
    }

    /// A failure of the controller itself: logged here, told without its inside.
    pub fn internal(source: impl std::error::Error + 'static) -> Self {
        error!(error = %chain(&source), "request failed");
        Self::new(Code::Internal, "the controller failed; its log says why")
    }
}

/// An error with everything behind it, as one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let body = Problem { status: status.as_u16(), code: self.code.as_str().to_owned(), detail: self.detail };
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.code == Code::Unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::BlobDigest { .. } => Self::new(Code::DigestMismatch, error.to_string()),
            StoreError::BlobSize { .. } => Self::new(Code::TooLarge, error.to_string()),
            StoreError::BlobSource(_) => Self::new(Code::UploadIncomplete, error.to_string()),
            StoreError::BlobMissing(_) => Self::new(Code::BlobMissing, format!("{error}: upload it first")),
            _ if error.is_duplicate() => Self::new(Code::Conflict, "somebody else changed the same thing at the same time: try again"),
            _ => Self::internal(error),
        }
    }
}

impl From<DomainError> for Failure {
    fn from(error: DomainError) -> Self {
        Self::new(Code::FieldInvalid, error.to_string())
    }
}

macro_rules! rejections {
    ($($rejection:ty),+) => {
        $(impl From<$rejection> for Failure {
            fn from(rejection: $rejection) -> Self {
                let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { Code::TooLarge } else { Code::RequestInvalid };
                Self::new(code, rejection.body_text())
            }
        })+
    };
}

rejections!(JsonRejection, PathRejection, QueryRejection, BytesRejection);
