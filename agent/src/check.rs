//! `pleach-agent check`: whether this device is fit to run, without changing anything and without a controller.

use std::io::Read;
use std::path::Path;
use std::{fmt, fs};

use serde::Serialize;

use crate::clock::Clock;
use crate::config::Config;
use crate::error::{AgentError, chain};
use crate::identity::Identity;
use crate::keys::DeviceKeys;
use crate::ledger::{Assigned, LedgerFile};
use crate::state::StateDir;
use crate::{profile, status};

/// Free bytes below which new downloads are refused soon.
const LITTLE_ROOM_BYTES: u64 = 64 << 20;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The agent runs, but someone should look.
    Warning,
    /// The agent does not serve like this.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, e.g. `ledger`.
    pub what: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// More about it.
    pub detail: String,
}

/// Looks at everything.
pub async fn run(config: &Config) -> Vec<Finding> {
    let mut findings = vec![library(config), disk(config)];
    findings.extend(state(&config.state_dir));
    findings.push(agent(config).await);
    findings
}

fn library(config: &Config) -> Finding {
    match config.check_library() {
        Ok(()) => finding("onnxruntime", Verdict::Ok, "the library is there"),
        Err(error) => finding("onnxruntime", Verdict::Failed, chain(&error)),
    }
}

fn disk(config: &Config) -> Finding {
    let free = profile::free_bytes(&config.state_dir);
    let verdict = if free < LITTLE_ROOM_BYTES { Verdict::Warning } else { Verdict::Ok };
    finding("disk", verdict, format!("{} MiB are free in {}", free >> 20, config.state_dir.display()))
}

fn state(root: &Path) -> Vec<Finding> {
    let state = match StateDir::look(root) {
        Ok(state) => state,
        Err(error) => return vec![finding("state", Verdict::Failed, chain(&error))],
    };
    let mut findings = Vec::new();
    let keys = DeviceKeys::load(&state);
    findings.push(match &keys {
        Ok(Some(keys)) => identity(&state, keys),
        Ok(None) => finding("identity", Verdict::Warning, "this device is not enrolled"),
        Err(error) => finding("identity", Verdict::Failed, chain(error)),
    });
    match LedgerFile::new(state.ledger()).peek() {
        Ok(ledger) => {
            let attempt =
                ledger.attempt.as_ref().map_or(String::new(), |a| format!(", sequence {} is at {:?}", a.assigned.sequence, a.step));
            let proven = ledger.proven.as_ref();
            let words = proven.map_or("nothing is proven".to_owned(), |p| format!("{} version {} is proven", p.model, p.model_version));
            findings.push(finding("ledger", if proven.is_some() { Verdict::Ok } else { Verdict::Warning }, words + &attempt));
            findings.extend(proven.map(|proven| bundle(&state, proven)));
        }
        Err(error) => findings.push(finding("ledger", Verdict::Failed, chain(&error))),
    }
    findings
}

fn identity(state: &StateDir, keys: &DeviceKeys) -> Finding {
    match Identity::load(state, &keys.identity_public()) {
        Ok(Some(identity)) => {
            let days = (identity.not_after_ms() - Clock::new(0).now_ms()) / 86_400_000;
            let verdict = if days < 0 { Verdict::Warning } else { Verdict::Ok };
            finding("identity", verdict, format!("{}, certificate for {days} more days", identity.device()))
        }
        Ok(None) => finding("identity", Verdict::Warning, "this device is not enrolled"),
        Err(error) => finding("identity", Verdict::Failed, chain(&error)),
    }
}

/// Whether the proven bundle on disk is, bit for bit, the one that was signed.
fn bundle(state: &StateDir, proven: &Assigned) -> Finding {
    let path = state.bundle(&proven.digest);
    let digest = || -> std::io::Result<_> {
        let mut bytes = Vec::new();
        fs::File::open(&path)?.take(proven.length_bytes + 1).read_to_end(&mut bytes)?;
        Ok(pleach_artifact::sha256(&bytes))
    };
    match digest() {
        Ok(digest) if digest == proven.digest => finding("bundle", Verdict::Ok, format!("{} is whole", proven.digest)),
        Ok(digest) => {
            finding("bundle", Verdict::Failed, format!("{} has digest {digest}: it is fetched again at the next start", path.display()))
        }
        Err(error) => finding("bundle", Verdict::Failed, format!("{}: {error}", path.display())),
    }
}

async fn agent(config: &Config) -> Finding {
    match status::ask(&config.inference_socket).await {
        Ok(status) if status.state == "empty" => finding("agent", Verdict::Warning, "runs, and serves nothing"),
        Ok(status) => finding("agent", Verdict::Ok, format!("{}: {} {}", status.state, status.model, status.model_version)),
        Err(AgentError::NoAgent { .. }) => finding("agent", Verdict::Warning, "does not run"),
        Err(error) => finding("agent", Verdict::Failed, chain(&error)),
    }
}

fn finding(what: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
    Finding { what, verdict, detail: detail.into() }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        write!(f, "{verdict:8} {:12} {}", self.what, self.detail)
    }
}
