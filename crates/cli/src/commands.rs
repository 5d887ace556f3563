//! What the commands do.

mod inspect;
mod model;
mod prune;
mod rollout;
mod trust;

use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use pleach_domain::policy::Policy;
use pleach_proto::rest::{LabelChange, NewApiToken, NewToken};

use crate::args::{
    ApiTokenCommand, Cli, Command, DeviceCommand, Get, ModelCommand, Output, PolicyCommand, RemoteCommand, TokenCommand, label_map,
};
use crate::client::{Client, Connection};
use crate::table;

/// Runs one command; results go to stdout.
///
/// # Errors
/// Whatever kept it from being done, with [`crate::ClientError`] in the chain when the controller was asked.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let connection = Connection { api: cli.connection.api, ca_file: cli.connection.ca, token_file: cli.connection.token_file };
    let command = match cli.command {
        Command::Inspect(args) => return inspect::inspect(&args),
        Command::Prune(args) => return prune::prune(*args).await,
        Command::Trust(command) => return trust::run(&connection, command).await,
        Command::Remote(command) => command,
    };
    let client = Client::new(&connection)?;
    match command {
        RemoteCommand::Get(get) => list(&client, &get).await,
        RemoteCommand::Model(ModelCommand::Push { name, onnx, calibration, validation, task }) => {
            model::push(&client, name, task, &onnx, &calibration, &validation).await
        }
        RemoteCommand::Policy(PolicyCommand::Apply { file }) => {
            let policy = read_policy(&file)?;
            client.apply_policy(&policy).await?;
            println!("policy {} applied", policy.name);
            Ok(())
        }
        RemoteCommand::Token(TokenCommand::Create { uses, ttl, labels }) => {
            let token = client.create_token(&NewToken { labels: label_map(&labels), uses, ttl_seconds: ttl }).await?;
            println!("{}", token.token.context("the controller did not send the token's text")?);
            eprintln!("token {} enrols {} device(s); it is not shown again", token.id, token.uses_left);
            Ok(())
        }
        RemoteCommand::Token(TokenCommand::Revoke { id }) => {
            client.revoke_token(id.as_str()).await?;
            println!("token {id} revoked");
            Ok(())
        }
        RemoteCommand::ApiToken(ApiTokenCommand::Create { name, role, ttl }) => {
            let token = client.create_api_token(&NewApiToken { name, role, ttl_seconds: ttl }).await?;
            println!("{}", token.token.context("the controller did not send the token's text")?);
            eprintln!("API token {} is a {}'s; it is not shown again", token.name, token.role);
            Ok(())
        }
        RemoteCommand::ApiToken(ApiTokenCommand::Revoke { name }) => {
            client.revoke_api_token(name.as_str()).await?;
            println!("API token {name} revoked");
            Ok(())
        }
        RemoteCommand::Device(DeviceCommand::Approve { id }) => {
            client.approve_device(id.as_str()).await?;
            println!("device {id} approved");
            Ok(())
        }
        RemoteCommand::Device(DeviceCommand::Export { id, output }) => {
            let mut response = client.export_device(id.as_str()).await?;
            let mut file = std::fs::File::create(&output).with_context(|| format!("creating {}", output.display()))?;
            while let Some(bytes) = response.chunk().await.context("the bundle broke off")? {
                file.write_all(&bytes).with_context(|| format!("writing {}", output.display()))?;
            }
            println!("{} holds what device {id} should run", output.display());
            Ok(())
        }
        RemoteCommand::Device(DeviceCommand::Revoke { id }) => {
            client.revoke_device(id.as_str()).await?;
            println!("device {id} revoked");
            Ok(())
        }
        RemoteCommand::Device(DeviceCommand::Label { id, changes }) => {
            let mut change = LabelChange::default();
            for (key, value) in changes {
                match value {
                    Some(value) => _ = change.set.insert(key, value),
                    None => change.remove.push(key),
                }
            }
            let device = client.label_device(id.as_str(), &change).await?;
            let labels: Vec<_> = device.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            println!("device {id}: {}", labels.join(","));
            Ok(())
        }
        RemoteCommand::Rollout(command) => rollout::run(&client, command).await,
        RemoteCommand::Why { device, rollout } => rollout::why(&client, device.as_str(), rollout.as_ref()).await,
    }
}

async fn list(client: &Client, get: &Get) -> anyhow::Result<()> {
    let limit = get.limit.map(|n| n.to_string());
    let query = [("device", &get.device), ("class", &get.class), ("limit", &limit)];
    let query: Vec<_> = query.into_iter().filter_map(|(name, value)| value.as_deref().map(|value| (name, value))).collect();
    let items = client.list_json(get.noun.path(), &query).await?;
    match get.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "items": items }))?),
        Output::Table => println!("{}", table::render(get.noun, items, now_ms())?),
    }
    Ok(())
}

/// Reads a policy and checks its ranges here, where the file can be named.
fn read_policy(file: &Path) -> anyhow::Result<Policy> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let json = file.extension().is_some_and(|e| e == "json");
    let parsed = if json { serde_json::from_str(&text).map_err(anyhow::Error::from) } else { toml::from_str(&text).map_err(Into::into) };
    let policy: Policy = parsed.with_context(|| format!("{} is no policy", file.display()))?;
    policy.validate().with_context(|| format!("{} is no policy", file.display()))?;
    Ok(policy)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_come_as_toml_or_json_and_are_checked() {
        let dir = std::env::temp_dir().join(format!("pleach-policy-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let toml =
            write("p.toml", "name = \"p\"\nmodel = \"m\"\nslo_p95_us = 9000\naccuracy_floor = 0.9\n[adaptation]\ncooldown_seconds = 5\n");
        assert_eq!(read_policy(&toml).unwrap().adaptation.cooldown_seconds, 5);
        let json = write("p.json", r#"{"name":"p","model":"m","slo_p95_us":9000,"accuracy_floor":1.5}"#);
        assert!(format!("{:#}", read_policy(&json).unwrap_err()).contains("accuracy_floor"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
