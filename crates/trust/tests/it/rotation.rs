//! Every key of a fleet can be changed while devices follow.

use pleach_trust::rotation::{accept_root, add_signature};
use pleach_trust::{
    FleetAuthor, FleetKeys, Recipient, RoleKeys, Root, Signed, SigningKey, TrustError, TrustedSet, sign, verify_assignment,
};

use crate::fleet::{DAY, after, bundle, key, keys, metadata, now, trusting};

type Change = fn(&mut FleetKeys, SigningKey);

const CHANGES: [(&str, Change); 6] = [
    ("root", |k, new| k.root = new),
    ("targets", |k, new| k.targets = new),
    ("snapshot", |k, new| k.snapshot = new),
    ("timestamp", |k, new| k.timestamp = new),
    ("release", |k, new| k.release = new),
    ("director", |k, new| k.director = new),
];

#[test]
fn a_device_follows_the_rotation_of_every_key_and_believes_the_old_ones_no_more() {
    let bundles = [bundle("a", "camera", 3)];
    for (name, change) in CHANGES {
        let old = keys(10);
        let before = metadata(&old, 1, &bundles);
        let mut set = trusting(&before);
        let mut new = old.clone();
        change(&mut new, key(200));
        let author = FleetAuthor::new(&new);
        let (others, targets) = (author.differing_roles(&before.roots[0]).unwrap(), author.is_author_of_targets(&before.targets).unwrap());
        let top = !matches!(name, "release" | "director");
        assert_eq!((others, targets), (Vec::from_iter(top.then(|| name.to_owned())), top && name != "targets"), "{name}");
        let previous = (name == "root").then_some(&old.root);
        let (version, root) = author.next_root(&before.roots[0], previous, after(DAY)).unwrap();
        assert_eq!((version, author.differing_roles(&root).unwrap()), (2, vec![]));
        let mut files = metadata(&new, 2, &bundles);
        files.roots = vec![before.roots[0].clone(), root];
        files.apply(&mut set, now()).unwrap();
        let recipient = Recipient { device: "dev-1", class: None };
        let agreed = |keys: &FleetKeys, set: &TrustedSet| {
            verify_assignment(set, &FleetAuthor::new(keys).assignment("dev-1", &bundles[0], 7, after(DAY)).unwrap(), recipient, None)
        };
        assert_eq!(agreed(&new, &set).unwrap().sequence, 7, "{name}");
        assert_eq!(agreed(&old, &set).is_ok(), name != "director");
        if matches!(name, "targets" | "snapshot" | "timestamp") {
            let stolen = metadata(&old, 3, &bundles);
            assert!(matches!(stolen.apply(&mut set, now()), Err(TrustError::Threshold { .. })), "{name}");
        }
    }
}

#[test]
fn a_root_key_that_is_elsewhere_cannot_be_replaced_from_here() {
    let old = keys(10);
    let trusted = metadata(&old, 1, &[]).roots.remove(0);
    let mut stranger = old.clone();
    stranger.root = key(99);
    let refused = FleetAuthor::new(&stranger).next_root(&trusted, None, after(DAY)).unwrap_err();
    assert!(matches!(refused, TrustError::Threshold { .. }));
    let refused = FleetAuthor::new(&stranger).next_root(&trusted, Some(&key(98)), after(DAY)).unwrap_err();
    assert!(matches!(refused, TrustError::Threshold { .. }));
}

#[test]
fn a_root_of_two_keys_is_signed_in_two_places() {
    let old = keys(10);
    let trusted = metadata(&old, 1, &[]).roots.remove(0);
    let offline = [key(70), key(71), key(72)];
    let mut content =
        Signed::<Root>::parse("root", &FleetAuthor::new(&old).root(2, after(DAY)).unwrap(), 1 << 20).unwrap().content().clone();
    let ids: Vec<_> = offline.iter().map(|key| key.public_key().key_id().unwrap()).collect();
    content.keys.extend(ids.iter().cloned().zip(offline.iter().map(SigningKey::public_key)));
    content.roles.insert("root".into(), RoleKeys::new(ids, 2));
    let draft = sign(&content, &[&old.root]).unwrap();
    assert!(matches!(accept_root(&trusted, &draft), Err(TrustError::Threshold { valid: 0, threshold: 2, .. })));
    let once = add_signature(&draft, &offline[0]).unwrap();
    assert!(matches!(accept_root(&trusted, &once), Err(TrustError::Threshold { valid: 1, threshold: 2, .. })));
    assert_eq!(add_signature(&once, &offline[0]).unwrap(), once, "again changes nothing");
    let twice = add_signature(&once, &offline[2]).unwrap();
    assert_eq!(accept_root(&trusted, &twice).unwrap(), (2, after(DAY)));
    assert!(matches!(accept_root(&twice, &twice), Err(TrustError::RootNotNext { got: 2, expected: 3 })));
    assert!(add_signature(b"{}", &offline[0]).is_err());
}
