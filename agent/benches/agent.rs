//! What the agent costs on a device, measured on the executable that is shipped against a scripted controller:
//! `cargo xtask bench agent`.
//!
//! Memory is the median of the proportional set size over samples after warm-up, as Greengrass lite reports it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)] // a measurement may fail by panicking

#[path = "../tests/it/agent.rs"]
mod agent;
#[path = "../tests/it/bundle.rs"]
mod bundle;
#[path = "../tests/it/lab.rs"]
mod lab;

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pleach_domain::runtime::{LoadedModel, Optimization, Runtime};
use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_proto::fleet::event::State;
use pleach_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Endpoint;

use agent::{Agent, connector, request};
use bundle::{bundle, fixture};
use lab::Lab;

const STARTS: usize = 15;
const CRASHES: usize = 7;
const WARM_UP: Duration = Duration::from_secs(4);
const IDLE: Duration = Duration::from_secs(12);
const SAMPLE: Duration = Duration::from_millis(100);
const CALLS: usize = 2_000;
const THROUGHPUT: Duration = Duration::from_secs(5);
const CLIENTS: usize = 4;
/// The default between two signs of life.
const PING_S: f64 = 120.0;
const QUICK_PING_MS: u64 = 500;

/// One line of the result.
struct Line {
    what: &'static str,
    value: f64,
    unit: &'static str,
    bar: f64,
    /// Whether more is better.
    at_least: bool,
}

fn main() {
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let lines = executor.block_on(measure());
    if std::env::args().any(|a| a == "--json") {
        let lines: Vec<_> = lines
            .iter()
            .map(|l| serde_json::json!({ "what": l.what, "value": l.value, "unit": l.unit, "bar": l.bar, "holds": l.holds() }))
            .collect();
        println!("{}", serde_json::to_string_pretty(&lines).unwrap());
        return;
    }
    println!("{:46} {:>10} {:6} {:>12}", "", "measured", "", "bar");
    for line in lines {
        let sign = if line.at_least { ">=" } else { "<=" };
        let holds = if line.holds() { "" } else { "  MISSED" };
        println!("{:46} {:>10.3} {:6} {sign} {:>9.3}{holds}", line.what, line.value, line.unit, line.bar);
    }
}

impl Line {
    fn holds(&self) -> bool {
        if self.at_least { self.value >= self.bar } else { self.value <= self.bar }
    }
}

fn most(what: &'static str, value: f64, unit: &'static str, bar: f64) -> Line {
    Line { what, value, unit, bar, at_least: false }
}

async fn measure() -> Vec<Line> {
    let lab = Lab::start().await;
    let (first, second) = (bundle(1), bundle(2));
    let mut agent = Agent::proven(&lab, &first).await;
    let mut lines = vec![most("executable, stripped", stripped_mb(), "MB", 12.0)];

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        assert!(agent.terminate());
        let before = lab.connections();
        let begun = Instant::now();
        agent.start_again();
        lab.wait_connection(before).await;
        starts.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    lines.push(most("start to connected, median", median(&mut starts), "ms", 150.0));

    agent.serves(&first).await;
    tokio::time::sleep(WARM_UP).await;
    let mut idle = sample(agent.pid(), IDLE).await;
    lines.push(most("control half, idle, median PSS", median(&mut idle), "MB", 8.0));

    let stop = Arc::new(AtomicBool::new(false));
    let sampling = tokio::spawn(sample_until(agent.pid(), Arc::clone(&stop)));
    lab.assign(&second, 2);
    lab.wait_event(2, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(2, State::Proven).await;
    stop.store(true, Ordering::Relaxed);
    let during = sampling.await.unwrap();
    lines.push(most("control half, deployment, highest PSS", during.into_iter().fold(0.0, f64::max), "MB", 10.0));

    let socket = agent.socket();
    lines.push(tokio::task::spawn_blocking(move || latency(&socket)).await.unwrap());
    lines.extend(throughput(&agent).await);

    let mut crashes = Vec::new();
    for _ in 0..CRASHES {
        // A fresh start, or the waits between ends in a row would grow.
        assert!(agent.terminate());
        agent.start_again();
        agent.serves(&second).await;
        agent.kill_runtime();
        let killed = Instant::now();
        until_answered(&agent).await;
        crashes.push(killed.elapsed().as_secs_f64() * 1e3);
    }
    lines.push(most("crash to the next answer, median", median(&mut crashes), "ms", 1000.0));
    assert!(agent.terminate());
    lines.push(most("idle network, from bytes of a sign of life", idle_kb_an_hour(&lab, agent).await, "KB/h", 10.0));
    lines
}

fn stripped_mb() -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("stripped");
    assert!(Command::new("strip").arg("-o").arg(&stripped).arg(env!("CARGO_BIN_EXE_pleach-agent")).status().unwrap().success());
    std::fs::metadata(stripped).unwrap().len() as f64 / 1e6
}

/// Proportional set size in MB. Source: proc_pid_smaps(5).
fn pss_mb(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 / 1e6
}

async fn sample(pid: u32, time: Duration) -> Vec<f64> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < time {
        samples.push(pss_mb(pid));
        tokio::time::sleep(SAMPLE).await;
    }
    samples
}

async fn sample_until(pid: u32, stop: Arc<AtomicBool>) -> Vec<f64> {
    let mut samples = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        samples.push(pss_mb(pid));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    samples
}

fn in_process() -> Box<dyn LoadedModel> {
    let runtime = OrtRuntime::new(OrtOptions { library: None, threads: NonZeroUsize::MIN }).unwrap();
    runtime.load(&fixture().onnx, Optimization::All).unwrap()
}

/// Calls in process and through the socket by turns, so that both meet the same machine. A client of one thread, so that handing
/// work between its threads is not counted as the agent's.
fn latency(socket: &Path) -> Line {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut model, input) = (in_process(), &fixture().input);
    let channel =
        executor.block_on(async { Endpoint::from_static("http://agent").connect_with_connector(connector(socket.to_owned())).await });
    let mut client = GrpcInferenceServiceClient::new(channel.unwrap());
    let (mut direct, mut remote) = (Vec::new(), Vec::new());
    for call in 0..CALLS {
        let begun = Instant::now();
        model.run(&[(input.name.as_str(), &input.tensor)]).unwrap();
        let inside = begun.elapsed();
        let begun = Instant::now();
        executor.block_on(client.model_infer(request())).unwrap();
        if call > CALLS / 10 {
            direct.push(inside.as_secs_f64() * 1e6);
            remote.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    let (direct, remote) = (median(&mut direct), median(&mut remote));
    eprintln!("one call: {direct:.0} us in process, {remote:.0} us through gRPC on the Unix socket");
    most("added by gRPC on the Unix socket, p50", remote - direct, "us", 150.0)
}

/// Answers a second, by four clients and by one thread in process, by turns.
async fn throughput(agent: &Agent) -> Vec<Line> {
    let input = &fixture().input;
    let mut model = in_process();
    let (mut inside, mut outside) = (0.0, 0.0);
    for _ in 0..2 {
        let begun = Instant::now();
        let mut count = 0u32;
        while begun.elapsed() < THROUGHPUT / 2 {
            model.run(&[(input.name.as_str(), &input.tensor)]).unwrap();
            count += 1;
        }
        inside += f64::from(count) / begun.elapsed().as_secs_f64() / 2.0;
        let answered = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let (mut client, answered) = (GrpcInferenceServiceClient::new(agent.channel().await), Arc::clone(&answered));
            clients.spawn(async move {
                while begun.elapsed() < THROUGHPUT / 2 {
                    client.model_infer(request()).await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        clients.join_all().await;
        outside += answered.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64() / 2.0;
    }
    eprintln!("answers a second: {inside:.0} in process, {outside:.0} by {CLIENTS} clients");
    let share = 100.0 * outside / inside;
    vec![Line { what: "throughput of 4 clients, of in-process", value: share, unit: "%", bar: 90.0, at_least: true }]
}

/// Calls until there is an answer; every call that fails begins again at once.
async fn until_answered(agent: &Agent) {
    loop {
        let mut client = GrpcInferenceServiceClient::new(agent.channel().await);
        if client.model_infer(request()).await.is_ok() {
            return;
        }
    }
}

/// Counts what passes between agent and controller while nothing happens but signs of life, and scales it to the default interval.
async fn idle_kb_an_hour(lab: &Lab, mut agent: Agent) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, target, bytes) = (listener.local_addr().unwrap().port(), lab.address, Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&bytes);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(target).await.unwrap();
            let ((mut nr, mut nw), (mut fr, mut fw)) = (near.into_split(), far.into_split());
            let (up, down) = (Arc::clone(&counted), Arc::clone(&counted));
            tokio::spawn(async move { pump(&mut nr, &mut fw, &up).await });
            tokio::spawn(async move { pump(&mut fr, &mut nw, &down).await });
        }
    });
    agent.set_url(format!("https://localhost:{port}"));
    agent.variables = vec![("PLEACH_AGENT_PING_INTERVAL_MS".to_owned(), QUICK_PING_MS.to_string())];
    let before = lab.connections();
    agent.start_again();
    lab.wait_connection(before).await;
    tokio::time::sleep(WARM_UP).await;
    let (from, begun) = (bytes.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(IDLE).await;
    let signs = begun.elapsed().as_secs_f64() * 1e3 / QUICK_PING_MS as f64;
    let each = (bytes.load(Ordering::Relaxed) - from) as f64 / signs;
    eprintln!("{each:.0} bytes a sign of life, both ways");
    each * 3600.0 / PING_S / 1e3
}

async fn pump(from: &mut (impl tokio::io::AsyncRead + Unpin), to: &mut (impl tokio::io::AsyncWrite + Unpin), count: &AtomicU64) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(n as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
