//! A controller for one device, made of a script: it signs what a fleet signs, serves what it was given, and keeps every report.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use pleach_artifact::{SealingPublicKey, WrapContext, sha256, wrap};
use pleach_domain::{DeviceId, Digest};
use pleach_proto::fleet::controller_message::Message as Down;
use pleach_proto::fleet::enrollment_server::{Enrollment, EnrollmentServer};
use pleach_proto::fleet::event::State;
use pleach_proto::fleet::fetch_response::Part;
use pleach_proto::fleet::fleet_server::{Fleet, FleetServer};
use pleach_proto::fleet::{
    AgentMessage, ControllerMessage, Deployment, DesiredState, EnrollRequest, EnrollResponse, Event, FetchHeader, FetchRequest,
    FetchResponse, MeasurementTask, RenewRequest, Report, ReportAck, SignedReport,
};
use pleach_trust::{BundleEntry, FleetAuthor, FleetKeys, PublicKey, UtcTime, verify_payload};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519, SanType,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::bundle::Bundle;

/// Longest wait for anything a test expects.
pub const PATIENCE: Duration = Duration::from_secs(40);
pub const DEVICE: &str = "d-1";

type Authority = CertifiedIssuer<'static, KeyPair>;

/// What the controller knows and does; shared with its services.
pub struct Lab {
    authority: Authority,
    keys: FleetKeys,
    pub address: SocketAddr,
    script: Arc<Script>,
    server: Mutex<Option<JoinHandle<()>>>,
    released: Mutex<Vec<BundleEntry>>,
    version: Mutex<u64>,
}

struct Script {
    authority_der: Vec<u8>,
    issuer: KeyPairs,
    root: Vec<u8>,
    device: Mutex<Option<Device>>,
    blobs: Mutex<BTreeMap<Digest, Blob>>,
    desired: watch::Sender<DesiredState>,
    reports: watch::Sender<Vec<Report>>,
    fetches: Mutex<Vec<u64>>,
    faults: Mutex<Faults>,
    renewals: watch::Sender<u32>,
    connections: watch::Sender<u32>,
}

struct KeyPairs {
    ca_key: Vec<u8>,
    ca: CertificateDer<'static>,
}

#[derive(Clone)]
struct Device {
    identity: PublicKey,
    sealing: SealingPublicKey,
}

#[derive(Clone)]
struct Blob {
    bytes: Bytes,
    leaves: Vec<u8>,
}

/// What goes wrong on the way.
#[derive(Clone, Default)]
pub struct Faults {
    /// Cut each download after so many bytes.
    pub cut_after: Option<usize>,
    /// Never send a byte behind this offset, but keep the stream open.
    pub stall_at: Option<usize>,
    /// Flip a bit of this byte of every bundle.
    pub flip_at: Option<usize>,
    /// Enrol with a certificate that expired long ago.
    pub expired: bool,
}

impl Lab {
    pub async fn start() -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
        let keys = FleetKeys::generate().unwrap();
        let root = FleetAuthor::new(&keys).root(1, UtcTime::MAX).unwrap();
        let script = Arc::new(Script {
            authority_der: authority.der().to_vec(),
            issuer: KeyPairs { ca_key: authority.key().serialize_der(), ca: authority.der().clone() },
            root,
            device: Mutex::default(),
            blobs: Mutex::default(),
            desired: watch::Sender::new(DesiredState { window_ms: 1000, ..DesiredState::default() }),
            reports: watch::Sender::default(),
            fetches: Mutex::default(),
            faults: Mutex::default(),
            renewals: watch::Sender::default(),
            connections: watch::Sender::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lab = Self { authority, keys, address, script, server: Mutex::default(), released: Mutex::default(), version: Mutex::new(0) };
        lab.serve(listener);
        Arc::new(lab)
    }

    /// Goes away, as a machine does whose cable is pulled.
    pub fn stop(&self) {
        self.server.lock().unwrap().take().unwrap().abort();
    }

    /// Comes back on the same port.
    pub async fn restart(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    fn serve(&self, listener: TcpListener) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.authority).unwrap();
        let chain = vec![leaf.der().clone(), self.authority.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let router = Server::builder()
            .add_service(EnrollmentServer::new(Service(Arc::clone(&self.script))))
            .add_service(FleetServer::new(Service(Arc::clone(&self.script))));
        let incoming = handshakes(listener, TlsAcceptor::from(Arc::new(config)));
        *self.server.lock().unwrap() = Some(tokio::spawn(async move {
            let _ = router.serve_with_incoming(incoming).await;
        }));
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// A token that pins this lab's authority.
    pub fn token(&self) -> String {
        let fingerprint = sha256(self.authority.der());
        format!("plt1.t-1.{}.{}", URL_SAFE_NO_PAD.encode([7; 32]), URL_SAFE_NO_PAD.encode(fingerprint.as_bytes()))
    }

    pub fn set_faults(&self, faults: Faults) {
        *self.script.faults.lock().unwrap() = faults;
    }

    /// Offsets that were asked for, in order.
    pub fn fetches(&self) -> Vec<u64> {
        self.script.fetches.lock().unwrap().clone()
    }

    /// Releases a bundle and assigns it to the device.
    pub fn assign(&self, bundle: &Bundle, sequence: u64) {
        self.assign_with(bundle, sequence, |_| {});
    }

    /// [`Lab::assign`] with a hand in the deployment.
    pub fn assign_with(&self, bundle: &Bundle, sequence: u64, alter: impl FnOnce(&mut Deployment)) {
        let mut deployment = self.deployment(bundle, sequence);
        alter(&mut deployment);
        self.script.desired.send_modify(|desired| {
            desired.generation += 1;
            desired.deployment = Some(deployment);
        });
    }

    /// Releases a bundle and signs its assignment.
    fn deployment(&self, bundle: &Bundle, sequence: u64) -> Deployment {
        let blob = Blob { bytes: bundle.bytes.clone(), leaves: bundle.leaves.clone() };
        self.script.blobs.lock().unwrap().insert(bundle.digest, blob);
        let mut released = self.released.lock().unwrap();
        if released.iter().all(|entry| entry.digest != bundle.entry.digest) {
            released.push(bundle.entry.clone());
        }
        let mut version = self.version.lock().unwrap();
        *version += 1;
        let author = FleetAuthor::new(&self.keys);
        let snapshot = author.snapshot(*version, UtcTime::MAX, *version, *version).unwrap();
        let wrapped = wrap(&bundle.content_key, &self.device().sealing, &self.context(bundle, sequence)).unwrap();
        let (key, ciphertext) = wrapped.as_bytes().split_at(32);
        Deployment {
            root_chain: Vec::new(),
            timestamp: author.timestamp(*version, UtcTime::MAX, *version, &snapshot).unwrap(),
            snapshot,
            targets: author.targets(*version, UtcTime::MAX).unwrap(),
            release: author.release(*version, UtcTime::MAX, &released).unwrap(),
            assignment: author.assignment(DEVICE, &bundle.entry, sequence, UtcTime::MAX).unwrap(),
            wrap_encapsulated_key: key.to_vec(),
            wrap_ciphertext: ciphertext.to_vec(),
            probation_inferences: 5,
            probation_ms: 600_000,
        }
    }

    /// The file that carries a bundle to the device without a network.
    pub fn offline(&self, bundle: &Bundle, sequence: u64) -> Vec<u8> {
        let deployment = self.deployment(bundle, sequence);
        let header = FetchHeader { length: bundle.bytes.len() as u64, leaves: bundle.leaves.clone() };
        [pleach_proto::offline::head(&deployment, &header), bundle.bytes.to_vec()].concat()
    }

    /// Sends the desired state again as a new one.
    pub fn touch(&self) {
        self.script.desired.send_modify(|desired| desired.generation += 1);
    }

    /// Asks for a measurement.
    pub fn measure(&self, id: &str, set: Vec<u8>) {
        let digest = sha256(&set);
        let task = MeasurementTask { id: id.into(), digest: digest.as_bytes().to_vec(), length: set.len() as u64, budget_ms: 20 };
        self.script.blobs.lock().unwrap().insert(digest, Blob { bytes: set.into(), leaves: Vec::new() });
        self.script.desired.send_modify(|desired| {
            desired.generation += 1;
            desired.measurements.push(task);
        });
    }

    /// Streams that were opened so far.
    pub fn connections(&self) -> u32 {
        *self.script.connections.borrow()
    }

    /// Waits until there is one more than `before`.
    pub async fn wait_connection(&self, before: u32) {
        tokio::time::timeout(PATIENCE, self.script.connections.subscribe().wait_for(|n| *n > before)).await.unwrap().unwrap();
    }

    /// Waits until the device has renewed its certificate.
    pub async fn wait_renewal(&self) {
        tokio::time::timeout(PATIENCE, self.script.renewals.subscribe().wait_for(|n| *n > 0)).await.unwrap().unwrap();
    }

    /// How often it did.
    pub fn renewals(&self) -> u32 {
        *self.script.renewals.borrow()
    }

    fn context<'a>(&self, bundle: &'a Bundle, sequence: u64) -> WrapContext<'a> {
        WrapContext {
            device: &bundle.device,
            bundle: &bundle.digest,
            model: &bundle.model,
            model_version: bundle.entry.facts.model_version,
            class: &bundle.class,
            sequence,
        }
    }

    fn device(&self) -> Device {
        self.script.device.lock().unwrap().clone().expect("the device has not enrolled")
    }

    /// Waits until a report says something.
    pub async fn wait_report(&self, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        let mut reports = self.script.reports.subscribe();
        let found = tokio::time::timeout(PATIENCE, reports.wait_for(|all| all.iter().any(&wanted))).await;
        let all = self.reports();
        let events: Vec<_> = all.iter().flat_map(|r| &r.events).map(|e| (e.assignment_sequence, e.state(), &e.check, &e.detail)).collect();
        assert!(found.is_ok(), "no report has {what}; events so far: {events:?}");
        all.iter().find(|r| wanted(r)).unwrap().clone()
    }

    /// Waits until the device reports a state of an assignment.
    pub async fn wait_event(&self, sequence: u64, state: State) -> Event {
        let wanted = move |e: &&Event| e.assignment_sequence == sequence && e.state() == state;
        let report = self.wait_report(&format!("{state:?} of {sequence}"), |r| r.events.iter().any(|e| wanted(&e))).await;
        report.events.iter().find(wanted).unwrap().clone()
    }

    /// Waits until the newest word of the device on an assignment is this state.
    pub async fn wait_last(&self, sequence: u64, state: State) {
        let last = |all: &Vec<Report>| states(all, sequence).last() == Some(&state);
        let mut reports = self.script.reports.subscribe();
        let found = tokio::time::timeout(PATIENCE, reports.wait_for(last)).await;
        assert!(found.is_ok(), "{state:?} is not the last of {:?}", self.states(sequence));
    }

    pub fn reports(&self) -> Vec<Report> {
        self.script.reports.borrow().clone()
    }

    /// States that the device reported of an assignment, in order.
    pub fn states(&self, sequence: u64) -> Vec<State> {
        states(&self.reports(), sequence)
    }
}

fn states(reports: &[Report], sequence: u64) -> Vec<State> {
    reports.iter().flat_map(|r| &r.events).filter(|e| e.assignment_sequence == sequence).map(Event::state).collect()
}

fn handshakes(
    listener: TcpListener,
    acceptor: TlsAcceptor,
) -> impl Stream<Item = std::io::Result<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            if sender.is_closed() {
                return;
            }
            tokio::spawn(async move {
                if let Ok(tls) = acceptor.accept(tcp).await {
                    let _ = sender.send(Ok(tls)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

struct Service(Arc<Script>);

impl Script {
    fn certify(&self, csr_der: &[u8], expired: bool) -> (EnrollResponse, PublicKey) {
        let der = CertificateSigningRequestDer::from(csr_der.to_vec());
        let mut csr = CertificateSigningRequestParams::from_der(&der).unwrap();
        csr.params.subject_alt_names = vec![SanType::URI(format!("spiffe://pleach/device/{DEVICE}").try_into().unwrap())];
        if expired {
            (csr.params.not_before, csr.params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
        }
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(self.issuer.ca_key.clone())).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_der(&self.issuer.ca, key).unwrap();
        let public: [u8; 32] = rcgen::PublicKeyData::der_bytes(&csr.public_key).try_into().unwrap();
        let response = EnrollResponse {
            device_id: DEVICE.into(),
            certificate_chain_der: vec![csr.signed_by(&issuer).unwrap().der().to_vec()],
            authority_der: self.authority_der.clone(),
            root_metadata: self.root.clone(),
            server_time_ms: 0,
        };
        (response, PublicKey::ed25519(&public))
    }
}

#[tonic::async_trait]
impl Enrollment for Service {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let request = request.into_inner();
        let (response, identity) = self.0.certify(&request.csr_der, self.0.faults.lock().unwrap().expired);
        verify_payload(&identity, pleach_proto::SEALING_KEY_CONTEXT, &request.sealing_public_key, &request.sealing_signature).unwrap();
        let sealing = SealingPublicKey::from_slice(&request.sealing_public_key).unwrap();
        *self.0.device.lock().unwrap() = Some(Device { identity, sealing });
        Ok(Response::new(response))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrollResponse>, Status> {
        self.0.renewals.send_modify(|n| *n += 1);
        Ok(Response::new(self.0.certify(&request.into_inner().csr_der, false).0))
    }
}

type Sent<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Fleet for Service {
    type SyncStream = Sent<ControllerMessage>;
    type FetchStream = Sent<FetchResponse>;

    async fn sync(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        self.0.connections.send_modify(|n| *n += 1);
        let mut inbound = request.into_inner();
        let mut desired = self.0.desired.subscribe();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let message = desired.borrow_and_update().clone();
                if sender.send(Ok(ControllerMessage { message: Some(Down::Desired(message)) })).await.is_err() {
                    return;
                }
                tokio::select! {
                    _ = desired.changed() => {}
                    Ok(None) | Err(_) = inbound.message() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let FetchRequest { digest, offset } = request.into_inner();
        let digest = Digest::from_slice(&digest).unwrap();
        let blob = self.0.blobs.lock().unwrap().get(&digest).cloned().ok_or_else(|| Status::not_found("no such blob"))?;
        let faults = self.0.faults.lock().unwrap().clone();
        if !blob.leaves.is_empty() {
            self.0.fetches.lock().unwrap().push(offset);
        }
        let mut bytes = blob.bytes.to_vec();
        if let Some(at) = faults.flip_at.filter(|_| !blob.leaves.is_empty()) {
            bytes[at] ^= 1;
        }
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            let part = |part| Ok(FetchResponse { part: Some(part) });
            let header = FetchHeader { length: bytes.len() as u64, leaves: blob.leaves };
            let _ = sender.send(part(Part::Header(header))).await;
            let (mut at, mut sent) = (offset as usize, 0);
            while at < bytes.len() {
                if faults.stall_at.is_some_and(|stall| at >= stall) {
                    sender.closed().await;
                    return;
                }
                if faults.cut_after.is_some_and(|cut| sent >= cut) {
                    let _ = sender.send(Err(Status::unavailable("cut"))).await;
                    return;
                }
                let end = bytes.len().min(at + 50_000);
                if sender.send(part(Part::Data(Bytes::copy_from_slice(&bytes[at..end])))).await.is_err() {
                    return;
                }
                (sent, at) = (sent + end - at, end);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn report(&self, request: Request<SignedReport>) -> Result<Response<ReportAck>, Status> {
        let signed = request.into_inner();
        let device = self.0.device.lock().unwrap().clone().unwrap();
        verify_payload(&device.identity, pleach_proto::REPORT_CONTEXT, &signed.body, &signed.signature).unwrap();
        let report = Report::decode(signed.body.as_slice()).unwrap();
        let sequence = report.sequence;
        self.0.reports.send_modify(|all| {
            if all.iter().all(|r| r.sequence != sequence) {
                all.push(report);
            }
        });
        Ok(Response::new(ReportAck { sequence }))
    }
}

/// The device id, parsed.
pub fn device_id() -> DeviceId {
    DEVICE.parse().unwrap()
}
