//! Enrolment: a token and a proof of possession in, a short-lived certificate out.

use std::borrow::Cow;

use pleach_domain::DeviceId;
use pleach_domain::state::DeviceState;
use pleach_proto::SEALING_KEY_CONTEXT;
use pleach_proto::fleet::enrollment_server::Enrollment;
use pleach_proto::fleet::{EnrollRequest, EnrollResponse, RenewRequest};
use pleach_store::devices::{self, Device, NewDevice};
use pleach_store::{Session, audit, tokens, trust};
use pleach_trust::PublicKey;
use tonic::{Request, Response, Status};
use tracing::info;

use super::status;
use crate::authority::{self, IdentityKey};
use crate::controller::{Controller, Shared};
use crate::enrolment_token::{self, EnrolmentToken};
use crate::random;

/// Longest boot identifier.
pub(super) const MAX_BOOT_ID_BYTES: usize = 64;
const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// The service.
pub(super) struct Service(pub(super) Shared);

/// A parsed request to enrol, all of whose proofs hold.
struct Applicant {
    token: EnrolmentToken,
    key: IdentityKey,
    sealing_key: [u8; 32],
    requested: Option<DeviceId>,
    boot_id: String,
}

#[tonic::async_trait]
impl Enrollment for Service {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let applicant = Applicant::parse(request.into_inner())?;
        let now_ms = random::now_ms();
        let mut session = self.0.store.write().await.map_err(status::store)?;
        let token = tokens::find(&mut session, &applicant.token.id).await.map_err(status::store)?;
        let token = token.filter(|known| applicant.token.matches(&known.secret_sha256));
        let token = token.ok_or_else(|| Status::unauthenticated("the enrolment token is not known here"))?;
        let known = devices::find_by_identity(&mut session, applicant.key.as_bytes()).await.map_err(status::store)?;
        let response = match known {
            Some(device) => repeat(&self.0, &mut session, &applicant, &device, now_ms).await?,
            None => admit(&self.0, &mut session, applicant, &token, now_ms).await?,
        };
        session.commit().await.map_err(status::store)?;
        self.0.wake.all();
        info!(device.id = %response.device_id, token.id = %token.id, "device enrolled");
        Ok(Response::new(response))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrollResponse>, Status> {
        let request = request.into_inner();
        let now_ms = random::now_ms();
        let old = self.0.authority.read_device(&request.certificate_der).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let key = authority::request_key(&request.csr_der).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if key != old.key {
            return Err(Status::permission_denied("the certification request is by another key than the certificate"));
        }
        let grace_days = self.0.config.renewal_grace_days;
        if old.not_after_ms.saturating_add(i64::from(grace_days) * DAY_MS) < now_ms {
            return Err(Status::failed_precondition(format!(
                "the certificate ended more than {grace_days} days ago: enrol again with a new token and a new key"
            )));
        }
        let mut session = self.0.store.write().await.map_err(status::store)?;
        let device = devices::find(&mut session, &old.device).await.map_err(status::store)?;
        let device = device.filter(|d| d.enrolled.identity_key == *key.as_bytes());
        let device = device.ok_or_else(|| Status::unauthenticated("the device is not known here"))?;
        let response = reissue(&self.0, &mut session, &device, &key, now_ms).await?;
        session.commit().await.map_err(status::store)?;
        Ok(Response::new(response))
    }
}

impl Applicant {
    fn parse(request: EnrollRequest) -> Result<Self, Status> {
        let refuse = |words: String| Status::invalid_argument(words);
        let token = EnrolmentToken::parse(&request.token)
            .ok_or_else(|| refuse(format!("the enrolment token is malformed: {}", enrolment_token::EXPECTED)))?;
        let key = authority::request_key(&request.csr_der).map_err(|e| refuse(e.to_string()))?;
        let sealing_key: [u8; 32] = request
            .sealing_public_key
            .as_slice()
            .try_into()
            .map_err(|_| refuse(format!("the sealing key has {} bytes: expected 32", request.sealing_public_key.len())))?;
        let identity = PublicKey::ed25519(key.as_bytes());
        pleach_trust::verify_payload(&identity, SEALING_KEY_CONTEXT, &sealing_key, &request.sealing_signature)
            .map_err(|_| refuse("the sealing key is not signed by the identity key".into()))?;
        let requested = match request.requested_id.as_str() {
            "" => None,
            text => Some(text.parse::<DeviceId>().map_err(|e| refuse(e.to_string()))?),
        };
        check_boot_id(&request.boot_id)?;
        Ok(Self { token, key, sealing_key, requested, boot_id: request.boot_id })
    }
}

/// Refuses boot identifiers that are too long.
pub(super) fn check_boot_id(boot_id: &str) -> Result<(), Status> {
    if boot_id.len() <= MAX_BOOT_ID_BYTES {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("the boot id has {} bytes: expected at most {MAX_BOOT_ID_BYTES}", boot_id.len())))
}

/// Lets a new machine in and takes one use of its token.
async fn admit(
    controller: &Controller,
    session: &mut Session,
    applicant: Applicant,
    token: &tokens::Token,
    now_ms: i64,
) -> Result<EnrollResponse, Status> {
    if token.expires_at_ms <= now_ms {
        return Err(Status::failed_precondition("the enrolment token has expired: ask for a new one"));
    }
    if !tokens::take_use(session, &token.id, now_ms).await.map_err(status::store)? {
        return Err(Status::permission_denied("the enrolment token is used up: ask for a new one"));
    }
    let id = match applicant.requested {
        Some(id) => id,
        None => format!("device-{}", random::hex::<6>().map_err(status::internal)?).parse().map_err(status::internal)?,
    };
    if devices::find(session, &id).await.map_err(status::store)?.is_some() {
        return Err(Status::already_exists(format!("device {id} is there already with another key: choose another name")));
    }
    let (certificate, chain) = issue(controller, &id, &applicant.key, now_ms)?;
    let device = NewDevice {
        id,
        token: token.id.clone(),
        labels: token.labels.clone(),
        identity_key: *applicant.key.as_bytes(),
        sealing_key: applicant.sealing_key,
        certificate,
        boot_id: applicant.boot_id,
    };
    devices::insert(session, &device, now_ms).await.map_err(status::store)?;
    let actor = format!("token:{}", token.id);
    let entry = audit::Entry {
        actor: &actor,
        action: "device.enrol",
        subject: device.id.as_str(),
        before: None,
        after: Some(pleach_artifact::sha256(applicant.key.as_bytes())),
    };
    audit::append(session, &entry, now_ms).await.map_err(status::store)?;
    respond(controller, session, &device.id, chain, now_ms).await
}

/// Answers a machine again whose first answer was lost; takes no use of the token.
async fn repeat(
    controller: &Controller,
    session: &mut Session,
    applicant: &Applicant,
    device: &Device,
    now_ms: i64,
) -> Result<EnrollResponse, Status> {
    let id = &device.enrolled.id;
    if device.enrolled.token != applicant.token.id {
        return Err(Status::already_exists(format!("this key is device {id} already, by another token: renew its certificate instead")));
    }
    if device.enrolled.sealing_key != applicant.sealing_key {
        return Err(Status::already_exists(format!("this key is device {id} already, with another sealing key: enrol with a new key")));
    }
    reissue(controller, session, device, &applicant.key, now_ms).await
}

/// Gives a device that is known and active a new certificate.
async fn reissue(
    controller: &Controller,
    session: &mut Session,
    device: &Device,
    key: &IdentityKey,
    now_ms: i64,
) -> Result<EnrollResponse, Status> {
    let id = &device.enrolled.id;
    if device.state == DeviceState::Revoked {
        return Err(Status::permission_denied("the device is revoked"));
    }
    let (certificate, chain) = issue(controller, id, key, now_ms)?;
    if !devices::set_certificate(session, id, &certificate, now_ms).await.map_err(status::store)? {
        return Err(Status::permission_denied("the device is not active"));
    }
    respond(controller, session, id, chain, now_ms).await
}

fn issue(
    controller: &Controller,
    device: &DeviceId,
    key: &IdentityKey,
    now_ms: i64,
) -> Result<(devices::Certificate, Vec<Vec<u8>>), Status> {
    let der = controller.authority.issue(device, key, now_ms).map_err(status::internal)?;
    let read = authority::verified_device(&der).map_err(status::internal)?;
    let certificate = devices::Certificate {
        serial: authority::serial(&der).map_err(status::internal)?,
        fingerprint: pleach_artifact::sha256(&der),
        expires_at_ms: read.not_after_ms,
    };
    Ok((certificate, vec![der.to_vec()]))
}

async fn respond(
    controller: &Controller,
    session: &mut Session,
    device: &DeviceId,
    certificate_chain_der: Vec<Vec<u8>>,
    now_ms: i64,
) -> Result<EnrollResponse, Status> {
    let roots = trust::after(session, "root", 0).await.map_err(status::store)?;
    let root = roots.into_iter().next().ok_or_else(|| Status::unavailable(Cow::from("the fleet has no root of trust yet")))?;
    Ok(EnrollResponse {
        device_id: device.to_string(),
        certificate_chain_der,
        authority_der: controller.authority.certificate().to_vec(),
        root_metadata: root.bytes,
        server_time_ms: now_ms,
    })
}
