//! What can be wrong with a message from outside.

use pleach_domain::DomainError;
use thiserror::Error;

/// A message that does not fit Pleach's types.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WireError {
    /// A field that must be there is not.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// An enum value this version does not know.
    #[error("field {field} has the unknown value {value}")]
    UnknownValue {
        /// Name of the field.
        field: &'static str,
        /// The number that came.
        value: i32,
    },
    /// A field out of its range.
    #[error("field {field}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: DomainError,
    },
}
