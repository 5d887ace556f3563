//! The client workflow against a repository in memory: what is asked for, what is kept, what is refused.

use std::collections::BTreeMap;
use std::io::Read;

use pleach_trust::cache::file_name;
use pleach_trust::metadata::{DelegatedKeys, DelegatedRole, Delegations};
use pleach_trust::{
    Attack, Cache, Client, ClientError, Fetch, FetchError, FleetKeys, Limits, Signed, SigningKey, TargetFile, Targets, TrustError, client,
    sign,
};

use crate::fleet::{DAY, after, bundle, key, keys, metadata, metadata_until, now};

/// Files by name, and what was asked for. A file named in `endless` never ends.
#[derive(Default)]
struct Memory {
    files: BTreeMap<String, Vec<u8>>,
    asked: Vec<String>,
    endless: Option<String>,
}

impl Memory {
    fn open(&mut self, name: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        self.asked.push(name.to_owned());
        if self.endless.as_deref() == Some(name) {
            return Ok(Some(Box::new(std::io::repeat(b' '))));
        }
        Ok(self.files.get(name).map(|bytes| Box::new(bytes.as_slice()) as Box<dyn Read>))
    }
}

impl Fetch for &mut Memory {
    fn metadata(&mut self, file: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        self.open(file)
    }

    fn target(&mut self, path: &str) -> Result<Option<Box<dyn Read + '_>>, FetchError> {
        self.open(path)
    }
}

/// A fleet's repository whose files all have this version, and a cache that trusts its first root.
struct Place {
    keys: FleetKeys,
    memory: Memory,
    cache: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let keys = keys(10);
        let place = Self { keys, memory: Memory::default(), cache: tempfile::tempdir().unwrap() };
        let root = metadata(&place.keys, 1, &[]).roots.remove(0);
        client::begin(&place.cache(), &root, now()).unwrap();
        place.publish(1)
    }

    fn publish(mut self, version: u64) -> Self {
        let files = metadata(&self.keys, version, &[bundle("a", "camera", 3)]);
        self.memory.files.extend([
            ("timestamp.json".to_owned(), files.timestamp),
            (format!("{version}.snapshot.json"), files.snapshot),
            (format!("{version}.targets.json"), files.targets),
            (format!("{version}.release.json"), files.release),
        ]);
        self
    }

    fn cache(&self) -> Cache {
        Cache::new(self.cache.path())
    }

    fn client(&mut self) -> Client<&mut Memory> {
        self.client_at(now())
    }

    fn client_at(&mut self, now: pleach_trust::UtcTime) -> Client<&mut Memory> {
        let cache = self.cache();
        Client::open(cache, &mut self.memory, now, Limits::default()).unwrap()
    }

    fn kept(&self, role: &str) -> Option<Vec<u8>> {
        std::fs::read(self.cache.path().join(format!("{role}.json"))).ok()
    }

    fn bundle_path(&self) -> String {
        format!("bundles/{}", bundle("a", "camera", 3).digest)
    }
}

fn refused(error: ClientError) -> TrustError {
    match error {
        ClientError::Trust(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn asks_top_down_and_asks_no_more_than_it_must() {
    let mut place = Place::new();
    let path = place.bundle_path();
    let mut client = place.client();
    client.refresh(now()).unwrap();
    assert!(client.find(&path).unwrap().is_some());
    assert!(client.find("bundles/other").unwrap().is_none());
    assert!(client.find("elsewhere").unwrap().is_none());
    let first = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.release.json"];
    assert_eq!(place.memory.asked, first);
    place.memory.asked.clear();
    let mut client = place.client();
    client.refresh(now()).unwrap();
    assert!(client.find(&path).unwrap().is_some());
    assert_eq!(place.memory.asked, ["2.root.json", "timestamp.json"]);
}

#[test]
fn the_cache_is_not_trusted() {
    for role in ["timestamp", "snapshot", "targets", "release"] {
        let mut place = Place::new();
        let path = place.bundle_path();
        let mut client = place.client();
        client.refresh(now()).unwrap();
        client.find(&path).unwrap().unwrap();
        let genuine = place.kept(role).unwrap();
        let mut altered = genuine.clone();
        altered[genuine.len() / 2] ^= 1;
        std::fs::write(place.cache.path().join(format!("{role}.json")), altered).unwrap();
        let mut client = place.client();
        client.refresh(now()).unwrap();
        client.find(&path).unwrap().unwrap();
        assert_eq!(place.kept(role).unwrap(), genuine, "{role} is fetched again");
    }
}

#[test]
fn what_is_refused_is_not_kept() {
    let mut place = Place::new().publish(2);
    let (_, timestamp) = place.memory.files.get_key_value("timestamp.json").unwrap();
    let mut rejected = timestamp.clone();
    let end = rejected.len() - 20;
    rejected[end] ^= 1;
    place.memory.files.insert("timestamp.json".into(), rejected);
    place.client().refresh(now()).unwrap_err();
    assert_eq!(place.kept("timestamp"), None);

    let mut place = Place::new();
    let stale = metadata_until(&place.keys, 2, &[], after(-1));
    place.memory.files.insert("timestamp.json".into(), stale.timestamp);
    let error = place.client().refresh(now()).unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Freeze));
    assert_eq!(place.kept("timestamp"), None);
}

#[test]
fn a_kept_timestamp_and_snapshot_stop_a_rollback_after_a_restart() {
    let mut place = Place::new().publish(2);
    place.client().refresh(now()).unwrap();
    let mut place = place.publish(1);
    let error = refused(place.client().refresh(now()).unwrap_err());
    assert!(matches!(error, TrustError::VersionRollback { got: 1, trusted: 2, .. }), "{error}");

    // The timestamp's keys are new, so only the kept snapshot remembers the versions of the targets files.
    let old = place.keys.clone();
    place.keys.timestamp = key(77);
    let author = pleach_trust::FleetAuthor::new(&place.keys);
    let snapshot = author.snapshot(3, after(DAY), 1, 2).unwrap();
    place.memory.files.insert("2.root.json".into(), author.root(2, after(365 * DAY)).unwrap());
    place.memory.files.insert("timestamp.json".into(), author.timestamp(1, after(DAY), 3, &snapshot).unwrap());
    place.memory.files.insert("3.snapshot.json".into(), snapshot);
    let error = refused(place.client().refresh(now()).unwrap_err());
    assert!(matches!(&error, TrustError::VersionRollback { role, got: 1, trusted: 2 } if role == "targets.json"), "{error}");
    assert_eq!(old.snapshot.public_key(), place.keys.snapshot.public_key());
}

#[test]
fn an_endless_file_is_cut_at_its_limit() {
    for (name, role) in [
        ("2.root.json", "root"),
        ("timestamp.json", "timestamp"),
        ("1.snapshot.json", "snapshot"),
        ("1.targets.json", "targets"),
        ("1.release.json", "release"),
    ] {
        let mut place = Place::new();
        place.memory.endless = Some(name.into());
        let path = place.bundle_path();
        let mut client = place.client();
        let error = client.refresh(now()).and_then(|()| client.find(&path)).unwrap_err();
        assert_eq!(error.attack(), Some(Attack::EndlessData), "{name}");
        assert!(matches!(refused(error), TrustError::TooLong { role: got, .. } if got == role));
    }
}

#[test]
fn a_missing_file_smells_of_freeze() {
    for name in ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.release.json"] {
        let mut place = Place::new();
        place.memory.files.remove(name);
        let path = place.bundle_path();
        let mut client = place.client();
        let error = client.refresh(now()).and_then(|()| client.find(&path)).unwrap_err();
        assert!(matches!(&error, ClientError::NotThere { file } if file == name), "{error}");
        assert_eq!(error.attack(), Some(Attack::Freeze));
    }
}

#[test]
fn an_expired_cache_is_renewed() {
    let mut place = Place::new();
    place.client().refresh(now()).unwrap();
    let later = after(20 * DAY);
    assert!(matches!(refused(place.client_at(later).refresh(later).unwrap_err()), TrustError::Expired { .. }));
    let files = metadata_until(&place.keys, 2, &[], after(30 * DAY));
    place.memory.files.extend([
        ("timestamp.json".to_owned(), files.timestamp),
        ("2.snapshot.json".to_owned(), files.snapshot),
        ("2.targets.json".to_owned(), files.targets),
    ]);
    place.client_at(later).refresh(later).unwrap();
}

#[test]
fn a_target_is_checked_while_it_streams() {
    let mut place = Place::new();
    let data = vec![7; 200_000];
    let file = TargetFile {
        length: data.len() as u64,
        hashes: pleach_trust::hash::sha256_only(&pleach_trust::Sha256Digest::of(&data)),
        custom: None,
        extra: Default::default(),
    };
    let location = format!("models/{}.a b.onnx", file.hashes["sha256"]).replace(' ', "%20");
    let fetch = |place: &mut Place| {
        let mut out = Vec::new();
        place.client().download("models/a b.onnx", &file, &mut out).map(|()| out)
    };
    assert!(matches!(fetch(&mut place), Err(ClientError::NotThere { .. })));
    place.memory.files.insert(location.clone(), data.clone());
    assert_eq!(fetch(&mut place).unwrap(), data);
    for (altered, property) in [(data[1..].to_vec(), "length"), ([&data[..], b"x"].concat(), "length"), (vec![8; data.len()], "sha256")] {
        place.memory.files.insert(location.clone(), altered);
        let error = refused(fetch(&mut place).unwrap_err());
        assert!(matches!(&error, TrustError::Content { property: p, .. } if p == property), "{error}");
    }
    place.memory.endless = Some(location);
    assert!(matches!(refused(fetch(&mut place).unwrap_err()), TrustError::Content { .. }));
}

/// A targets file that delegates everything to these roles with these keys.
fn delegating(version: u64, to: &[(&str, &SigningKey)]) -> Targets {
    let mut content = Signed::<Targets>::parse("targets", &metadata(&keys(10), version, &[]).release, 1 << 20).unwrap().content().clone();
    let id = |key: &SigningKey| key.public_key().key_id().unwrap();
    let role = |(name, key): &(&str, &SigningKey)| DelegatedRole {
        name: (*name).to_owned(),
        keys: DelegatedKeys { keyids: vec![id(key)], threshold: 1 },
        terminating: false,
        paths: Some(vec!["*".into()]),
        path_hash_prefixes: None,
        extra: Default::default(),
    };
    content.delegations = Some(Delegations {
        keys: to.iter().map(|(_, key)| (id(key), key.public_key())).collect(),
        roles: Some(to.iter().map(role).collect()),
        succinct_roles: None,
        extra: Default::default(),
    });
    content
}

/// Publishes targets roles: name, content and signer, all at version 1.
fn publish_roles(place: &mut Place, roles: &[(&str, Targets, &SigningKey)]) {
    use pleach_trust::metadata::{Common, MetaFile, Snapshot};
    let listed = roles.iter().map(|(name, _, _)| (format!("{name}.json"), MetaFile::version(1)));
    let template = Signed::<Snapshot>::parse("snapshot", &place.memory.files["1.snapshot.json"], 1 << 20).unwrap().content().clone();
    let common = Common { version: 2, ..template.common };
    let snapshot = sign(&Snapshot { common, meta: listed.collect(), extra: Default::default() }, &[&place.keys.snapshot]).unwrap();
    let timestamp = pleach_trust::FleetAuthor::new(&place.keys).timestamp(2, after(DAY), 2, &snapshot).unwrap();
    place.memory.files.insert("2.snapshot.json".into(), snapshot);
    place.memory.files.insert("timestamp.json".into(), timestamp);
    for (name, content, key) in roles {
        place.memory.files.insert(format!("1.{}.json", file_name(name)), sign(content, &[key]).unwrap());
    }
}

#[test]
fn a_kept_role_is_verified_against_the_delegator_of_this_search() {
    let mut place = Place::new();
    let (a, b, own, other) = (key(1), key(2), key(3), key(4));
    let top = place.keys.targets.clone();
    let mut first = delegating(1, &[("a", &a), ("b", &b)]);
    if let Some(roles) = first.delegations.as_mut().and_then(|d| d.roles.as_mut()) {
        roles[0].paths = Some(vec!["x".into()]);
        roles[1].paths = Some(vec!["y".into()]);
    }
    let mut shared = delegating(1, &[]);
    shared.delegations = None;
    publish_roles(
        &mut place,
        &[
            ("targets", first, &top),
            ("a", delegating(1, &[("shared", &own)]), &a),
            ("b", delegating(1, &[("shared", &other)]), &b),
            ("shared", shared, &own),
        ],
    );
    let mut client = place.client();
    client.refresh(now()).unwrap();
    assert!(client.find("x").unwrap().is_none(), "the way through a is sound");
    assert!(matches!(refused(client.find("y").unwrap_err()), TrustError::Threshold { role, .. } if role == "shared"));
    assert!(client.find("x").unwrap().is_none());
}

#[test]
fn circles_end_and_long_chains_are_cut() {
    let mut place = Place::new();
    let one = key(1);
    let top = place.keys.targets.clone();
    let circle = [("a", delegating(1, &[("b", &one), ("a", &one)]), &one), ("b", delegating(1, &[("a", &one)]), &one)];
    let roles: Vec<_> = [("targets", delegating(1, &[("a", &one), ("b", &one)]), &top)].into_iter().chain(circle).collect();
    publish_roles(&mut place, &roles);
    let mut client = place.client();
    client.refresh(now()).unwrap();
    for _ in 0..3 {
        assert!(client.find("x").unwrap().is_none());
    }

    let mut place = Place::new();
    let names: Vec<String> = (0..80).map(|i| format!("r{i}")).collect();
    let mut chain = vec![("targets", delegating(1, &[(&names[0], &one)]), &top)];
    chain.extend(names.windows(2).map(|pair| (pair[0].as_str(), delegating(1, &[(&pair[1], &one)]), &one)));
    publish_roles(&mut place, &chain);
    let mut client = place.client();
    client.refresh(now()).unwrap();
    let error = client.find("x").unwrap_err();
    assert!(matches!(error, ClientError::TooManyRoles { limit: 64, .. }), "{error}");
}

#[test]
fn names_of_roles_cannot_leave_the_cache() {
    let one = key(1);
    for name in ["../role", "/role", "a/../../b", "..", ".", "con\\x", "\0"] {
        let mut place = Place::new();
        let top = place.keys.targets.clone();
        let mut role = delegating(1, &[]);
        role.delegations = None;
        publish_roles(&mut place, &[("targets", delegating(1, &[(name, &one)]), &top), (name, role, &one)]);
        let inner = place.cache.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::copy(place.cache.path().join("root.json"), inner.join("root.json")).unwrap();
        std::fs::remove_file(place.cache.path().join("root.json")).unwrap();
        let cache = Cache::new(&inner);
        let mut client = Client::open(cache, &mut place.memory, now(), Limits::default()).unwrap();
        client.refresh(now()).unwrap();
        assert!(client.find("x").unwrap().is_none());
        let names = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(&inner).len(), 5, "{name:?}: {:?}", names(&inner));
        assert_eq!(names(place.cache.path()), ["inner"], "{name:?}");
    }
}

#[test]
fn a_cache_without_a_root_or_with_a_forged_one_begins_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let open = |folder: &std::path::Path| {
        let mut memory = Memory::default();
        Client::open(Cache::new(folder), &mut memory, now(), Limits::default()).map(|_| ()).map_err(refused)
    };
    assert!(matches!(open(folder.path()), Err(TrustError::Missing { .. })));
    let mut root = metadata(&keys(10), 1, &[]).roots.remove(0);
    let at = root.len() - 20;
    root[at] = b'7' - (root[at] & 1);
    assert!(client::begin(&Cache::new(folder.path()), &root, now()).is_err());
    std::fs::write(folder.path().join("root.json"), &root).unwrap();
    assert!(open(folder.path()).is_err());
    std::fs::write(folder.path().join("root.json"), vec![b' '; 600_000]).unwrap();
    assert!(matches!(open(folder.path()), Err(TrustError::Missing { .. })));
}
