//! Axes, atoms and the union-find over atom indices.
//!
//! An atom is a run of cells, each a node of the union-find. A slice of an atom is an atom of the same nodes, so what becomes of
//! an index does not depend on the axis it is seen on. Axes that are never cut (a batch, an image's rows) are *opaque*: a length
//! and a reason, without nodes; a node that meets one is frozen.

mod factors;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::layouts::{Layouts, Wishes};

/// Longest axis whose indices are followed one by one.
const MAX_LENGTH: usize = 1 << 20;
/// Most reasons kept for one index: those that came first are the ones worth telling.
const MAX_REASONS: usize = 3;

/// Why an axis of length 1 is never cut.
const ONE: &str = "one index";

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
enum Atom {
    /// Nodes of the union-find, in order; the same node may stand at several indices.
    Cells(Vec<usize>),
    /// Never cut, for the reasons given.
    Opaque { length: usize, reasons: Vec<usize> },
}

/// All atoms, and which of their indices belong together.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    atoms: Vec<Atom>,
    parents: Vec<usize>,
    /// Reasons by number, so that each is stored once.
    reasons: Vec<String>,
    numbers: HashMap<String, usize>,
    /// Why nodes are frozen.
    frozen: BTreeMap<usize, Vec<usize>>,
    /// Nodes whose indices are not treated alike all the way.
    stiff: BTreeSet<usize>,
    wishes: Wishes,
}

impl Atoms {
    /// No atoms yet; the axes of constants will be made as `layouts` says.
    pub(super) fn new(layouts: Layouts) -> Self {
        Self { wishes: Wishes::new(layouts), ..Self::default() }
    }

    /// The layouts that fulfil what this walk wanted; `None` when it wanted nothing.
    pub(super) fn refined(&self) -> Option<Layouts> {
        self.wishes.fulfilled()
    }

    /// New atoms for an axis of a constant, to be asked for once: later walks may make it of smaller ones.
    pub(super) fn sourced(&mut self, constant: &str, axis: usize, length: usize) -> Axis {
        if length > MAX_LENGTH {
            return self.fresh(length);
        }
        let (source, layout) = self.wishes.layout(constant, axis, length);
        let mut pieces = Vec::with_capacity(layout.len());
        for (piece, factors) in layout.into_iter().enumerate() {
            let mut atoms = Piece::new();
            for (factor, length) in factors.into_iter().enumerate() {
                let first = self.parents.len();
                self.wishes.born(source, piece, factor, first..first + length);
                atoms.extend(self.fresh(length).atoms());
            }
            pieces.push(atoms);
        }
        Axis(pieces)
    }

    /// Wants an atom to be a product of `runs` runs.
    fn want(&mut self, id: AtomId, runs: usize) {
        if let Some(Atom::Cells(nodes)) = self.atoms.get(id.0) {
            self.wishes.want(nodes, runs);
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

    /// A new atom as an axis.
    pub(super) fn fresh(&mut self, length: usize) -> Axis {
        if length > MAX_LENGTH {
            return self.frozen(length, &format!("an axis of {length} indices is too long to follow"));
        }
        let first = self.parents.len();
        self.parents.extend(first..first + length);
        self.atom((first..first + length).collect())
    }

    /// An axis that is never cut.
    pub(super) fn frozen(&mut self, length: usize, reason: &str) -> Axis {
        let reasons = vec![self.number(reason)];
        self.push(Atom::Opaque { length, reasons })
    }

    fn atom(&mut self, nodes: Vec<usize>) -> Axis {
        self.push(Atom::Cells(nodes))
    }

    fn push(&mut self, atom: Atom) -> Axis {
        self.atoms.push(atom);
        Axis(vec![vec![AtomId(self.atoms.len() - 1)]])
    }

    fn number(&mut self, reason: &str) -> usize {
        if let Some(&number) = self.numbers.get(reason) {
            return number;
        }
        self.reasons.push(reason.to_owned());
        self.numbers.insert(reason.to_owned(), self.reasons.len() - 1);
        self.reasons.len() - 1
    }

    /// Freezes every index of an axis.
    pub(super) fn freeze(&mut self, axis: &Axis, reason: &str) {
        let number = self.number(reason);
        for id in axis.atoms() {
            match self.atoms.get_mut(id.0) {
                Some(Atom::Cells(nodes)) => nodes.iter().for_each(|&node| note(self.frozen.entry(node).or_default(), number)),
                Some(Atom::Opaque { reasons, .. }) => note(reasons, number),
                None => (),
            }
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = AtomId> + use<> {
        (0..self.atoms.len()).map(AtomId)
    }

    pub(super) fn length(&self, id: AtomId) -> usize {
        match self.atoms.get(id.0) {
            Some(Atom::Cells(nodes)) => nodes.len(),
            Some(Atom::Opaque { length, .. }) => *length,
            None => 0,
        }
    }

    /// The nodes of an atom, in order; `None` for an opaque one.
    pub(super) fn nodes(&self, id: AtomId) -> Option<&[usize]> {
        match self.atoms.get(id.0)? {
            Atom::Cells(nodes) => Some(nodes),
            Atom::Opaque { .. } => None,
        }
    }

    /// Lets no change of basis mix the indices of an axis.
    pub(super) fn stiffen(&mut self, axis: &Axis) {
        for id in axis.atoms() {
            if let Some(Atom::Cells(nodes)) = self.atoms.get(id.0) {
                self.stiff.extend(nodes);
            }
        }
    }

    /// Nodes that no change of basis may mix.
    pub(super) fn stiff(&self) -> impl Iterator<Item = usize> {
        self.stiff.iter().copied()
    }

    /// Frozen nodes with their reasons.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (usize, impl Iterator<Item = &str>)> {
        self.frozen.iter().map(|(&node, numbers)| (node, numbers.iter().filter_map(|&n| self.reasons.get(n)).map(String::as_str)))
    }

    /// Why an opaque atom is never cut; `None` for one with nodes.
    pub(super) fn opaque(&self, id: AtomId) -> Option<impl Iterator<Item = &str>> {
        match self.atoms.get(id.0)? {
            Atom::Cells(_) => None,
            Atom::Opaque { reasons, .. } => Some(reasons.iter().filter_map(|&n| self.reasons.get(n)).map(String::as_str)),
        }
    }

    pub(super) fn piece_length(&self, piece: &Piece) -> usize {
        piece.iter().map(|&id| self.length(id)).product()
    }

    pub(super) fn axis_length(&self, axis: &Axis) -> usize {
        axis.0.iter().map(|piece| self.piece_length(piece)).sum()
    }

    /// The class of a node.
    pub(super) fn class(&self, mut node: usize) -> usize {
        while let Some(&parent) = self.parents.get(node).filter(|&&p| p != node) {
            node = parent;
        }
        node
    }

    fn union(&mut self, a: usize, b: usize) {
        let (a, b) = (self.halve(a), self.halve(b));
        if let Some(parent) = self.parents.get_mut(a.max(b)) {
            *parent = a.min(b);
        }
    }

    /// As [`Atoms::class`], and shortens the path.
    fn halve(&mut self, mut node: usize) -> usize {
        while let Some(&parent) = self.parents.get(node).filter(|&&p| p != node) {
            let above = self.parents.get(parent).copied().unwrap_or(parent);
            if let Some(slot) = self.parents.get_mut(node) {
                *slot = above;
            }
            node = above;
        }
        node
    }

    /// Lets two axes of one length be one, index by index. Products that are split into other factors cannot be: both are frozen.
    pub(super) fn unify(&mut self, a: &Axis, b: &Axis, place: &str) {
        if a == b {
            return;
        }
        let (mut left, mut right) = (a.0.clone(), b.0.clone());
        left.reverse();
        right.reverse();
        while let (Some(x), Some(y)) = (left.pop(), right.pop()) {
            let (long, short) = (self.piece_length(&x), self.piece_length(&y));
            let (x, y) = match long.cmp(&short) {
                std::cmp::Ordering::Equal => (x, y),
                std::cmp::Ordering::Greater => match self.cut_in_two(&x, short) {
                    Some((head, rest)) => {
                        left.push(rest);
                        (head, y)
                    }
                    None => return self.differ(a, b, place),
                },
                std::cmp::Ordering::Less => match self.cut_in_two(&y, long) {
                    Some((head, rest)) => {
                        right.push(rest);
                        (x, head)
                    }
                    None => return self.differ(a, b, place),
                },
            };
            if self.unify_pieces(&x, &y, place).is_none() {
                return self.differ(a, b, place);
            }
        }
    }

    fn differ(&mut self, a: &Axis, b: &Axis, place: &str) {
        self.want_alike(a, b);
        let reason = format!("{place} joins axes that are factored differently");
        self.freeze(a, &reason);
        self.freeze(b, &reason);
    }

    /// Cuts a piece in two at an index.
    fn cut_in_two(&mut self, piece: &Piece, at: usize) -> Option<(Piece, Piece)> {
        let length = self.piece_length(piece);
        Some((self.slice_piece(piece, 0..at)?, self.slice_piece(piece, at..length)?))
    }

    /// Unifies two pieces of one length; `None` when their factors differ.
    fn unify_pieces(&mut self, a: &Piece, b: &Piece, place: &str) -> Option<()> {
        let lengths = |piece: &Piece| -> Vec<usize> { piece.iter().map(|&id| self.length(id)).collect() };
        if lengths(a) == lengths(b) {
            for (&x, &y) in a.iter().zip(b) {
                self.unify_atoms(x, y, place);
            }
            return Some(());
        }
        match (self.flat(a), self.flat(b)) {
            (Some(x), Some(y)) => self.unify_atoms(x, y, place),
            (Some(x), None) if self.nodes(x).is_none() => b.iter().for_each(|&y| self.unify_atoms(x, y, place)),
            (None, Some(y)) if self.nodes(y).is_none() => a.iter().for_each(|&x| self.unify_atoms(x, y, place)),
            _ => return None,
        }
        Some(())
    }

    fn unify_atoms(&mut self, x: AtomId, y: AtomId, place: &str) {
        match (self.nodes(x).map(<[usize]>::to_vec), self.nodes(y).map(<[usize]>::to_vec)) {
            (Some(a), Some(b)) => a.into_iter().zip(b).for_each(|(i, j)| self.union(i, j)),
            (Some(nodes), None) => self.freeze_as(&nodes, y, place),
            (None, Some(nodes)) => self.freeze_as(&nodes, x, place),
            (None, None) => (),
        }
    }

    /// Freezes nodes for the reasons of the opaque atom they meet.
    fn freeze_as(&mut self, nodes: &[usize], opaque: AtomId, place: &str) {
        let Some(Atom::Opaque { reasons, .. }) = self.atoms.get(opaque.0) else { return };
        let dull = |&number: &usize| self.reasons.get(number).is_some_and(|r| r == super::rules::SPATIAL);
        let numbers = if reasons.iter().all(dull) {
            vec![self.number(&format!("{place} joins it with an axis that is no channel"))]
        } else {
            reasons.clone()
        };
        for &node in nodes {
            let own = self.frozen.entry(node).or_default();
            numbers.iter().for_each(|&number| note(own, number));
        }
    }

    /// One atom with the cells of a piece, when at most one of its factors has nodes.
    fn flat(&mut self, piece: &Piece) -> Option<AtomId> {
        if let [id] = piece.as_slice() {
            return Some(*id);
        }
        let with_nodes: Vec<usize> = (0..piece.len()).filter(|&i| piece.get(i).is_some_and(|&id| self.nodes(id).is_some())).collect();
        let length = self.piece_length(piece);
        let axis = match with_nodes.as_slice() {
            [] => {
                let reasons = piece.iter().find_map(|id| match self.atoms.get(id.0) {
                    Some(Atom::Opaque { reasons, .. }) => Some(reasons.clone()),
                    _ => None,
                });
                self.push(Atom::Opaque { length, reasons: reasons? })
            }
            &[at] => {
                let inner: usize = piece.get(at + 1..)?.iter().map(|&id| self.length(id)).product();
                let nodes = self.nodes(*piece.get(at)?)?;
                let cells = (0..length).map(|i| nodes.get(i / inner % nodes.len()).copied()).collect::<Option<_>>()?;
                self.atom(cells)
            }
            _ => return None,
        };
        axis.atoms().next()
    }

    /// A run of an axis's indices as an axis of its own; `None` when a cut would go through a product.
    pub(super) fn slice(&mut self, axis: &Axis, range: Range<usize>) -> Option<Axis> {
        let (mut out, mut offset) = (Axis::default(), 0);
        for piece in &axis.0 {
            let length = self.piece_length(piece);
            let (start, end) = (range.start.max(offset), range.end.min(offset + length));
            if start < end {
                out.0.push(self.slice_piece(piece, start - offset..end - offset)?);
            }
            offset += length;
        }
        Some(out)
    }

    fn slice_piece(&mut self, piece: &Piece, range: Range<usize>) -> Option<Piece> {
        if range == (0..self.piece_length(piece)) {
            return Some(piece.clone());
        }
        let (&outer, rest) = piece.split_first()?;
        let inner: usize = rest.iter().map(|&id| self.length(id)).product();
        if range.start.is_multiple_of(inner) && range.end.is_multiple_of(inner) {
            let own = range.start / inner..range.end / inner;
            let axis = match self.atoms.get(outer.0)? {
                Atom::Cells(nodes) => {
                    let nodes = nodes.get(own)?.to_vec();
                    self.atom(nodes)
                }
                Atom::Opaque { reasons, .. } => {
                    let reasons = reasons.clone();
                    self.push(Atom::Opaque { length: own.len(), reasons })
                }
            };
            return Some(axis.atoms().chain(rest.iter().copied()).collect());
        }
        let flat = self.flat(piece)?;
        self.slice_piece(&vec![flat], range)
    }

    /// The axis's cells at the given indices; `None` when a piece is a product of several atoms with nodes.
    pub(super) fn pick(&mut self, axis: &Axis, indices: &[usize]) -> Option<Axis> {
        let mut cells: Vec<Option<usize>> = Vec::new();
        for piece in &axis.0 {
            let flat = self.flat(piece)?;
            match self.nodes(flat) {
                Some(nodes) => cells.extend(nodes.iter().map(|&n| Some(n))),
                None => cells.resize(cells.len() + self.length(flat), None),
            }
        }
        let picked: Vec<Option<usize>> = indices.iter().map(|&i| cells.get(i).copied()).collect::<Option<_>>()?;
        if let Some(nodes) = picked.iter().copied().collect() {
            return Some(self.atom(nodes));
        }
        let first = axis.atoms().find_map(|id| match self.atoms.get(id.0) {
            Some(Atom::Opaque { reasons, .. }) => Some(reasons.clone()),
            _ => None,
        });
        if let Some(&number) = first.as_ref().and_then(|r| r.first()) {
            picked.iter().flatten().for_each(|&node| note(self.frozen.entry(node).or_default(), number));
        }
        Some(self.push(Atom::Opaque { length: indices.len(), reasons: first? }))
    }
}

fn note(reasons: &mut Vec<usize>, number: usize) {
    if reasons.len() < MAX_REASONS && !reasons.contains(&number) {
        reasons.push(number);
    }
}
