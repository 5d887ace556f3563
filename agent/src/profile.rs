//! What this machine is: processor, caches, memory and the limits of the agent's own control group.
//!
//! Everything is read from the kernel (`/proc`, `/sys`) below one root folder, so that tests can lend another machine.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use pleach_domain::profile::{HardwareProfile, MeasuredKernel};
use pleach_domain::{Digest, DomainError};

mod cgroup;
mod cpu;

/// Longest file under /proc or /sys that is read, in bytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// A file tree to read the machine from; `/` but in tests.
#[derive(Clone, Debug)]
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn text(&self, path: &str) -> Option<String> {
        let mut text = String::new();
        let file = fs::File::open(self.root.join(path.trim_start_matches('/'))).ok()?;
        file.take(MAX_TEXT_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// Facts that only the runtime half knows.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Version of ONNX Runtime.
    pub onnxruntime_version: String,
    /// The standard kernels, timed.
    pub kernels: Vec<MeasuredKernel>,
}

/// Reads the profile of this machine. `threads` is what inference is configured to use.
///
/// # Errors
/// [`DomainError::Field`] when the machine says something that no profile may hold.
pub fn read(state_dir: &Path, threads: u32, measured: Measured) -> Result<HardwareProfile, DomainError> {
    let machine = Machine { root: "/".into() };
    let limits = cgroup::limits(&machine);
    let caches = cpu::caches(&machine);
    let total = memory_bytes(&machine.text("proc/meminfo").unwrap_or_default());
    let system = rustix::system::uname();
    let text = |c: &std::ffi::CStr| c.to_string_lossy().chars().take(60).collect::<String>();
    let profile = HardwareProfile {
        architecture: text(system.machine()),
        instruction_sets: cpu::instruction_sets(&machine),
        cpu_model: cpu::model(&machine),
        cores: cpu::cores(),
        inference_threads: threads,
        cpu_quota_milli: limits.cpu_quota_milli,
        l1d_bytes: caches.l1d_bytes,
        l2_bytes: caches.l2_bytes,
        l3_bytes: caches.l3_bytes,
        memory_bytes: limits.memory_bytes.map_or(total, |limit| limit.min(total)),
        storage_bytes: free_bytes(state_dir),
        execution_providers: vec!["CPUExecutionProvider".into()],
        onnxruntime_version: measured.onnxruntime_version,
        operating_system: format!("{} {}", text(system.sysname()), text(system.release())),
        kernels: measured.kernels,
    };
    profile.validate()?;
    Ok(profile)
}

/// Identifies the lasting part of a profile: all but the timings and the free storage, which differ each time.
pub fn fingerprint(profile: &HardwareProfile) -> Digest {
    let lasting = HardwareProfile { kernels: Vec::new(), storage_bytes: 0, onnxruntime_version: String::new(), ..profile.clone() };
    pleach_artifact::sha256(&serde_json::to_vec(&lasting).unwrap_or_default())
}

/// Free bytes for an unprivileged user where the agent keeps its state; 0 when unknown.
pub fn free_bytes(state_dir: &Path) -> u64 {
    rustix::fs::statvfs(state_dir).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}

fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_valid_profile_that_stays_itself() {
        let dir = tempfile::tempdir().unwrap();
        let profile = read(dir.path(), 1, Measured::default()).unwrap();
        assert!(profile.memory_bytes > 0 && profile.storage_bytes > 0 && !profile.instruction_sets.is_empty(), "{profile:?}");
        assert_eq!(fingerprint(&profile), fingerprint(&read(dir.path(), 1, Measured::default()).unwrap()));
        assert_ne!(fingerprint(&profile), fingerprint(&HardwareProfile { cpu_quota_milli: Some(123), ..profile }));
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(memory_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), 16384 * 1024);
        assert_eq!(memory_bytes("nonsense"), 0);
    }
}
