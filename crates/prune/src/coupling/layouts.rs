//! How the axes of constants are made of atoms, and the wishes for smaller ones that the next walk fulfils.

use std::collections::BTreeMap;

/// A constant's axis: where atoms come from that an operator may ask to be smaller.
type Source = (String, usize);

/// How the axes of constants are made of atoms: pieces one behind the other, each a row-major product of factors of these lengths.
/// A source that is not named is one atom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layouts(BTreeMap<Source, Vec<Vec<usize>>>);

/// A wish for smaller atoms, found where an operator cuts through one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Make the atom a product of this many runs.
    Into(usize),
    /// Make its piece two, one behind the other.
    At(usize),
}

/// The factor of a source's layout that an atom is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Origin {
    source: usize,
    piece: usize,
    factor: usize,
}

/// The layouts of a walk, and what it would rather have.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    layouts: Layouts,
    sources: Vec<Source>,
    /// Origin and length of the atoms that have one, by their first node.
    origins: BTreeMap<usize, (Origin, usize)>,
    wanted: BTreeMap<Origin, (usize, Cut)>,
}

impl Wishes {
    pub(super) fn new(layouts: Layouts) -> Self {
        Self { layouts, ..Self::default() }
    }

    /// Pieces and factors of a constant's axis, and a number for [`Wishes::born`].
    pub(super) fn layout(&mut self, constant: &str, axis: usize, length: usize) -> (usize, Vec<Vec<usize>>) {
        let source = (constant.to_owned(), axis);
        let layout = self.layouts.0.get(&source).cloned().unwrap_or_else(|| vec![vec![length]]);
        self.sources.push(source);
        (self.sources.len() - 1, layout)
    }

    /// Tells which nodes a factor's atom has.
    pub(super) fn born(&mut self, source: usize, piece: usize, factor: usize, nodes: std::ops::Range<usize>) {
        self.origins.insert(nodes.start, (Origin { source, piece, factor }, nodes.len()));
    }

    /// Wants the atom of these nodes to be a product of `runs` runs; where they are a slice of one, that to be an atom first.
    /// The first wish for an atom counts.
    pub(super) fn want(&mut self, nodes: &[usize], runs: usize) {
        let (Some(&first), Some(&last)) = (nodes.first(), nodes.last()) else { return };
        let Some((&start, &(origin, length))) = self.origins.range(..=first).next_back() else { return };
        if runs < 2 || runs >= nodes.len() || !nodes.len().is_multiple_of(runs) || last >= start + length || last - first + 1 != nodes.len()
        {
            return;
        }
        let cut = if nodes.len() == length {
            Cut::Into(runs)
        } else if origin.factor == 0 {
            Cut::At(if first > start { first - start } else { nodes.len() })
        } else {
            return;
        };
        self.wanted.entry(origin).or_insert((length, cut));
    }

    /// The layouts that fulfil what was wanted; `None` when nothing was.
    pub(super) fn fulfilled(&self) -> Option<Layouts> {
        let mut layouts = self.layouts.clone();
        // Later factors first, so that the places of earlier ones hold.
        for (origin, &(length, cut)) in self.wanted.iter().rev() {
            let pieces = layouts.0.entry(self.sources.get(origin.source)?.clone()).or_insert_with(|| vec![vec![length]]);
            let factors = pieces.get_mut(origin.piece)?;
            match cut {
                Cut::Into(runs) => {
                    factors.splice(origin.factor..=origin.factor, [runs, length / runs]);
                }
                Cut::At(index) => {
                    let mut behind = factors.clone();
                    *factors.first_mut()? = index;
                    *behind.first_mut()? = length - index;
                    pieces.insert(origin.piece + 1, behind);
                }
            }
        }
        (!self.wanted.is_empty()).then_some(layouts)
    }
}
