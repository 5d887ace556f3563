//! CPU limits that make one machine look like several kinds of device.
//!
//! As root: a control group for each device with a quota over a short period, which acts like a slower processor (over the
//! default 100 ms a small model would never notice it until it stalls). Otherwise: the device's processors are narrowed by
//! affinity, and a quota becomes a share of one processor by pausing and continuing the device's processes.

mod pause;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use self::pause::Pauser;
use crate::process;

/// Period of a quota, in microseconds.
const PERIOD_US: u64 = 5_000;
/// Weight of a device against everything else on the machine; an ordinary group has 1024 in version 1 and 100 in version 2.
const SHARES_V1: &str = "8192";
const WEIGHT_V2: &str = "800";

/// How limits are set on this machine.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Limits {
    /// Control groups, version 1; the folder of the CPU controller.
    V1(PathBuf),
    /// Control groups, version 2; the top folder.
    V2(PathBuf),
    /// No right to use them.
    Unprivileged,
}

impl Limits {
    /// Looks for what this user may use on this machine.
    pub(super) fn detect() -> Self {
        let (v1, v2) = (PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup"));
        if !process::is_root() {
            return Self::Unprivileged;
        }
        if v1.join("cpu.cfs_quota_us").exists() || v1.join("cpu.shares").exists() {
            return Self::V1(v1);
        }
        let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        let offered = controllers.split_whitespace().any(|c| c == "cpu");
        if offered && fs::write(v2.join("cgroup.subtree_control"), "+cpu").is_ok() {
            return Self::V2(v2);
        }
        Self::Unprivileged
    }

    /// In words, for people.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::V1(_) => "control groups v1, CPU quota over 5 ms",
            Self::V2(_) => "control groups v2, CPU quota over 5 ms",
            Self::Unprivileged => "affinity and pauses, as control groups need root",
        }
    }

    /// A group for one device: `quota` is a share of one processor, `None` for no limit. `processors` is a list as taskset(1) takes it;
    /// it matters only where there is no quota to be had.
    pub(super) fn group(&self, name: &str, processors: &str, quota: Option<f64>) -> anyhow::Result<Group> {
        let mechanism = match self {
            Self::V1(top) => Mechanism::V1(create(top, name)?),
            Self::V2(top) => Mechanism::V2(create(top, name)?),
            Self::Unprivileged => Mechanism::Pauses { pauser: Pauser::new(), processors: processors.to_owned() },
        };
        let mut group = Group { mechanism };
        match &group.mechanism {
            Mechanism::V1(folder) => write(folder, "cpu.shares", SHARES_V1)?,
            Mechanism::V2(folder) => write(folder, "cpu.weight", WEIGHT_V2)?,
            Mechanism::Pauses { .. } => {}
        }
        group.set_quota(quota)?;
        Ok(group)
    }
}

enum Mechanism {
    V1(PathBuf),
    V2(PathBuf),
    Pauses { pauser: Pauser, processors: String },
}

/// The limits of one device; dropping it ends what still runs in it and removes it.
pub(super) struct Group {
    mechanism: Mechanism,
}

impl Group {
    /// A command that runs `program` inside the group from its first instruction on.
    pub(super) fn command(&self, program: &Path) -> Command {
        match &self.mechanism {
            Mechanism::V1(folder) | Mechanism::V2(folder) => {
                let mut command = Command::new("sh");
                command
                    .args([OsStr::new("-c"), OsStr::new(r#"echo $$ > "$0" && exec "$@""#)])
                    .arg(folder.join("cgroup.procs"))
                    .arg(program);
                command
            }
            Mechanism::Pauses { processors, .. } => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", processors]).arg(program);
                command
            }
        }
    }

    /// Says which process was started in it; only pauses need to know.
    pub(super) fn started(&self, id: u32) {
        match &self.mechanism {
            Mechanism::V1(_) | Mechanism::V2(_) => {}
            Mechanism::Pauses { pauser, .. } => pauser.watch(id),
        }
    }

    /// Changes the quota, a share of one processor.
    pub(super) fn set_quota(&mut self, quota: Option<f64>) -> anyhow::Result<()> {
        let quota_us = quota.map(|share| (PERIOD_US as f64 * share).round().max(1_000.0) as u64);
        match &self.mechanism {
            Mechanism::V1(folder) => {
                write(folder, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
                write(folder, "cpu.cfs_quota_us", &quota_us.map_or_else(|| "-1".to_owned(), |q| q.to_string()))
            }
            Mechanism::V2(folder) => {
                let quota = quota_us.map_or_else(|| "max".to_owned(), |q| q.to_string());
                write(folder, "cpu.max", &format!("{quota} {PERIOD_US}"))
            }
            Mechanism::Pauses { pauser, .. } => {
                pauser.set_share(quota.unwrap_or(1.0));
                Ok(())
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let folder = match &self.mechanism {
            Mechanism::V1(folder) | Mechanism::V2(folder) => folder,
            Mechanism::Pauses { .. } => return,
        };
        let deadline = Instant::now() + Duration::from_secs(3);
        while fs::remove_dir(folder).is_err() && folder.exists() && Instant::now() < deadline {
            // The group is ours alone, so whatever is left in it is a child of a process that we started.
            let left = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines().filter_map(|l| l.parse().ok()).filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn create(top: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = top.join(format!("pleach-demo-{}-{name}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot create the control group {}", folder.display()))?;
    Ok(folder)
}

fn write(folder: &Path, file: &str, value: &str) -> anyhow::Result<()> {
    fs::write(folder.join(file), value).with_context(|| format!("cannot set {file} of {} to {value}", folder.display()))
}
