//! Why a device does or does not run what a rollout brings.

use axum::extract::State;
use pleach_domain::DeviceId;
use pleach_domain::id::RolloutId;
use pleach_domain::selector::Subject;
use pleach_domain::state::{DeviceState, Observed, RolloutState};
use pleach_proto::rest::WhyView;
use pleach_store::assignments::Deployment;
use pleach_store::devices::Device;
use pleach_store::rollouts::{Place, Rollout};
use pleach_store::{Session, assignments, devices, rollouts};
use serde::Deserialize;

use super::extract::{Path, Query};
use super::problem::Failure;
use crate::controller::Shared;
use crate::random;

/// Which rollout.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    rollout: Option<RolloutId>,
}

/// `GET /api/v1/devices/{id}/why?rollout=`: without one, about the newest rollout of the device's class.
pub(super) async fn why(
    State(controller): State<Shared>,
    Path(id): Path<String>,
    Query(which): Query<Which>,
) -> Result<axum::Json<WhyView>, Failure> {
    let id: DeviceId = id.parse()?;
    let now_ms = random::now_ms();
    let mut session = controller.store.read().await?;
    let device = devices::find(&mut session, &id).await?.ok_or_else(|| Failure::not_found(format!("device {id}")))?;
    let rollout = match (which.rollout, &device.class) {
        (Some(id), _) => Some(rollouts::find(&mut session, &id).await?.ok_or_else(|| Failure::not_found(format!("rollout {id}")))?),
        (None, Some(class)) => rollouts::newest(&mut session, class).await?,
        (None, None) => None,
    };
    let connected = controller.presence.is_connected(&id);
    let mut facts = of_device(&device, connected, now_ms);
    let deployment = assignments::of_device(&mut session, &id).await?;
    facts.extend(deployment.as_ref().map(|d| of_deployment(d, now_ms)));
    let answer = match &rollout {
        None => "no rollout stands for its class".to_owned(),
        Some(rollout) => of_rollout(&mut session, &device, rollout, deployment.as_ref(), &mut facts, now_ms).await?,
    };
    Ok(axum::Json(WhyView { device: id.into(), rollout: rollout.map(|r| r.id.into()), answer, facts }))
}

fn seconds(since_ms: i64, now_ms: i64) -> i64 {
    (now_ms - since_ms).max(0) / 1_000
}

fn of_device(device: &Device, connected: bool, now_ms: i64) -> Vec<String> {
    let heard = device.last_seen_at_ms.map_or("never heard".to_owned(), |at| format!("heard {} s ago", seconds(at, now_ms)));
    let stream = if connected { "its stream is open" } else { "its stream is not open here" };
    let class = match (&device.class, &device.class_reason) {
        (Some(class), reason) => format!("in class {class}: {}", reason.as_deref().unwrap_or("no reason noted")),
        (None, _) if device.profile.is_some() => "in no class yet, though it sent its profile".to_owned(),
        (None, _) => "in no class: it has sent no profile".to_owned(),
    };
    let labels: Vec<_> = device.enrolled.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = if labels.is_empty() { "no labels".to_owned() } else { format!("labels {}", labels.join(",")) };
    vec![format!("the device is {}, {stream}, {heard}", device.state), class, labels]
}

fn of_deployment(d: &Deployment, now_ms: i64) -> String {
    let check = d.failed_check.as_ref().map_or(String::new(), |check| format!("; the check that failed: {check}"));
    let detail = d.detail.as_ref().map_or(String::new(), |detail| format!(" ({detail})"));
    format!(
        "its newest assignment, sequence {} of rollout {}, is bundle {}: {} for {} s{check}{detail}",
        d.sequence,
        d.rollout,
        d.bundle,
        d.state,
        seconds(d.changed_at_ms, now_ms)
    )
}

/// The answer; what it rests on goes to `facts`. The first reason that decides is the answer.
async fn of_rollout(
    session: &mut Session,
    device: &Device,
    rollout: &Rollout,
    deployment: Option<&Deployment>,
    facts: &mut Vec<String>,
    now_ms: i64,
) -> Result<String, Failure> {
    let counts = rollouts::counts(session, rollout).await?;
    let place = rollouts::place(session, &rollout.id, &device.enrolled.id).await?;
    let target = rollout.rules.target(rollout.wave, counts.members);
    let reason = if rollout.reason.is_empty() { String::new() } else { format!(": {}", rollout.reason) };
    facts.push(format!("rollout {} of bundle {} to class {} is {}{reason}", rollout.id, rollout.bundle, rollout.class, rollout.state));
    facts.push(format!(
        "wave {} of {}: {} of {target} devices were given it, {} proved it, {} failed; it is for {} devices",
        rollout.wave + 1,
        rollout.rules.waves.len() + 1,
        counts.given,
        counts.proven,
        counts.failed,
        counts.members
    ));
    if let Some(place) = place {
        facts.push(format!("{} devices come before it", place.before));
    }
    let own = deployment.filter(|d| d.rollout == rollout.id);
    Ok(match own {
        Some(d) if d.bundle == rollout.bundle => given(device, d),
        Some(d) => format!("the rollout was taken back, and the device goes back to {}: {}", d.bundle, d.state),
        None => absent(device, rollout, place, deployment, target, now_ms),
    })
}

fn given(device: &Device, d: &Deployment) -> String {
    let active = device.state == DeviceState::Active;
    match d.state {
        Observed::Proven => "it runs the bundle, and has proved so by signed evidence".to_owned(),
        Observed::Failed | Observed::Refused => format!(
            "it {} the bundle at the check {:?}, and runs what it proved before",
            if d.state == Observed::Failed { "gave up" } else { "refused" },
            d.failed_check.as_deref().unwrap_or("unknown")
        ),
        _ if !active => format!("it was given the bundle, but it is {} and gets nothing", device.state),
        Observed::Offered => "it was given the bundle and has not answered yet".to_owned(),
        Observed::Delivering | Observed::Staged => "it has begun to take the bundle over".to_owned(),
        Observed::Probation => "the bundle serves on probation: it waits for enough good inferences".to_owned(),
        Observed::Superseded => "something newer took the bundle's place".to_owned(),
    }
}

fn absent(device: &Device, rollout: &Rollout, place: Option<Place>, deployment: Option<&Deployment>, target: u64, now_ms: i64) -> String {
    let subject = Subject { labels: &device.enrolled.labels, class: device.class.as_ref().map(|c| c.as_str()) };
    if device.state != DeviceState::Active {
        return format!("the device is {}: it gets nothing", device.state);
    }
    if device.class.as_ref() != Some(&rollout.class) {
        return format!("the rollout is for class {}, and the device is not in it", rollout.class);
    }
    if let Some(unmet) = rollout.rules.selector.unmet(subject) {
        return format!("the rollout's selector asks for {unmet}, which does not hold");
    }
    match (place, rollout.state) {
        (Some(Place { given: true, .. }), _) => {
            let newer = deployment.map_or(String::new(), |d| format!(" by rollout {}", d.rollout));
            format!("it had the bundle, and was given another one since{newer}")
        }
        (_, RolloutState::Reverted | RolloutState::Halting | RolloutState::Aborted) => {
            format!("the rollout is {} and gives its bundle to nobody else", rollout.state)
        }
        (_, RolloutState::Draft | RolloutState::WaitingForApproval | RolloutState::Paused) => format!("the rollout is {}", rollout.state),
        (None, RolloutState::Running | RolloutState::Completed) => "the rollout is about to take it in".to_owned(),
        (Some(_), RolloutState::Completed) => "it is about to be given the bundle".to_owned(),
        (Some(place), RolloutState::Running) if place.before >= target => {
            format!("its turn comes in a later wave: {} devices come before it, and this wave is for {target}", place.before)
        }
        (Some(_), RolloutState::Running) if rollout.rules.maintenance.is_some_and(|hours| !hours.is_open(now_ms)) => {
            "it is its turn, but the rollout's hours are over for today".to_owned()
        }
        (Some(_), RolloutState::Running) => match rollout.rules.max_per_minute {
            Some(most) => format!("it is its turn; at most {most} devices a minute are given the bundle"),
            None => "it is its turn, and it is about to be given the bundle".to_owned(),
        },
    }
}
