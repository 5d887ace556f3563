//! Where chunks lie follows from the length alone.

use pleach_artifact::header::{MAX_PLAINTEXT_BYTES, TAG_BYTES};
use pleach_artifact::{CHUNK_BYTES, HEADER_BYTES, Header, Layout, Suite};
use proptest::prelude::*;

#[test]
fn a_length_between_two_bundles_is_refused() {
    let header = HEADER_BYTES as u64;
    let full = header + (CHUNK_BYTES + TAG_BYTES) as u64;
    for sealed in [0, header, header + 15, full + 1, full + 16, u64::MAX] {
        assert!(Layout::of_sealed(sealed).is_err(), "{sealed}");
    }
    for sealed in [header + 16, header + 17, full, full + 17] {
        assert_eq!(Layout::of_sealed(sealed).unwrap().sealed_bytes(), sealed);
    }
}

#[test]
fn payloads_are_bounded() {
    assert!(Layout::of_plaintext(MAX_PLAINTEXT_BYTES).is_ok());
    assert!(Layout::of_plaintext(MAX_PLAINTEXT_BYTES + 1).is_err());
}

#[test]
fn header_encodes_as_documented() {
    let header = Header { suite: Suite::ChaCha20Poly1305, plaintext_bytes: 0x0102_0304, nonce_prefix: *b"prefix!" };
    let expected = "89504c454143480a0102000000010000000000000102030470726566697821".to_owned() + "00";
    assert_eq!(hex::encode(header.encode()), expected);
    assert_eq!(Header::decode(&header.encode()).unwrap(), header);
}

#[test]
fn any_other_header_byte_is_refused_or_means_something_else() {
    let header = Header { suite: Suite::Aes256Gcm, plaintext_bytes: 70_000, nonce_prefix: [7; 7] };
    let bytes = header.encode();
    for bit in 0..bytes.len() * 8 {
        let mut copy = bytes;
        copy[bit / 8] ^= 1 << (bit % 8);
        let decoded = Header::decode(&copy);
        assert!(decoded.as_ref().map_or(true, |d| *d != header && d.encode() == copy), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn chunks_tile_the_bundle(plaintext in 0u64..600_000) {
        let layout = Layout::of_plaintext(plaintext).unwrap();
        prop_assert_eq!(Layout::of_sealed(layout.sealed_bytes()).unwrap(), layout);
        let mut end = 0;
        for index in 0..layout.chunk_count() {
            let range = layout.chunk_range(index).unwrap();
            prop_assert_eq!(range.start, end);
            prop_assert_eq!(layout.resume_at(range.start), index);
            prop_assert_eq!(layout.resume_at(range.end - 1), index);
            end = range.end;
        }
        prop_assert_eq!(end, layout.sealed_bytes());
        prop_assert_eq!(layout.resume_at(end), layout.chunk_count());
        prop_assert!(layout.chunk_range(layout.chunk_count()).is_err());
    }
}
