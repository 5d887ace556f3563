//! `cargo xtask test`: all tests, with what they need around them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::workspace::Workspace;
use crate::{dashboard, onnxruntime, postgres, process};

/// Sets up ONNX Runtime and PostgreSQL, builds everything, runs every test and sums up.
///
/// Tests find `ORT_DYLIB_PATH` (the library), `PLEACH_POSTGRES_BIN` (folder of the server binaries) and
/// `PLEACH_BIN_DIR` (folder of the controller and the agent) in their environment.
pub(crate) fn run(workspace: &Workspace, rest: &[String]) -> anyhow::Result<()> {
    let mut times = Vec::new();
    let begun = Instant::now();
    let library = onnxruntime::ensure()?;
    let postgres = postgres::ensure()?;
    dashboard::build(workspace)?;
    times.push(("set-up", begun.elapsed()));

    let begun = Instant::now();
    process::run(&mut workspace.cargo(&["build", "--workspace", "--all-targets"]))?;
    times.push(("build", begun.elapsed()));

    let begun = Instant::now();
    let mut tests = workspace.cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests
        .args(rest)
        .env("ORT_DYLIB_PATH", library)
        .env("ORT_DISABLE_TELEMETRY", "1")
        .env("PLEACH_POSTGRES_BIN", postgres)
        .env("PLEACH_BIN_DIR", workspace.target.join("debug"))
        .stdout(Stdio::piped());
    let mut child = tests.spawn().context("cannot start cargo test")?;
    let mut sum = Summary::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            sum.add(&line);
        }
    }
    let status = child.wait()?;
    times.push(("tests", begun.elapsed()));

    println!("\n{} passed, {} failed in {} test binaries", sum.passed, sum.failed, sum.binaries);
    for (what, time) in times {
        println!("{what:8} {}", seconds(time));
    }
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}

/// `83.1 s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Counts from the lines that end each test binary's output.
#[derive(Debug, Default, PartialEq)]
struct Summary {
    binaries: u32,
    passed: u32,
    failed: u32,
}

impl Summary {
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|l| l.split_once(". ")) else { return };
        let count = |word: &str| counts.1.split("; ").find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u32>().ok());
        self.binaries += 1;
        self.passed += count("passed").unwrap_or(0);
        self.failed += count("failed").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_up_what_each_binary_says() {
        let mut sum = Summary::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            sum.add(line);
        }
        assert_eq!(sum, Summary { binaries: 2, passed: 13, failed: 2 });
    }
}
