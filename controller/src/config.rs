//! Configuration of the controller: defaults, then a TOML file, then `PLEACH_` variables, then flags.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::error::ControllerError;

/// Variables that are read from the environment, without their prefix; other programs of the project share the prefix.
const VARIABLES: [&str; 17] = [
    "data_dir",
    "listen_agents",
    "listen_api",
    "hostname",
    "database_url",
    "ready_file",
    "log_format",
    "certificate_seconds",
    "renewal_grace_days",
    "max_upload_bytes",
    "delivery_bytes_per_second",
    "reconcile_interval_ms",
    "measurement_deadline_seconds",
    "windows_kept_days",
    "worker_threads",
    "drain_seconds",
    "onnxruntime",
];

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything a controller is told at its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the database, blobs, keys and the admin token live by default.
    pub data_dir: PathBuf,
    /// Address agents dial; port 0 takes a free one.
    pub listen_agents: SocketAddr,
    /// Address of the REST interface; port 0 takes a free one.
    pub listen_api: SocketAddr,
    /// Names and addresses that the server certificate is for. `localhost` and the loopback addresses are always in it.
    pub hostname: Vec<String>,
    /// `sqlite://…` or `postgres://…`; SQLite in the data folder when absent.
    pub database_url: Option<String>,
    /// Written, once both listeners are up, with their addresses as JSON.
    pub ready_file: Option<PathBuf>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Life of a device certificate in seconds.
    pub certificate_seconds: u32,
    /// Days after its expiry for which a device certificate can still be renewed.
    pub renewal_grace_days: u32,
    /// Largest upload in bytes.
    pub max_upload_bytes: u64,
    /// Most bytes a second that one download stream gets; unlimited when absent.
    pub delivery_bytes_per_second: Option<u64>,
    /// How often reconcilers look for work unasked, in milliseconds.
    pub reconcile_interval_ms: u64,
    /// How long a device has to answer a measurement task, in seconds.
    pub measurement_deadline_seconds: u32,
    /// Days for which single windows are kept; their roll-ups stay longer.
    pub windows_kept_days: u32,
    /// Threads that prune; half of the processors when absent.
    pub worker_threads: Option<usize>,
    /// How long open requests may go on after a signal to end, in seconds.
    pub drain_seconds: u32,
    /// ONNX Runtime library; the variable `ORT_DYLIB_PATH` when absent.
    pub onnxruntime: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            data_dir: PathBuf::from("pleach-data"),
            listen_agents: local(7443),
            listen_api: local(7444),
            hostname: Vec::new(),
            database_url: None,
            ready_file: None,
            log_format: LogFormat::Text,
            certificate_seconds: 24 * 3_600,
            renewal_grace_days: 90,
            max_upload_bytes: 1 << 30,
            delivery_bytes_per_second: None,
            reconcile_interval_ms: 1_000,
            measurement_deadline_seconds: 300,
            windows_kept_days: 7,
            worker_threads: None,
            drain_seconds: 10,
            onnxruntime: None,
        }
    }
}

impl Config {
    /// Threads that prune.
    pub fn pruning_threads(&self) -> NonZeroUsize {
        let half = || std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2));
        NonZeroUsize::new(self.worker_threads.unwrap_or_else(half)).unwrap_or(NonZeroUsize::MIN)
    }

    /// Joins defaults, the file when there is one, the environment, and `flags` (a struct whose absent fields serialize to nothing).
    ///
    /// # Errors
    /// [`ControllerError::Config`] for an unknown key or a value that does not parse or is out of its range.
    pub fn load(file: Option<&Path>, flags: &impl Serialize) -> Result<Self, ControllerError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            figment = figment.merge(Toml::file_exact(file));
        }
        let figment = figment.merge(Env::prefixed("PLEACH_").only(&VARIABLES)).merge(Serialized::defaults(flags));
        let config: Self = figment.extract().map_err(|e| ControllerError::Config(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ControllerError> {
        let at_least = |field: &str, got: u64, least: u64| {
            if got >= least { Ok(()) } else { Err(ControllerError::Config(format!("{field} is {got}: expected at least {least}"))) }
        };
        at_least("certificate_seconds", u64::from(self.certificate_seconds), 30)?;
        at_least("max_upload_bytes", self.max_upload_bytes, 1)?;
        at_least("reconcile_interval_ms", self.reconcile_interval_ms, 10)?;
        at_least("measurement_deadline_seconds", u64::from(self.measurement_deadline_seconds), 1)?;
        at_least("windows_kept_days", u64::from(self.windows_kept_days), 1)?;
        at_least("delivery_bytes_per_second", self.delivery_bytes_per_second.unwrap_or(1), 1)?;
        at_least("worker_threads", self.worker_threads.unwrap_or(1) as u64, 1)
    }

    /// The database to open.
    pub fn database_url(&self) -> String {
        match &self.database_url {
            Some(url) => url.clone(),
            None => format!("sqlite://{}", self.data_dir.join("pleach.db").display()),
        }
    }

    /// Folder of the blobs.
    pub fn blob_dir(&self) -> PathBuf {
        self.data_dir.join("blobs")
    }

    /// Folder of the secret keys.
    pub fn key_dir(&self) -> PathBuf {
        self.data_dir.join("keys")
    }

    /// Certificate of the authority, for clients to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.data_dir.join("ca.pem")
    }

    /// Text of the first administrator's token.
    pub fn admin_token_file(&self) -> PathBuf {
        self.data_dir.join("admin.token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        drain_seconds: Option<u32>,
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("controller.toml");
        std::fs::write(&file, "drain_seconds = 3\ncertificate_seconds = 60\n").unwrap();
        let config = Config::load(Some(&file), &Flags { drain_seconds: Some(4) }).unwrap();
        assert_eq!((config.drain_seconds, config.certificate_seconds, config.renewal_grace_days), (4, 60, 90));
        assert_eq!(Config::load(Some(&file), &Flags { drain_seconds: None }).unwrap().drain_seconds, 3);
    }

    #[test]
    fn refuses_unknown_keys_and_values_out_of_range() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("controller.toml");
        let refusal = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Config::load(Some(&file), &Flags { drain_seconds: None }).unwrap_err().to_string()
        };
        assert!(refusal("drane_seconds = 3").contains("drane_seconds"));
        assert!(refusal("certificate_seconds = 1").contains("certificate_seconds is 1: expected at least 30"));
    }
}
