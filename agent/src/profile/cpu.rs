//! The processor: model, instruction sets that matter to inference, caches, and how many of it the agent may use.

use std::thread;

use super::Machine;

/// Names as the kernel spells them in /proc/cpuinfo; raw CPUID answers are given the same names.
#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
const KNOWN: [&str; 16] = [
    "asimd", "asimddp", "asimdhp", "bf16", "dotprod", "fphp", "i8mm", "neon", "sme", "sve", "sve2", "svebf16", "svei8mm", "rvv", "zvfh",
    "v",
];

/// Sizes in bytes of the first processor's caches; 0 when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Caches {
    pub(super) l1d_bytes: u64,
    pub(super) l2_bytes: u64,
    pub(super) l3_bytes: u64,
}

/// Processors the agent may use (affinity applied).
pub(super) fn cores() -> u32 {
    let affinity = rustix::thread::sched_getaffinity(None).map(|set| set.count());
    affinity.ok().filter(|n| *n > 0).unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get() as u32))
}

/// Instruction set extensions, lower case, sorted.
pub(super) fn instruction_sets(machine: &Machine) -> Vec<String> {
    let mut names = extensions(machine);
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn extensions(_: &Machine) -> Vec<String> {
    use raw_cpuid::CpuId;
    let cpuid = CpuId::new();
    let mut names = Vec::new();
    let mut note = |has: bool, name: &str| {
        if has {
            names.push(name.to_owned());
        }
    };
    if let Some(f) = cpuid.get_feature_info() {
        note(f.has_sse41(), "sse4_1");
        note(f.has_avx(), "avx");
        note(f.has_fma(), "fma");
        note(f.has_f16c(), "f16c");
        note(f.has_aesni(), "aes");
    }
    if let Some(f) = cpuid.get_extended_feature_info() {
        note(f.has_avx2(), "avx2");
        note(f.has_avx512f(), "avx512f");
        note(f.has_avx512bw(), "avx512bw");
        note(f.has_avx512vl(), "avx512vl");
        note(f.has_avx512vnni(), "avx512_vnni");
        note(f.has_avx512_bf16(), "avx512_bf16");
        note(f.has_amx_int8(), "amx_int8");
        note(f.has_amx_bf16(), "amx_bf16");
    }
    names
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
fn extensions(machine: &Machine) -> Vec<String> {
    let text = machine.text("proc/cpuinfo").unwrap_or_default();
    let flags = field(&text, &["Features", "isa"]).unwrap_or_default();
    flags.split([' ', '_']).filter(|f| KNOWN.contains(f)).map(str::to_owned).collect()
}

/// The processor as it names itself; empty when it does not.
pub(super) fn model(machine: &Machine) -> String {
    let text = machine.text("proc/cpuinfo").unwrap_or_default();
    let name = field(&text, &["model name", "Model", "Hardware", "uarch", "CPU part"]);
    name.unwrap_or_default().chars().filter(|c| !c.is_control()).take(60).collect()
}

fn field<'a>(cpuinfo: &'a str, names: &[&str]) -> Option<&'a str> {
    let find = |name: &&str| cpuinfo.lines().filter_map(|l| l.split_once(':')).find(|(key, _)| key.trim() == *name);
    names.iter().find_map(find).map(|(_, value)| value.trim())
}

/// Reads the caches of the first processor from sysfs.
pub(super) fn caches(machine: &Machine) -> Caches {
    let mut caches = Caches::default();
    for index in 0..8 {
        let read = |name: &str| machine.text(&format!("sys/devices/system/cpu/cpu0/cache/index{index}/{name}"));
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else { continue };
        let bytes = size_bytes(size.trim());
        match (level.trim(), kind.trim()) {
            ("1", "Data" | "Unified") => caches.l1d_bytes = bytes,
            ("2", _) => caches.l2_bytes = bytes,
            ("3", _) => caches.l3_bytes = bytes,
            _ => {}
        }
    }
    caches
}

fn size_bytes(text: &str) -> u64 {
    let unit = |suffix, factor: u64| text.strip_suffix(suffix).map(|n| (n, factor));
    let (number, factor) = unit('K', 1 << 10).or_else(|| unit('M', 1 << 20)).or_else(|| unit('G', 1 << 30)).unwrap_or((text, 1));
    number.parse::<u64>().unwrap_or(0).saturating_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_caches_and_model() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let caches_of =
            [("0", "1", "Data", "48K"), ("1", "1", "Instruction", "32K"), ("2", "2", "Unified", "2048K"), ("3", "3", "Unified", "1G")];
        for (index, level, kind, size) in caches_of {
            let base = format!("sys/devices/system/cpu/cpu0/cache/index{index}");
            write(&format!("{base}/level"), level);
            write(&format!("{base}/type"), kind);
            write(&format!("{base}/size"), size);
        }
        write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2.0 GHz\n");
        let machine = Machine { root: dir.path().to_owned() };
        assert_eq!(caches(&machine), Caches { l1d_bytes: 48 << 10, l2_bytes: 2 << 20, l3_bytes: 1 << 30 });
        assert_eq!(model(&machine), "Some CPU @ 2.0 GHz");
    }

    #[test]
    fn this_machine_gives_at_least_one_processor() {
        assert!(cores() >= 1);
    }
}
