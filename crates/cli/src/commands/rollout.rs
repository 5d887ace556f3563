//! `pleach rollout` and `pleach why`.

use pleach_domain::id::RolloutId;
use pleach_proto::rest::RolloutView;

use crate::args::{Output, RolloutCommand};
use crate::client::Client;

/// Runs one command about a rollout.
pub(super) async fn run(client: &Client, command: RolloutCommand) -> anyhow::Result<()> {
    let (id, deed) = match command {
        RolloutCommand::Status { id, output } => {
            let rollout = client.rollout(id.as_str()).await?;
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&rollout)?),
                Output::Table => print!("{}", status(&rollout)),
            }
            return Ok(());
        }
        RolloutCommand::Pause { id } => (id, "pause"),
        RolloutCommand::Resume { id } => (id, "resume"),
        RolloutCommand::Abort { id } => (id, "abort"),
        RolloutCommand::Undo { id } => (id, "undo"),
        RolloutCommand::Approve { id } => (id, "approve"),
    };
    let rollout = client.steer_rollout(id.as_str(), deed).await?;
    println!("rollout {id} is {}", rollout.state);
    Ok(())
}

/// Prints why a device does or does not run what a rollout brings.
pub(super) async fn why(client: &Client, device: &str, rollout: Option<&RolloutId>) -> anyhow::Result<()> {
    let why = client.why(device, rollout.map(RolloutId::as_str)).await?;
    println!("{}: {}", why.device, why.answer);
    why.facts.iter().for_each(|fact| println!("  - {fact}"));
    Ok(())
}

fn status(r: &RolloutView) -> String {
    let waves = r.rules.waves.len() + 1;
    let mut text = format!("rollout {} of bundle {} to class {}: {}\n", r.id, r.bundle, r.class, r.state);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<9} {value}\n"));
        }
    };
    line("because", r.reason.clone());
    line("wave", format!("{} of {waves}, for {} of {} devices", r.wave + 1, r.target, r.devices));
    line(
        "devices",
        format!("{} given, {} proven, {} failed; {} going back, {} failed to", r.given, r.proven, r.failed, r.returning, r.stranded),
    );
    line("selector", r.rules.selector.to_string());
    line("begun by", r.begun_by.clone());
    line("approved", r.approved_by.clone());
    for reading in &r.readings {
        let (name, verdict) = (reading.gate.name(), format!("{:?}", reading.verdict).to_lowercase());
        let control = reading.control.map_or(String::new(), |c| format!(", control {} of {}", c.events, c.trials));
        line("gate", format!("{name}: {verdict}; canary {} of {}{control}", reading.canary.events, reading.canary.trials));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_what_it_waits_for_and_what_its_gates_say() {
        let rollout = serde_json::json!({
            "id": "r-1", "class": "c", "bundle": "b-2", "state": "running", "reason": "4 of 5 devices have proved it, 0 failed",
            "rules": {"waves": ["5", "50%"], "selector": "site=berlin"}, "wave": 0, "target": 5, "devices": 90, "given": 5, "proven": 4,
            "failed": 0, "returning": 0, "stranded": 0, "begun_by": "token:ada", "approved_by": "", "created_at_ms": 1, "since_ms": 1,
            "readings": [{"gate": "errors", "verdict": "undecided", "canary": {"events": 1, "trials": 80},
                "control": {"events": 9, "trials": 900}, "ln_harmful": 0.0, "ln_harmless": 1.0, "design_effect": 1.0}]
        });
        insta::assert_snapshot!(status(&serde_json::from_value(rollout).unwrap()), @r"
        rollout r-1 of bundle b-2 to class c: running
          because   4 of 5 devices have proved it, 0 failed
          wave      1 of 3, for 5 of 90 devices
          devices   5 given, 4 proven, 0 failed; 0 going back, 0 failed to
          selector  site=berlin
          begun by  token:ada
          gate      errors: undecided; canary 1 of 80, control 9 of 900
        ");
    }
}
