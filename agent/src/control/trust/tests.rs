use pleach_trust::{BundleEntry, BundleFacts, FleetAuthor, FleetKeys, Sha256Digest, SigningKey};

use super::*;

const NOW_MS: i64 = 1_767_225_600_000;

struct Fleet {
    keys: FleetKeys,
    bundle: BundleEntry,
}

fn fleet() -> Fleet {
    let facts = BundleFacts {
        tree_root: Sha256Digest::of(b"tree"),
        chunk_count: 1,
        model: "resnet".into(),
        model_version: 3,
        class: "camera".into(),
        suite: "aes-256-gcm".into(),
        security_floor: 1,
    };
    let bundle = BundleEntry { digest: Sha256Digest::of(b"bundle"), length: 1000, facts };
    Fleet { keys: FleetKeys::generate().unwrap(), bundle }
}

impl Fleet {
    fn deployment(&self, version: u64, sequence: u64, device: &str) -> Deployment {
        let author = FleetAuthor::new(&self.keys);
        let expires = time(NOW_MS).plus_s(86_400);
        let snapshot = author.snapshot(version, expires, version, version).unwrap();
        Deployment {
            timestamp: author.timestamp(version, expires, version, &snapshot).unwrap(),
            snapshot,
            targets: author.targets(version, expires).unwrap(),
            release: author.release(version, expires, std::slice::from_ref(&self.bundle)).unwrap(),
            assignment: author.assignment(device, &self.bundle, sequence, expires).unwrap(),
            wrap_encapsulated_key: vec![1; 32],
            wrap_ciphertext: vec![2; 48],
            probation_inferences: 20,
            probation_ms: 1000,
            ..Deployment::default()
        }
    }
}

struct Home {
    _dir: tempfile::TempDir,
    state: StateDir,
}

impl Home {
    fn enrolled(fleet: &Fleet) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let root = FleetAuthor::new(&fleet.keys).root(1, time(NOW_MS).plus_s(86_400 * 365)).unwrap();
        files::write_atomic(&state.trusted_root(), &root).unwrap();
        Self { _dir: dir, state }
    }

    fn trust(&self) -> Trust {
        Trust::load(&self.state, NOW_MS).unwrap()
    }
}

fn check(trust: &mut Trust, deployment: &Deployment, last: Option<&Accepted>, now_ms: i64) -> String {
    trust.agree(deployment, "d-1", last, now_ms).unwrap_err().check
}

#[test]
fn an_agreed_assignment_says_everything_that_installing_needs() {
    let fleet = fleet();
    let home = Home::enrolled(&fleet);
    let (agreed, assigned) = home.trust().agree(&fleet.deployment(1, 7, "d-1"), "d-1", None, NOW_MS).unwrap();
    assert_eq!((agreed.sequence, assigned.sequence, assigned.length_bytes, assigned.wrap.len()), (7, 7, 1000, 80));
    assert_eq!((assigned.model.as_str(), assigned.class.as_str(), assigned.model_version), ("resnet", "camera", 3));
}

#[test]
fn each_refusal_has_its_word() {
    let (stranger, fleet) = (fleet(), fleet());
    let home = Home::enrolled(&fleet);
    let mut trust = home.trust();
    let good = fleet.deployment(2, 7, "d-1");
    let (agreed, _) = trust.agree(&good, "d-1", None, NOW_MS).unwrap();
    let last = agreed.accepted();
    let forged = FleetAuthor::new(&stranger.keys);
    let expires = time(NOW_MS).plus_s(86_400);
    let by_stranger = forged.assignment("d-1", &fleet.bundle, 8, expires).unwrap();
    assert_eq!(check(&mut trust, &Deployment { assignment: by_stranger, ..good.clone() }, Some(&last), NOW_MS), "director-signature");
    let release = forged.release(2, expires, std::slice::from_ref(&fleet.bundle)).unwrap();
    assert_eq!(check(&mut home.trust(), &Deployment { release, ..good.clone() }, None, NOW_MS), "release-signature");
    assert_eq!(check(&mut trust, &fleet.deployment(2, 6, "d-1"), Some(&last), NOW_MS), "rollback");
    assert_eq!(check(&mut trust, &fleet.deployment(2, 8, "d-2"), Some(&last), NOW_MS), "wrong-device");
    assert_eq!(check(&mut trust, &good, Some(&last), NOW_MS + 86_400_000), "expired");
    let longer = BundleEntry { length: 1001, ..fleet.bundle.clone() };
    let assignment = FleetAuthor::new(&fleet.keys).assignment("d-1", &longer, 8, expires).unwrap();
    assert_eq!(check(&mut trust, &Deployment { assignment, ..good.clone() }, Some(&last), NOW_MS), "disagreement");
    assert_eq!(check(&mut trust, &Deployment { timestamp: b"{".to_vec(), ..good }, Some(&last), NOW_MS), "metadata");
}

#[test]
fn an_older_release_is_refused_after_a_restart_even_without_a_ledger() {
    let fleet = fleet();
    let home = Home::enrolled(&fleet);
    home.trust().agree(&fleet.deployment(5, 7, "d-1"), "d-1", None, NOW_MS).unwrap();
    assert_eq!(check(&mut home.trust(), &fleet.deployment(4, 8, "d-1"), None, NOW_MS), "rollback");
    home.trust().agree(&fleet.deployment(6, 8, "d-1"), "d-1", None, NOW_MS).unwrap();
}

#[test]
fn a_new_root_is_kept_over_a_restart() {
    let mut fleet = fleet();
    let home = Home::enrolled(&fleet);
    let old = std::mem::replace(&mut fleet.keys.root, SigningKey::generate().unwrap());
    let next = FleetAuthor::new(&fleet.keys).rotate_root(&old, 2, time(NOW_MS).plus_s(86_400 * 365)).unwrap();
    let rotated = Deployment { root_chain: vec![next], ..fleet.deployment(1, 1, "d-1") };
    home.trust().agree(&rotated, "d-1", None, NOW_MS).unwrap();
    assert_eq!(home.trust().root_version(), 2);
}

#[test]
fn a_refused_assignment_still_says_what_it_claims_to_be() {
    let fleet = fleet();
    let (sequence, digest) = claims(&fleet.deployment(1, 7, "d-1").assignment);
    assert_eq!((sequence, digest), (7, fleet.bundle.digest.as_bytes().to_vec()));
    assert_eq!(claims(b"nonsense"), (0, vec![0; 32]));
}
