//! What a device says and measures of itself.

use serde::{Deserialize, Serialize};

use crate::error::DomainError;
use crate::runtime::Timing;

/// Most kernels a profile may carry.
pub const MAX_KERNELS: usize = 256;

/// One kernel timed on the device; the key names operator, widths and shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredKernel {
    /// Stable name, e.g. `conv3x3-64-64-14x14`.
    pub key: String,
    /// What it took.
    pub timing: Timing,
}

/// Hardware profile of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HardwareProfile {
    /// Machine architecture, e.g. `x86_64`.
    pub architecture: String,
    /// Instruction set extensions that matter to inference, sorted.
    pub instruction_sets: Vec<String>,
    /// Processor as it names itself.
    pub cpu_model: String,
    /// Logical processors the agent may use.
    pub cores: u32,
    /// Threads inference uses.
    pub inference_threads: u32,
    /// CPU quota in thousandths of a processor; `None` when unlimited.
    pub cpu_quota_milli: Option<u32>,
    /// Level 1 data cache, bytes; 0 when unknown.
    pub l1d_bytes: u64,
    /// Level 2 cache, bytes; 0 when unknown.
    pub l2_bytes: u64,
    /// Level 3 cache, bytes; 0 when unknown.
    pub l3_bytes: u64,
    /// Memory the agent may use, bytes.
    pub memory_bytes: u64,
    /// Free bytes where the agent keeps its state.
    pub storage_bytes: u64,
    /// ONNX Runtime's execution providers.
    pub execution_providers: Vec<String>,
    /// Version of ONNX Runtime.
    pub onnxruntime_version: String,
    /// Operating system and kernel.
    pub operating_system: String,
    /// The standard kernels, timed.
    pub kernels: Vec<MeasuredKernel>,
}

impl HardwareProfile {
    /// Checks ranges and lengths of a profile that came from outside.
    ///
    /// # Errors
    /// [`DomainError::Field`] names the first field that is out of its range.
    pub fn validate(&self) -> Result<(), DomainError> {
        let texts = [("architecture", &self.architecture), ("cpu_model", &self.cpu_model), ("operating_system", &self.operating_system)];
        for (field, text) in texts {
            check(text.len() <= 128, field, format!("{} bytes", text.len()), "at most 128 bytes")?;
        }
        check(!self.architecture.is_empty(), "architecture", "empty".into(), "a name")?;
        check((1..=4096).contains(&self.cores), "cores", self.cores.to_string(), "1 to 4096")?;
        check((1..=4096).contains(&self.inference_threads), "inference_threads", self.inference_threads.to_string(), "1 to 4096")?;
        check(self.instruction_sets.len() <= 64, "instruction_sets", self.instruction_sets.len().to_string(), "at most 64")?;
        check(self.kernels.len() <= MAX_KERNELS, "kernels", self.kernels.len().to_string(), "at most 256")?;
        for kernel in &self.kernels {
            let sane = |us: f64| us.is_finite() && us > 0.0 && us < 1e9;
            check(kernel.key.len() <= 96, "kernels.key", format!("{} bytes", kernel.key.len()), "at most 96 bytes")?;
            check(sane(kernel.timing.mean_us), "kernels.mean_us", kernel.timing.mean_us.to_string(), "a positive number of microseconds")?;
        }
        Ok(())
    }
}

pub(crate) fn check(ok: bool, field: &str, got: String, expected: &str) -> Result<(), DomainError> {
    if ok { Ok(()) } else { Err(DomainError::Field { field: field.to_owned(), got, expected: expected.to_owned() }) }
}
