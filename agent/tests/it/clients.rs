//! Clients of the Open Inference Protocol that nobody here wrote: Triton's and KServe's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::agent::Agent;
use crate::bundle::{bundle, fixture};
use crate::lab::Lab;

/// A Python with the packages of `clients/requirements.txt`, made once a machine. `None`, and a word about it, where there is no
/// `python3` or no package index to install from; `PLEACH_CLIENTS_PYTHON` names one that is there already.
fn python() -> Option<PathBuf> {
    if let Some(python) = std::env::var_os("PLEACH_CLIENTS_PYTHON") {
        return Some(python.into());
    }
    let requirements = folder().join("requirements.txt");
    let pins = pleach_artifact::sha256(&fs::read(&requirements).unwrap()).to_string();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("pleach");
    let environment = cache.join(format!("clients-{}", &pins[..12]));
    let python = environment.join("bin/python");
    if !environment.join("complete").is_file() {
        fs::create_dir_all(&cache).unwrap();
        let made = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))
            && run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements));
        if !made {
            eprintln!("skipped: no python3 with venv, or no package index to install tritonclient and kserve from");
            return None;
        }
        fs::write(environment.join("complete"), "").unwrap();
    }
    Some(python)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn run(command: &mut Command) -> bool {
    command.env("PYTHONDONTWRITEBYTECODE", "1").status().is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_triton_and_kserve_work_unchanged_on_socket_and_loopback() {
    let Some(python) = python() else { return };
    let lab = Lab::start().await;
    let agent = Agent::proven_with(&lab, &bundle(1), &["--listen-loopback", "127.0.0.1:0"]).await;
    let log = agent.log();
    let address = log.split("loopback=Some(").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
    let token = fs::read_to_string(agent.dir.path().join("s.token")).unwrap();
    let expected = agent.dir.path().join("expected");
    fs::write(&expected, fixture().output.tensor.to_le_bytes()).unwrap();
    for which in ["triton", "kserve"] {
        let mut clients = Command::new(&python);
        clients.arg(folder().join("clients.py")).arg(which).arg(address).arg(&token).arg(agent.socket());
        clients.arg("fm-resnet").arg(&expected);
        let passed = tokio::task::spawn_blocking(move || run(&mut clients)).await.unwrap();
        assert!(passed, "{which}, see above");
    }
}
