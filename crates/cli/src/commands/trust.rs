//! `pleach trust`: signing keys in files, root ceremonies, and who signs now.
//!
//! The controller's metadata follow the keys in its folder, so a rotation is a new key file and a restart. A root whose keys are kept
//! elsewhere is drafted here, signed wherever its keys are, and put into that folder as `root.next.json`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use clap::ValueEnum;
use pleach_trust::rotation::add_signature;
use pleach_trust::{KeyId, PublicKey, RoleKeys, Root, Signed, SigningKey, UtcTime, sign};
use serde_json::Value;

use super::now_ms;
use crate::args::{RootCommand, SignedRole, TrustCommand};
use crate::client::{Client, Connection};

/// Largest file that is read.
const MAX_BYTES: u64 = 512_000;
const DAY_S: i64 = 24 * 3_600;
const ROLES: [&str; 5] = ["root", "targets", "release", "snapshot", "timestamp"];

pub(super) async fn run(connection: &Connection, command: TrustCommand) -> anyhow::Result<()> {
    match command {
        TrustCommand::Init { keys } => init(&keys),
        TrustCommand::Rotate { role, keys } => rotate(role, &keys),
        TrustCommand::Status => status(&Client::new(connection)?).await,
        TrustCommand::Root(RootCommand::Draft { root_keys, threshold, days, out }) => {
            let keys = root_keys.iter().map(|file| public_key(file)).collect::<anyhow::Result<Vec<_>>>()?;
            let expires = UtcTime::from_unix_s(now_ms() / 1_000).plus_s(i64::from(days) * DAY_S);
            let draft = draft(&Client::new(connection)?.trust_file("root").await?, keys, threshold, expires)?;
            fs::write(&out, draft).with_context(|| out.display().to_string())?;
            println!("{} written; sign it with the present root keys and with {threshold} of the new ones", out.display());
            Ok(())
        }
        TrustCommand::Root(RootCommand::Sign { root, key }) => {
            let signed = add_signature(&read(&root)?, &signing_key(&key)?).with_context(|| root.display().to_string())?;
            fs::write(&root, signed).with_context(|| root.display().to_string())?;
            println!("{} signed", root.display());
            Ok(())
        }
    }
}

fn init(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for role in SignedRole::value_variants() {
        let name = name(*role);
        let path = folder.join(format!("{name}.pem"));
        if !path.exists() {
            make_key(&path)?;
        }
        let public = signing_key(&path)?.public_key();
        let text = serde_json::to_string(&public)?;
        fs::write(folder.join(format!("{name}.pub")), text).with_context(|| format!("{name}.pub"))?;
        println!("{name:<10} {}", public.key_id()?);
    }
    Ok(())
}

/// Puts the present key aside, where a root key still has to hand over, and makes a new one.
fn rotate(role: SignedRole, folder: &Path) -> anyhow::Result<()> {
    let name = name(role);
    let (path, previous) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.previous.pem")));
    let old = signing_key(&path)?.public_key().key_id()?;
    fs::rename(&path, &previous).with_context(|| previous.display().to_string())?;
    let new = make_key(&path)?.public_key().key_id()?;
    println!("{name}: {new} instead of {old}, in force after the controller's next start");
    println!("{} may be removed when `pleach trust status` shows the new key", previous.display());
    Ok(())
}

async fn status(client: &Client) -> anyhow::Result<()> {
    let root = client.trust_file("root").await?;
    let root = Signed::<Root>::parse("root", &root, MAX_BYTES as usize)?;
    let targets: Value = serde_json::from_slice(&client.trust_file("targets").await?)?;
    for role in ROLES {
        let file: Value = serde_json::from_slice(&client.trust_file(role).await?)?;
        let field = |name: &str| file.pointer(&format!("/signed/{name}")).map(ToString::to_string).unwrap_or_default();
        let (version, expires) = (field("version"), field("expires").replace('"', ""));
        let keys = match root.content().roles.get(role) {
            Some(keys) => describe(keys),
            None => delegated(&targets, role),
        };
        println!("{role:<10} version {version:<6} until {expires}  {keys}");
    }
    println!("{:<10} one file a device                         {}", "director", delegated(&targets, "director"));
    Ok(())
}

fn describe(keys: &RoleKeys) -> String {
    let ids: Vec<_> = keys.keyids.iter().map(KeyId::as_str).collect();
    format!("{} of {}", keys.threshold, ids.join(", "))
}

/// Keys and threshold of a role that targets metadata delegate to.
fn delegated(targets: &Value, role: &str) -> String {
    let roles = targets.pointer("/signed/delegations/roles").and_then(Value::as_array);
    let found = roles.into_iter().flatten().find(|r| r.get("name").and_then(Value::as_str) == Some(role));
    let keys = found.and_then(|r| serde_json::from_value::<RoleKeys>(r.clone()).ok());
    keys.as_ref().map_or_else(|| "nobody".to_owned(), describe)
}

/// The root after `newest` with other root keys, unsigned.
fn draft(newest: &[u8], keys: Vec<PublicKey>, threshold: u32, expires: UtcTime) -> anyhow::Result<Vec<u8>> {
    let mut root = Signed::<Root>::parse("root", newest, MAX_BYTES as usize)?.content().clone();
    if keys.len() < threshold as usize {
        bail!("{threshold} of {} keys can never sign: give at least {threshold} --root-key", keys.len());
    }
    let ids = keys.iter().map(PublicKey::key_id).collect::<Result<Vec<_>, _>>()?;
    root.keys.extend(ids.iter().cloned().zip(keys));
    root.roles.insert("root".into(), RoleKeys::new(ids, threshold));
    let used: Vec<KeyId> = root.roles.values().flat_map(|role| role.keyids.iter().cloned()).collect();
    root.keys.retain(|id, _| used.contains(id));
    root.common.version += 1;
    root.common.expires = expires;
    Ok(sign(&root, &[])?)
}

fn name(role: SignedRole) -> &'static str {
    match role {
        SignedRole::Root => "root",
        SignedRole::Targets => "targets",
        SignedRole::Snapshot => "snapshot",
        SignedRole::Timestamp => "timestamp",
        SignedRole::Release => "release",
        SignedRole::Director => "director",
    }
}

/// Makes a key in a file that only its owner reads; never in the place of another.
fn make_key(path: &Path) -> anyhow::Result<SigningKey> {
    let key = SigningKey::generate()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| path.display().to_string())?;
    file.write_all(key.to_pem()?.as_bytes()).and_then(|()| file.sync_all()).with_context(|| path.display().to_string())?;
    Ok(key)
}

fn signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = String::from_utf8(read(path)?).ok().with_context(|| format!("{} is no PEM", path.display()))?;
    SigningKey::from_pem(&text).with_context(|| path.display().to_string())
}

fn public_key(path: &Path) -> anyhow::Result<PublicKey> {
    serde_json::from_slice(&read(path)?).with_context(|| format!("{} is no public key", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => bail!("{} has more than {MAX_BYTES} bytes", path.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("{} is not there", path.display()),
        Ok(_) | Err(_) => fs::read(path).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use pleach_trust::rotation::accept_root;
    use pleach_trust::{FleetAuthor, FleetKeys};

    use super::*;

    #[test]
    fn a_ceremony_hands_the_root_to_two_of_three_people() {
        let folder = tempfile::tempdir().unwrap();
        let homes: Vec<_> = (0..4).map(|i| folder.path().join(format!("home-{i}"))).collect();
        homes.iter().for_each(|home| init(home).unwrap());
        let before = fs::read(homes[0].join("root.pem")).unwrap();
        init(&homes[0]).unwrap();
        assert_eq!(fs::read(homes[0].join("root.pem")).unwrap(), before, "what is there stays");
        let keys = FleetKeys::load(|name| signing_key(&homes[0].join(format!("{name}.pem")))).unwrap();
        let root = FleetAuthor::new(&keys).root(1, UtcTime::MAX).unwrap();
        let people: Vec<_> = homes[1..].iter().map(|home| public_key(&home.join("root.pub")).unwrap()).collect();
        assert!(draft(&root, people.clone(), 4, UtcTime::MAX).is_err());
        let mut next = draft(&root, people, 2, UtcTime::MAX).unwrap();
        for home in [0, 1, 3] {
            assert!(accept_root(&root, &next).is_err());
            next = add_signature(&next, &signing_key(&homes[home].join("root.pem")).unwrap()).unwrap();
        }
        assert_eq!(accept_root(&root, &next).unwrap().0, 2);
    }

    #[test]
    fn a_rotation_keeps_the_key_before_and_its_file_to_the_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        init(folder.path()).unwrap();
        let before = signing_key(&folder.path().join("root.pem")).unwrap().public_key();
        rotate(SignedRole::Root, folder.path()).unwrap();
        let after = signing_key(&folder.path().join("root.pem")).unwrap().public_key();
        assert_ne!(before, after);
        assert_eq!(signing_key(&folder.path().join("root.previous.pem")).unwrap().public_key(), before);
        assert_eq!(fs::metadata(folder.path().join("root.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(rotate(SignedRole::Root, &folder.path().join("nowhere")).is_err());
    }
}
