//! What can be wrong with a model file or a change to it.

use thiserror::Error;

use crate::model::NodeId;

/// A model that cannot be read, or a patch that would break one. Each variant says what was expected, what came, and where.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The bytes are no ONNX file.
    #[error("not an ONNX model: {reason}")]
    NotOnnx {
        /// What gave it away.
        reason: String,
    },
    /// The file ends inside a field.
    #[error("truncated ONNX model: the field at byte {offset} needs {needed} bytes, {available} are left")]
    Truncated {
        /// Where the field's content starts.
        offset: usize,
        /// Bytes it announces.
        needed: u64,
        /// Bytes that are there.
        available: usize,
    },
    /// A limit is exceeded.
    #[error("the model has {got} {what}: expected at most {limit}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// What came.
        got: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The protobuf message does not match the ONNX schema.
    #[error("malformed ONNX model")]
    Malformed(#[source] prost::DecodeError),
    /// The format version is not known.
    #[error("IR version {got}: expected {min} to {max}")]
    IrVersion {
        /// What came.
        got: i64,
        /// Oldest known.
        min: i64,
        /// Newest known.
        max: i64,
    },
    /// An operator set Pleach does not know.
    #[error("operator set `{domain}` version {version}: expected {expected}")]
    UnknownOperatorSet {
        /// Domain as imported; the empty one reads `ai.onnx`.
        domain: String,
        /// Version as imported.
        version: i64,
        /// Domains and versions that are known.
        expected: &'static str,
    },
    /// A node of a domain the model does not import.
    #[error("node `{node}` needs operator set `{domain}`, which the model does not import")]
    UndeclaredOperatorSet {
        /// Node name.
        node: String,
        /// Its domain.
        domain: String,
    },
    /// A constant whose dimensions, type and data disagree.
    #[error("tensor `{name}`: {reason}")]
    Tensor {
        /// Tensor name.
        name: String,
        /// What is wrong, with expected and got.
        reason: String,
    },
    /// A tensor whose data lie in another file that is not there or does not fit.
    #[error("tensor `{name}` lies in an external file: {reason}")]
    ExternalData {
        /// Tensor name.
        name: String,
        /// What is wrong, with expected and got.
        reason: String,
    },
    /// A function that cannot be put in the place of its calls.
    #[error("function `{name}`: {reason}")]
    Function {
        /// Domain and name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Two definitions of one tensor.
    #[error("tensor `{name}` is defined twice, the second time by {by}")]
    Duplicate {
        /// Tensor name.
        name: String,
        /// Node, input or initializer that defines it again.
        by: String,
    },
    /// A use of a tensor that nothing defines.
    #[error("{user} uses tensor `{name}`, which nothing defines")]
    Undefined {
        /// Node or `graph output`.
        user: String,
        /// Tensor name.
        name: String,
    },
    /// A node before the producer of its input, or a cycle.
    #[error("node `{node}` uses tensor `{name}` before it is produced: expected nodes in topological order")]
    Unsorted {
        /// Node name.
        node: String,
        /// Tensor name.
        name: String,
    },
    /// Graphs nested too deep, or a node without operator.
    #[error("node `{node}`: {reason}")]
    Node {
        /// Node name.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// A patch that names a node the model does not have.
    #[error("patch: the model has no node {0}")]
    NoSuchNode(NodeId),
    /// A patch that names a constant the model does not have.
    #[error("patch: the model has no constant `{0}`")]
    NoSuchConstant(String),
    /// Probe runs whose results do not fit the probe.
    #[error("shape probe: {0}")]
    Probe(String),
}
