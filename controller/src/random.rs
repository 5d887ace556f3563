//! Randomness of the operating system, and the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::ControllerError;

/// Fresh random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], ControllerError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| ControllerError::Random(e.to_string()))?;
    Ok(bytes)
}

/// Fresh random hexadecimal digits, two for each of `N` bytes.
pub(crate) fn hex<const N: usize>() -> Result<String, ControllerError> {
    bytes::<N>().map(hex::encode)
}

/// Now, milliseconds since 1970 UTC.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
