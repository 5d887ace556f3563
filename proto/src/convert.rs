//! Conversions between wire messages and domain types: the only place where foreign messages become trusted values.

use pleach_domain::metrics::Confusion;
use pleach_domain::profile::{HardwareProfile, MeasuredKernel};
use pleach_domain::runtime::Timing;
use pleach_domain::state::Observed;
use pleach_domain::window::Window;
use pleach_domain::{Digest, DomainError, LatencyHistogram};

use crate::error::WireError;
use crate::fleet;

fn at(field: &'static str) -> impl Fn(DomainError) -> WireError {
    move |source| WireError::Field { field, source }
}

/// A digest field of 32 bytes.
///
/// # Errors
/// [`WireError::Field`] for any other length.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, WireError> {
    Digest::from_slice(bytes).map_err(at(field))
}

impl From<&MeasuredKernel> for fleet::KernelTiming {
    fn from(kernel: &MeasuredKernel) -> Self {
        let t = kernel.timing;
        Self { key: kernel.key.clone(), mean_us: t.mean_us, min_us: t.min_us, p50_us: t.p50_us, p95_us: t.p95_us, calls: t.calls }
    }
}

impl From<fleet::KernelTiming> for MeasuredKernel {
    fn from(t: fleet::KernelTiming) -> Self {
        let timing = Timing { mean_us: t.mean_us, min_us: t.min_us, p50_us: t.p50_us, p95_us: t.p95_us, calls: t.calls };
        Self { key: t.key, timing }
    }
}

impl From<&HardwareProfile> for fleet::HardwareProfile {
    fn from(p: &HardwareProfile) -> Self {
        Self {
            architecture: p.architecture.clone(),
            instruction_sets: p.instruction_sets.clone(),
            cpu_model: p.cpu_model.clone(),
            cores: p.cores,
            inference_threads: p.inference_threads,
            cpu_quota_milli: p.cpu_quota_milli.unwrap_or(0),
            l1d_bytes: p.l1d_bytes,
            l2_bytes: p.l2_bytes,
            l3_bytes: p.l3_bytes,
            memory_bytes: p.memory_bytes,
            storage_bytes: p.storage_bytes,
            execution_providers: p.execution_providers.clone(),
            onnxruntime_version: p.onnxruntime_version.clone(),
            operating_system: p.operating_system.clone(),
            kernels: p.kernels.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<fleet::HardwareProfile> for HardwareProfile {
    type Error = WireError;
    fn try_from(p: fleet::HardwareProfile) -> Result<Self, WireError> {
        let profile = Self {
            architecture: p.architecture,
            instruction_sets: p.instruction_sets,
            cpu_model: p.cpu_model,
            cores: p.cores,
            inference_threads: p.inference_threads,
            cpu_quota_milli: (p.cpu_quota_milli > 0).then_some(p.cpu_quota_milli),
            l1d_bytes: p.l1d_bytes,
            l2_bytes: p.l2_bytes,
            l3_bytes: p.l3_bytes,
            memory_bytes: p.memory_bytes,
            storage_bytes: p.storage_bytes,
            execution_providers: p.execution_providers,
            onnxruntime_version: p.onnxruntime_version,
            operating_system: p.operating_system,
            kernels: p.kernels.into_iter().map(Into::into).collect(),
        };
        profile.validate().map_err(at("profile"))?;
        Ok(profile)
    }
}

impl From<&Window> for fleet::Window {
    fn from(w: &Window) -> Self {
        let confusion = w
            .confusion
            .as_ref()
            .map(|c| fleet::Confusion { classes: u32::try_from(c.classes()).unwrap_or(u32::MAX), counts: c.counts().to_vec() });
        Self {
            number: w.number,
            bundle_digest: w.bundle.as_bytes().to_vec(),
            rung: w.rung.clone(),
            start_ms: w.start_ms,
            duration_ms: w.duration_ms,
            requests: w.requests,
            errors: w.errors,
            latency_histogram: w.latency.encode(),
            confusion,
            cpu_us: w.cpu_us,
            memory_bytes: w.memory_bytes,
        }
    }
}

impl TryFrom<fleet::Window> for Window {
    type Error = WireError;
    fn try_from(w: fleet::Window) -> Result<Self, WireError> {
        let confusion = match w.confusion {
            Some(c) => Some(Confusion::from_counts(c.classes as usize, c.counts).map_err(at("window.confusion"))?),
            None => None,
        };
        if w.rung.len() > 64 {
            return Err(at("window.rung")(DomainError::Field {
                field: "rung".into(),
                got: format!("{} bytes", w.rung.len()),
                expected: "at most 64 bytes".into(),
            }));
        }
        Ok(Self {
            number: w.number,
            bundle: digest("window.bundle_digest", &w.bundle_digest)?,
            rung: w.rung,
            start_ms: w.start_ms,
            duration_ms: w.duration_ms,
            requests: w.requests,
            errors: w.errors,
            latency: LatencyHistogram::decode(&w.latency_histogram).map_err(at("window.latency_histogram"))?,
            confusion,
            cpu_us: w.cpu_us,
            memory_bytes: w.memory_bytes,
        })
    }
}

/// The state that an event reports; `Offered` and `Superseded` are the controller's own words and never come from a device.
///
/// # Errors
/// [`WireError::UnknownValue`] for a value that this version does not know.
pub fn observed(event: &fleet::Event) -> Result<Observed, WireError> {
    use fleet::event::State;
    match State::try_from(event.state) {
        Ok(State::Delivering) => Ok(Observed::Delivering),
        Ok(State::Staged) => Ok(Observed::Staged),
        Ok(State::Probation) => Ok(Observed::Probation),
        Ok(State::Proven) => Ok(Observed::Proven),
        Ok(State::Failed) => Ok(Observed::Failed),
        Ok(State::Refused) => Ok(Observed::Refused),
        Ok(State::Unspecified) | Err(_) => Err(WireError::UnknownValue { field: "event.state", value: event.state }),
    }
}
