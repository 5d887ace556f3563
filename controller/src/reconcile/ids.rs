//! Identifiers of rows that follow from others: whoever makes such a row twice makes the same.

use pleach_domain::{Digest, DomainError};
use std::str::FromStr;

/// `<prefix>-` and 16 hexadecimal digits of the SHA-256 of `of`.
pub(crate) fn derived<T: FromStr<Err = DomainError>>(prefix: &str, of: &str) -> Result<T, DomainError> {
    named(prefix, &pleach_artifact::sha256(of.as_bytes()))
}

/// `<prefix>-` and the first 16 hexadecimal digits of a digest.
pub(crate) fn named<T: FromStr<Err = DomainError>>(prefix: &str, digest: &Digest) -> Result<T, DomainError> {
    let hex = digest.to_string();
    format!("{prefix}-{}", hex.get(..16).unwrap_or_default()).parse()
}
