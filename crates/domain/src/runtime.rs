//! The small trait through which models are run and timed, so that the pruning engine needs no ONNX Runtime of its own.

use std::error::Error;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::tensor::{ElementType, Tensor};

/// What went wrong while a model was loaded, run or timed; the boundary prints the chain.
pub type RuntimeError = Box<dyn Error + Send + Sync>;

/// Name, type and shape of one model input or output; `None` is a free (dynamic) axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name in the model.
    pub name: String,
    /// Element type.
    pub element_type: ElementType,
    /// Axis lengths, `None` where free.
    pub shape: Vec<Option<usize>>,
}

/// How hard a graph is optimised when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimization {
    /// As written, operator by operator.
    Disabled,
    /// What holds on every processor and keeps to standard operators.
    Basic,
    /// Fusions into operators of the runtime's own, too.
    Extended,
    /// Everything the runtime can do.
    All,
}

/// One model to be timed, with the inputs it is timed on.
#[derive(Clone, Debug)]
pub struct TimedModel {
    /// Encoded ONNX model.
    pub model: Vec<u8>,
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
}

/// Wall time of one call, from interleaved, warm repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Sustained mean of the quietest half of the measured blocks, in microseconds: what throttled devices really take.
    pub mean_us: f64,
    /// Fastest single call, in microseconds.
    pub min_us: f64,
    /// Median call, in microseconds.
    pub p50_us: f64,
    /// 95th percentile call, in microseconds.
    pub p95_us: f64,
    /// Calls measured.
    pub calls: u32,
}

/// A loaded model.
pub trait LoadedModel: Send {
    /// Inputs the model takes.
    fn inputs(&self) -> &[TensorSpec];
    /// Outputs the model gives.
    fn outputs(&self) -> &[TensorSpec];
    /// Runs the model once; outputs come in the order of [`LoadedModel::outputs`].
    ///
    /// # Errors
    /// When an input is missing, has another type or shape, or the runtime fails.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RuntimeError>;
}

/// Runs and times ONNX models. Implemented on this machine by `pleach-inference`.
pub trait Runtime: Sync {
    /// Loads an encoded model.
    ///
    /// # Errors
    /// When the runtime does not accept it.
    fn load(&self, model: &[u8], optimization: Optimization) -> Result<Box<dyn LoadedModel>, RuntimeError>;

    /// Times models side by side: blocks of calls, interleaved, after a warm-up, about `budget` of wall time for each model.
    /// The result has one entry for each model, in order.
    ///
    /// # Errors
    /// When a model cannot be loaded or run.
    fn time(&self, models: &[TimedModel], budget: Duration) -> Result<Vec<Timing>, RuntimeError>;
}
