//! Configuration: one TOML file, overridden by `PLEACH_AGENT_*` variables, overridden by flags.

mod window;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use http::Uri;
use pleach_inference::LIBRARY_VARIABLE;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;

pub use window::Window;

/// Where the Debian package has ONNX Runtime.
const PACKAGED_LIBRARY: &str = "/usr/lib/pleach/libonnxruntime.so";

/// Everything an operator can set. Every key has a default but `controller`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the controller's port for agents, e.g. `https://pleach.example:7443`.
    pub controller: String,
    /// Folder for keys, bundles, ledger and spool.
    pub state_dir: PathBuf,
    /// File with an enrolment token; read only while the device has no identity.
    pub token_file: Option<PathBuf>,
    /// Device id to ask for at enrolment; the controller chooses when it is absent.
    pub device_id: Option<String>,
    /// Unix socket of the inference API.
    pub inference_socket: PathBuf,
    /// Loopback address of the inference API, beside the socket; absent: socket only.
    pub listen_loopback: Option<SocketAddr>,
    /// File with the token that requests on the loopback port must carry; made up where there is none. Absent: the socket's path with `.token`.
    pub loopback_token_file: Option<PathBuf>,
    /// Threads inference uses; absent: one for each processor the agent may use.
    pub threads: Option<u32>,
    /// ONNX Runtime's shared library; absent: the variable `ORT_DYLIB_PATH`, then the package's.
    pub onnxruntime: Option<PathBuf>,
    /// Requests that may wait for the model; more are refused at once.
    pub queue: u32,
    /// Rows of waiting requests that may share one model call; 1: each request alone.
    pub batch_max_rows: u32,
    /// Milliseconds that requests may wait before a slimmer rung serves, where the bundle has several.
    pub step_down_wait_ms: u64,
    /// The slimmest rung answers first, and an answer at least this sure (0 to 1) is kept; absent: one rung answers.
    pub cascade_confidence: Option<f32>,
    /// Share of answers of slimmer rungs that are checked against the fullest when nothing waits, 0 to 1.
    pub audit_share: f32,
    /// Milliseconds after which a model call counts as hanging: the runtime is replaced.
    pub call_limit_ms: u64,
    /// Bytes of memory that the runtime may take; absent: what the service has.
    pub runtime_memory_max_bytes: Option<u64>,
    /// When a staged bundle may be activated, e.g. `["sat 02:00-04:30"]`, in UTC; empty: at any time.
    pub maintenance_windows: Vec<Window>,
    /// File that an application locks, as with flock(1), while no bundle may be activated; absent: none.
    pub update_lock_file: Option<PathBuf>,
    /// Whether bundles are activated only while the device has mains power.
    pub activate_on_power_only: bool,
    /// Degrees Celsius above which no bundle is activated and slimmer rungs serve; absent: no limit.
    pub temperature_max_c: Option<u16>,
    /// Milliseconds between signs of life on an idle stream.
    pub ping_interval_ms: u64,
    /// Milliseconds spent on each standard kernel when the device is profiled.
    pub profile_budget_ms: u32,
    /// Bytes that reports may take on disk while the controller is away.
    pub spool_max_bytes: u64,
    /// Reports that may wait on disk while the controller is away.
    pub spool_max_reports: u32,
    /// Days that windows may wait on disk while the controller is away.
    pub spool_max_days: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controller: String::new(),
            state_dir: "/var/lib/pleach".into(),
            token_file: None,
            device_id: None,
            inference_socket: "/run/pleach/inference.sock".into(),
            listen_loopback: None,
            loopback_token_file: None,
            threads: None,
            onnxruntime: None,
            queue: 64,
            batch_max_rows: 1,
            step_down_wait_ms: 250,
            cascade_confidence: None,
            audit_share: 0.01,
            call_limit_ms: 30_000,
            runtime_memory_max_bytes: None,
            maintenance_windows: Vec::new(),
            update_lock_file: None,
            activate_on_power_only: false,
            temperature_max_c: None,
            ping_interval_ms: 120_000,
            profile_budget_ms: 150,
            spool_max_bytes: 16 << 20,
            spool_max_reports: 20_000,
            spool_max_days: 90,
        }
    }
}

/// Values given as flags; each replaces the one from file or environment.
#[derive(Clone, Debug, Default, Serialize, clap::Args)]
pub struct Flags {
    /// Address of the controller's port for agents, e.g. https://pleach.example:7443.
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// Folder for keys, bundles, ledger and spool.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// File with an enrolment token.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Device id to ask for at enrolment.
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Unix socket of the inference API.
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_socket: Option<PathBuf>,
    /// Loopback address of the inference API, e.g. 127.0.0.1:8001.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_loopback: Option<SocketAddr>,
    /// Threads inference uses.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// ONNX Runtime's shared library [else: the variable ORT_DYLIB_PATH].
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnxruntime: Option<PathBuf>,
}

/// The controller's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Config {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// [`AgentError::ConfigSyntax`] names the key, the file and what was expected; [`AgentError::Config`] a value out of range.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, AgentError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            figment = figment.merge(Toml::file_exact(file));
        }
        let figment = figment.merge(Env::prefixed("PLEACH_AGENT_").ignore(&["config"])).merge(Serialized::defaults(flags));
        let config: Self = figment.extract().map_err(|e| AgentError::ConfigSyntax(Box::new(e)))?;
        config.validate()?;
        Ok(config)
    }

    /// Where the controller is.
    ///
    /// # Errors
    /// [`AgentError::Config`] for anything but `https://host[:port]`.
    pub fn endpoint(&self) -> Result<Endpoint, AgentError> {
        let wrong = || AgentError::Config { key: "controller", got: format!("{:?}", self.controller), expected: "https://host:port" };
        let uri: Uri = self.controller.parse().map_err(|_| wrong())?;
        let plain = uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let host = uri.host().filter(|h| plain && !h.is_empty()).ok_or_else(wrong)?;
        Ok(Endpoint { host: host.trim_matches(['[', ']']).to_owned(), port: uri.port_u16().unwrap_or(7443) })
    }

    /// Where the token of the loopback port is.
    pub fn loopback_token_file(&self) -> PathBuf {
        let beside = || {
            let mut path = self.inference_socket.clone().into_os_string();
            path.push(".token");
            path.into()
        };
        self.loopback_token_file.clone().unwrap_or_else(beside)
    }

    /// Threads that inference uses.
    pub fn inference_threads(&self) -> u32 {
        let all = || thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        self.threads.unwrap_or_else(all)
    }

    /// ONNX Runtime's shared library: configured, named by the environment, or where the package puts it.
    pub fn library(&self) -> Option<PathBuf> {
        let named = || std::env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
        let packaged = || Some(PathBuf::from(PACKAGED_LIBRARY)).filter(|file| file.is_file());
        self.onnxruntime.clone().or_else(named).or_else(packaged)
    }

    /// Whether ONNX Runtime's library is named, and there: an agent without it would enrol and never serve.
    ///
    /// # Errors
    /// [`AgentError::Config`].
    pub fn check_library(&self) -> Result<(), AgentError> {
        let wrong = |got| AgentError::Config {
            key: "onnxruntime",
            got,
            expected: "the file of ONNX Runtime's shared library, here or in ORT_DYLIB_PATH",
        };
        match self.library() {
            Some(file) if file.is_file() => Ok(()),
            Some(file) => Err(wrong(format!("{}, which is no file", file.display()))),
            None => Err(wrong("not set".into())),
        }
    }

    /// Time between signs of life on an idle stream.
    pub fn ping_interval(&self) -> Duration {
        Duration::from_millis(self.ping_interval_ms)
    }

    fn validate(&self) -> Result<(), AgentError> {
        let check = |ok: bool, key, got: String, expected| if ok { Ok(()) } else { Err(AgentError::Config { key, got, expected }) };
        self.endpoint()?;
        let paths = [("state_dir", &self.state_dir), ("inference_socket", &self.inference_socket)];
        for (key, path) in paths {
            check(!path.as_os_str().is_empty(), key, "empty".into(), "a path")?;
        }
        // The kernel's limit for socket addresses, sun_path in unix(7).
        let socket = self.inference_socket.as_os_str().len();
        check(socket < 108, "inference_socket", format!("{socket} bytes"), "at most 107 bytes")?;
        if let Some(address) = self.listen_loopback {
            check(address.ip().is_loopback(), "listen_loopback", address.to_string(), "a loopback address")?;
        }
        if let Some(threads) = self.threads {
            check((1..=4096).contains(&threads), "threads", threads.to_string(), "1 to 4096")?;
        }
        check((1..=65_536).contains(&self.queue), "queue", self.queue.to_string(), "1 to 65536")?;
        check((1..=65_536).contains(&self.batch_max_rows), "batch_max_rows", self.batch_max_rows.to_string(), "1 to 65536")?;
        check((1..=60_000).contains(&self.step_down_wait_ms), "step_down_wait_ms", self.step_down_wait_ms.to_string(), "1 to 60000")?;
        for (key, share) in [("cascade_confidence", self.cascade_confidence), ("audit_share", Some(self.audit_share))] {
            let share = share.unwrap_or(0.0);
            check((0.0..=1.0).contains(&share), key, share.to_string(), "0 to 1")?;
        }
        check((100..=3_600_000).contains(&self.call_limit_ms), "call_limit_ms", self.call_limit_ms.to_string(), "100 to 3600000")?;
        if let Some(bytes) = self.runtime_memory_max_bytes {
            check(bytes >= 64 << 20, "runtime_memory_max_bytes", bytes.to_string(), "at least 67108864")?;
        }
        check(self.ping_interval_ms >= 100, "ping_interval_ms", self.ping_interval_ms.to_string(), "at least 100")?;
        check((1..=60_000).contains(&self.profile_budget_ms), "profile_budget_ms", self.profile_budget_ms.to_string(), "1 to 60000")?;
        check(self.spool_max_bytes >= 1 << 16, "spool_max_bytes", self.spool_max_bytes.to_string(), "at least 65536")?;
        check(self.spool_max_reports >= 16, "spool_max_reports", self.spool_max_reports.to_string(), "at least 16")?;
        check((1..=36_500).contains(&self.spool_max_days), "spool_max_days", self.spool_max_days.to_string(), "1 to 36500")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn flags_override_the_file() {
        let (_dir, path) = file("controller = 'https://a:1'\nthreads = 3\nlisten_loopback = '127.0.0.1:9000'");
        let flags = Flags { controller: Some("https://[::1]:2/".into()), ..Flags::default() };
        let config = Config::load(Some(&path), &flags).unwrap();
        assert_eq!(config.endpoint().unwrap(), Endpoint { host: "::1".into(), port: 2 });
        assert_eq!((config.threads, config.listen_loopback), (Some(3), Some("127.0.0.1:9000".parse().unwrap())));
    }

    #[test]
    fn says_which_key_is_wrong() {
        let words = |text: &str| {
            let (_dir, path) = file(text);
            crate::error::chain(&Config::load(Some(&path), &Flags::default()).unwrap_err())
        };
        assert!(words("controller = 'http://a:1'").contains("controller is \"http://a:1\""));
        assert!(words("controller = 'https://a:1'\nlisten_loopback = '0.0.0.0:1'").contains("loopback address"));
        assert!(words("controller = 'https://a:1'\nthraeds = 1").contains("thraeds"));
        assert!(words("controller = 'https://a:1'\nthreads = 0").contains("1 to 4096"));
        assert!(words("").contains("https://host:port"));
    }
}
