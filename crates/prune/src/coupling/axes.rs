//! Axes, atoms and the union-find over atom indices.

use std::collections::{BTreeMap, BTreeSet};

/// A constant's axis: where atoms come from that a Reshape may ask to be products.
type Source = (String, usize);

/// How the axes of constants are made of atoms: pieces one behind the other, each a row-major product of factors of these lengths.
/// A source that is not named is one atom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layouts(BTreeMap<Source, Vec<Vec<usize>>>);

/// A wish for smaller atoms, found where an operator cuts through one; the next walk fulfils it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Make the atom a product of this many runs.
    Into(usize),
}

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
    origin: Option<Origin>,
}

/// The factor of a source's layout that an atom is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Origin {
    source: usize,
    piece: usize,
    factor: usize,
}

/// All atoms, and which of their indices belong together.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    atoms: Vec<Atom>,
    parents: Vec<usize>,
    layouts: Layouts,
    sources: Vec<Source>,
    wanted: BTreeMap<Origin, Cut>,
}

impl Atoms {
    /// No atoms yet; the axes of constants will be made as `layouts` says.
    pub(super) fn new(layouts: Layouts) -> Self {
        Self { layouts, ..Self::default() }
    }

    /// The layouts that fulfil what this walk wanted; `None` when it wanted nothing.
    pub(super) fn refined(&self) -> Option<Layouts> {
        let mut layouts = self.layouts.clone();
        // Later factors first, so that the places of earlier ones hold.
        for (origin, Cut::Into(runs)) in self.wanted.iter().rev() {
            let length = self.origin_length(*origin);
            let pieces = layouts.0.entry(self.sources.get(origin.source)?.clone()).or_insert_with(|| vec![vec![length]]);
            let factors = pieces.get_mut(origin.piece)?;
            factors.splice(origin.factor..=origin.factor, [*runs, length / runs.max(&1)]);
        }
        (!self.wanted.is_empty()).then_some(layouts)
    }

    fn origin_length(&self, origin: Origin) -> usize {
        self.atoms.iter().find(|a| a.origin == Some(origin)).map_or(0, |a| a.length)
    }

    fn atom(&mut self, length: usize, origin: Option<Origin>) -> AtomId {
        let first = self.parents.len();
        self.parents.extend(first..first + length);
        self.atoms.push(Atom { first, length, reasons: BTreeSet::new(), origin });
        AtomId(self.atoms.len() - 1)
    }

    /// A new atom as an axis.
    pub(super) fn fresh(&mut self, length: usize) -> Axis {
        Axis(vec![vec![self.atom(length, None)]])
    }

    /// New atoms for an axis of a constant, to be asked for once: later walks may make it of smaller ones.
    pub(super) fn sourced(&mut self, constant: &str, axis: usize, length: usize) -> Axis {
        let source = (constant.to_owned(), axis);
        let layout = self.layouts.0.get(&source).cloned().unwrap_or_else(|| vec![vec![length]]);
        self.sources.push(source);
        let source = self.sources.len() - 1;
        let mut pieces = Vec::with_capacity(layout.len());
        for (piece, factors) in layout.into_iter().enumerate() {
            let origin = |factor| Some(Origin { source, piece, factor });
            pieces.push(factors.into_iter().enumerate().map(|(factor, length)| self.atom(length, origin(factor))).collect());
        }
        Axis(pieces)
    }

    /// Wants an atom to be a product of `runs` runs; the first wish for an atom counts. Whether it may come true.
    fn want(&mut self, id: AtomId, runs: usize) -> bool {
        let Some(atom) = self.atoms.get(id.0) else { return false };
        let Some(origin) = atom.origin.filter(|_| runs > 1 && runs < atom.length && atom.length % runs == 0) else { return false };
        self.wanted.entry(origin).or_insert(Cut::Into(runs));
        true
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
                self.want_alike(a, b);
                let reason = format!("{place} joins axes that are factored differently");
                self.freeze(a, &reason);
                self.freeze(b, &reason);
            }
        }
    }

    /// Wants the first factor in which two axes differ to be cut in one of them, so that in the end both have the same factors.
    fn want_alike(&mut self, a: &Axis, b: &Axis) {
        for (x, y) in a.0.iter().zip(&b.0) {
            let Some((&x, &y)) = x.iter().zip(y).find(|&(&x, &y)| self.length(x) != self.length(y)) else { continue };
            let (long, short) = if self.length(x) > self.length(y) { (x, y) } else { (y, x) };
            self.want(long, self.length(short));
            return;
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
        let mut pieces = Vec::with_capacity(product.0.len());
        let inner: usize = lengths.iter().skip_while(|&&l| l == 1).skip(1).product();
        for piece in &product.0 {
            let outer = self.piece_length(piece).checked_div(inner).filter(|outer| outer * inner == self.piece_length(piece))?;
            let leading = lengths.iter().take_while(|&&l| l == 1).count();
            let own: Vec<usize> = lengths.iter().enumerate().map(|(i, &l)| if i == leading { outer } else { l }).collect();
            pieces.push(self.cut(piece, &own)?);
        }
        self.stack(pieces, lengths)
    }

    /// Cuts a piece into axes of the given lengths; `None`, and a wish, when a cut would go through an atom.
    fn cut(&mut self, piece: &Piece, lengths: &[usize]) -> Option<Vec<Piece>> {
        let mut factors = piece.iter().copied();
        let mut out = Vec::new();
        for &length in lengths {
            let (mut part, mut got) = (Piece::new(), 1);
            while got < length {
                let id = factors.next()?;
                if length % (got * self.length(id)) != 0 {
                    if length % got == 0 {
                        self.want(id, length / got);
                    }
                    return None;
                }
                got *= self.length(id);
                part.push(id);
            }
            out.push(part);
        }
        factors.next().is_none().then_some(out)
    }

    /// Puts pieces that were cut alike one behind the other along their outermost axis; the inner ones become one.
    fn stack(&mut self, pieces: Vec<Vec<Piece>>, lengths: &[usize]) -> Option<Vec<Axis>> {
        let outermost = lengths.iter().take_while(|&&l| l == 1).count();
        let mut out: Vec<Axis> = Vec::with_capacity(lengths.len());
        for (i, &length) in lengths.iter().enumerate() {
            let own: Vec<Piece> = pieces.iter().map(|piece| piece.get(i).cloned()).collect::<Option<_>>()?;
            if length == 1 {
                out.push(self.frozen(1, "one index"));
            } else if i == outermost {
                out.push(Axis(own));
            } else {
                let first = Axis(vec![own.first()?.clone()]);
                for other in own.into_iter().skip(1) {
                    self.unify(&first, &Axis(vec![other]), "a Reshape of joined axes");
                }
                out.push(first);
            }
        }
        Some(out)
    }
}
