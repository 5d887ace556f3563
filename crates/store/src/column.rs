//! Between columns and types: what a row holds is parsed once, here.

use std::str::FromStr;

use pleach_domain::{Digest, DomainError};
use ring::digest::{SHA256, digest as ring_digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;

/// A count for a BIGINT column; counts beyond 2^63 do not occur.
pub(crate) fn int(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// A count out of a BIGINT column.
pub(crate) fn count<T: TryFrom<i64>>(column: &'static str, value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| StoreError::Column {
        column,
        source: DomainError::Field { field: column.to_owned(), got: value.to_string(), expected: "a count".to_owned() },
    })
}

/// An identifier, digest or state out of a TEXT column.
pub(crate) fn parse<T: FromStr<Err = DomainError>>(column: &'static str, value: &str) -> Result<T, StoreError> {
    value.parse().map_err(|source| StoreError::Column { column, source })
}

/// As [`parse`], for columns that may be NULL.
pub(crate) fn parse_some<T: FromStr<Err = DomainError>>(column: &'static str, value: Option<&str>) -> Result<Option<T>, StoreError> {
    value.map(|v| parse(column, v)).transpose()
}

/// A key of 32 bytes out of a TEXT column in hexadecimal.
pub(crate) fn key(column: &'static str, value: &str) -> Result<[u8; 32], StoreError> {
    Ok(*parse::<Digest>(column, value)?.as_bytes())
}

/// A document for a TEXT column.
pub(crate) fn to_json(column: &'static str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Document { column, source })
}

/// A document out of a TEXT column.
pub(crate) fn from_json<T: DeserializeOwned>(column: &'static str, value: &str) -> Result<T, StoreError> {
    serde_json::from_str(value).map_err(|source| StoreError::Document { column, source })
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(ring_digest(&SHA256, bytes).as_ref());
    Digest::new(out)
}
