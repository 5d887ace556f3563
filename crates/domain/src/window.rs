//! One device's measurements of one rung over one period.

use crate::histogram::LatencyHistogram;
use crate::id::Digest;
use crate::metrics::Confusion;

/// A telemetry window. With the device, `number` identifies it.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Counts up for each device.
    pub number: u64,
    /// The bundle that ran.
    pub bundle: Digest,
    /// The rung that ran.
    pub rung: String,
    /// Start, milliseconds since 1970 UTC.
    pub start_ms: i64,
    /// Length in milliseconds.
    pub duration_ms: u32,
    /// Requests answered or failed.
    pub requests: u64,
    /// Requests failed.
    pub errors: u64,
    /// Latency of the answered requests.
    pub latency: LatencyHistogram,
    /// Labelled predictions; `None` when no label came.
    pub confusion: Option<Confusion>,
    /// CPU time that inference used, in microseconds.
    pub cpu_us: u64,
    /// Resident memory of the runtime at the end, in bytes.
    pub memory_bytes: u64,
}
