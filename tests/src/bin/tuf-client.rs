//! A TUF client for one repository, with the command line that the public TUF conformance suite drives
//! (its document CLIENT-CLI): the workflow is `pleach_trust::client`, this is HTTP and files around it.
//!
//! Exit code 0 when a command succeeded whole, 1 otherwise, with the reason on stderr.

use std::io::{self, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use pleach_trust::cache::{Cache, file_name};
use pleach_trust::client::{self, Client, Fetch};
use pleach_trust::hash::copy_checked;
use pleach_trust::{ClientError, FetchError, Limits, TargetFile, UtcTime};
use reqwest::{Response, StatusCode};
use tokio::runtime::Runtime;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that one file may take, however slowly it trickles.
const FILE_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Parser)]
#[command(about = "A TUF client for one repository")]
struct Arguments {
    /// Folder of the metadata that is trusted
    #[arg(long, global = true)]
    metadata_dir: Option<PathBuf>,
    /// Where the repository's metadata lie
    #[arg(long, global = true)]
    metadata_url: Option<String>,
    /// Path of the target to download
    #[arg(long, global = true)]
    target_name: Option<String>,
    /// Where the repository's targets lie
    #[arg(long, global = true)]
    target_base_url: Option<String>,
    /// Folder to put the target in
    #[arg(long, global = true)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trust this root
    Init { trusted_root: PathBuf },
    /// Bring the top-level metadata up to date
    Refresh,
    /// Refresh, then find, download and verify a target
    Download,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let attack = error.downcast_ref::<ClientError>().and_then(ClientError::attack);
            let smell = attack.map(|attack| format!(" (smells of {attack})")).unwrap_or_default();
            eprintln!("error: {error:#}{smell}");
            ExitCode::from(1)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cache = Cache::new(given(&arguments.metadata_dir, "--metadata-dir")?);
    let now = now()?;
    if let Command::Init { trusted_root } = &arguments.command {
        let file = std::fs::File::open(trusted_root).with_context(|| trusted_root.display().to_string())?;
        let mut root = Vec::new();
        file.take(Limits::default().root_bytes as u64 + 1).read_to_end(&mut root)?;
        return Ok(client::begin(&cache, &root, now)?);
    }
    let http = Http::new(given(&arguments.metadata_url, "--metadata-url")?, arguments.target_base_url.as_deref())?;
    let mut client = Client::open(cache, http, now, Limits::default())?;
    client.refresh(now)?;
    if let Command::Download = arguments.command {
        let name = given(&arguments.target_name, "--target-name")?;
        let file = client.find(name)?.ok_or_else(|| anyhow!("no role signs for a target {name}"))?;
        download(&mut client, name, &file, given(&arguments.target_dir, "--target-dir")?)?;
    }
    Ok(())
}

/// Puts a target into the folder under its encoded path, unless it is there already.
fn download(client: &mut Client<Http>, name: &str, file: &TargetFile, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(file_name(name));
    if let Ok(mut present) = std::fs::File::open(&path)
        && copy_checked(name, &mut present, file, &mut io::sink()).is_ok()
    {
        return Ok(());
    }
    let mut unfinished = tempfile::NamedTempFile::new_in(folder)?;
    client.download(name, file, &mut unfinished)?;
    unfinished.as_file().sync_all()?;
    unfinished.persist(&path).with_context(|| path.display().to_string())?;
    Ok(())
}

fn given<'a, T: Deref>(value: &'a Option<T>, name: &str) -> anyhow::Result<&'a T::Target> {
    value.as_deref().with_context(|| format!("{name} is missing"))
}

fn now() -> anyhow::Result<UtcTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(UtcTime::from_unix_s(i64::try_from(since.as_secs())?))
}

/// A repository behind HTTP.
struct Http {
    runtime: Runtime,
    client: reqwest::Client,
    metadata: String,
    targets: Option<String>,
}

impl Http {
    fn new(metadata: &str, targets: Option<&str>) -> anyhow::Result<Self> {
        // An error means that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .timeout(FILE_TIMEOUT)
            .build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let base = |url: &str| format!("{}/", url.trim_end_matches('/'));
        Ok(Self { runtime, client, metadata: base(metadata), targets: targets.map(base) })
    }

    fn get(&self, url: String) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        let response = self.runtime.block_on(async { self.client.get(url).send().await })?;
        match response.status() {
            StatusCode::OK => Ok(Some(Box::new(Body { runtime: &self.runtime, response, rest: Vec::new(), at: 0 }))),
            // A store that lets nobody list it says 403 for what it does not have.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Ok(None),
            other => Err(format!("the repository answered {other}").into()),
        }
    }
}

impl Fetch for Http {
    fn metadata(&mut self, file: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        self.get(format!("{}{file}", self.metadata))
    }

    fn target(&mut self, path: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        match &self.targets {
            Some(base) => self.get(format!("{base}{path}")),
            None => Err("--target-base-url is missing".into()),
        }
    }
}

/// An answer's body, read as it comes.
struct Body<'a> {
    runtime: &'a Runtime,
    response: Response,
    rest: Vec<u8>,
    at: usize,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() {
            match self.runtime.block_on(self.response.chunk()).map_err(io::Error::other)? {
                Some(chunk) => (self.rest, self.at) = (chunk.to_vec(), 0),
                None => return Ok(0),
            }
        }
        let read = self.rest.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += read;
        Ok(read)
    }
}
