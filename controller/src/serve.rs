//! Starts a controller and ends it: files and database first, then listeners, then the ready file; the other way round at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pleach_inference::{OrtOptions, OrtRuntime};
use pleach_store::{Blobs, Store};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::authority::Authority;
use crate::config::Config;
use crate::controller::{Controller, Shared};
use crate::error::ControllerError;
use crate::files::{self, Access};
use crate::keys::Keys;
use crate::presence::Presence;
use crate::reconcile::{self, ReconcileError, publish};
use crate::tls::{self, Clients, TlsListener};
use crate::wake::Wake;
use crate::{gateway, random, rest};

/// Connections to the database.
const CONNECTIONS: u32 = 8;

/// A running controller.
pub struct Running {
    /// Address that agents dial.
    pub agents: SocketAddr,
    /// Address of the REST interface.
    pub api: SocketAddr,
    controller: Shared,
    tasks: JoinSet<Result<(), ControllerError>>,
}

/// What the ready file says.
#[derive(Serialize)]
struct Ready<'a> {
    agents: String,
    api: String,
    ca_file: &'a std::path::Path,
    admin_token_file: &'a std::path::Path,
    pid: u32,
}

/// Opens the database, bringing its schema up to date, and closes it again.
///
/// # Errors
/// [`ControllerError`] when the data folder or the database refuses.
pub async fn migrate(config: &Config) -> Result<(), ControllerError> {
    files::private_folder(&config.data_dir)?;
    let store = Store::open(&config.database_url(), 1, random::now_ms()).await?;
    store.close().await;
    Ok(())
}

/// Starts a controller. It runs until [`Running::shutdown`].
///
/// # Errors
/// [`ControllerError`] naming the first thing that could not be opened; nothing keeps running then.
pub async fn start(config: Config) -> Result<Running, ControllerError> {
    let controller = Arc::new(open(config).await?);
    let config = &controller.config;
    let identity = controller.authority.server_identity(&config.key_dir(), &config.hostname, random::now_ms())?;
    let agents_tls = tls::config(&controller.authority, &identity, Clients::MayCertify, &["h2"])?;
    let api_tls = tls::config(&controller.authority, &identity, Clients::Anonymous, &["http/1.1"])?;
    let (agents_listener, agents) = bind(config.listen_agents).await?;
    let (api_listener, api) = bind(config.listen_api).await?;
    let mut tasks = JoinSet::new();
    let stop = controller.stop.clone();
    tasks.spawn(gateway::run(controller.clone(), tls::accept(agents_listener, agents_tls, stop.clone())));
    tasks.spawn(run_api(controller.clone(), TlsListener::new(tls::accept(api_listener, api_tls, stop.clone()), api)));
    tasks.spawn(reconcile::serve(controller.clone(), stop));
    write_ready(config, agents, api)?;
    info!(%agents, %api, "controller is ready");
    Ok(Running { agents, api, controller, tasks })
}

impl Running {
    /// The parts of the controller.
    pub fn controller(&self) -> &Shared {
        &self.controller
    }

    /// Waits until a server or reconciler ends by itself, which only happens when it fails.
    pub async fn failed(&mut self) {
        if let Some(ended) = self.tasks.join_next().await {
            log_end(ended);
        }
    }

    /// Lets open requests finish for a while, then ends everything.
    pub async fn shutdown(mut self) {
        self.controller.stop.cancel();
        let drain = Duration::from_secs(u64::from(self.controller.config.drain_seconds));
        let ended = tokio::time::timeout(drain, async {
            while let Some(ended) = self.tasks.join_next().await {
                log_end(ended);
            }
        });
        if ended.await.is_err() {
            warn!(drain_seconds = self.controller.config.drain_seconds, "requests were still open and are cut off");
            self.tasks.shutdown().await;
        }
        if let Some(file) = &self.controller.config.ready_file {
            let _ = std::fs::remove_file(file);
        }
        self.controller.store.close().await;
        info!("controller has ended");
    }
}

async fn open(config: Config) -> Result<Controller, ControllerError> {
    files::private_folder(&config.data_dir)?;
    files::private_folder(&config.blob_dir())?;
    let now_ms = random::now_ms();
    let runtime = OrtRuntime::new(OrtOptions { library: config.onnxruntime.clone(), threads: config.pruning_threads() })?;
    let keys = Keys::open(&config.key_dir())?;
    let life = Duration::from_secs(u64::from(config.certificate_seconds));
    let authority = Authority::open(&config.key_dir(), &config.ca_file(), life, now_ms)?;
    let store = Store::open(&config.database_url(), CONNECTIONS, now_ms).await?;
    let blobs = Blobs::local(&config.blob_dir())?;
    publish::ensure(&store, &keys, now_ms).await.map_err(ReconcileError::into_controller)?;
    rest::first_admin(&store, &config.admin_token_file()).await?;
    let (presence, wake, stop) = (Presence::default(), Wake::default(), CancellationToken::new());
    Ok(Controller { config, store, blobs, keys, authority, runtime, presence, wake, stop })
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ControllerError> {
    let refused = |source| ControllerError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

async fn run_api(controller: Shared, listener: TlsListener) -> Result<(), ControllerError> {
    let stop = controller.stop.clone();
    axum::serve(listener, rest::router(controller)).with_graceful_shutdown(stop.cancelled_owned()).await.map_err(ControllerError::Api)
}

fn write_ready(config: &Config, agents: SocketAddr, api: SocketAddr) -> Result<(), ControllerError> {
    let Some(file) = &config.ready_file else { return Ok(()) };
    let (ca_file, token_file) = (config.ca_file(), config.admin_token_file());
    let ready = Ready {
        agents: format!("https://{agents}"),
        api: format!("https://{api}"),
        ca_file: &ca_file,
        admin_token_file: &token_file,
        pid: std::process::id(),
    };
    let json = serde_json::to_vec(&ready).map_err(|e| ControllerError::Config(e.to_string()))?;
    files::replace(file, &json, Access::Public)
}

fn log_end(ended: Result<Result<(), ControllerError>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => error!(error = %rest::problem::chain(&error), "a server ended"),
        Err(error) => error!(%error, "a server task broke"),
    }
}
