//! Entities in tagged text: runs of tags that belong together.
//!
//! Tags are class numbers in the order of BIO: 0 outside, then for each kind its first and its further positions (B-PER, I-PER,
//! B-ORG, I-ORG, ...). Source: Tjong Kim Sang and De Meulder 2003, the CoNLL-2003 shared task: an entity counts when its kind and
//! both ends are right.

use serde::{Deserialize, Serialize};

/// A run of positions that is one entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entity {
    /// First position.
    pub start: usize,
    /// Position behind the last.
    pub end: usize,
    /// Its kind, from 0.
    pub kind: usize,
}

/// The entities of a sentence. A further position after another kind, or after none, begins an entity as well.
pub fn entities(tags: &[usize]) -> Vec<Entity> {
    let mut found: Vec<Entity> = Vec::new();
    let mut open = false;
    for (at, &tag) in tags.iter().enumerate() {
        let Some(kind) = tag.checked_sub(1).map(|t| t / 2) else {
            open = false;
            continue;
        };
        match found.last_mut().filter(|last| open && tag % 2 == 0 && last.kind == kind) {
            Some(last) => last.end = at + 1,
            None => found.push(Entity { start: at, end: at + 1, kind }),
        }
        open = true;
    }
    found
}

/// Whether tags of `classes` classes can be BIO, and a sentence's tags never continue what has not begun.
pub fn follows_bio(classes: usize, tags: &[usize]) -> bool {
    let continues = |before: usize, tag: usize| tag == 0 || tag % 2 == 1 || before == tag || before + 1 == tag;
    classes >= 3
        && classes % 2 == 1
        && std::iter::once(0).chain(tags.iter().copied()).zip(tags).all(|(before, &tag)| continues(before, tag))
}

/// Entities found, right and wrong; sums of sentences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityCounts {
    /// Predicted, with the right kind and ends.
    pub hit: u64,
    /// Predicted.
    pub predicted: u64,
    /// Labelled.
    pub actual: u64,
}

impl EntityCounts {
    /// Counts one sentence.
    pub fn of(labels: &[usize], predicted: &[usize]) -> Self {
        let (actual, predicted) = (entities(labels), entities(predicted));
        let hit = predicted.iter().filter(|e| actual.binary_search(e).is_ok()).count() as u64;
        Self { hit, predicted: predicted.len() as u64, actual: actual.len() as u64 }
    }

    /// Adds another's counts, `times` times.
    pub fn add(&mut self, other: Self, times: u64) {
        self.hit += times * other.hit;
        self.predicted += times * other.predicted;
        self.actual += times * other.actual;
    }

    /// Share of the labelled entities that were found; 0 without any.
    pub fn recall(self) -> f64 {
        super::ratio(self.hit, self.actual)
    }

    /// Share of the predicted entities that were right; 0 without any.
    pub fn precision(self) -> f64 {
        super::ratio(self.hit, self.predicted)
    }

    /// Harmonic mean of the two; 0 without any entity.
    pub fn f1(self) -> f64 {
        super::ratio(2 * self.hit, self.predicted + self.actual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: usize, end: usize, kind: usize) -> Entity {
        Entity { start, end, kind }
    }

    #[test]
    fn entities_of_worked_examples() {
        // B-PER I-PER O B-ORG B-ORG I-ORG
        assert_eq!(entities(&[1, 2, 0, 3, 3, 4]), [at(0, 2, 0), at(3, 4, 1), at(4, 6, 1)]);
        // O I-PER I-ORG I-ORG: what was never begun begins by itself
        assert_eq!(entities(&[0, 2, 4, 4]), [at(1, 2, 0), at(2, 4, 1)]);
        assert_eq!(entities(&[2, 0, 2]), [at(0, 1, 0), at(2, 3, 0)]);
        assert!(entities(&[0, 0]).is_empty());
    }

    #[test]
    fn f1_counts_only_entities_with_both_ends_and_kind_right() {
        let counts = EntityCounts::of(&[1, 2, 0, 3, 0, 5], &[1, 0, 0, 3, 0, 7]);
        assert_eq!(counts, EntityCounts { hit: 1, predicted: 3, actual: 3 });
        assert!((counts.f1() - 1.0 / 3.0).abs() < 1e-12);
        assert!(EntityCounts::default().f1().abs() < 1e-12);
    }

    #[test]
    fn bio_never_continues_what_has_not_begun() {
        assert!(follows_bio(9, &[1, 2, 2, 0, 3, 1]));
        assert!(!follows_bio(9, &[0, 2]) && !follows_bio(9, &[1, 4]));
        assert!(!follows_bio(8, &[0, 1]) && !follows_bio(1, &[0]));
    }
}
