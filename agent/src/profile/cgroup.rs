//! CPU quota and memory limit of the agent's own control group, versions 1 and 2. The limit that binds is the smallest from
//! the group up to the root.

use super::Machine;

/// What the control group allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Thousandths of a processor.
    pub(super) cpu_quota_milli: Option<u32>,
    /// Bytes.
    pub(super) memory_bytes: Option<u64>,
}

/// Values at and above this mean "no limit" in version 1 (its default is the largest page-aligned i64).
const UNLIMITED_BYTES: u64 = 1 << 60;

/// Reads the limits of this process. A machine without control groups has none.
pub(super) fn limits(machine: &Machine) -> Limits {
    let own = machine.text("proc/self/cgroup").unwrap_or_default();
    let mounts = machine.text("proc/self/mountinfo").unwrap_or_default();
    let mut limits = Limits::default();
    for (controllers, group) in own.lines().filter_map(parse_line) {
        // Version 2 names no controllers.
        let version2 = controllers.is_empty();
        if version2 || controllers.split(',').any(|c| c == "cpu") {
            let quota = |dir: &str| if version2 { quota_v2(machine, dir) } else { quota_v1(machine, dir) };
            let found = smallest(&mounts, if version2 { "" } else { "cpu" }, group, quota);
            limits.cpu_quota_milli = least(limits.cpu_quota_milli, found);
        }
        if version2 || controllers.split(',').any(|c| c == "memory") {
            let file = if version2 { "memory.max" } else { "memory.limit_in_bytes" };
            let limit = |dir: &str| number(machine, &format!("{dir}/{file}")).filter(|n| *n < UNLIMITED_BYTES);
            let found = smallest(&mounts, if version2 { "" } else { "memory" }, group, limit);
            limits.memory_bytes = least(limits.memory_bytes, found);
        }
    }
    limits
}

/// `hierarchy:controllers:path` of cgroups(7).
fn parse_line(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

fn smallest<T: Ord + Copy>(mounts: &str, controller: &str, group: &str, limit: impl Fn(&str) -> Option<T>) -> Option<T> {
    let mount = mounts.lines().filter_map(parse_mount).find(|m| m.carries(controller))?;
    // In a container the mount shows a part of the tree, whose root is the mount's; the group is named from the whole tree's.
    let below = group.strip_prefix(mount.root.trim_end_matches('/')).filter(|_| mount.root != "/").unwrap_or(group);
    let below = below.trim_matches('/');
    let mut dirs = vec![mount.point.to_owned()];
    let mut path = mount.point.to_owned();
    for part in below.split('/').filter(|p| !p.is_empty() && *p != "..") {
        path = format!("{path}/{part}");
        dirs.push(path.clone());
    }
    dirs.iter().filter_map(|dir| limit(dir)).min()
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    version2: bool,
    options: &'a str,
}

impl Mount<'_> {
    fn carries(&self, controller: &str) -> bool {
        if controller.is_empty() { self.version2 } else { !self.version2 && self.options.split(',').any(|o| o == controller) }
    }
}

/// A line of /proc/self/mountinfo, proc_pid_mountinfo(5).
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1).unwrap_or_default();
    matches!(kind, "cgroup" | "cgroup2").then_some(Mount { root, point, version2: kind == "cgroup2", options })
}

/// `cpu.max` is `quota period` or `max period`, in microseconds.
fn quota_v2(machine: &Machine, dir: &str) -> Option<u32> {
    let text = machine.text(&format!("{dir}/cpu.max"))?;
    let mut parts = text.split_whitespace();
    let quota = parts.next()?.parse().ok()?;
    milli(quota, parts.next()?.parse().ok()?)
}

/// `cpu.cfs_quota_us` is -1 without a limit.
fn quota_v1(machine: &Machine, dir: &str) -> Option<u32> {
    milli(number(machine, &format!("{dir}/cpu.cfs_quota_us"))?, number(machine, &format!("{dir}/cpu.cfs_period_us"))?)
}

fn milli(quota_us: u64, period_us: u64) -> Option<u32> {
    let milli = quota_us.saturating_mul(1000).checked_div(period_us)?;
    u32::try_from(milli).ok().filter(|m| *m > 0)
}

fn number(machine: &Machine, path: &str) -> Option<u64> {
    machine.text(path)?.trim().parse().ok()
}

fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = dir.path().to_owned();
        (dir, Machine { root })
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "33 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct\n\
                      35 25 0:30 / /sys/fs/cgroup/memory rw shared:13 - cgroup cgroup rw,memory\n";

    #[test]
    fn reads_version_2_and_the_smallest_limit_on_the_way_up() {
        let (_dir, machine) = machine(&[
            ("proc/self/cgroup", "0::/system.slice/pleach.service\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/system.slice/cpu.max", "50000 100000\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/pleach.service/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/system.slice/pleach.service/memory.max", "268435456\n"),
        ]);
        assert_eq!(limits(&machine), Limits { cpu_quota_milli: Some(500), memory_bytes: Some(268_435_456) });
    }

    #[test]
    fn reads_version_1() {
        let (_dir, machine) = machine(&[
            ("proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a/b\n1:name=systemd:/x\n"),
            ("proc/self/mountinfo", V1),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "2500\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "10000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1048576\n"),
        ]);
        assert_eq!(limits(&machine), Limits { cpu_quota_milli: Some(250), memory_bytes: Some(1_048_576) });
    }

    #[test]
    fn reads_a_container_whose_mount_is_a_part_of_the_tree() {
        let (_dir, machine) = machine(&[
            ("proc/self/cgroup", "3:cpu,cpuacct:/docker/abc\n"),
            ("proc/self/mountinfo", "33 25 0:28 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(limits(&machine).cpu_quota_milli, Some(1500));
    }

    #[test]
    fn no_limits_and_nonsense_are_none() {
        assert_eq!(limits(&machine(&[]).1), Limits::default());
        let (_dir, odd) = machine(&[
            ("proc/self/cgroup", "nonsense\n0::/../..\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/memory.max", "-5\n"),
        ]);
        assert_eq!(limits(&odd), Limits::default());
    }
}
