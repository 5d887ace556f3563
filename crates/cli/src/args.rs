//! The words of the command line.

mod prune;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pleach_domain::id::{ApiTokenId, DeviceId, ModelName, RolloutId, TokenId};
use pleach_domain::role::Role;
use pleach_prune::TaskKind;

pub use prune::{Prune, PruneOutput};

const EXAMPLES: &str = "\
Examples:
  pleach inspect model.onnx --prove
  pleach prune model.onnx --calibration data.npz --target speedup=2 -o small.onnx
  pleach get devices
  pleach get windows --class x8664-avx512-1t --limit 20 -o json
  pleach model push --name shoes --onnx model.onnx --calibration calibration.npz --validation validation.npz
  pleach policy apply -f policy.toml
  pleach token create --uses 10 --ttl 1h --label site=berlin
  pleach api-token create wall-display --role viewer

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the controller could not be reached, 4 no variant keeps what was asked
for, 130 cancelled.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  pleach inspect model.onnx
  pleach inspect model.onnx --prove --output json
  pleach inspect model.onnx --output html > model.html
  pleach inspect detector.onnx --shape images=1,3,640,640

Images are taken to be 224 by 224 and sequences 128 long where the model leaves that free, and smaller where it does not run
on these. Inputs are random numbers; indices stay within their tables, and masks are ones.";

/// Prunes one trained model to fit every kind of device in a fleet, and runs the fleet.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Where the controller is.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach the controller.
#[derive(Args, Debug)]
pub struct ConnectionArgs {
    /// Address of the controller's REST interface
    #[arg(
        long,
        global = true,
        help_heading = "Connection",
        env = "PLEACH_API",
        default_value = "https://localhost:7444",
        value_name = "URL"
    )]
    pub api: String,
    /// Certificate of the controller's CA, PEM
    #[arg(long, global = true, help_heading = "Connection", env = "PLEACH_CA", default_value = "ca.pem", value_name = "FILE")]
    pub ca: PathBuf,
    /// File that holds the API token
    #[arg(long, global = true, help_heading = "Connection", env = "PLEACH_TOKEN_FILE", default_value = "admin.token", value_name = "FILE")]
    pub token_file: PathBuf,
}

/// Verbs and nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What a model is and how much of it can be pruned; needs no controller
    Inspect(Inspect),
    /// Make a model faster for this machine; needs no controller
    Prune(Box<Prune>),
    /// The keys that sign for the fleet, and root ceremonies
    #[command(subcommand)]
    Trust(TrustCommand),
    /// What the controller is asked.
    #[command(flatten)]
    Remote(RemoteCommand),
}

/// Verbs and nouns that need a controller.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// List what there is
    Get(Get),
    /// Models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Enrolment tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Tokens of people and tools for this interface and the dashboard
    #[command(subcommand)]
    ApiToken(ApiTokenCommand),
    /// Devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Rollouts
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Why a device does or does not run what a rollout brings
    Why {
        /// The device
        device: DeviceId,
        /// The rollout; else the newest of the device's class
        rollout: Option<RolloutId>,
    },
}

/// `pleach inspect`.
#[derive(Args, Debug)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct Inspect {
    /// The model, .onnx
    pub model: PathBuf,
    /// Prove on the model itself that its groups can be cut: exit code 1 when a proof does not hold
    #[arg(long)]
    pub prove: bool,
    /// How to print
    #[arg(short, long, default_value = "text")]
    pub output: InspectOutput,
    /// Shape of an input whose axes the model leaves free (may be repeated)
    #[arg(long = "shape", value_name = "INPUT=LENGTHS", value_parser = parse_shape)]
    pub shapes: Vec<(String, Vec<usize>)>,
    /// ONNX Runtime's library, version 1.28 or newer
    #[arg(long, env = "ORT_DYLIB_PATH", hide_env_values = true, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

/// How an inspection is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InspectOutput {
    /// For people.
    Text,
    /// For programs; lists everything.
    Json,
    /// A page with a picture, in one file.
    Html,
}

/// `pleach get`.
#[derive(Args, Debug)]
pub struct Get {
    /// What to list
    pub noun: Noun,
    /// Only this device (windows)
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
    /// Only this class (windows)
    #[arg(long, value_name = "ID")]
    pub class: Option<String>,
    /// At most so many (windows)
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Noun {
    /// Enrolled machines.
    Devices,
    /// Devices that are alike for pruning.
    Classes,
    /// Trained models.
    Models,
    /// Pruned models, one for each class and budget.
    Variants,
    /// Sealed variants.
    Bundles,
    /// How bundles spread.
    Rollouts,
    /// What each device should run and what it has proved.
    Deployments,
    /// Measurements from devices.
    Windows,
    /// What the adaptation loop decided.
    Decisions,
    /// Work in progress.
    Jobs,
    /// The log of changes.
    Audit,
    /// Tokens of people and tools.
    ApiTokens,
}

impl Noun {
    /// Its name in the REST interface.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Classes => "classes",
            Self::Models => "models",
            Self::Variants => "variants",
            Self::Bundles => "bundles",
            Self::Rollouts => "rollouts",
            Self::Deployments => "deployments",
            Self::Windows => "windows",
            Self::Decisions => "decisions",
            Self::Jobs => "jobs",
            Self::Audit => "audit",
            Self::ApiTokens => "api-tokens",
        }
    }
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// As the controller answered.
    Json,
}

/// `pleach model`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Upload a trained model with its data, and register its next version
    Push {
        /// Name of the model
        #[arg(long)]
        name: ModelName,
        /// The trained model, .onnx
        #[arg(long, value_name = "FILE")]
        onnx: PathBuf,
        /// Calibration samples, .npz: arrays named after the model's inputs
        #[arg(long, value_name = "FILE")]
        calibration: PathBuf,
        /// Validation samples with `labels` (of a detector `boxes` and `index`), .npz
        #[arg(long, value_name = "FILE")]
        validation: PathBuf,
        /// What the model is for
        #[arg(long, value_name = "KIND", default_value = "classification", value_parser = prune::named::<TaskKind>(&TaskKind::ALL.map(TaskKind::name)))]
        task: TaskKind,
    },
}

/// `pleach policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Set a policy from a file
    Apply {
        /// The policy, TOML or (named .json) JSON
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// `pleach token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token that enrols devices; it is printed once
    Create {
        /// Devices it enrols
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
        /// How long it is good for: a number and s, m, h or d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_seconds)]
        ttl: u32,
        /// Label for the devices that enrol with it (may be repeated)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
    },
    /// Let nobody else in with a token; devices it let in stay
    Revoke {
        /// The token's id, as `pleach get` shows it
        id: TokenId,
    },
}

/// `pleach trust`.
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Make a folder of signing keys, or those that are missing in it; beside each its public half, .pub
    Init {
        /// The folder
        #[arg(long, value_name = "FOLDER")]
        keys: PathBuf,
    },
    /// Root files, for ceremonies away from the controller
    #[command(subcommand)]
    Root(RootCommand),
    /// Replace a role's key in the controller's folder; its next start puts the new one in force
    Rotate {
        /// The role
        role: SignedRole,
        /// The controller's folder of keys
        #[arg(long, value_name = "FOLDER")]
        keys: PathBuf,
    },
    /// Show who signs for the fleet, and until when
    Status,
}

/// `pleach trust root`.
#[derive(Debug, Subcommand)]
pub enum RootCommand {
    /// Write the next root, unsigned: the controller's newest, with other root keys
    Draft {
        /// Public half of a key that may sign roots from now on, .pub (may be repeated)
        #[arg(long = "root-key", value_name = "FILE", required = true)]
        root_keys: Vec<PathBuf>,
        /// How many of them must sign
        #[arg(long, value_name = "N")]
        threshold: u32,
        /// How long it is good for, in days
        #[arg(long, value_name = "DAYS", default_value_t = 365)]
        days: u32,
        /// Where to write it
        #[arg(long, value_name = "FILE", default_value = "root.next.json")]
        out: PathBuf,
    },
    /// Add a key's signature to a root
    Sign {
        /// The root
        root: PathBuf,
        /// The key, .pem
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
}

/// Who signs something in a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SignedRole {
    /// Says which keys may sign what.
    Root,
    /// Delegates to release and director.
    Targets,
    /// Says which files belong together.
    Snapshot,
    /// Says which snapshot is the newest.
    Timestamp,
    /// Vouches for bundles.
    Release,
    /// Assigns bundles to devices.
    Director,
}

/// `pleach api-token`.
#[derive(Debug, Subcommand)]
pub enum ApiTokenCommand {
    /// Create a token; it is printed once
    Create {
        /// Whose it is, as the audit log will name it
        name: ApiTokenId,
        /// What it may do: viewer, operator or admin
        #[arg(long)]
        role: Role,
        /// How long it is good for: a number and s, m, h or d; for ever, when absent
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        ttl: Option<u32>,
    },
    /// Take a token back
    Revoke {
        /// Whose it is
        name: ApiTokenId,
    },
}

/// `pleach device`.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Cut a device off for ever
    Revoke {
        /// The device
        id: DeviceId,
    },
    /// Write what a device should run into a file for `pleach-agent install`, e.g. on a USB stick
    Export {
        /// The device
        id: DeviceId,
        /// The file
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Let a device in that waits for a person, e.g. because its key spoke from two machines
    Approve {
        /// The device
        id: DeviceId,
    },
    /// Set labels, or take them away; rollouts that stand consider the device anew
    Label {
        /// The device
        id: DeviceId,
        /// KEY=VALUE to set, KEY- to take away
        #[arg(required = true, value_name = "LABEL", value_parser = parse_change)]
        changes: Vec<(String, Option<String>)>,
    },
}

/// `pleach rollout`.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Show how far it is, what it waits for and what its gates say
    Status {
        /// The rollout
        id: RolloutId,
        /// How to print
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Give it to nobody else for now; who has it keeps it
    Pause {
        /// The rollout
        id: RolloutId,
    },
    /// Go on where it was paused
    Resume {
        /// The rollout
        id: RolloutId,
    },
    /// End it; every device keeps what it has
    Abort {
        /// The rollout
        id: RolloutId,
    },
    /// Take it back: every device that has it goes back to what it proved last before
    Undo {
        /// The rollout
        id: RolloutId,
    },
    /// Let it begin; not for the one who applied its policy
    Approve {
        /// The rollout
        id: RolloutId,
    },
}

/// Labels as the interface takes them; of a repeated key the last counts.
pub fn label_map(labels: &[(String, String)]) -> BTreeMap<String, String> {
    labels.iter().cloned().collect()
}

fn parse_seconds(text: &str) -> Result<u32, String> {
    let expected = || format!("{text:?}: expected a number and s, m, h or d, e.g. 90m");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(expected)?;
    let unit_seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    number.parse().ok().and_then(|n: u32| n.checked_mul(unit_seconds)).filter(|&s| s > 0).ok_or_else(expected)
}

fn parse_shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let expected = || format!("{text:?}: expected INPUT=LENGTHS, e.g. images=1,3,224,224");
    let (name, lengths) = text.rsplit_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(expected)?;
    let lengths = if lengths.is_empty() { Ok(vec![]) } else { lengths.split(',').map(|l| l.trim().parse()).collect() };
    Ok((name.to_owned(), lengths.map_err(|_| expected())?))
}

fn parse_change(text: &str) -> Result<(String, Option<String>), String> {
    match text.strip_suffix('-').filter(|key| !key.is_empty() && !key.contains('=')) {
        Some(key) => Ok((key.to_owned(), None)),
        None => parse_label(text).map(|(key, value)| (key, Some(value))).map_err(|e| format!("{e} or KEY-")),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?}: expected KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn help_tells_the_whole_of_it() {
        // The environment of whoever runs the test stays out of the text.
        let mut command = Cli::command().mut_args(|a| a.hide_env_values(true));
        insta::assert_snapshot!("help", command.render_long_help());
        for words in [
            &["inspect"][..],
            &["prune"],
            &["get"],
            &["model", "push"],
            &["policy", "apply"],
            &["token", "create"],
            &["device", "revoke"],
            &["rollout"],
            &["why"],
        ] {
            let mut at = Cli::command().mut_args(|a| a.hide_env_values(true));
            at.build();
            let mut at = &mut at;
            for word in words {
                at = at.find_subcommand_mut(word).unwrap();
            }
            insta::assert_snapshot!(format!("help-{}", words.join("-")), at.clone().render_help());
        }
    }

    #[test]
    fn times_and_labels_parse_or_say_what_is_expected() {
        assert_eq!(parse_seconds("90m"), Ok(5_400));
        for bad in ["", "h", "5", "0s", "-1h", "9999999d", "1é"] {
            assert!(parse_seconds(bad).is_err_and(|e| e.contains("expected")), "{bad}");
        }
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_label("=b").is_err());
        assert_eq!(parse_change("a=b-"), Ok(("a".into(), Some("b-".into()))));
        assert_eq!(parse_change("a-"), Ok(("a".into(), None)));
        assert!(parse_change("-").is_err() && parse_change("a").is_err());
    }

    #[test]
    fn wrong_usage_exits_with_two() {
        for line in [&["pleach"][..], &["pleach", "get", "things"], &["pleach", "device", "revoke", "Not An Id"]] {
            assert_eq!(Cli::try_parse_from(line).unwrap_err().exit_code(), 2);
        }
    }
}
