//! The model graph: decode and validate ONNX files, read them, change them through patches, encode them again.
//!
//! The decoded file ([`proto::ModelProto`]) stays the truth; [`Model`] keeps side tables beside it (producers, consumers,
//! constants) and a graph changes only through a [`Patch`], so names, metadata, functions and order survive. A model that was
//! not patched encodes to the bytes it was decoded from.
//!
//! This crate knows nothing of pruning, of ONNX Runtime or of files: bytes come in, bytes go out, and everything that comes in
//! is bounded by [`Limits`].

pub mod builder;
mod encode;
mod error;
mod external;
mod inline;
mod model;
mod patch;
mod shapes;
mod stats;
pub mod tensor;
mod validate;
mod wire;

pub use builder::GraphBuilder;
pub use error::OnnxError;
pub use external::{ReadFile, Split};
pub use model::{Dim, Model, Node, NodeId, Use, ValueInfo};
pub use patch::Patch;
pub use shapes::{AxisLength, ShapeProbe, Shapes};
pub use stats::{Statistics, activation_bytes, node_macs, statistics};
pub use tensor::{Constant, ConstantData};
pub use validate::Limits;

/// Types generated from `proto/onnx.proto`, our copy of the ONNX schema.
#[allow(missing_docs, clippy::all, clippy::pedantic)] // generated code
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
