//! Reports: verified, bounded, deduplicated.

use pleach_domain::profile::{HardwareProfile, MeasuredKernel};
use pleach_domain::state::Observed;
use pleach_domain::window::Window;
use pleach_domain::{DeviceId, Digest};
use pleach_proto::fleet::{Measurement, Report, SignedReport};
use pleach_proto::{REPORT_CONTEXT, WireError, convert};
use pleach_store::{Session, StoreError, assignments, audit, devices, measurements, windows};
use pleach_trust::PublicKey;
use prost::Message;
use tonic::Status;

use super::enrollment::check_boot_id;
use crate::authority::DeviceCertificate;
use crate::rest::problem::chain;

const MAX_WINDOWS: usize = 1_000;
const MAX_EVENTS: usize = 1_000;
const MAX_MEASUREMENTS: usize = 16;
const MAX_TIMINGS: usize = 16_384;
const MAX_KEY_BYTES: usize = 256;
const MAX_CHECK_BYTES: usize = 64;
const MAX_DETAIL_BYTES: usize = 1_024;

/// A report whose every part is in its range.
struct Parsed {
    sequence: u64,
    windows: Vec<Window>,
    events: Vec<Event>,
    measurements: Vec<Measured>,
    profile: Option<HardwareProfile>,
}

struct Event {
    sequence: u64,
    bundle: Digest,
    state: Observed,
    check: Option<String>,
    detail: Option<String>,
}

struct Measured {
    task: String,
    outcome: Result<Vec<MeasuredKernel>, String>,
}

/// A verified report of a device, on its way into the store.
pub(super) struct Incoming {
    device: DeviceId,
    report: Parsed,
}

impl Incoming {
    /// Verifies a report.
    pub(super) fn new(device: &DeviceCertificate, signed: &SignedReport) -> Result<Self, Status> {
        let key = PublicKey::ed25519(device.key.as_bytes());
        pleach_trust::verify_payload(&key, REPORT_CONTEXT, &signed.body, &signed.signature)
            .map_err(|_| Status::invalid_argument("the report is not signed by this device's key"))?;
        let report =
            Report::decode(signed.body.as_slice()).map_err(|e| Status::invalid_argument(format!("the report does not parse: {e}")))?;
        if report.device_id != device.device.as_str() {
            let got: String = report.device_id.chars().take(80).collect();
            return Err(Status::permission_denied(format!("the report is of device {got:?}: expected {:?}", device.device.as_str())));
        }
        Ok(Self { device: device.device.clone(), report: Parsed::new(report)? })
    }

    /// Stores what is new in it. Answers the sequence up to which everything of the device is stored.
    pub(super) async fn write(&self, session: &mut Session, now_ms: i64) -> Result<Result<u64, Status>, StoreError> {
        if devices::accept_report(session, &self.device, self.report.sequence, now_ms).await? {
            self.report.write(session, &self.device, now_ms).await?;
            return Ok(Ok(self.report.sequence));
        }
        let known = devices::find(session, &self.device).await?.filter(|d| d.report_sequence >= self.report.sequence);
        Ok(known.map(|d| d.report_sequence).ok_or_else(|| Status::permission_denied("the device is revoked")))
    }
}

impl Parsed {
    fn new(report: Report) -> Result<Self, Status> {
        check_boot_id(&report.boot_id)?;
        at_least("sequence", report.sequence, 1)?;
        at_most("windows", report.windows.len(), MAX_WINDOWS)?;
        at_most("events", report.events.len(), MAX_EVENTS)?;
        at_most("measurements", report.measurements.len(), MAX_MEASUREMENTS)?;
        let windows = report.windows.into_iter().map(Window::try_from).collect::<Result<_, _>>().map_err(|e| wire(&e))?;
        let events = report.events.into_iter().map(Event::new).collect::<Result<_, _>>()?;
        let measurements = report.measurements.into_iter().map(Measured::new).collect::<Result<_, _>>()?;
        let profile = report.profile.map(HardwareProfile::try_from).transpose().map_err(|e| wire(&e))?;
        Ok(Self { sequence: report.sequence, windows, events, measurements, profile })
    }

    async fn write(&self, session: &mut Session, device: &DeviceId, now_ms: i64) -> Result<(), StoreError> {
        windows::insert_all(session, device, &self.windows, now_ms).await?;
        for event in &self.events {
            event.write(session, device, now_ms).await?;
        }
        for measured in &self.measurements {
            match &measured.outcome {
                Ok(timings) => measurements::finish(session, &measured.task, device, timings).await?,
                Err(error) => measurements::fail(session, &measured.task, device, error).await?,
            };
        }
        match &self.profile {
            Some(profile) => devices::set_profile(session, device, profile, now_ms).await,
            None => Ok(()),
        }
    }
}

impl Event {
    fn new(event: pleach_proto::fleet::Event) -> Result<Self, Status> {
        let state = convert::observed(&event).map_err(|e| wire(&e))?;
        let bundle = convert::digest("event.bundle_digest", &event.bundle_digest).map_err(|e| wire(&e))?;
        let text = |text: String, most: usize| (!text.is_empty()).then(|| shortened(text, most));
        Ok(Self {
            sequence: event.assignment_sequence,
            bundle,
            state,
            check: text(event.check, MAX_CHECK_BYTES),
            detail: text(event.detail, MAX_DETAIL_BYTES),
        })
    }

    /// Applies the event, and notes in the audit log what a device says at the end of an assignment.
    async fn write(&self, session: &mut Session, device: &DeviceId, now_ms: i64) -> Result<(), StoreError> {
        let event = assignments::Event {
            device,
            sequence: self.sequence,
            digest: &self.bundle,
            state: self.state,
            failed_check: self.check.as_deref(),
            detail: self.detail.as_deref(),
        };
        if assignments::observe(session, &event, now_ms).await?.is_some() && self.state.is_final() {
            let (actor, action) = (format!("device:{device}"), format!("assignment.{}", self.state));
            let subject = format!("{device}/{}", self.sequence);
            let entry = audit::Entry { actor: &actor, action: &action, subject: &subject, before: None, after: Some(self.bundle) };
            audit::append(session, &entry, now_ms).await?;
        }
        Ok(())
    }
}

impl Measured {
    fn new(measurement: Measurement) -> Result<Self, Status> {
        at_most("measurement.task_id", measurement.task_id.len(), MAX_KEY_BYTES)?;
        at_most("measurement.timings", measurement.timings.len(), MAX_TIMINGS)?;
        for timing in &measurement.timings {
            at_most("measurement.timings.key", timing.key.len(), MAX_KEY_BYTES)?;
            if !(timing.mean_us.is_finite() && timing.mean_us > 0.0) {
                return Err(Status::invalid_argument(format!(
                    "measurement.timings.mean_us is {}: expected a positive time",
                    timing.mean_us
                )));
            }
        }
        let outcome = match measurement.error {
            error if error.is_empty() => Ok(measurement.timings.into_iter().map(Into::into).collect()),
            error => Err(shortened(error, MAX_DETAIL_BYTES)),
        };
        Ok(Self { task: measurement.task_id, outcome })
    }
}

fn wire(error: &WireError) -> Status {
    Status::invalid_argument(format!("report: {}", chain(error)))
}

fn at_most(field: &str, got: usize, most: usize) -> Result<(), Status> {
    if got <= most { Ok(()) } else { Err(Status::invalid_argument(format!("report: {field} has {got}: expected at most {most}"))) }
}

fn at_least(field: &str, got: u64, least: u64) -> Result<(), Status> {
    if got >= least { Ok(()) } else { Err(Status::invalid_argument(format!("report: {field} is {got}: expected at least {least}"))) }
}

/// A text of at most `most` bytes, cut at a character.
fn shortened(mut text: String, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    text.truncate(end);
    text
}
