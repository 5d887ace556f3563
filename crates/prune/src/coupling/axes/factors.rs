//! Products of atoms: what Reshape makes of axes, and how it takes them apart.

use super::{Atom, AtomId, Atoms, Axis, ONE, Piece};

impl Atoms {
    /// The row-major product of axes, factors of length 1 left out; `None` when an inner one has several pieces.
    pub(in crate::coupling) fn product(&self, axes: &[Axis]) -> Option<Axis> {
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
    pub(in crate::coupling) fn regroup(&mut self, axes: &[Axis], lengths: &[usize]) -> Option<Vec<Axis>> {
        let product = self.product(axes)?;
        if lengths.iter().filter(|&&l| l != 1).count() <= 1 {
            return Some(lengths.iter().map(|&l| if l == 1 { self.frozen(1, ONE) } else { product.clone() }).collect());
        }
        let leading = lengths.iter().take_while(|&&l| l == 1).count();
        let inner: usize = lengths.iter().skip(leading + 1).product();
        let mut pieces = Vec::with_capacity(product.0.len());
        for piece in &product.0 {
            let length = self.piece_length(piece);
            let outer = length.checked_div(inner).filter(|outer| outer * inner == length)?;
            let own: Vec<usize> = lengths.iter().enumerate().map(|(i, &l)| if i == leading { outer } else { l }).collect();
            pieces.push(self.cut(piece, &own)?);
        }
        self.stack(pieces, lengths)
    }

    /// Cuts a piece into axes of the given lengths; `None`, and a wish, when a cut would go through an atom.
    fn cut(&mut self, piece: &Piece, lengths: &[usize]) -> Option<Vec<Piece>> {
        let mut factors: Vec<AtomId> = piece.iter().rev().copied().collect();
        let mut out: Vec<Piece> = Vec::new();
        for &length in lengths {
            let (mut part, mut got) = (Piece::new(), 1);
            while got < length {
                let id = factors.pop()?;
                let own = self.length(id);
                if length.is_multiple_of(got * own) {
                    got *= own;
                    part.push(id);
                    continue;
                }
                let Some((outer, inner)) = self.factors(id, length / got).filter(|_| length.is_multiple_of(got)) else {
                    if length.is_multiple_of(got) {
                        self.want(id, length / got);
                    }
                    return None;
                };
                factors.push(inner);
                part.push(outer);
                got = length;
            }
            out.push(part);
        }
        // What is left has length 1.
        out.iter_mut().rev().find(|part| !part.is_empty())?.extend(factors.iter().rev());
        Some(out)
    }

    /// Puts pieces that were cut alike one behind the other along their outermost axis; the inner ones become one.
    fn stack(&mut self, pieces: Vec<Vec<Piece>>, lengths: &[usize]) -> Option<Vec<Axis>> {
        let outermost = lengths.iter().take_while(|&&l| l == 1).count();
        let mut out: Vec<Axis> = Vec::with_capacity(lengths.len());
        for (i, &length) in lengths.iter().enumerate() {
            let own: Vec<Piece> = pieces.iter().map(|piece| piece.get(i).cloned()).collect::<Option<_>>()?;
            if length == 1 {
                out.push(self.frozen(1, ONE));
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

    /// An atom as a product whose outer factor has the given length, where that tells the truth: what becomes of an index depends
    /// only on one of its two parts, the other of which is opaque.
    fn factors(&mut self, id: AtomId, outer: usize) -> Option<(AtomId, AtomId)> {
        let length = self.length(id);
        if outer == 0 || !length.is_multiple_of(outer) {
            return None;
        }
        let inner = length / outer;
        let reasons = vec![self.number(super::super::rules::SPATIAL)];
        let atoms = match self.atoms.get(id.0)? {
            Atom::Opaque { reasons, .. } => {
                let reasons = reasons.clone();
                [Atom::Opaque { length: outer, reasons: reasons.clone() }, Atom::Opaque { length: inner, reasons }]
            }
            Atom::Cells(nodes) => {
                let alike = |i: usize, j: usize| nodes.get(i).map(|&n| self.class(n)) == nodes.get(j).map(|&n| self.class(n));
                if (0..length).all(|i| alike(i, i % inner)) {
                    [Atom::Opaque { length: outer, reasons }, Atom::Cells(nodes.get(..inner)?.to_vec())]
                } else if (0..length).all(|i| alike(i, i / inner * inner)) {
                    [Atom::Cells(nodes.iter().step_by(inner).copied().collect()), Atom::Opaque { length: inner, reasons }]
                } else {
                    return None;
                }
            }
        };
        let [outer, inner] = atoms.map(|atom| self.push(atom).atoms().next());
        outer.zip(inner)
    }
}
