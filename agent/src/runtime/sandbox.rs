//! What the runtime half gives up before it sees a model: files it does not need, every socket it was not handed, other programs and
//! other processes. A model is foreign code in effect; this is what it could reach if it broke out of ONNX Runtime.
//!
//! Sources: landlock(7), seccomp(2). What a kernel does not know is left out, and said.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use seccompiler::{SeccompAction, SeccompFilter, apply_filter};

/// The newest Landlock that the rules below are written for; older kernels hold what they know.
const NEWEST_ABI: ABI = ABI::V6;
/// What ONNX Runtime and the C library read: shared libraries, facts about processor and memory.
const READABLE: [&str; 9] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/etc/ld.so.cache", "/proc", "/sys"];
/// The kernel ends this half before the control half when memory is short.
const OOM_SCORE: &str = "500";

/// Calls that fail with "permission denied" from now on: new sockets of any kind, other programs, other processes, and the parts
/// of the kernel that break-outs go through. A list of what is allowed would break with each version of ONNX Runtime.
const DENIED: [libc::c_long; 40] = [
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_quotactl,
    libc::SYS_acct,
];

/// Gives everything up, for this thread and all that it will start. What the kernel cannot hold is logged; the half serves all the same.
pub(crate) fn enter(library: Option<&Path>, memory_max_bytes: Option<u64>) {
    let mut missing = Vec::new();
    let mut held = |what: &str, result: Result<(), String>| {
        if let Err(reason) = result {
            missing.push(format!("{what} ({reason})"));
        }
    };
    held("dying first when memory is short", fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(|e| e.to_string()));
    if let Some(bytes) = memory_max_bytes {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        held("the memory limit", setrlimit(Resource::Data, limit).map_err(|e| e.to_string()));
    }
    // A core dump would put plain parameters on a disk.
    held("no core dumps", set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| e.to_string()));
    held("files and network by Landlock", files_and_network(library));
    held("system calls by seccomp", system_calls());
    if missing.is_empty() {
        tracing::info!("the runtime is sandboxed");
    } else {
        tracing::warn!(missing = missing.join(", "), "the runtime is sandboxed in part: this kernel does not hold all of it");
    }
}

fn files_and_network(library: Option<&Path>) -> Result<(), String> {
    let status = restrict(library).map_err(|e| e.to_string())?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => Err("an older Landlock holds a part".to_owned()),
        RulesetStatus::NotEnforced => Err("the kernel has no Landlock".to_owned()),
    }
}

fn restrict(library: Option<&Path>) -> Result<RestrictionStatus, RulesetError> {
    let beside = library.and_then(|l| fs::canonicalize(l).ok()).and_then(|l| l.parent().map(PathBuf::from));
    let readable = READABLE.iter().map(PathBuf::from).chain(beside).filter(|p| p.exists());
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST_ABI))?
        .handle_access(AccessNet::from_all(NEWEST_ABI))?
        .scope(Scope::from_all(NEWEST_ABI))?
        .create()?
        .add_rules(path_beneath_rules(readable, AccessFs::from_read(NEWEST_ABI)))?
        .restrict_self()
}

fn system_calls() -> Result<(), String> {
    let arch = std::env::consts::ARCH.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
    let rules: BTreeMap<i64, _> = DENIED.iter().map(|&call| (call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EACCES as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).map_err(|e| e.to_string())?;
    let program: seccompiler::BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
    apply_filter(&program).map_err(|e| e.to_string())
}
