//! What fuzzers feed: any bytes must give a typed error or a value that holds its promises, never a panic, a hang or unbounded
//! memory. Driven by `tests/fuzz.rs` in every test run and by libFuzzer from the folder `fuzz/`.

use std::io;

use pleach_artifact::{
    BundleManifest, ChunkVerifier, ContentKey, HEADER_BYTES, Header, KeyEncryptionKey, Layout, Payload, WrappedKey, open, sha256,
};

/// Reads the bytes as a sealed bundle, a leaf list, a wrap and a stored key, none of which they may pass for. Tells whether they
/// begin with a header.
pub(crate) fn bundle(bytes: &[u8]) -> bool {
    let key = ContentKey::from_slice(&[7; 32]).expect("32 bytes are a key");
    let digest = sha256(bytes);
    assert!(open(&mut &*bytes, bytes.len() as u64, &digest, key, &mut io::sink()).is_err(), "a forged bundle opened");
    assert!(ChunkVerifier::new(bytes.len() as u64, &digest, bytes).is_err());
    let stored = KeyEncryptionKey::from_slice(&[9; 32]).expect("32 bytes are a key").decrypt(bytes, &digest);
    assert!(stored.is_err(), "a forged key was taken");
    assert_eq!(WrappedKey::from_slice(bytes).is_ok(), bytes.len() == 80);
    if let Ok(layout) = Layout::of_sealed(bytes.len() as u64) {
        let ranges = (0..layout.chunk_count()).map(|index| layout.chunk_range(index).expect("a chunk of the layout"));
        let end = ranges.fold(0, |at, range| {
            assert_eq!(range.start, at);
            range.end
        });
        assert_eq!(end, bytes.len() as u64);
    }
    let header = bytes.first_chunk::<HEADER_BYTES>();
    let decoded = header.and_then(|header| Some((header, Header::decode(header).ok()?)));
    decoded.inspect(|(header, decoded)| assert_eq!(&decoded.encode(), *header, "a header has one form")).is_some()
}

/// Reads the bytes as an opened payload. Tells whether they are one.
pub(crate) fn payload(bytes: &[u8]) -> bool {
    let manifest = BundleManifest::decode(bytes);
    if let Ok(manifest) = manifest {
        let again = manifest.encode().expect("what was read can be written");
        let again = BundleManifest::decode(&again).expect("what was written can be read");
        // As text: numbers that are none equal nothing.
        assert_eq!(format!("{again:?}"), format!("{manifest:?}"));
    }
    Payload::parse(bytes).is_ok()
}
