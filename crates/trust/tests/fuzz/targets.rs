//! What fuzzers feed: any bytes must give a typed error or metadata that holds its promises, never a panic, a hang or unbounded
//! memory. Driven by `tests/fuzz.rs` in every test run and by libFuzzer from the folder `fuzz/`.

use pleach_trust::metadata::Metadata;
use pleach_trust::{PublicKey, Root, Signed, Snapshot, Targets, Timestamp, UtcTime, canonical, sign};

const LIMIT_BYTES: usize = 1 << 20;

/// Parses as JSON and as each role. Tells whether the bytes were metadata of any role.
pub(crate) fn metadata(bytes: &[u8]) -> bool {
    if let Ok(value) = canonical::parse(bytes) {
        let encoded = canonical::encode(&value).expect("what parses has a canonical form");
        // OLPC's form leaves control characters bare, which JSON does not.
        if !encoded.iter().any(u8::is_ascii_control) {
            assert_eq!(canonical::parse(&encoded).expect("a canonical form is JSON"), value);
        }
    }
    if let Some(time) = std::str::from_utf8(bytes).ok().and_then(UtcTime::parse) {
        assert_eq!(time.to_string().as_bytes(), bytes, "a time has one form");
    }
    let mut any = false;
    if let Some(root) = role::<Root>(bytes) {
        root.keys.values().for_each(exercise_key);
        any = true;
    }
    if let Some(targets) = role::<Targets>(bytes) {
        exercise_delegations(&targets);
        any = true;
    }
    any | role::<Snapshot>(bytes).is_some() | role::<Timestamp>(bytes).is_some()
}

/// Metadata that parses says the same after it was written again.
fn role<T: Metadata + Clone + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let signed = Signed::<T>::parse(T::KIND, bytes, LIMIT_BYTES).ok()?;
    assert_eq!(signed.bytes(), bytes);
    let again = sign(signed.content(), &[]).expect("what was read can be written");
    let again = Signed::<T>::parse(T::KIND, &again, LIMIT_BYTES * 2).expect("what was written can be read");
    assert_eq!(again.content(), signed.content());
    Some(signed.content().clone())
}

fn exercise_key(key: &PublicKey) {
    assert!(!key.verifies(b"message", b"signature"));
    let _ = (key.key_id(), key.ed25519_bytes());
}

fn exercise_delegations(targets: &Targets) {
    let Some(delegations) = &targets.delegations else { return };
    delegations.keys.values().for_each(exercise_key);
    let paths = targets.targets.keys().map(String::as_str).chain(["bundles/00", "a/b/c", ""]);
    for path in paths {
        for (role, _) in delegations.roles_for(path) {
            assert!(delegations.covers(&role, path) && delegations.role_keys(&role).is_some(), "{role} {path}");
        }
    }
}
