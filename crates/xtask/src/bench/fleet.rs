//! `cargo xtask bench fleet`: one controller on SQLite with thousands of connected devices on this machine (`pleach-swarm`), against the bars.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use pleach_cli::client::{Client, Connection};
use pleach_domain::class::Class;
use pleach_domain::{DeviceId, Digest};
use pleach_proto::rest::{LabelChange, NewToken};
use pleach_store::measurements::{AtlasKey, Task};
use pleach_store::{Store, classes, measurements};
use serde::Serialize;
use serde_json::Value;

use super::Output;
use crate::workspace::Workspace;
use crate::{onnxruntime, process};

/// Time in which everything comes to rest before memory is read.
const REST: Duration = Duration::from_secs(5);
/// Longest wait for a controller.
const START: Duration = Duration::from_secs(30);

/// How large the fleet is, and how to print.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Devices
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
    /// Windows of one report
    #[arg(long, default_value_t = 20)]
    windows: usize,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// One figure and what it must keep.
#[derive(Serialize)]
struct Figure {
    what: String,
    got: f64,
    bar: Option<f64>,
    unit: &'static str,
    most: bool,
}

/// Builds the release profile and measures it.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let programs = ["--package=pleach-controller", "--package=pleach-tests", "--bin=pleach-controller", "--bin=pleach-swarm"];
    process::run(workspace.cargo(&["build", "--release"]).args(programs))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(&workspace.target.join("release"), options))?;
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&figures)?),
        Output::Text => println!("{}", table(&figures)),
    }
    Ok(())
}

async fn measure(programs: &Path, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let bench = Bench { programs: programs.to_owned(), folder: folder.path().to_owned(), ports: [free_port()?, free_port()?], options };
    let mut figures = Vec::new();
    let mut figure = |what: String, got: f64, unit, most, bar| figures.push(Figure { what, got, bar, unit, most });

    let controller = bench.controller()?;
    let client = bench.client()?;
    let uses = u32::try_from(options.devices)?;
    let token = client.create_token(&NewToken { labels: Default::default(), uses, ttl_seconds: 3_600 }).await?;
    std::fs::write(bench.token_file(), token.token.context("the token's text")?)?;
    let enrolled = bench.swarm("enrol")?.answer()?;
    figure("devices enrolled a second".into(), options.devices as f64 / seconds(&enrolled)?, "1/s", false, None);
    drop(controller);

    let controller = bench.controller()?;
    tokio::time::sleep(REST).await;
    let before = resident_bytes(&controller)?;
    let mut swarm = bench.swarm("hold")?;
    figure("every device connected".into(), seconds(&swarm.answer()?)?, "s", true, None);
    tokio::time::sleep(REST).await;
    let each = resident_bytes(&controller)?.saturating_sub(before) as f64 / options.devices as f64;
    figure("memory of the controller for an idle device".into(), each / 1_024.0, "KiB", true, Some(32.0));

    let begun_ms = bench.give_tasks().await?;
    bench.client()?.label_device("swarm-0", &LabelChange { set: [("woken".into(), "yes".into())].into(), remove: vec![] }).await?;
    let at_ms = swarm.ask("tasks")?.get("at_ms").and_then(Value::as_i64).context("at_ms")?;
    figure("a new desired state at 99 % of devices".into(), (at_ms - begun_ms) as f64 / 1_000.0, "s", true, Some(1.0));

    let stored = swarm.ask(&format!("reports {}", options.windows))?;
    let windows = stored.get("windows").and_then(Value::as_f64).context("windows")?;
    let what = format!("windows stored a second, {} in a signed report", options.windows);
    figure(what, windows / seconds(&stored)?, "1/s", false, Some(20_000.0));

    let killed_ms = now_ms();
    drop(controller);
    let _controller = bench.controller()?;
    let back = swarm.ask("back")?.get("at_ms").and_then(Value::as_i64).context("at_ms")?;
    figure("every device back after the controller was killed".into(), (back - killed_ms) as f64 / 1_000.0, "s", true, Some(15.0));
    Ok(figures)
}

struct Bench<'a> {
    programs: PathBuf,
    folder: PathBuf,
    ports: [u16; 2],
    options: &'a Options,
}

/// A process that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Swarm {
    _process: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Swarm {
    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the swarm says {line:?}"))
    }

    fn ask(&mut self, line: &str) -> anyhow::Result<Value> {
        writeln!(self.input, "{line}")?;
        self.answer()
    }
}

impl Bench<'_> {
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn token_file(&self) -> PathBuf {
        self.folder.join("enrolment.token")
    }

    fn client(&self) -> anyhow::Result<Client> {
        let api = format!("https://localhost:{}", self.ports[1]);
        let (ca_file, token_file) = (self.data().join("ca.pem"), self.data().join("admin.token"));
        Ok(Client::new(&Connection { api, ca_file, token_file })?)
    }

    fn log(&self, name: &str) -> anyhow::Result<File> {
        Ok(File::options().create(true).append(true).open(self.folder.join(name))?)
    }

    /// Starts the controller and waits until it is ready.
    fn controller(&self) -> anyhow::Result<Running> {
        let ready = self.folder.join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let [agents, api] = self.ports.map(|port| format!("127.0.0.1:{port}"));
        let mut command = Command::new(self.programs.join("pleach-controller"));
        command.arg("serve").arg("--data-dir").arg(self.data()).arg("--ready-file").arg(&ready);
        command.args(["--listen-agents", &agents, "--listen-api", &api]).env("RUST_LOG", "warn");
        command
            .env("ORT_DYLIB_PATH", onnxruntime::ensure()?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log("controller.log")?);
        let mut running = Running(command.spawn().context("cannot start the controller")?);
        let begun = Instant::now();
        while !ready.exists() {
            if let Some(status) = running.0.try_wait()? {
                bail!("the controller ended by itself: {status}: {}", std::fs::read_to_string(self.folder.join("controller.log"))?);
            }
            anyhow::ensure!(begun.elapsed() < START, "the controller is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(running)
    }

    fn swarm(&self, deed: &str) -> anyhow::Result<Swarm> {
        let mut command = Command::new(self.programs.join("pleach-swarm"));
        command.arg(deed).arg("--controller").arg(format!("https://localhost:{}", self.ports[0]));
        command.arg("--token-file").arg(self.token_file()).arg("--state").arg(self.folder.join("devices"));
        command.arg("--devices").arg(self.options.devices.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the swarm")?;
        let (input, output) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        Ok(Swarm { _process: Running(child), input, output: BufReader::new(output) })
    }

    /// Writes a measurement task for every device past the controller, so that all of them have something new to be told. Answers when.
    async fn give_tasks(&self) -> anyhow::Result<i64> {
        let at_ms = now_ms();
        let store = Store::open(&format!("sqlite://{}", self.data().join("pleach.db").display()), 1, at_ms).await?;
        let class = Class {
            id: "bench".parse()?,
            architecture: "x86_64".into(),
            vector: "avx2".into(),
            inference_threads: 1,
            kernel_mean_us: Default::default(),
        };
        let key = AtlasKey { class: class.id.clone(), model: "bench".parse()?, model_version: 1, batch: 1 };
        let mut session = store.write().await?;
        classes::insert(&mut session, &class, at_ms).await?;
        for n in 0..self.options.devices {
            let device: DeviceId = format!("swarm-{n}").parse()?;
            let (id, blob) = (format!("bench-{n}"), Digest::new([9; 32]));
            let task = Task { id, key: key.clone(), device, blob, length: 1, budget_ms: 1, deadline_at_ms: at_ms + 3_600_000 };
            measurements::insert(&mut session, &task, at_ms).await?;
        }
        session.commit().await?;
        let committed_ms = now_ms();
        store.close().await;
        Ok(committed_ms)
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn seconds(answer: &Value) -> anyhow::Result<f64> {
    answer.get("seconds").and_then(Value::as_f64).context("the swarm gave no seconds")
}

fn resident_bytes(running: &Running) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
    Ok(kib * 1_024)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["WHAT", "GOT", "BAR", ""]);
    for f in figures {
        let bar = f.bar.map_or(String::new(), |bar| format!("{} {bar} {}", if f.most { "at most" } else { "at least" }, f.unit));
        let kept = f.bar.map_or("", |bar| if (f.got <= bar) == f.most || f.got == bar { "kept" } else { "missed" });
        table.add_row([f.what.clone(), format!("{:.1} {}", f.got, f.unit), bar, kept.to_owned()]);
    }
    table
}
