//! What can be wrong with values from outside.

use thiserror::Error;

/// A value that does not fit Pleach's types.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum DomainError {
    /// A tensor whose shape and elements disagree.
    #[error("tensor of shape {shape:?} cannot hold {elements} elements")]
    TensorShape {
        /// Shape as given.
        shape: Vec<usize>,
        /// Elements as given.
        elements: usize,
    },
    /// An identifier with characters or a length that are not allowed.
    #[error("{kind} {value:?} is not valid: expected {expected}")]
    Identifier {
        /// What it should have been, e.g. `device id`.
        kind: &'static str,
        /// What came (shortened).
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A field out of its range.
    #[error("{field} is {got}: expected {expected}")]
    Field {
        /// Name of the field, dotted.
        field: String,
        /// What came.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// A dataset file that cannot be read.
    #[error("dataset array {array:?}: {reason}")]
    Dataset {
        /// Name of the array, empty for the archive itself.
        array: String,
        /// What is wrong, with expected and got.
        reason: String,
    },
    /// A latency histogram that cannot be read.
    #[error("latency histogram: {0}")]
    Histogram(String),
}
