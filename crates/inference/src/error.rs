//! What can go wrong between this machine's ONNX Runtime and a model.

use std::io;
use std::path::PathBuf;

use pleach_domain::{DomainError, ElementType};
use pleach_onnx::OnnxError;
use thiserror::Error;

/// ONNX Runtime could not be opened, or refused a model or its inputs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InferenceError {
    /// Nobody said where the library is.
    #[error(
        "no ONNX Runtime library is configured: set ORT_DYLIB_PATH or --onnxruntime to libonnxruntime.so \
         (version 1.28 or newer, e.g. onnxruntime/capi/libonnxruntime.so.1.28.0 of the Python package onnxruntime 1.28.0)"
    )]
    LibraryNotConfigured,
    /// The library file cannot be read.
    #[error(
        "ONNX Runtime library {} cannot be read: set ORT_DYLIB_PATH or --onnxruntime to libonnxruntime.so (version 1.28 or newer)",
        path.display()
    )]
    LibraryUnreadable {
        /// File as configured.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no ONNX Runtime, or one that is too old.
    #[error("{} is no usable ONNX Runtime library: expected version 1.28 or newer for this machine", path.display())]
    LibraryRefused {
        /// File as configured.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ort::LoadDynamicError,
    },
    /// A process loads one library only.
    #[error("ONNX Runtime is already loaded from {}: cannot load {} as well", loaded.display(), wanted.display())]
    LibraryConflict {
        /// File that is loaded.
        loaded: PathBuf,
        /// File that was asked for.
        wanted: PathBuf,
    },
    /// The library contains telemetry that was not switched off before this process started.
    #[error("ONNX Runtime library {} contains telemetry: set ORT_DISABLE_TELEMETRY=1 in the environment before starting", path.display())]
    TelemetryOn {
        /// File as configured.
        path: PathBuf,
    },
    /// A call that must not fail for reasons of ours.
    #[error("ONNX Runtime failed while {doing}")]
    Ort {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: ort::Error,
    },
    /// A model that ONNX Runtime does not accept.
    #[error("ONNX Runtime does not accept the model ({bytes} bytes)")]
    ModelRefused {
        /// Length of the encoded model.
        bytes: usize,
        /// The cause.
        #[source]
        source: ort::Error,
    },
    /// An input or output of a type that Pleach does not move.
    #[error("{what} {name:?} has type {got}: expected a tensor of FP32, FP64, INT64, INT32, UINT8 or BOOL")]
    UnsupportedType {
        /// `model input` or `model output`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its type as ONNX Runtime prints it.
        got: String,
    },
    /// An input that the model takes was not given.
    #[error("input {name:?} is missing: the model takes {expected:?}")]
    InputMissing {
        /// The missing input.
        name: String,
        /// All inputs of the model.
        expected: Vec<String>,
    },
    /// An input that the model does not take.
    #[error("input {name:?} is not one of the model: expected {expected:?}")]
    InputUnknown {
        /// Name as given.
        name: String,
        /// All inputs of the model.
        expected: Vec<String>,
    },
    /// An input of another element type.
    #[error("input {name:?} has type {got}: expected {expected}")]
    InputType {
        /// Name of the input.
        name: String,
        /// Type as given.
        got: ElementType,
        /// Type the model takes.
        expected: ElementType,
    },
    /// An input of another shape.
    #[error("input {name:?} has shape {got:?}: expected {expected}")]
    InputShape {
        /// Name of the input.
        name: String,
        /// Shape as given.
        got: Vec<usize>,
        /// Shape the model takes; `?` is free.
        expected: String,
    },
    /// A model to be timed that fails.
    #[error("model {index} of {count} cannot be timed")]
    Timing {
        /// Its position, from 0.
        index: usize,
        /// Models to be timed.
        count: usize,
        /// The cause.
        #[source]
        source: Box<InferenceError>,
    },
    /// An output whose shape and elements disagree.
    #[error("output {name:?} cannot be read")]
    Output {
        /// Name of the output.
        name: String,
        /// The cause.
        #[source]
        source: DomainError,
    },
    /// A standard kernel could not be written as a model.
    #[error("standard kernel {key} cannot be built")]
    Kernel {
        /// Key of the kernel.
        key: String,
        /// The cause.
        #[source]
        source: OnnxError,
    },
}

impl InferenceError {
    pub(crate) fn ort<E: Into<ort::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Ort { doing, source: source.into() }
    }
}
