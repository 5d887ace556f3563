//! Seal and open: round trips, and every way to alter a bundle.

use std::io::{self, Read};

use pleach_artifact::{ArtifactError, CHUNK_BYTES, ChunkVerifier, ContentKey, HEADER_BYTES, Opener, Suite, open, seal, sha256};
use proptest::prelude::*;

use crate::bundle::{SUITES, opened, payload, sealed};

const SEALED_CHUNK: usize = CHUNK_BYTES + 16;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn opens_what_was_sealed(chunks in 0usize..4, beside in -2i64..=2, any_len in 0usize..200_000, near in any::<bool>(), aes in any::<bool>()) {
        let len = if near { usize::try_from((chunks * CHUNK_BYTES) as i64 + beside).unwrap_or(0) } else { any_len };
        let plain = payload(len);
        let (sealed, bytes) = sealed(&plain, SUITES[usize::from(aes)]);
        prop_assert_eq!(sealed.digest, sha256(&bytes));
        prop_assert_eq!(opened(&bytes, &sealed.digest, &sealed.content_key).unwrap(), plain);
    }
}

/// Opens without the digest's help: the cipher alone must refuse.
fn decrypts(bytes: &[u8], key: &ContentKey) -> Result<(), ArtifactError> {
    let mut opener = Opener::new(key.clone(), bytes.len() as u64)?;
    let layout = opener.layout();
    for index in 0..layout.chunk_count() {
        let range = layout.chunk_range(index)?;
        opener.open_chunk(&bytes[range.start as usize..range.end as usize])?;
    }
    Ok(())
}

#[test]
fn every_bit_flip_and_every_truncation_of_a_small_bundle_is_refused() {
    for suite in SUITES {
        let (sealed, bytes) = sealed(&payload(700), suite);
        for bit in 0..bytes.len() * 8 {
            let mut copy = bytes.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(decrypts(&copy, &sealed.content_key).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(decrypts(&bytes[..end], &sealed.content_key).is_err(), "cut at {end}");
        }
    }
}

/// The whole of a first chunk, exhaustively: by the hash tree, which checks it before it is written, and a smaller one by the
/// cipher alone.
#[test]
fn every_bit_flip_of_64_kib_is_refused_by_the_tree_and_of_16_kib_by_the_cipher() {
    let (large, large_bytes) = sealed(&payload(CHUNK_BYTES - HEADER_BYTES - 16), Suite::Aes256Gcm);
    let verifier = ChunkVerifier::new(large.length, &large.tree_root, &large.leaves.encode()).unwrap();
    assert_eq!(large_bytes.len(), CHUNK_BYTES);
    let (small, small_bytes) = sealed(&payload(CHUNK_BYTES / 4), Suite::Aes256Gcm);
    let mut opener = Opener::new(small.content_key.clone(), small.length).unwrap();
    std::thread::scope(|scope| {
        let middle = large_bytes.len() / 2;
        for half in [0..middle, middle..large_bytes.len()] {
            let (verifier, bytes) = (&verifier, large_bytes.clone());
            scope.spawn(move || refuses_every_flip(bytes, half, |bytes| verifier.verify(0, bytes).is_ok()));
        }
        // What an opener refuses does not move it on, so one is enough.
        let (bytes, whole) = (small_bytes.clone(), 0..small_bytes.len());
        scope.spawn(move || refuses_every_flip(bytes, whole, |bytes| opener.open_chunk(bytes).is_ok()));
    });
    for end in 0..small_bytes.len() {
        assert!(decrypts(&small_bytes[..end], &small.content_key).is_err(), "cut at {end}");
    }
}

fn refuses_every_flip(mut bytes: Vec<u8>, places: std::ops::Range<usize>, mut accepts: impl FnMut(&[u8]) -> bool) {
    for at in places {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(!accepts(&bytes), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
    assert!(accepts(&bytes));
}

/// Repeats and swaps of neighbouring spans, all over a bundle of 64 KiB.
#[test]
fn repeated_and_swapped_spans_are_refused() {
    let (sealed, bytes) = sealed(&payload(CHUNK_BYTES - HEADER_BYTES - 16), Suite::ChaCha20Poly1305);
    for span in [1, 16, 100] {
        for at in (0..bytes.len() - 2 * span).step_by(37) {
            let (head, tail) = bytes.split_at(at);
            let (first, rest) = tail.split_at(span);
            let (second, rest) = rest.split_at(span);
            let swapped = [head, second, first, rest].concat();
            assert!(swapped == bytes || decrypts(&swapped, &sealed.content_key).is_err(), "{span} at {at}");
            assert!(decrypts(&[head, first, first, second, rest].concat(), &sealed.content_key).is_err(), "{span} at {at}");
            let overwritten = [head, first, first, rest].concat();
            assert!(overwritten == bytes || decrypts(&overwritten, &sealed.content_key).is_err(), "{span} at {at}");
        }
    }
}

#[test]
fn a_flipped_byte_anywhere_in_a_large_bundle_is_refused() {
    let (sealed, bytes) = sealed(&payload(3 * CHUNK_BYTES), Suite::Aes256Gcm);
    let borders = (1..3).flat_map(|i| (HEADER_BYTES + i * SEALED_CHUNK - 20)..(HEADER_BYTES + i * SEALED_CHUNK + 4));
    for at in (0..bytes.len()).step_by(1999).chain(borders).chain([bytes.len() - 1]) {
        let mut copy = bytes.clone();
        copy[at] ^= 0x10;
        assert!(decrypts(&copy, &sealed.content_key).is_err(), "byte {at}");
    }
}

#[test]
fn reordered_repeated_and_dropped_chunks_are_refused() {
    let (sealed, bytes) = sealed(&payload(4 * CHUNK_BYTES), Suite::Aes256Gcm);
    let (head, body) = bytes.split_at(HEADER_BYTES);
    let chunks: Vec<&[u8]> = body.chunks(SEALED_CHUNK).collect();
    let build = |order: &[usize]| [head, &order.iter().map(|&i| chunks[i]).collect::<Vec<_>>().concat()].concat();
    assert!(decrypts(&build(&[0, 1, 2, 3]), &sealed.content_key).is_ok());
    for a in 0..4 {
        for b in 0..4 {
            let mut order = [0, 1, 2, 3];
            order[a] = b;
            assert_eq!(decrypts(&build(&order), &sealed.content_key).is_ok(), a == b, "{order:?}");
            order = [0, 1, 2, 3];
            order.swap(a, b);
            assert_eq!(decrypts(&build(&order), &sealed.content_key).is_ok(), a == b, "{order:?}");
        }
    }
    for order in [&[0, 1, 2][..], &[0, 1, 2, 3, 3], &[1, 2, 3], &[0, 0, 1, 2, 3], &[0, 2, 3]] {
        // Even with a header that admits to the new length.
        let mut copy = build(order);
        assert!(decrypts(&copy, &sealed.content_key).is_err());
        copy[16..24].copy_from_slice(&((order.len() * CHUNK_BYTES) as u64).to_be_bytes());
        assert!(decrypts(&copy, &sealed.content_key).is_err(), "{order:?}");
    }
}

#[test]
fn a_chunk_of_another_bundle_under_the_same_length_is_refused() {
    let (a, bytes_a) = sealed(&payload(2 * CHUNK_BYTES), Suite::Aes256Gcm);
    let (_, bytes_b) = sealed(&payload(2 * CHUNK_BYTES), Suite::Aes256Gcm);
    let spliced = [&bytes_a[..HEADER_BYTES + SEALED_CHUNK], &bytes_b[HEADER_BYTES + SEALED_CHUNK..]].concat();
    assert!(matches!(decrypts(&spliced, &a.content_key), Err(ArtifactError::ChunkDecrypt { index: 1 })));
}

#[test]
fn the_opener_wants_chunks_in_order_and_all_of_them() {
    let (sealed, bytes) = sealed(&payload(2 * CHUNK_BYTES), Suite::Aes256Gcm);
    let first = &bytes[..HEADER_BYTES + SEALED_CHUNK];
    let mut opener = Opener::new(sealed.content_key.clone(), sealed.length).unwrap();
    opener.open_chunk(first).unwrap();
    assert!(opener.open_chunk(first).is_err());
    let cut = opener.finish(&sealed.digest).unwrap_err();
    assert!(matches!(cut, ArtifactError::Truncated { opened: 1, count: 2 }));
}

#[test]
fn trailing_bytes_and_another_digest_are_refused() {
    let (sealed, bytes) = sealed(&payload(100), Suite::Aes256Gcm);
    let longer = [&bytes[..], b"x"].concat();
    let result = open(&mut &*longer, sealed.length, &sealed.digest, sealed.content_key.clone(), &mut io::sink());
    assert!(matches!(result, Err(ArtifactError::TrailingBytes { .. })));
    let other = sha256(b"other");
    assert!(matches!(opened(&bytes, &other, &sealed.content_key), Err(ArtifactError::BundleDigest { .. })));
}

#[test]
fn another_content_key_opens_nothing() {
    let (a, bytes) = sealed(&payload(100), Suite::Aes256Gcm);
    let (b, _) = sealed(&payload(100), Suite::Aes256Gcm);
    assert_ne!(a.content_key, b.content_key);
    assert!(matches!(opened(&bytes, &a.digest, &b.content_key), Err(ArtifactError::ChunkDecrypt { index: 0 })));
}

#[test]
fn sealing_refuses_a_source_of_another_length() {
    for promised in [0, 99, 101, 70_000] {
        let result = seal(&mut &*payload(100), promised, Suite::Aes256Gcm, &mut io::sink());
        assert!(matches!(result, Err(ArtifactError::SourceLength { expected, .. }) if expected == promised), "{promised}");
    }
}

#[test]
fn a_failing_source_or_sink_is_an_error_of_io() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    impl io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(seal(&mut Broken, 10, Suite::Aes256Gcm, &mut io::sink()), Err(ArtifactError::Io { .. })));
    assert!(matches!(seal(&mut &*payload(10), 10, Suite::Aes256Gcm, &mut Broken), Err(ArtifactError::Io { .. })));
}

#[test]
fn nothing_prints_a_key() {
    let (sealed, _) = sealed(&payload(10), Suite::Aes256Gcm);
    assert_eq!(format!("{:?}", sealed.content_key), "ContentKey(..)");
    assert!(!format!("{sealed:?}").contains(&hex::encode(sealed.content_key.secret_bytes())));
}
