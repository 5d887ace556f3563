//! Identifiers and digests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DomainError;

const IDENTIFIER_RULE: &str = "1 to 64 characters of a-z, 0-9, '-', '_' or '.', beginning with a letter or digit";

fn valid_identifier(value: &str) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let first = value.bytes().next().is_some_and(ok);
    first && value.len() <= 64 && value.bytes().all(|c| ok(c) || matches!(c, b'-' | b'_' | b'.'))
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text of the identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = DomainError;
            fn from_str(value: &str) -> Result<Self, DomainError> {
                if valid_identifier(value) {
                    return Ok(Self(value.to_owned()));
                }
                let value = value.chars().take(80).collect();
                Err(DomainError::Identifier { kind: $kind, value, expected: IDENTIFIER_RULE })
            }
        }

        impl TryFrom<String> for $name {
            type Error = DomainError;
            fn try_from(value: String) -> Result<Self, DomainError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// One enrolled device.
    DeviceId, "device id");
identifier!(
    /// One device class.
    ClassId, "class id");
identifier!(
    /// Name of a model, shared by its versions.
    ModelName, "model name");
identifier!(
    /// Name of a policy.
    PolicyName, "policy name");
identifier!(
    /// One variant: one pruned model for one class.
    VariantId, "variant id");
identifier!(
    /// One sealed bundle.
    BundleId, "bundle id");
identifier!(
    /// One rollout.
    RolloutId, "rollout id");
identifier!(
    /// One job.
    JobId, "job id");
identifier!(
    /// One enrolment token (its public half).
    TokenId, "token id");
identifier!(
    /// One API token of a person or a tool (its name, not its secret).
    ApiTokenId, "API token name");
identifier!(
    /// One adaptation decision.
    DecisionId, "decision id");

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Wraps the 32 bytes of a SHA-256.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses exactly 32 bytes.
    ///
    /// # Errors
    /// [`DomainError::Identifier`] for any other length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, DomainError> {
        bytes.try_into().map(Self).map_err(|_| DomainError::Identifier {
            kind: "digest",
            value: format!("{} bytes", bytes.len()),
            expected: "32 bytes",
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DomainError;
    fn from_str(value: &str) -> Result<Self, DomainError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(value, &mut bytes).map_err(|_| DomainError::Identifier {
            kind: "digest",
            value: value.chars().take(80).collect(),
            expected: "64 hexadecimal digits",
        })?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = DomainError;
    fn try_from(value: String) -> Result<Self, DomainError> {
        value.parse()
    }
}

impl From<Digest> for String {
    fn from(value: Digest) -> Self {
        value.to_string()
    }
}
