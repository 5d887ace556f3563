//! No altered file is trusted: every bit, every cut, repeats and swaps.
//!
//! A flip may leave the meaning alone (`a` to `A` in the hexadecimal of a signature); so the claim is that whatever is
//! accepted says exactly what was signed.

use pleach_trust::metadata::Metadata;
use pleach_trust::{FleetAuthor, Recipient, Signed, TrustedSet, sign_payload, verify_assignment, verify_payload};

use crate::fleet::{DAY, after, fleet, key, keys, metadata, now};

/// Every single-bit flip and every truncation of `file`.
fn altered(file: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let flips = (0..file.len() * 8).map(|bit| {
        let mut copy = file.to_vec();
        copy[bit / 8] ^= 1 << (bit % 8);
        copy
    });
    flips.chain((0..file.len()).map(|end| file[..end].to_vec()))
}

/// Duplications of a span and swaps of neighbouring spans, 16 bytes each.
fn rearranged(file: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..file.len() / 16).flat_map(move |i| {
        let (head, tail) = file.split_at(i * 16);
        let (span, rest) = tail.split_at(16);
        let next = &rest[..rest.len().min(16)];
        [[head, span, span, rest].concat(), [head, next, span, &rest[next.len()..]].concat(), [file, span].concat()]
    })
}

fn accepts_only<T: Metadata + PartialEq + Clone>(file: &[u8], accept: impl Fn(&[u8]) -> Option<T>) {
    let genuine = accept(file).expect("the genuine file is accepted");
    let mut refused = 0;
    for copy in altered(file).chain(rearranged(file)) {
        match accept(&copy) {
            Some(content) => assert!(content == genuine, "accepted with another meaning: {}", String::from_utf8_lossy(&copy)),
            None => refused += 1,
        }
    }
    assert!(refused > file.len() * 8, "{refused} of {} refused", file.len() * 9);
}

#[test]
fn no_altered_root_is_trusted() {
    let keys = keys(10);
    let author = FleetAuthor::new(&keys);
    let set = TrustedSet::new(&author.root(1, after(DAY)).unwrap(), now()).unwrap();
    accepts_only(&author.root(2, after(DAY)).unwrap(), |bytes| {
        let mut set = set.clone();
        set.update_root(bytes).ok().map(|_| set.root().content().clone())
    });
}

#[test]
fn no_altered_timestamp_or_snapshot_is_trusted() {
    let (keys, set, bundle) = fleet();
    let mut files = metadata(&keys, 2, &[bundle]);
    accepts_only(&files.timestamp, |bytes| {
        let mut set = set.clone();
        set.update_timestamp(bytes).ok()?;
        set.timestamp().map(Signed::content).cloned()
    });
    // Without a hash of the snapshot, so that its signature is what holds.
    let author = FleetAuthor::new(&keys);
    files.timestamp = without_hash(&author.timestamp(2, after(DAY), 2, &files.snapshot).unwrap(), &keys.timestamp);
    let mut set = set;
    set.update_timestamp(&files.timestamp).unwrap();
    accepts_only(&files.snapshot, |bytes| {
        let mut set = set.clone();
        set.update_snapshot(bytes).ok()?;
        set.snapshot().map(Signed::content).cloned()
    });
}

#[test]
fn no_altered_targets_or_release_file_is_trusted() {
    let (keys, _, bundle) = fleet();
    let files = metadata(&keys, 1, &[bundle]);
    let mut set = TrustedSet::new(&files.roots[0], now()).unwrap();
    set.update_timestamp(&files.timestamp).unwrap();
    set.update_snapshot(&files.snapshot).unwrap();
    accepts_only(&files.targets, |bytes| {
        let mut set = set.clone();
        set.update_targets(bytes).ok()?;
        set.targets("targets").map(Signed::content).cloned()
    });
    set.update_targets(&files.targets).unwrap();
    accepts_only(&files.release, |bytes| {
        let mut set = set.clone();
        set.update_delegated("release", "targets", bytes).ok()?;
        set.targets("release").map(Signed::content).cloned()
    });
}

#[test]
fn no_altered_assignment_is_agreed() {
    let (keys, set, bundle) = fleet();
    let director = FleetAuthor::new(&keys).assignment("dev-1", &bundle, 1, after(DAY)).unwrap();
    let recipient = Recipient { device: "dev-1", class: None };
    let genuine = verify_assignment(&set, &director, recipient, None).unwrap();
    for copy in altered(&director).chain(rearranged(&director)) {
        if let Ok(agreed) = verify_assignment(&set, &copy, recipient, None) {
            assert_eq!(agreed, genuine);
        }
    }
}

#[test]
fn no_altered_payload_signature_or_context_verifies() {
    let key = key(1);
    let payload = b"report of a device, sequence 7".repeat(4);
    let signature = sign_payload(&key, "device report", &payload);
    let public = key.public_key();
    assert!(verify_payload(&public, "device report", &payload, &signature).is_ok());
    for copy in altered(&payload).chain(rearranged(&payload)) {
        assert!(copy == payload || verify_payload(&public, "device report", &copy, &signature).is_err());
    }
    for copy in altered(&signature) {
        assert!(verify_payload(&public, "device report", &payload, &copy).is_err());
    }
    for context in altered(b"device report").filter_map(|c| String::from_utf8(c).ok()) {
        assert!(verify_payload(&public, &context, &payload, &signature).is_err());
    }
    // A byte moved from the payload to the context is another message.
    let moved = sign_payload(&key, "device reportr", &payload[1..]);
    assert!(verify_payload(&public, "device report", &payload, &moved).is_err());
}

fn without_hash(timestamp: &[u8], key: &pleach_trust::SigningKey) -> Vec<u8> {
    let signed = Signed::<pleach_trust::Timestamp>::parse("timestamp", timestamp, 1 << 20).unwrap();
    let mut content = signed.content().clone();
    for meta in content.meta.values_mut() {
        (meta.length, meta.hashes) = (None, None);
    }
    pleach_trust::sign(&content, &[key]).unwrap()
}
