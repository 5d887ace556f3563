//! The journey, step by step. Each step waits for a condition that it reads from the controller, never for a time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use pleach_cli::Client;
use pleach_domain::adapt::Outcome;
use pleach_domain::policy::Policy;
use pleach_domain::state::{JobState, Observed, VariantState};
use pleach_proto::rest::{DecisionView, DeploymentView, DeviceView, JobView, NewModel, VariantView, WindowView};

use super::calibrate::{self, BATCH, Pace};
use super::evidence::{self, Measured, Version, WINDOWS, measured};
use super::fleet::{CAMERA, Fleet, KINDS, Kind, SENSOR};
use super::load::Requests;
use super::narrator::Narrator;
use super::verdict::{self, Findings};

const MODEL: &str = "fashion";
/// Share of the full model's size that a variant may have.
const SIZE_SHARE: f64 = 0.8;
/// Time between two looks at the controller.
const POLL: Duration = Duration::from_millis(300);

/// Whether a step is done.
enum Step<T> {
    Done(T),
    /// Not yet; what it waits for.
    Waiting(String),
}

/// Everything that runs and everything found out so far.
pub(super) struct Journey {
    fleet: Fleet,
    narrator: Narrator,
    findings: Findings,
}

impl Journey {
    pub(super) fn new(fleet: Fleet, narrator: Narrator, pace: Pace) -> Self {
        narrator.say(&format!(
            "the full model takes {} a request of {BATCH} images on one processor; the objective is p95 {}",
            verdict::ms(pace.dense_us),
            verdict::ms(pace.slo_us as f64)
        ));
        Self { fleet, narrator, findings: Findings::new(pace) }
    }

    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    pub(super) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The table of what was found.
    pub(super) fn print_table(&self) {
        self.narrator.quiet();
        println!("\n{}", verdict::table(&self.findings));
        let sum = |of: fn(&super::load::Counts) -> u64| -> u64 {
            self.fleet.devices.iter().filter_map(|d| d.load.as_ref()).map(|l| of(&l.counts)).sum()
        };
        let answered = sum(|c| c.answered.load(Ordering::Relaxed));
        let failed = sum(|c| c.failed.load(Ordering::Relaxed));
        println!("{answered} requests answered on the devices, {failed} failed; {:.0} s", self.narrator.elapsed().as_secs_f64());
    }

    /// All of it.
    ///
    /// # Errors
    /// The first step that did not happen in its time.
    pub(super) async fn travel(&mut self, fixtures: &Path) -> anyhow::Result<()> {
        self.upload(fixtures).await?;
        let requests = Arc::new(Requests::new(MODEL, &calibrate::dataset(fixtures)?)?);
        self.fleet.start_devices(&requests).await?;
        self.narrator.say("three agents started, each with a token of its own");
        self.classify().await?;
        self.first_variants().await?;
        self.use_headroom().await?;
        self.lose_half_of_the_processor().await?;
        self.settle().await
    }

    async fn upload(&mut self, fixtures: &Path) -> anyhow::Result<()> {
        let client = &self.fleet.client;
        let upload = async |file: &str| anyhow::Ok(client.upload(&fixtures.join(file), |_| ()).await?.digest);
        let model = NewModel {
            name: MODEL.to_owned(),
            task: "classification".to_owned(),
            onnx: upload("fm-resnet/model.onnx").await?,
            calibration: upload("fashion-calibration.npz").await?,
            validation: upload("fashion-validation.npz").await?,
        };
        let view = client.create_model(&model).await?;
        let (macs, size) = (view.macs as f64 / 1e6, view.size_bytes);
        client.apply_policy(&policy(self.findings.pace, size)?).await?;
        self.narrator.say(&format!("model {MODEL} uploaded: {macs:.1} M MACs, {} kB; policy applied", size / 1_000));
        Ok(())
    }

    /// Every device is known and of a class of its own.
    async fn classify(&mut self) -> anyhow::Result<()> {
        self.wait("classes", 90, async |journey| {
            let devices: Vec<DeviceView> = journey.fleet.client.list("devices", &[]).await?;
            for found in &mut journey.findings.devices {
                let device = devices.iter().find(|d| d.labels.get("kind").is_some_and(|k| k == found.kind.name));
                found.id = device.map(|d| d.id.clone());
                found.class = device.and_then(|d| d.class.clone());
            }
            let known = journey.findings.devices.iter().filter(|d| d.class.is_some()).count();
            Ok(if known == KINDS.len() { Step::Done(()) } else { Step::Waiting(format!("{known} of {} devices profiled", KINDS.len())) })
        })
        .await?;
        for found in &self.findings.devices {
            self.narrator.say(&format!("{} is of class {}", found.kind.name, found.class.as_deref().unwrap_or("-")));
        }
        if self.findings.classes() < KINDS.len() {
            bail!("the devices fell into {} classes instead of {}", self.findings.classes(), KINDS.len());
        }
        Ok(())
    }

    /// Every class has its variant, proven on its device, and the device has measured it.
    async fn first_variants(&mut self) -> anyhow::Result<()> {
        for kind in &KINDS {
            let first = self.wait(&format!("first variant for {}", kind.name), 150, async |journey| journey.latest(kind, 0).await).await?;
            self.narrator.say(&self.findings.describe(kind, &first));
            let found = self.findings.device_mut(kind)?;
            found.first = Some(first);
            found.before = Some(first);
        }
        Ok(())
    }

    /// The sensor began with more pruned than it needs; the loop finds out and prunes less.
    async fn use_headroom(&mut self) -> anyhow::Result<()> {
        let begun_macs = self.findings.device(&SENSOR)?.versions.first().context("the sensor has no version")?.report.pruned.macs;
        let after = self
            .wait("the sensor's headroom", 120, async |journey| {
                let Some(decision) = journey.decision(&SENSOR, 0, |o| matches!(o, Outcome::PruneLess { .. })).await? else {
                    return Ok(Step::Waiting("no decision yet".to_owned()));
                };
                if journey.findings.prune_less.is_none() {
                    journey.narrator.say(&format!("sensor: prune less, because {}", evidence::reason(&decision.outcome)));
                    journey.findings.prune_less = Some(decision);
                }
                let fuller = journey.findings.device(&SENSOR)?.versions.last().is_some_and(|v| v.report.pruned.macs > begun_macs);
                if fuller { journey.latest(&SENSOR, 0).await } else { journey.work(&SENSOR).await }
            })
            .await?;
        self.narrator.say(&self.findings.describe(&SENSOR, &after));
        self.findings.device_mut(&SENSOR)?.last = Some(after);
        Ok(())
    }

    /// The camera's quota is halved; its p95 breaks the objective; the loop prunes more and brings it back.
    async fn lose_half_of_the_processor(&mut self) -> anyhow::Result<()> {
        self.wait("the camera to come to rest", 90, async |journey| {
            if journey.is_worked_for(&CAMERA).await? { journey.work(&CAMERA).await } else { journey.latest(&CAMERA, 0).await }
        })
        .await?;
        let slo_us = self.findings.pace.slo_us;
        let halved = CAMERA.quota.unwrap_or(1.0) / 2.0;
        self.fleet.device(&CAMERA)?.group.set_quota(Some(halved))?;
        let (since_ms, before) = (now_ms(), self.findings.device(&CAMERA)?.versions.len());
        self.narrator.say(&format!("camera: the quota falls to {:.0} % of a processor", halved * 100.0));
        let broken = self
            .wait("the camera to break its objective", 40, async |journey| {
                let windows = journey.windows(&CAMERA).await?;
                Ok(match measured(&windows, None, since_ms, WINDOWS / 2) {
                    Ok(m) if m.p95_us > slo_us => Step::Done(m),
                    Ok(m) => Step::Waiting(format!("p95 {}", verdict::ms(m.p95_us as f64))),
                    Err(n) => Step::Waiting(format!("{n} windows")),
                })
            })
            .await?;
        self.narrator.say(&format!("camera: p95 {} breaks the objective", verdict::ms(broken.p95_us as f64)));
        self.findings.broken = Some(broken);
        self.findings.device_mut(&CAMERA)?.before = Some(broken);
        let after = self
            .wait("the camera to be back", 120, async |journey| {
                let Some(decision) = journey.decision(&CAMERA, since_ms, |o| matches!(o, Outcome::PruneMore { .. })).await? else {
                    return Ok(Step::Waiting("no decision yet".to_owned()));
                };
                if journey.findings.prune_more.is_none() {
                    journey.narrator.say(&format!("camera: prune more, because {}", evidence::reason(&decision.outcome)));
                    journey.findings.prune_more = Some(decision);
                }
                if journey.findings.device(&CAMERA)?.versions.len() == before {
                    return journey.work(&CAMERA).await;
                }
                Ok(match journey.latest(&CAMERA, since_ms).await? {
                    Step::Done(m) if m.p95_us > slo_us => Step::Waiting(format!("p95 {}", verdict::ms(m.p95_us as f64))),
                    step => step,
                })
            })
            .await?;
        self.narrator.say(&self.findings.describe(&CAMERA, &after));
        self.findings.recovered = Some(after);
        Ok(())
    }

    /// Every device is inside the objective with what it runs now.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let slo_us = self.findings.pace.slo_us;
        self.wait("every device inside the objective", 60, async |journey| {
            let mut outside = Vec::new();
            for kind in &KINDS {
                match journey.latest(kind, 0).await? {
                    Step::Done(m) => {
                        journey.findings.device_mut(kind)?.last = Some(m);
                        if m.p95_us > slo_us {
                            outside.push(format!("{} has p95 {}", kind.name, verdict::ms(m.p95_us as f64)));
                        }
                    }
                    Step::Waiting(what) => outside.push(format!("{}: {what}", kind.name)),
                }
            }
            Ok(if outside.is_empty() { Step::Done(()) } else { Step::Waiting(outside.join(", ")) })
        })
        .await
    }

    /// Looks at the controller until `probe` is done; an error when it is not within `seconds`, or when a process has ended.
    async fn wait<T>(
        &mut self,
        what: &str,
        seconds: u64,
        mut probe: impl AsyncFnMut(&mut Self) -> anyhow::Result<Step<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            self.fleet.check()?;
            self.observe().await?;
            match probe(self).await.with_context(|| format!("while waiting for {what}"))? {
                Step::Done(value) => return Ok(value),
                Step::Waiting(_) if Instant::now() < deadline => {}
                Step::Waiting(last) => bail!("no {what} within {seconds} s; last seen: {last}"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Notes every version that a device has newly proven.
    async fn observe(&mut self) -> anyhow::Result<()> {
        let deployments: Vec<DeploymentView> = self.fleet.client.list("deployments", &[]).await?;
        for found in &mut self.findings.devices {
            let mine = deployments.iter().find(|d| Some(&d.device) == found.id.as_ref() && d.state == Observed::Proven);
            let Some(new) = mine.filter(|d| found.versions.last().is_none_or(|v| v.bundle != d.digest)) else { continue };
            let variants: Vec<VariantView> = self.fleet.client.list("variants", &[]).await?;
            found.versions.extend(Version::of(new, &variants)?);
        }
        Ok(())
    }

    /// What a device measured with the version that it proved last.
    async fn latest(&mut self, kind: &Kind, since_ms: i64) -> anyhow::Result<Step<Measured>> {
        let Some(version) = self.findings.device(kind)?.versions.last().cloned() else { return self.work(kind).await };
        let windows = self.windows(kind).await?;
        Ok(match measured(&windows, Some(version.bundle), version.proven_at_ms.max(since_ms), WINDOWS) {
            Ok(m) if m.labelled > 0 => Step::Done(m),
            Ok(_) => Step::Waiting("windows without labels".to_owned()),
            Err(n) => Step::Waiting(format!("{} proven, {n} of {WINDOWS} windows", kind.name)),
        })
        .inspect(|step| self.tell(step))
    }

    /// What is being done for a device that has not proven its version yet.
    async fn work<T>(&mut self, kind: &Kind) -> anyhow::Result<Step<T>> {
        let found = self.findings.device(kind)?;
        let (class, id) = (found.class.clone().unwrap_or_default(), found.id.clone());
        let client: &Client = &self.fleet.client;
        let jobs: Vec<JobView> = client.list("jobs", &[]).await?;
        let deployments: Vec<DeploymentView> = client.list("deployments", &[]).await?;
        let variants: Vec<VariantView> = client.list("variants", &[]).await?;
        let rejected = variants.iter().rev().find(|v| v.class == class).filter(|v| v.state == VariantState::Rejected);
        let words = if let Some(job) = jobs.iter().find(|j| j.state == JobState::Running) {
            format!("{}: {}, {} {:.0} %", job.subject, job.kind, job.stage, job.progress * 100.0)
        } else if let Some(reason) = rejected.and_then(|v| v.rejection.as_deref()) {
            format!("{}: no variant, {reason}", kind.name)
        } else if let Some(deployment) = deployments.iter().find(|d| Some(&d.device) == id.as_ref()) {
            let detail = deployment.detail.as_deref().unwrap_or_default();
            format!("{}: {} {detail}", kind.name, deployment.state)
        } else if let Some(error) = jobs.iter().rev().find_map(|j| j.error.as_deref()) {
            format!("{}: a job failed: {error}", kind.name)
        } else {
            format!("{}: kernels are being measured", kind.name)
        };
        let step = Step::Waiting(words);
        self.tell(&step);
        Ok(step)
    }

    /// Whether a job for the device's class is under way, or its outcome on its way to the device.
    async fn is_worked_for(&self, kind: &Kind) -> anyhow::Result<bool> {
        let found = self.findings.device(kind)?;
        let class = format!("{}/", found.class.as_deref().unwrap_or_default());
        let jobs: Vec<JobView> = self.fleet.client.list("jobs", &[]).await?;
        let deployments: Vec<DeploymentView> = self.fleet.client.list("deployments", &[]).await?;
        let live = |j: &JobView| matches!(j.state, JobState::Queued | JobState::Running) && j.subject.starts_with(&class);
        Ok(jobs.iter().any(live) || deployments.iter().any(|d| Some(&d.device) == found.id.as_ref() && d.state != Observed::Proven))
    }

    async fn windows(&self, kind: &Kind) -> anyhow::Result<Vec<WindowView>> {
        let id = self.findings.device(kind)?.id.as_deref().context("the device is not enrolled")?;
        Ok(self.fleet.client.list("windows", &[("device", id), ("limit", "100")]).await?)
    }

    async fn decision(&self, kind: &Kind, since_ms: i64, wanted: fn(&Outcome) -> bool) -> anyhow::Result<Option<DecisionView>> {
        let class = self.findings.device(kind)?.class.as_deref().context("the device has no class")?;
        let decisions: Vec<DecisionView> = self.fleet.client.list("decisions", &[]).await?;
        Ok(evidence::decision(&decisions, class, since_ms, wanted).cloned())
    }

    fn tell<T>(&mut self, step: &Step<T>) {
        if let Step::Waiting(what) = step {
            self.narrator.progress(what);
        }
    }
}

/// What the model's owner wants: the same for every kind of device. The first budgets are cautious, so that the loop has something to find.
fn policy(pace: Pace, full_bytes: u64) -> anyhow::Result<Policy> {
    Ok(serde_json::from_value(serde_json::json!({
        "name": MODEL,
        "model": MODEL,
        "slo_p95_us": pace.slo_us,
        "request_batch": BATCH,
        "accuracy_floor": 0.86,
        "max_size_bytes": (full_bytes as f64 * SIZE_SHARE) as u64,
        "criterion": "obs",
        "rollout": { "probation_inferences": 10, "probation_seconds": 60 },
        "adaptation": {
            "window_seconds": 2, "min_windows": 4, "min_requests": 40, "cooldown_seconds": 4,
            "first_target_share": 0.45, "headroom_share": 0.7, "target_share": 0.85
        }
    }))?)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
