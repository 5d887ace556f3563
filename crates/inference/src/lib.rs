//! ONNX Runtime: loads, runs and times models on this machine.
//!
//! The one crate that opens ONNX Runtime. It implements [`pleach_domain::runtime::Runtime`], through which the pruning engine,
//! the controller and the device's runtime half see models, and holds the standard kernels of hardware profiles. The library is
//! loaded from a file that the operator names, once a process, with its telemetry off; nothing here opens a network connection.
//! Its place in the journey is **evaluate** on the controller and **profile**, **verify** and **run** on the device.

pub mod error;
mod kernels;
mod library;
mod model;
mod tensor;
mod timing;

pub use error::InferenceError;
pub use kernels::{MIN_WIDTH_STEP, StandardKernel, measure_kernels, standard_kernels, width_step};
pub use library::{LIBRARY_VARIABLE, OrtOptions, OrtRuntime, TELEMETRY_VARIABLE};
