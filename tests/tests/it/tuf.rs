//! Other people's TUF: python-tuf judges our client, and reads what we author.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use pleach_trust::{BundleEntry, BundleFacts, FleetAuthor, FleetKeys, Sha256Digest, UtcTime};

/// A Python with the packages of `python/requirements.txt`, made once a machine. `None`, and a word about it, where there is no
/// `python3` or no package index to install from; `PLEACH_TUF_PYTHON` names one that is there already.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(|| std::env::var_os("PLEACH_TUF_PYTHON").map(PathBuf::from).or_else(environment)).as_deref()
}

fn environment() -> Option<PathBuf> {
    let requirements = folder().join("requirements.txt");
    let pins = Sha256Digest::of(&std::fs::read(&requirements).unwrap()).to_string();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("pleach");
    let environment = cache.join(format!("tuf-{}", &pins[..12]));
    let python = environment.join("bin/python");
    if !environment.join("complete").is_file() {
        std::fs::create_dir_all(&cache).unwrap();
        let made = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))
            && run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements));
        if !made {
            eprintln!("skipped: no python3 with venv, or no package index to install python-tuf from");
            return None;
        }
        std::fs::write(environment.join("complete"), "").unwrap();
    }
    Some(python)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

fn run(command: &mut Command) -> bool {
    command.env("PYTHONDONTWRITEBYTECODE", "1").status().is_ok_and(|status| status.success())
}

#[test]
fn our_client_does_with_repositories_of_python_tuf_what_the_specification_says() {
    let Some(python) = python() else { return };
    assert!(run(Command::new(python).arg(folder().join("judge.py")).arg(env!("CARGO_BIN_EXE_tuf-client"))));
}

#[test]
fn python_tuf_reads_what_we_author_over_rotations_and_refuses_what_was_altered() {
    let Some(python) = python() else { return };
    let repository = tempfile::tempdir().unwrap();
    let bundle = author(repository.path());
    assert!(run(Command::new(python).arg(folder().join("read.py")).arg(repository.path()).arg(bundle.to_string())));
}

/// Writes a fleet's repository, as a TUF client finds it, with a second root that rotates every key; gives its one bundle.
fn author(folder: &Path) -> Sha256Digest {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expires = UtcTime::from_unix_s(now as i64 + 3600);
    let sealed = b"a sealed bundle";
    let digest = Sha256Digest::of(sealed);
    let facts = BundleFacts {
        tree_root: Sha256Digest::of(b"tree"),
        chunk_count: 1,
        model: "resnet".into(),
        model_version: 3,
        class: "kamera-é\"\\".into(),
        suite: "aes-256-gcm".into(),
        security_floor: 1,
    };
    let (old, new) = (FleetKeys::generate().unwrap(), FleetKeys::generate().unwrap());
    let author = FleetAuthor::new(&new);
    let snapshot = author.snapshot(7, expires, 5, 6).unwrap();
    let entry = BundleEntry { digest, length: sealed.len() as u64, facts };
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("1.root.json", &FleetAuthor::new(&old).root(1, expires).unwrap());
    write("2.root.json", &author.rotate_root(&old.root, 2, expires).unwrap());
    write("timestamp.json", &author.timestamp(8, expires, 7, &snapshot).unwrap());
    write("7.snapshot.json", &snapshot);
    write("5.targets.json", &author.targets(5, expires).unwrap());
    write("6.release.json", &author.release(6, expires, &[entry]).unwrap());
    std::fs::create_dir(folder.join("bundles")).unwrap();
    write(&format!("bundles/{digest}.{digest}"), sealed);
    digest
}
