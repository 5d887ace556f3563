//! Which places of a layer's output are looked at.

use pleach_domain::random::SplitMix;

use crate::task::Emphasis;

/// Places of which every one's weight is asked for, so that none is drawn where nothing is.
const ASKED: usize = 4_096;

/// The output positions of a layer that are looked at, row by row, and what each weighs.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Positions {
    /// Where each row's positions begin in `chosen`, and where the last one's end.
    starts: Vec<usize>,
    chosen: Vec<usize>,
    /// Of each position, above 0.
    weights: Vec<f32>,
    random: SplitMix,
}

impl Positions {
    /// No rows yet; the same draws for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { starts: vec![0], chosen: Vec::new(), weights: Vec::new(), random: SplitMix(seed) }
    }

    /// Draws one position in each of `wanted` equal stretches of the places of row `row` that weigh anything.
    pub(crate) fn draw(&mut self, row: usize, space: [usize; 2], wanted: usize, emphasis: &Emphasis) {
        let area = space[0] * space[1];
        let weight = |place: usize| emphasis.of(row, space, place);
        let places: Vec<usize> = if area <= ASKED { (0..area).filter(|&p| weight(p) > 0.0).collect() } else { (0..area).collect() };
        let wanted = wanted.min(places.len());
        for part in 0..wanted {
            let (start, end) = (part * places.len() / wanted, (part + 1) * places.len() / wanted);
            let place = places[start + self.random.below(end - start)];
            let weight = weight(place);
            if weight > 0.0 {
                self.chosen.push(place);
                self.weights.push(weight);
            }
        }
        self.starts.push(self.chosen.len());
    }

    /// Rows drawn for.
    pub(crate) fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Positions of all rows.
    pub(crate) fn samples(&self) -> usize {
        self.chosen.len()
    }

    /// Positions of the first `rows` rows.
    pub(crate) fn samples_of(&self, rows: usize) -> usize {
        self.starts.get(rows).or(self.starts.last()).copied().unwrap_or(0)
    }

    /// The positions of one row.
    pub(crate) fn of(&self, row: usize) -> &[usize] {
        match (self.starts.get(row), self.starts.get(row + 1)) {
            (Some(&start), Some(&end)) => self.chosen.get(start..end).unwrap_or_default(),
            _ => &[],
        }
    }

    /// What the positions weigh, when they do not all weigh 1.
    pub(crate) fn weights(&self) -> Option<&[f32]> {
        self.weights.iter().any(|&w| w != 1.0).then_some(&self.weights)
    }

    /// Whether these are positions in `rows` rows of places `space`, as read from elsewhere.
    pub(crate) fn fits(&self, rows: usize, space: [usize; 2]) -> bool {
        self.starts.len() == rows + 1
            && self.starts.is_sorted()
            && self.starts.first() == Some(&0)
            && self.starts.last() == Some(&self.chosen.len())
            && self.weights.len() == self.chosen.len()
            && self.chosen.iter().all(|&place| place < space[0] * space[1])
    }

    /// Rows `start..end` alone.
    pub(crate) fn part(&self, start: usize, end: usize) -> Self {
        let (from, to) = (self.samples_of(start), self.samples_of(end));
        let starts = self.starts.get(start..=end).unwrap_or(&[from]).iter().map(|s| s - from).collect();
        Self { starts, chosen: self.chosen[from..to].to_vec(), weights: self.weights[from..to].to_vec(), random: self.random.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_one_place_in_each_stretch_and_the_same_again() {
        let drawn = |seed| {
            let mut at = Positions::new(seed);
            (0..3).for_each(|row| at.draw(row, [4, 5], 4, &Emphasis::default()));
            at
        };
        let at = drawn(1);
        assert_eq!((at.rows(), at.samples(), at.weights()), (3, 12, None));
        assert!((0..3).all(|row| at.of(row).iter().enumerate().all(|(i, &p)| (i * 5..(i + 1) * 5).contains(&p))));
        assert_eq!(at, drawn(1));
        assert_ne!(at, drawn(2));
        assert_eq!(at.part(1, 3).of(0), at.of(1));
    }

    #[test]
    fn never_more_places_than_there_are() {
        let mut at = Positions::new(0);
        at.draw(0, [1, 1], 16, &Emphasis::default());
        assert_eq!(at.of(0), [0]);
    }
}
