//! Thousands of devices in one process: each with keys, a certificate and a stream of its own over mutual TLS, through the agent's own
//! identity, TLS, back-off and signing; what they measured is recorded, not inferred.
//!
//! `enrol` makes their identities in a folder; `hold` keeps their streams open and does what lines on standard input ask for, answering each
//! with a line of JSON. See `cargo xtask bench fleet`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use pleach_agent::backoff::{Backoff, random};
use pleach_agent::clock::Clock;
use pleach_agent::config::Config;
use pleach_agent::identity::{self, Identity};
use pleach_agent::keys::DeviceKeys;
use pleach_agent::state::StateDir;
use pleach_agent::{boot, tls};
use pleach_domain::window::Window;
use pleach_domain::{Digest, LatencyHistogram};
use pleach_proto::fleet::agent_message::Message as Up;
use pleach_proto::fleet::controller_message::Message as Down;
use pleach_proto::fleet::fleet_client::FleetClient;
use pleach_proto::fleet::{AgentMessage, Hello, Ping, Report, SignedReport};
use pleach_proto::{PROTOCOL_VERSION, REPORT_CONTEXT};
use prost::Message;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Devices that enrol at once.
const ENROLLING: usize = 32;
const LOOK: Duration = Duration::from_millis(5);

#[derive(Parser)]
#[command(about = "Thousands of devices in one process")]
struct Arguments {
    #[command(subcommand)]
    command: Deed,
}

#[derive(Subcommand)]
enum Deed {
    /// Enrol every device
    Enrol(Fleet),
    /// Keep every stream open; read lines: `tasks`, `reports WINDOWS`, `back`
    Hold(Fleet),
}

#[derive(Args, Clone)]
struct Fleet {
    /// Address that agents dial
    #[arg(long)]
    controller: String,
    /// File with an enrolment token
    #[arg(long)]
    token_file: PathBuf,
    /// Folder of the devices' state
    #[arg(long)]
    state: PathBuf,
    /// How many
    #[arg(long)]
    devices: usize,
}

/// What all devices count together.
#[derive(Default)]
struct Counts {
    connected: AtomicUsize,
    /// Devices whose desired state had tasks, since the last reset.
    tasked: AtomicUsize,
    /// Reports that were acknowledged, since the last reset.
    reported: AtomicUsize,
}

struct Device {
    config: Config,
    keys: DeviceKeys,
    identity: Identity,
    clock: Clock,
    reports: AtomicUsize,
    windows: AtomicUsize,
}

/// What every device is asked to do next: a report of so many windows, each time the number grows.
#[derive(Clone, Copy, Default)]
struct Orders {
    reports: u64,
    windows: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Arguments::parse().command {
        Deed::Enrol(fleet) => {
            let begun = Instant::now();
            devices(&fleet).await?;
            println!("{}", json!({"enrolled": fleet.devices, "seconds": begun.elapsed().as_secs_f64()}));
            Ok(())
        }
        Deed::Hold(fleet) => hold(&fleet).await,
    }
}

/// Every device, enrolled.
async fn devices(fleet: &Fleet) -> anyhow::Result<Vec<Arc<Device>>> {
    let turns = Arc::new(Semaphore::new(ENROLLING));
    let mut tasks = JoinSet::new();
    for n in 0..fleet.devices {
        let (fleet, turns) = (fleet.clone(), Arc::clone(&turns));
        tasks.spawn(async move {
            let _turn = turns.acquire().await?;
            device(&fleet, n).await.with_context(|| format!("device {n}"))
        });
    }
    tasks.join_all().await.into_iter().collect()
}

async fn device(fleet: &Fleet, n: usize) -> anyhow::Result<Arc<Device>> {
    let config = Config {
        controller: fleet.controller.clone(),
        state_dir: fleet.state.join(format!("{n}")),
        token_file: Some(fleet.token_file.clone()),
        device_id: Some(format!("swarm-{n}")),
        ..Config::default()
    };
    let state = StateDir::open(&config.state_dir)?;
    let keys = DeviceKeys::load_or_create(&state)?;
    let clock = Clock::new(0);
    let identity = identity::load_or_enrol(&config, &state, &keys, &clock).await?;
    Ok(Arc::new(Device { config, keys, identity, clock, reports: AtomicUsize::new(0), windows: AtomicUsize::new(0) }))
}

async fn hold(fleet: &Fleet) -> anyhow::Result<()> {
    let devices = devices(fleet).await?;
    let (counts, (orders, ordered)) = (Arc::new(Counts::default()), watch::channel(Orders::default()));
    let (begun, all) = (Instant::now(), devices.len());
    let mut tasks = JoinSet::new();
    for device in devices {
        tasks.spawn(live(device, Arc::clone(&counts), ordered.clone()));
    }
    let reaches = async |count: &AtomicUsize, least: usize| {
        while count.load(Ordering::Relaxed) < least {
            tokio::time::sleep(LOOK).await;
        }
    };
    reaches(&counts.connected, all).await;
    println!("{}", json!({"connected": all, "seconds": begun.elapsed().as_secs_f64()}));
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let begun = Instant::now();
        let answer = match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["tasks"] => {
                reaches(&counts.tasked, all * 99 / 100).await;
                json!({"tasked": counts.tasked.load(Ordering::Relaxed), "at_ms": now_ms()})
            }
            ["reports", windows] => {
                let windows = windows.parse()?;
                counts.reported.store(0, Ordering::Relaxed);
                orders.send_modify(|o| *o = Orders { reports: o.reports + 1, windows });
                reaches(&counts.reported, all).await;
                json!({"windows": all * windows, "seconds": begun.elapsed().as_secs_f64()})
            }
            ["back"] => {
                reaches(&counts.connected, all).await;
                json!({"connected": all, "at_ms": now_ms()})
            }
            other => bail!("{other:?}: expected tasks, reports or back"),
        };
        println!("{answer}");
    }
    Ok(())
}

/// The lines of standard input, read by a thread of their own.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.blocking_send(line)));
    receiver
}

/// Connects again and again, as the agent does.
async fn live(device: Arc<Device>, counts: Arc<Counts>, mut orders: watch::Receiver<Orders>) {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(60));
    loop {
        let mut greeted = false;
        let _ = converse(&device, &counts, &mut orders, &mut greeted).await;
        if greeted {
            counts.connected.fetch_sub(1, Ordering::Relaxed);
            backoff.reset();
        }
        tokio::time::sleep(backoff.next(random())).await;
    }
}

async fn converse(device: &Device, counts: &Counts, orders: &mut watch::Receiver<Orders>, greeted: &mut bool) -> anyhow::Result<()> {
    let config = device.identity.client_config(&device.keys, &device.clock)?;
    let mut client = FleetClient::new(tls::connect(&device.config.endpoint()?, config).await?);
    let (up, outbound) = mpsc::channel(4);
    let hello = Hello { protocol_version: PROTOCOL_VERSION, agent_version: "swarm".into(), boot_id: boot::id(), ..Hello::default() };
    up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await?;
    let mut inbound = client.sync(ReceiverStream::new(outbound)).await?.into_inner();
    let mut ping = tokio::time::interval(device.config.ping_interval());
    ping.reset();
    loop {
        tokio::select! {
            message = inbound.message() => match message?.context("closed")?.message {
                Some(Down::Desired(desired)) => {
                    if !std::mem::replace(greeted, true) {
                        counts.connected.fetch_add(1, Ordering::Relaxed);
                    }
                    if !desired.measurements.is_empty() {
                        counts.tasked.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some(Down::Refusal(refusal)) => bail!("{}: {}", refusal.code, refusal.message),
                Some(Down::Pong(_)) | None => {}
            },
            _ = ping.tick() => up.try_send(AgentMessage { message: Some(Up::Ping(Ping { sent_at_ms: now_ms() })) })?,
            Ok(()) = orders.changed() => {
                let windows = orders.borrow_and_update().windows;
                report(device, &mut client, windows).await?;
                counts.reported.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Sends a signed report until it is acknowledged.
async fn report(device: &Device, client: &mut FleetClient<Channel>, windows: usize) -> anyhow::Result<()> {
    let first = device.windows.fetch_add(windows, Ordering::Relaxed) as u64 + 1;
    let body = Report {
        device_id: device.identity.device().to_string(),
        boot_id: boot::id(),
        sequence: device.reports.fetch_add(1, Ordering::Relaxed) as u64 + 1,
        sent_at_ms: now_ms(),
        windows: (first..first + windows as u64).map(|number| (&recorded(number)).into()).collect(),
        ..Report::default()
    };
    let body = body.encode_to_vec();
    let signed = SignedReport { signature: device.keys.sign(REPORT_CONTEXT, &body), body };
    while client.report(signed.clone()).await.is_err_and(|status| status.code() == tonic::Code::ResourceExhausted) {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// A window as a device records it: a hundred requests around ten milliseconds.
fn recorded(number: u64) -> Window {
    let mut latency = LatencyHistogram::new();
    (0..100).for_each(|i| latency.record_us(9_000 + (i * 37 + number * 11) % 3_000));
    Window {
        number,
        bundle: Digest::new([7; 32]),
        rung: "full".into(),
        start_ms: now_ms() - 60_000,
        duration_ms: 60_000,
        requests: 100,
        errors: 0,
        latency,
        confusion: None,
        cpu_us: 900_000,
        memory_bytes: 90 << 20,
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
