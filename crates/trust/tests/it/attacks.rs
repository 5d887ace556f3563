//! One folder of data for each attack (`tests/data/attacks`): what an attacker serves in place of the honest repository in `base`,
//! and the words in which it is refused, with the attack they smell of.
//!
//! The client kept version 2 of everything and accepted assignment 5; `base` offers version 3 and assignment 6 to device `dev-1` of
//! class `camera`. The files are made here, from fixed seeds; with `PLEACH_BLESS` set they are written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};

use pleach_trust::metadata::{Common, MetaFile, Snapshot, TargetFile};
use pleach_trust::{
    Accepted, Agreed, BundleEntry, Cache, Client, ClientError, Fetch, FetchError, FleetAuthor, FleetKeys, Limits, PublicKey, Recipient,
    RoleKeys, Root, Sha256Digest, Signed, SigningKey, Targets, UtcTime, client, sign, verify_assignment,
};

use crate::fleet::{DAY, after, bundle, key, keys, metadata, now};

type Files = BTreeMap<String, Vec<u8>>;

struct Folder<'a>(&'a Files);

impl Fetch for Folder<'_> {
    fn metadata(&mut self, file: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        Ok(self.0.get(file).map(|bytes| Box::new(bytes.as_slice()) as Box<dyn Read>))
    }

    fn target(&mut self, path: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        self.metadata(path)
    }
}

/// Refreshes a client that kept version 2, and asks what both signers agree on.
fn install(files: &Files) -> Result<Agreed, ClientError> {
    let folder = tempfile::tempdir().unwrap();
    let kept = metadata(&keys(10), 2, &[bundle("a", "camera", 3)]);
    client::begin(&Cache::new(folder.path()), &kept.roots[0], now()).unwrap();
    for (name, bytes) in
        [("timestamp", &kept.timestamp), ("snapshot", &kept.snapshot), ("targets", &kept.targets), ("release", &kept.release)]
    {
        std::fs::write(folder.path().join(format!("{name}.json")), bytes).unwrap();
    }
    let mut client = Client::open(Cache::new(folder.path()), Folder(files), now(), Limits::default())?;
    client.refresh(now())?;
    client.find("bundles/any")?;
    let recipient = Recipient { device: "dev-1", class: Some("camera") };
    let last = Accepted { sequence: 5, bundle: bundle("a", "camera", 3).digest };
    Ok(verify_assignment(client.set(), &files["assignment.json"], recipient, Some(&last))?)
}

/// The honest repository, and the keys and bundles it is made with.
struct Honest {
    keys: FleetKeys,
    bundles: Vec<BundleEntry>,
    files: Files,
}

impl Honest {
    fn new() -> Self {
        let keys = keys(10);
        let bundles = vec![bundle("a", "camera", 3), bundle("b", "camera", 4), bundle("c", "gateway", 4)];
        let mut honest = Self { keys, bundles, files: Files::new() };
        honest.publish(3, 3, after(DAY));
        honest.assign("dev-1", 1, 6);
        honest
    }

    fn author(&self) -> FleetAuthor<'_> {
        FleetAuthor::new(&self.keys)
    }

    /// Targets and release of this version in a snapshot and timestamp of that one.
    fn publish(&mut self, version: u64, listing: u64, expires: UtcTime) {
        let targets = self.author().targets(version, expires).unwrap();
        let release = self.author().release(version, expires, &self.bundles).unwrap();
        let snapshot = self.author().snapshot(listing, expires, version, version).unwrap();
        self.files.insert(format!("{version}.targets.json"), targets);
        self.files.insert(format!("{version}.release.json"), release);
        self.list(listing, snapshot, expires);
    }

    fn list(&mut self, version: u64, snapshot: Vec<u8>, expires: UtcTime) {
        let timestamp = self.author().timestamp(version, expires, version, &snapshot).unwrap();
        self.files.insert(format!("{version}.snapshot.json"), snapshot);
        self.files.insert("timestamp.json".into(), timestamp);
    }

    fn assign(&mut self, device: &str, bundle: usize, sequence: u64) {
        let file = self.author().assignment(device, &self.bundles[bundle], sequence, after(DAY)).unwrap();
        self.files.insert("assignment.json".into(), file);
    }

    /// Edits the assignment and signs it with this key.
    fn reassign(&mut self, change: impl FnOnce(&mut Targets), key: &SigningKey) {
        self.edit("assignment.json", change, &[key]);
    }

    fn edit<T: pleach_trust::metadata::Metadata + Clone>(&mut self, file: &str, change: impl FnOnce(&mut T), keys: &[&SigningKey]) {
        let mut content = Signed::<T>::parse(file, &self.files[file], 1 << 20).unwrap().content().clone();
        change(&mut content);
        self.files.insert(file.into(), sign(&content, keys).unwrap());
    }

    fn root(&self, version: u64) -> Vec<u8> {
        self.author().root(version, after(365 * DAY)).unwrap()
    }
}

fn id(key: &SigningKey) -> pleach_trust::KeyId {
    key.public_key().key_id().unwrap()
}

/// The same signature again, under another id.
fn repeat_signature(file: &[u8], as_id: &str) -> Vec<u8> {
    let mut envelope: serde_json::Value = serde_json::from_slice(file).unwrap();
    let mut again = envelope["signatures"][0].clone();
    again["keyid"] = as_id.into();
    envelope["signatures"].as_array_mut().unwrap().push(again);
    serde_json::to_vec(&envelope).unwrap()
}

/// A second root under which the snapshot needs two of these keys.
fn two_of(honest: &mut Honest, keys: &[PublicKey]) {
    let mut content = Signed::<Root>::parse("root", &honest.root(2), 1 << 20).unwrap().content().clone();
    let ids: Vec<_> = keys.iter().map(|key| key.key_id().unwrap()).collect();
    content.keys.extend(ids.iter().cloned().zip(keys.iter().cloned()));
    content.roles.insert("snapshot".into(), RoleKeys::new(ids, 2));
    honest.files.insert("2.root.json".into(), sign(&content, &[&honest.keys.root]).unwrap());
}

type Attack = (&'static str, fn(&mut Honest));

const ATTACKS: &[Attack] = &[
    ("freeze-timestamp", |h| h.publish(3, 3, after(-1))),
    ("freeze-root", |h| {
        h.files.insert("2.root.json".into(), h.author().root(2, after(-1)).unwrap());
    }),
    ("freeze-targets", |h| {
        let expired = h.author().targets(3, after(-1)).unwrap();
        h.files.insert("3.targets.json".into(), expired);
    }),
    ("freeze-release", |h| {
        let expired = h.author().release(3, after(-1), &h.bundles).unwrap();
        h.files.insert("3.release.json".into(), expired);
    }),
    ("freeze-assignment", |h| {
        let director = h.keys.director.clone();
        h.reassign(|content| content.common.expires = after(-1), &director);
    }),
    ("freeze-snapshot-withheld", |h| {
        h.files.remove("3.snapshot.json");
    }),
    ("rollback-timestamp", |h| h.publish(1, 1, after(DAY))),
    ("rollback-snapshot", |h| {
        let older = h.author().snapshot(1, after(DAY), 3, 3).unwrap();
        h.files.insert("timestamp.json".into(), h.author().timestamp(3, after(DAY), 1, &older).unwrap());
        h.files.insert("1.snapshot.json".into(), older);
    }),
    ("rollback-targets", |h| h.publish(1, 3, after(DAY))),
    ("rollback-drops-a-file", |h| {
        let snapshot = h.author().snapshot(3, after(DAY), 3, 3).unwrap();
        let mut content = Signed::<Snapshot>::parse("snapshot", &snapshot, 1 << 20).unwrap().content().clone();
        content.meta.remove("release.json");
        let snapshot = sign(&content, &[&h.keys.snapshot]).unwrap();
        h.list(3, snapshot, after(DAY));
    }),
    ("rollback-root-repeated", |h| {
        h.files.insert("2.root.json".into(), h.root(1));
    }),
    ("rollback-root-skips", |h| {
        h.files.insert("2.root.json".into(), h.root(3));
    }),
    ("rollback-assignment", |h| h.assign("dev-1", 1, 4)),
    ("rollback-same-sequence-other-bundle", |h| h.assign("dev-1", 1, 5)),
    ("rollback-below-the-security-floor", |h| {
        h.bundles[2].facts.security_floor = 4;
        h.publish(3, 3, after(DAY));
        h.assign("dev-1", 0, 6);
    }),
    ("endless-timestamp", |h| {
        h.files.insert("timestamp.json".into(), vec![b' '; 16_385]);
    }),
    ("endless-snapshot-beyond-its-stated-length", |h| {
        h.files.get_mut("3.snapshot.json").unwrap().push(b' ');
    }),
    ("mix-targets-of-another-version", |h| {
        let other = h.author().targets(4, after(DAY)).unwrap();
        h.files.insert("3.targets.json".into(), other);
    }),
    ("mix-snapshot-of-the-same-length", |h| {
        let other = h.author().snapshot(3, after(2 * DAY), 3, 3).unwrap();
        h.files.insert("3.snapshot.json".into(), other);
    }),
    ("mix-disagreeing-signers", |h| {
        let honest = h.bundles.clone();
        h.bundles[1].facts.tree_root = Sha256Digest::of(b"another tree");
        h.assign("dev-1", 1, 6);
        h.bundles = honest;
    }),
    ("arbitrary-timestamp", |h| {
        h.keys.timestamp = key(90);
        let snapshot = h.files["3.snapshot.json"].clone();
        h.list(3, snapshot, after(DAY));
    }),
    ("arbitrary-snapshot", |h| {
        h.keys.snapshot = key(90);
        h.publish(3, 3, after(DAY));
    }),
    ("arbitrary-release", |h| {
        h.keys.release = key(90);
        let forged = h.author().release(3, after(DAY), &h.bundles).unwrap();
        h.files.insert("3.release.json".into(), forged);
    }),
    ("arbitrary-assignment", |h| h.reassign(|_| {}, &key(90))),
    ("arbitrary-root-of-the-new-keys-alone", |h| {
        let old = std::mem::replace(&mut h.keys.root, key(90));
        h.files.insert("2.root.json".into(), h.root(2));
        h.keys.root = old;
    }),
    ("arbitrary-root-of-the-old-keys-alone", |h| {
        let old = h.keys.root.clone();
        h.keys.root = key(90);
        let content = Signed::<Root>::parse("root", &h.root(2), 1 << 20).unwrap().content().clone();
        h.files.insert("2.root.json".into(), sign(&content, &[&old]).unwrap());
    }),
    ("arbitrary-one-key-under-two-ids", |h| {
        let mut alias = h.keys.snapshot.public_key();
        alias.extra.insert("alias".into(), true.into());
        two_of(h, &[h.keys.snapshot.public_key(), alias.clone()]);
        let snapshot = repeat_signature(&h.files["3.snapshot.json"], alias.key_id().unwrap().as_str());
        h.list(3, snapshot, after(DAY));
    }),
    ("arbitrary-one-signature-twice", |h| {
        two_of(h, &[h.keys.snapshot.public_key(), key(91).public_key()]);
        let snapshot = repeat_signature(&h.files["3.snapshot.json"], id(&h.keys.snapshot).as_str());
        h.list(3, snapshot, after(DAY));
    }),
    ("arbitrary-threshold-not-met", |h| two_of(h, &[h.keys.snapshot.public_key(), key(91).public_key()])),
    ("arbitrary-snapshot-served-as-timestamp", |h| {
        let common = Common { kind: "snapshot".into(), spec_version: "1.0.34".into(), version: 3, expires: after(DAY) };
        let meta = BTreeMap::from([("snapshot.json".to_owned(), MetaFile::version(3))]);
        let content = Snapshot { common, meta, extra: Default::default() };
        h.files.insert("timestamp.json".into(), sign(&content, &[&h.keys.timestamp]).unwrap());
    }),
    ("arbitrary-bundle-not-released", |h| {
        h.bundles.push(bundle("d", "camera", 4));
        h.assign("dev-1", 3, 6);
    }),
    ("arbitrary-director-speaks-for-bundles", |h| {
        let director = h.keys.director.clone();
        let rename = |content: &mut Targets| {
            let files: Vec<(String, TargetFile)> = std::mem::take(&mut content.targets).into_iter().collect();
            content.targets = files.into_iter().map(|(path, file)| (path.replace("assignments/dev-1", "bundles"), file)).collect();
        };
        h.reassign(rename, &director);
    }),
    ("arbitrary-json-with-two-meanings", |h| {
        let text = String::from_utf8(h.files["timestamp.json"].clone()).unwrap();
        h.files.insert("timestamp.json".into(), text.replace("\"version\":3}", "\"version\":3,\"version\":9}").into_bytes());
    }),
    ("wrong-device", |h| h.assign("dev-2", 1, 6)),
    ("wrong-class", |h| h.assign("dev-1", 2, 6)),
    ("partial-no-bundle", |h| {
        let director = h.keys.director.clone();
        h.reassign(|content| content.targets.clear(), &director);
    }),
    ("partial-two-bundles", |h| {
        let director = h.keys.director.clone();
        let release = Signed::<Targets>::parse("release", &h.files["3.release.json"], 1 << 20).unwrap().content().clone();
        let (path, file) = release.targets.into_iter().next().unwrap();
        let path = path.replace("bundles/", "assignments/dev-1/");
        h.reassign(|content| drop(content.targets.insert(path, file)), &director);
    }),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/attacks")
}

fn read(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|e| e.unwrap().path()).map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(p).unwrap())).collect()
}

fn write(folder: &Path, files: &Files) {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
}

/// The words of a refusal and the attack it smells of.
fn verdict(result: Result<Agreed, ClientError>) -> String {
    match result {
        Ok(agreed) => format!("agreed on sequence {}\n", agreed.sequence),
        Err(error) => {
            let mut text = format!("{error}\n");
            let attack = error.attack().map_or_else(|| "no attack by itself".to_owned(), |attack| attack.to_string());
            writeln!(text, "{attack}").unwrap();
            text
        }
    }
}

/// What an attack's folder holds: the files that differ from the honest ones (empty where one is withheld), and the verdict.
fn made(attack: &Attack, base: &Files) -> Files {
    let mut honest = Honest::new();
    attack.1(&mut honest);
    let mut files: Files = honest.files.into_iter().filter(|(name, bytes)| base.get(name) != Some(bytes)).collect();
    let names: BTreeSet<_> = Honest::new().files.into_keys().collect();
    let mut after = Honest::new();
    attack.1(&mut after);
    files.extend(names.into_iter().filter(|name| !after.files.contains_key(name)).map(|name| (name, Vec::new())));
    files
}

#[test]
fn the_folders_hold_what_is_made_here() {
    let base = Honest::new().files;
    if std::env::var_os("PLEACH_BLESS").is_some() {
        let _ = std::fs::remove_dir_all(folder());
        write(&folder().join("base"), &base);
        for attack in ATTACKS {
            let mut files = made(attack, &base);
            let refused = verdict(install(&served(&base, &files)));
            files.insert("refused.txt".into(), refused.into_bytes());
            write(&folder().join(attack.0), &files);
        }
    }
    assert_eq!(read(&folder().join("base")), base);
    for attack in ATTACKS {
        let mut files = read(&folder().join(attack.0));
        files.remove("refused.txt");
        assert!(files == made(attack, &base), "{} differs from what is made", attack.0);
    }
}

fn served(base: &Files, overlay: &Files) -> Files {
    let mut files = base.clone();
    files.extend(overlay.iter().map(|(name, bytes)| (name.clone(), bytes.clone())));
    files.retain(|_, bytes| !bytes.is_empty());
    files
}

#[test]
fn every_attack_is_refused_in_the_words_beside_it() {
    let base = read(&folder().join("base"));
    assert_eq!(verdict(install(&base)), "agreed on sequence 6\n");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if name == "base" {
            continue;
        }
        let mut overlay = read(&entry.path());
        let expected = String::from_utf8(overlay.remove("refused.txt").unwrap()).unwrap();
        let got = verdict(install(&served(&base, &overlay)));
        assert_eq!(got, expected, "{name}");
        // The folder's name begins with the attack that its refusal smells of, but for what is merely malformed.
        let smell = expected.lines().nth(1).unwrap();
        let told = smell == "no attack by itself" || smell.split(' ').next() == name.split('-').next();
        assert!(told, "{name} smells of {smell}");
        seen += 1;
    }
    assert_eq!(seen, ATTACKS.len());
}
