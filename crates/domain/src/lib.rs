//! The words of Pleach and its pure decisions: no IO, no async, no clock or randomness but what it is handed.
//!
//! Everything that two crates must agree on has its type here: identifiers, hardware profiles and device classes,
//! policies, latency histograms, windows, tensors and the small trait through which models are run and timed.

pub mod adapt;
pub mod class;
pub mod dataset;
pub mod error;
pub mod gate;
pub mod histogram;
pub mod id;
pub mod metrics;
pub mod policy;
pub mod profile;
pub mod random;
pub mod role;
pub mod rollout;
pub mod rollup;
pub mod runtime;
pub mod selector;
pub mod state;
pub mod tensor;
pub mod window;

pub use error::DomainError;
pub use histogram::LatencyHistogram;
pub use id::{BundleId, ClassId, DeviceId, Digest};
pub use tensor::{Element, ElementType, Tensor};
