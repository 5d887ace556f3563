//! Chunks are checked before they are written, in any order, from any point on.

use pleach_artifact::{ArtifactError, CHUNK_BYTES, ChunkVerifier, Layout, Suite, sha256};

use crate::bundle::{opened, payload, sealed};

#[test]
fn a_download_resumes_at_any_chunk() {
    let plain = payload(3 * CHUNK_BYTES + 5);
    let (sealed, bytes) = sealed(&plain, Suite::Aes256Gcm);
    let verifier = ChunkVerifier::new(sealed.length, &sealed.tree_root, &sealed.leaves.encode()).unwrap();
    let layout = verifier.layout();
    for have in [0, 1, 65_583, 65_584, 65_585, 131_000, sealed.length - 1, sealed.length] {
        let first = layout.resume_at(have);
        let kept = if first == layout.chunk_count() { layout.sealed_bytes() } else { layout.chunk_range(first).unwrap().start };
        assert!(kept <= have);
        let mut file = bytes[..kept as usize].to_vec();
        for index in first..layout.chunk_count() {
            let range = layout.chunk_range(index).unwrap();
            let chunk = &bytes[range.start as usize..range.end as usize];
            verifier.verify(index, chunk).unwrap();
            file.extend_from_slice(chunk);
        }
        assert_eq!(opened(&file, &sealed.digest, &sealed.content_key).unwrap(), plain);
    }
}

#[test]
fn every_bit_flip_of_a_small_chunk_is_seen_before_it_is_written() {
    let (sealed, bytes) = sealed(&payload(300), Suite::ChaCha20Poly1305);
    let verifier = ChunkVerifier::new(sealed.length, &sealed.tree_root, &sealed.leaves.encode()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut copy = bytes.clone();
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(verifier.verify(0, &copy), Err(ArtifactError::ChunkHash { index: 0 })));
    }
}

#[test]
fn a_chunk_in_anothers_place_is_refused() {
    let (sealed, bytes) = sealed(&payload(4 * CHUNK_BYTES), Suite::Aes256Gcm);
    let verifier = ChunkVerifier::new(sealed.length, &sealed.tree_root, &sealed.leaves.encode()).unwrap();
    for place in 0..4 {
        for index in 0..4 {
            let range = verifier.layout().chunk_range(index).unwrap();
            let chunk = &bytes[range.start as usize..range.end as usize];
            assert_eq!(verifier.verify(place, chunk).is_ok(), place == index);
        }
    }
    assert!(matches!(verifier.verify(4, &bytes), Err(ArtifactError::ChunkIndex { index: 4, count: 4 })));
    assert!(matches!(verifier.verify(0, &bytes), Err(ArtifactError::ChunkLength { index: 0, .. })));
}

#[test]
fn every_alteration_of_a_leaf_list_is_refused() {
    let (sealed, _) = sealed(&payload(6 * CHUNK_BYTES), Suite::Aes256Gcm);
    let list = sealed.leaves.encode();
    let check = |list: &[u8]| ChunkVerifier::new(sealed.length, &sealed.tree_root, list);
    assert!(check(&list).is_ok());
    for bit in 0..list.len() * 8 {
        let mut copy = list.clone();
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(check(&copy), Err(ArtifactError::TreeRoot { .. })));
    }
    for end in 0..list.len() {
        assert!(matches!(check(&list[..end]), Err(ArtifactError::LeafCount { .. })));
    }
    for i in 0..6 {
        let mut copy = list.clone();
        copy.copy_within(i * 32..i * 32 + 32, (i + 1) % 6 * 32);
        assert!(check(&copy).is_err());
        assert!(check(&[&list[..], &list[i * 32..i * 32 + 32]].concat()).is_err());
    }
    // An inner node is no leaf: two levels cannot be mistaken for one.
    assert!(ChunkVerifier::new(Layout::of_plaintext(1).unwrap().sealed_bytes(), &sealed.tree_root, sealed.tree_root.as_bytes()).is_ok());
    assert!(ChunkVerifier::new(sealed.length, &sealed.tree_root, sealed.tree_root.as_bytes()).is_err());
}

#[test]
fn the_tree_is_that_of_rfc_9162() {
    // Roots computed by hand from the definition: MTH({d0,d1,d2}) = H(1 || H(1 || l0 || l1) || l2).
    let (sealed, bytes) = sealed(&payload(2 * CHUNK_BYTES + 1), Suite::Aes256Gcm);
    let leaf = |index| {
        let range = Layout::of_sealed(sealed.length).unwrap().chunk_range(index).unwrap();
        sha256(&[&[0], &bytes[range.start as usize..range.end as usize]].concat())
    };
    let node = |a: &[u8; 32], b: &[u8; 32]| sha256(&[&[1][..], a, b].concat());
    let left = node(leaf(0).as_bytes(), leaf(1).as_bytes());
    assert_eq!(sealed.tree_root, node(left.as_bytes(), leaf(2).as_bytes()));
}

#[test]
fn overhead_stays_below_a_thousandth() {
    let plaintext = 50_000_000;
    let layout = Layout::of_plaintext(plaintext).unwrap();
    let overhead = layout.sealed_bytes() - plaintext + u64::from(layout.chunk_count()) * 32;
    assert!(overhead * 1000 <= plaintext, "{overhead} bytes");
}
