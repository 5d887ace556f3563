//! Runs a program and watches how much memory it held at most.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// How often the kernel is asked.
const PERIOD: Duration = Duration::from_millis(100);

/// What a program left.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) stderr: String,
    /// Most resident bytes, as the kernel counts them; 0 where it does not tell.
    pub(super) peak_bytes: u64,
}

/// Runs a command to its end; its stdout goes nowhere.
pub(super) fn run(command: &mut Command) -> anyhow::Result<Ended> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start pleach")?;
    let mut pipe = child.stderr.take().context("no stderr")?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text)
    });
    let mut peak_bytes = 0;
    let status = loop {
        peak_bytes = peak_bytes.max(resident_most(child.id()).unwrap_or(0));
        match child.try_wait()? {
            Some(status) => break status,
            None => thread::sleep(PERIOD),
        }
    };
    let stderr = reader.join().ok().context("the reader of stderr panicked")??;
    Ok(Ended { code: status.code(), stderr, peak_bytes })
}

fn resident_most(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
