//! Device classes: devices whose profiles are alike for pruning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::DomainError;
use crate::id::ClassId;
use crate::profile::HardwareProfile;

/// Two devices of one class differ by at most this factor in the geometric mean of their kernel times.
pub const SPEED_TOLERANCE: f64 = 1.25;

/// What makes a class: the part of a profile that decides which variant runs well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// Stable name, e.g. `x86-64-avx512-1t-q500-a`.
    pub id: ClassId,
    /// Machine architecture.
    pub architecture: String,
    /// Widest vector extension, e.g. `avx512`, `avx2`, `asimd`, `base`.
    pub vector: String,
    /// Threads inference uses.
    pub inference_threads: u32,
    /// Mean kernel times of the founding device, by kernel key, in microseconds.
    pub kernel_mean_us: BTreeMap<String, f64>,
}

/// Where a device belongs, and why.
#[derive(Clone, Debug, PartialEq)]
pub enum Classification {
    /// An existing class.
    Known {
        /// The class.
        id: ClassId,
        /// The reason, in words.
        why: String,
    },
    /// A class that the device founds.
    Founds {
        /// The new class.
        class: Class,
        /// The reason, in words.
        why: String,
    },
}

/// Classifies a device: same architecture, vector extension and threads, and kernel times within [`SPEED_TOLERANCE`]
/// (geometric mean over the kernels both measured); the nearest such class, else a new one.
///
/// # Errors
/// [`DomainError`] when the profile is out of range or no class name can be made of it.
pub fn classify(profile: &HardwareProfile, existing: &[Class]) -> Result<Classification, DomainError> {
    profile.validate()?;
    let vector = vector_extension(profile);
    let times: BTreeMap<String, f64> = profile.kernels.iter().map(|k| (k.key.clone(), k.timing.mean_us)).collect();
    let alike = existing
        .iter()
        .filter(|c| c.architecture == profile.architecture && c.vector == vector && c.inference_threads == profile.inference_threads)
        .filter_map(|c| speed_ratio(&times, &c.kernel_mean_us).map(|r| (c, r)))
        .filter(|(_, r)| r.ln().abs() <= SPEED_TOLERANCE.ln())
        .min_by(|a, b| a.1.ln().abs().total_cmp(&b.1.ln().abs()));
    if let Some((class, ratio)) = alike {
        let why = format!(
            "same architecture, {vector} and {} threads; kernels take {ratio:.2} times as long as the class's",
            profile.inference_threads
        );
        return Ok(Classification::Known { id: class.id.clone(), why });
    }
    let id = new_id(profile, &vector, existing)?;
    let why = format!(
        "no class has {}, {vector}, {} threads and kernel times within {SPEED_TOLERANCE} times",
        profile.architecture, profile.inference_threads
    );
    let class = Class {
        id,
        architecture: profile.architecture.clone(),
        vector,
        inference_threads: profile.inference_threads,
        kernel_mean_us: times,
    };
    Ok(Classification::Founds { class, why })
}

fn vector_extension(profile: &HardwareProfile) -> String {
    let has = |name: &str| profile.instruction_sets.iter().any(|s| s == name);
    let order = [("avx512f", "avx512"), ("avx2", "avx2"), ("sve", "sve"), ("asimd", "asimd"), ("neon", "neon")];
    order.iter().find(|(flag, _)| has(flag)).map_or("base", |(_, name)| name).to_owned()
}

/// Geometric mean of `a / b` over the kernels in both; `None` when they share none (then only unmeasured profiles are alike).
fn speed_ratio(a: &BTreeMap<String, f64>, b: &BTreeMap<String, f64>) -> Option<f64> {
    if a.is_empty() && b.is_empty() {
        return Some(1.0);
    }
    let logs: Vec<f64> = a.iter().filter_map(|(k, x)| b.get(k).map(|y| (x / y).ln())).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

fn new_id(profile: &HardwareProfile, vector: &str, existing: &[Class]) -> Result<ClassId, DomainError> {
    let architecture: String = profile.architecture.to_lowercase().chars().filter(|c| c.is_ascii_alphanumeric()).take(16).collect();
    let quota = profile.cpu_quota_milli.map_or(String::new(), |q| format!("-q{q}"));
    let base = format!("{architecture}-{vector}-{}t{quota}", profile.inference_threads);
    let taken = |id: &str| existing.iter().any(|c| c.id.as_str() == id);
    let mut name = base.clone();
    let mut n = 2u32;
    while taken(&name) {
        name = format!("{base}-{n}");
        n += 1;
    }
    name.parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::MeasuredKernel;
    use crate::runtime::Timing;

    fn profile(threads: u32, speed: f64) -> HardwareProfile {
        let timing = |us| Timing { mean_us: us, min_us: us, p50_us: us, p95_us: us, calls: 10 };
        let kernels = [("a", 10.0), ("b", 55.0)].map(|(k, us)| MeasuredKernel { key: k.into(), timing: timing(us * speed) });
        HardwareProfile {
            architecture: "x86_64".into(),
            instruction_sets: vec!["avx2".into(), "avx512f".into()],
            cores: 4,
            inference_threads: threads,
            kernels: kernels.to_vec(),
            ..HardwareProfile::default()
        }
    }

    fn founded(profile: &HardwareProfile, existing: &[Class]) -> Class {
        match classify(profile, existing).unwrap() {
            Classification::Founds { class, .. } => class,
            Classification::Known { id, .. } => panic!("joined {id}"),
        }
    }

    #[test]
    fn noise_joins_and_another_speed_founds() {
        let class = founded(&profile(2, 1.0), &[]);
        assert_eq!(class.id.as_str(), "x8664-avx512-2t");
        let known = classify(&profile(2, 1.15), std::slice::from_ref(&class)).unwrap();
        assert!(matches!(known, Classification::Known { id, .. } if id == class.id));
        let slow = founded(&profile(2, 2.0), std::slice::from_ref(&class));
        assert_eq!(slow.id.as_str(), "x8664-avx512-2t-2");
        founded(&profile(1, 1.0), &[class, slow]);
    }

    #[test]
    fn refuses_profiles_out_of_range() {
        let bad = HardwareProfile { cores: 0, ..profile(1, 1.0) };
        assert!(matches!(classify(&bad, &[]), Err(DomainError::Field { field, .. }) if field == "cores"));
        assert!(classify(&profile(1, f64::NAN), &[]).is_err());
    }
}
