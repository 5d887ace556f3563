//! `cargo xtask bench trust`: what sealing, opening and assigning cost, beside what the ciphers and hashes under them cost in the
//! same run, on the same data, in turns.

use std::io::{self, Read, Seek};
use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::{Table, presets};
use pleach_artifact::{CHUNK_BYTES, SealingKey, Suite, WrapContext, open, seal, wrap};
use pleach_trust::{BundleEntry, BundleFacts, FleetAuthor, FleetKeys, Sha256Digest, UtcTime};
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::digest;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::Output;

/// Options of the bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Size of the payload whose sealing and opening is timed
    #[arg(long, default_value_t = 64)]
    payload_mib: usize,
    /// How often each is timed, in turns; the fastest counts
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How many devices get a wrap and a signed assignment
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
    /// How to print
    #[arg(short, long, default_value = "text")]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    rates: Vec<Rates>,
    payload_bytes: u64,
    overhead_bytes: u64,
    overhead_share: f64,
    wrap_bytes: usize,
    assignment_bytes: usize,
    devices: usize,
    devices_cpu_s: f64,
    memory: Vec<Memory>,
}

/// Of one cipher, bytes of payload a second.
#[derive(Serialize)]
struct Rates {
    suite: &'static str,
    line_mb_s: f64,
    seal_mb_s: f64,
    open_mb_s: f64,
    seal_share: f64,
    open_share: f64,
}

/// How far the process grew while it opened a bundle of this size.
#[derive(Serialize)]
struct Memory {
    bundle_mib: u64,
    peak_mib: f64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let report = measure(options)?;
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => println!("{}", text(&report)),
    }
    Ok(())
}

fn measure(options: &Options) -> anyhow::Result<Report> {
    let payload: Vec<u8> = (0..options.payload_mib << 20).map(|i| (i * 31 % 251) as u8).collect();
    let suites = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
    let rates = suites.into_iter().map(|suite| rates(suite, &payload, options.rounds)).collect::<anyhow::Result<_>>()?;
    let sealed = seal(&mut payload.as_slice(), payload.len() as u64, Suite::Aes256Gcm, &mut io::sink())?;
    let overhead_bytes = sealed.length + sealed.leaves.encode().len() as u64 - payload.len() as u64;
    let fleet = assign(options.devices)?;
    Ok(Report {
        rates,
        payload_bytes: payload.len() as u64,
        overhead_bytes,
        overhead_share: overhead_bytes as f64 / payload.len() as f64,
        wrap_bytes: fleet.wrap_bytes,
        assignment_bytes: fleet.assignment_bytes,
        devices: options.devices,
        devices_cpu_s: fleet.cpu.as_secs_f64(),
        memory: [8, 64, 512].into_iter().map(memory).collect::<anyhow::Result<_>>()?,
    })
}

fn rates(suite: Suite, payload: &[u8], rounds: usize) -> anyhow::Result<Rates> {
    let length = payload.len() as u64;
    let mut bundle = Vec::with_capacity(payload.len() + payload.len() / 512 + 4096);
    let sealed = seal(&mut &*payload, length, suite, &mut bundle)?;
    let mut out = Vec::with_capacity(payload.len());
    let mut scratch = payload.to_vec();
    let [mut line_s, mut seal_s, mut open_s] = [f64::INFINITY; 3];
    for _ in 0..rounds {
        line_s = line_s.min(line(suite, &mut scratch)?);
        let begun = Instant::now();
        bundle.clear();
        let sealed_again = seal(&mut &*payload, length, suite, &mut bundle)?;
        seal_s = seal_s.min(begun.elapsed().as_secs_f64());
        out.clear();
        let begun = Instant::now();
        open(&mut &*bundle, sealed.length, &sealed_again.digest, sealed_again.content_key, &mut out)?;
        open_s = open_s.min(begun.elapsed().as_secs_f64());
    }
    anyhow::ensure!(out == payload, "opening gave another payload");
    let mb_s = |seconds: f64| length as f64 / seconds / 1e6;
    Ok(Rates {
        suite: suite.name(),
        line_mb_s: mb_s(line_s),
        seal_mb_s: mb_s(seal_s),
        open_mb_s: mb_s(open_s),
        seal_share: line_s / seal_s,
        open_share: line_s / open_s,
    })
}

/// Seconds that the cipher and one SHA-256 take over the data, chunk by chunk, in place.
fn line(suite: Suite, data: &mut [u8]) -> anyhow::Result<f64> {
    let algorithm = match suite {
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    let key = UnboundKey::new(algorithm, &[7; 32]).map_err(|_| anyhow::anyhow!("the cipher refuses its key"))?;
    let key = LessSafeKey::new(key);
    let begun = Instant::now();
    let mut hash = digest::Context::new(&digest::SHA256);
    for (index, chunk) in (0u32..).zip(data.chunks_mut(CHUNK_BYTES)) {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&index.to_be_bytes());
        let sealed = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), chunk);
        let tag = sealed.map_err(|_| anyhow::anyhow!("the cipher refuses a chunk"))?;
        hash.update(chunk);
        hash.update(tag.as_ref());
    }
    std::hint::black_box(hash.finish());
    Ok(begun.elapsed().as_secs_f64())
}

struct Fleet {
    wrap_bytes: usize,
    assignment_bytes: usize,
    cpu: Duration,
}

/// Wraps a content key and signs an assignment for each device.
fn assign(devices: usize) -> anyhow::Result<Fleet> {
    let sealed = seal(&mut &b"payload"[..], 7, Suite::Aes256Gcm, &mut io::sink())?;
    let (model, class) = ("resnet".parse()?, "camera".parse()?);
    let keys = FleetKeys::generate()?;
    let entry = BundleEntry {
        digest: Sha256Digest::new(*sealed.digest.as_bytes()),
        length: sealed.length,
        facts: BundleFacts {
            tree_root: Sha256Digest::new(*sealed.tree_root.as_bytes()),
            chunk_count: 1,
            model: "resnet".into(),
            model_version: 1,
            class: "camera".into(),
            suite: sealed.suite.name().into(),
            security_floor: 1,
        },
    };
    let public = SealingKey::generate()?.public_key()?;
    let (mut wrap_bytes, mut assignment_bytes) = (0, 0);
    let before = cpu();
    for number in 0..devices {
        let device = format!("device-{number:05}").parse()?;
        let context = WrapContext {
            device: &device,
            bundle: &sealed.digest,
            model: &model,
            model_version: 1,
            class: &class,
            sequence: number as u64 + 1,
        };
        wrap_bytes = wrap(&sealed.content_key, &public, &context)?.as_bytes().len();
        let signed = FleetAuthor::new(&keys).assignment(device.as_str(), &entry, number as u64 + 1, UtcTime::MAX)?;
        assignment_bytes = assignment_bytes.max(signed.len());
    }
    Ok(Fleet { wrap_bytes, assignment_bytes, cpu: cpu().saturating_sub(before) })
}

/// Processor time of this process.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Opens a bundle from a file and lets its payload go, as an agent does into sealed memory.
fn memory(bundle_mib: u64) -> anyhow::Result<Memory> {
    let mut file = tempfile::tempfile()?;
    let length = bundle_mib << 20;
    let sealed = seal(&mut io::repeat(7).take(length), length, Suite::Aes256Gcm, &mut file)?;
    file.rewind()?;
    let before = peak_kib(true)?;
    open(&mut file, sealed.length, &sealed.digest, sealed.content_key, &mut io::sink())?;
    Ok(Memory { bundle_mib, peak_mib: peak_kib(false)?.saturating_sub(before) as f64 / 1024.0 })
}

/// Most memory this process ever had, after setting that mark to what it has now (proc(5), clear_refs).
fn peak_kib(reset: bool) -> anyhow::Result<u64> {
    if reset {
        std::fs::write("/proc/self/clear_refs", "5").context("resetting the mark of peak memory")?;
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["SUITE", "CIPHER + HASH", "SEAL", "OPEN"]);
    for r in &report.rates {
        let ours = |rate: f64, share: f64| format!("{rate:.0} MB/s, {:.0} %", share * 100.0);
        table.add_row([r.suite, &format!("{:.0} MB/s", r.line_mb_s), &ours(r.seal_mb_s, r.seal_share), &ours(r.open_mb_s, r.open_share)]);
    }
    let memory = report.memory.iter().map(|m| format!("{:.1} MiB for {} MiB", m.peak_mib, m.bundle_mib)).collect::<Vec<_>>().join(", ");
    format!(
        "{}\n\noverhead      {} bytes on {}, {:.4} %; a device: wrap {} bytes, signed assignment {} bytes\n\
         fleet         {} wraps and signed assignments in {:.2} CPU s\nmemory        opening takes {memory}",
        table.trim_fmt(),
        report.overhead_bytes,
        report.payload_bytes,
        report.overhead_share * 100.0,
        report.wrap_bytes,
        report.assignment_bytes,
        report.devices,
        report.devices_cpu_s,
    )
}
