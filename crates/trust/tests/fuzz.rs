//! Drives the fuzz targets with mutants of genuine files, the same ones in every run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "fuzz/targets.rs"]
mod targets;

use pleach_trust::{BundleEntry, BundleFacts, FleetAuthor, FleetKeys, Sha256Digest, SigningKey, UtcTime};

const TOKENS: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e400",
    "18446744073709551616",
    "\"\"",
    "\\u0000",
    "\"version\":",
    "../",
    "*/*?",
];

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }

    /// Alters the bytes in one to four places.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let span = self.below(24).min(bytes.len() - at);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 => drop(bytes.drain(at..at + span)),
                2 => {
                    let copy = bytes[at..at + span].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                3 => drop(bytes.splice(at..at + span, TOKENS[self.below(TOKENS.len())].bytes())),
                _ => bytes.truncate(at.max(bytes.len() / 2)),
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seed = 0;
    let keys = FleetKeys::load(|_| {
        seed += 1;
        Ok::<_, ()>(SigningKey::from_seed(&[seed; 32]))
    })
    .unwrap();
    let author = FleetAuthor::new(&keys);
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
    let snapshot = author.snapshot(1, UtcTime::MAX, 1, 1).unwrap();
    let bins = include_bytes!("data/bins.json").to_vec();
    vec![
        author.root(1, UtcTime::MAX).unwrap(),
        author.timestamp(1, UtcTime::MAX, 1, &snapshot).unwrap(),
        author.targets(1, UtcTime::MAX).unwrap(),
        author.release(1, UtcTime::MAX, std::slice::from_ref(&bundle)).unwrap(),
        author.assignment("dev-1", &bundle, 1, UtcTime::MAX).unwrap(),
        snapshot,
        bins,
        b"2026-01-01T00:00:00Z".to_vec(),
    ]
}

#[test]
fn mutants_of_metadata_give_an_error_or_metadata_that_holds_its_promises() {
    let (seeds, mut random) = (seeds(), Random(7));
    assert!(seeds[..7].iter().all(|seed| targets::metadata(seed)));
    let mut parsed = 0;
    for _ in 0..12_000 {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        random.mutate(&mut bytes);
        parsed += usize::from(targets::metadata(&bytes));
    }
    assert!((500..11_500).contains(&parsed), "{parsed} of 12000 parsed");
}
