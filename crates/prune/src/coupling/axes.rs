//! Axes, atoms and the union-find over atom indices.

use std::collections::BTreeSet;

/// A run of indices that are made together: the output channels of a layer, a batch, a spatial axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AtomId(usize);

/// A piece of an axis: a row-major product of atoms, outermost first.
pub(super) type Piece = Vec<AtomId>;

/// An axis: pieces one behind the other.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Axis(pub(super) Vec<Piece>);

impl Axis {
    pub(super) fn atoms(&self) -> impl Iterator<Item = AtomId> {
        self.0.iter().flatten().copied()
    }
}

#[derive(Debug)]
struct Atom {
    first: usize,
    length: usize,
    reasons: BTreeSet<String>,
}

/// All atoms, and which of their indices belong together.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    atoms: Vec<Atom>,
    parents: Vec<usize>,
}

impl Atoms {
    /// A new atom as an axis.
    pub(super) fn fresh(&mut self, length: usize) -> Axis {
        let first = self.parents.len();
        self.parents.extend(first..first + length);
        self.atoms.push(Atom { first, length, reasons: BTreeSet::new() });
        Axis(vec![vec![AtomId(self.atoms.len() - 1)]])
    }

    /// A new atom that is never cut.
    pub(super) fn frozen(&mut self, length: usize, reason: &str) -> Axis {
        let axis = self.fresh(length);
        self.freeze(&axis, reason);
        axis
    }

    /// Freezes every atom of an axis. The reasons that came first are the ones worth telling: at most three are kept.
    pub(super) fn freeze(&mut self, axis: &Axis, reason: &str) {
        for id in axis.atoms() {
            if let Some(atom) = self.atoms.get_mut(id.0).filter(|a| a.reasons.len() < 3) {
                atom.reasons.insert(reason.to_owned());
            }
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = AtomId> + use<> {
        (0..self.atoms.len()).map(AtomId)
    }

    pub(super) fn length(&self, id: AtomId) -> usize {
        self.atoms.get(id.0).map_or(0, |a| a.length)
    }

    pub(super) fn reasons(&self, id: AtomId) -> impl Iterator<Item = &str> {
        self.atoms.get(id.0).into_iter().flat_map(|a| &a.reasons).map(String::as_str)
    }

    pub(super) fn piece_length(&self, piece: &Piece) -> usize {
        piece.iter().map(|&id| self.length(id)).product()
    }

    pub(super) fn axis_length(&self, axis: &Axis) -> usize {
        axis.0.iter().map(|piece| self.piece_length(piece)).sum()
    }

    /// The class of an atom's index.
    pub(super) fn class(&self, id: AtomId, index: usize) -> usize {
        let mut node = self.atoms.get(id.0).map_or(0, |a| a.first + index);
        while let Some(&parent) = self.parents.get(node).filter(|&&p| p != node) {
            node = parent;
        }
        node
    }

    /// Lets two axes be one, index by index. Axes that are split into other factors cannot be: both are frozen.
    pub(super) fn unify(&mut self, a: &Axis, b: &Axis, place: &str) {
        if a == b {
            return;
        }
        if self.same_factors(a, b) {
            let pairs: Vec<(AtomId, AtomId)> = a.atoms().zip(b.atoms()).collect();
            for (x, y) in pairs {
                for index in 0..self.length(x) {
                    self.union(x, index, y, index);
                }
            }
            return;
        }
        match (self.cells(a), self.cells(b)) {
            (Some(x), Some(y)) if x.len() == y.len() => {
                for ((x, i), (y, j)) in x.into_iter().zip(y) {
                    self.union(x, i, y, j);
                }
            }
            _ => {
                let reason = format!("{place} joins axes that are factored differently");
                self.freeze(a, &reason);
                self.freeze(b, &reason);
            }
        }
    }

    fn same_factors(&self, a: &Axis, b: &Axis) -> bool {
        let lengths = |axis: &Axis| -> Vec<Vec<usize>> { axis.0.iter().map(|p| p.iter().map(|&id| self.length(id)).collect()).collect() };
        lengths(a) == lengths(b)
    }

    /// The atom and index behind each index of an axis, when no piece is a product.
    fn cells(&self, axis: &Axis) -> Option<Vec<(AtomId, usize)>> {
        let mut cells = Vec::new();
        for piece in &axis.0 {
            let [id] = piece.as_slice() else { return None };
            cells.extend((0..self.length(*id)).map(|i| (*id, i)));
        }
        Some(cells)
    }

    fn union(&mut self, a: AtomId, i: usize, b: AtomId, j: usize) {
        let (a, b) = (self.class(a, i), self.class(b, j));
        if let Some(parent) = self.parents.get_mut(a.max(b)) {
            *parent = a.min(b);
        }
    }

    /// The row-major product of axes, factors of length 1 left out; `None` when an inner one has several pieces.
    pub(super) fn product(&self, axes: &[Axis]) -> Option<Axis> {
        let mut axes = axes.iter().filter(|axis| self.axis_length(axis) != 1);
        let Some(mut product) = axes.next().cloned() else { return Some(Axis::default()) };
        for inner in axes {
            let [inner] = inner.0.as_slice() else { return None };
            for piece in &mut product.0 {
                piece.extend_from_slice(inner);
            }
        }
        Some(product)
    }

    /// Cuts the product of `axes` into axes of the given lengths; `None` when a cut would go through an atom.
    pub(super) fn regroup(&mut self, axes: &[Axis], lengths: &[usize]) -> Option<Vec<Axis>> {
        let product = self.product(axes)?;
        if lengths.iter().filter(|&&l| l != 1).count() <= 1 {
            return Some(lengths.iter().map(|&l| if l == 1 { self.frozen(1, "one index") } else { product.clone() }).collect());
        }
        let [factors] = product.0.as_slice() else { return None };
        let mut factors = factors.iter().copied();
        let mut out = Vec::new();
        for &length in lengths {
            let (mut piece, mut got) = (Piece::new(), 1);
            while got < length {
                let id = factors.next()?;
                got *= self.length(id);
                piece.push(id);
            }
            if got != length {
                return None;
            }
            out.push(if piece.is_empty() { self.frozen(1, "one index") } else { Axis(vec![piece]) });
        }
        Some(out)
    }
}
