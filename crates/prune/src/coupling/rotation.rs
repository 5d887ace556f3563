//! Which groups may change their basis, and where in the constants that is done.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::axes::{AtomId, Axis};
use super::groups::Parts;
use super::rules::Trace;
use super::{Block, Coupling, GroupId, Rotation};

/// The places of one part on one piece of a constant's axis: for each run of its units what else chooses the run, and the indices.
struct Runs {
    constant: String,
    axis: usize,
    nodes: BTreeSet<usize>,
    runs: Vec<(Vec<usize>, Vec<usize>)>,
}

/// Sets the rotation of every group.
pub(super) fn find(trace: &Trace<'_>, parts: &Parts, ids: &HashMap<usize, GroupId>, coupling: &mut Coupling) {
    let stiff: BTreeSet<usize> = trace.atoms.stiff().filter_map(|node| parts.part(&trace.atoms, node)).collect();
    for (&part, id) in ids.iter().filter(|(part, _)| !stiff.contains(part)) {
        let Some(runs) = runs(trace, parts, part) else { continue };
        let Some(group) = coupling.groups.get_mut(id.0) else { continue };
        let sides = if !group.contractions.is_empty() && group.consumers.is_empty() {
            bilinear(trace, parts, part, runs)
        } else if group.contractions.is_empty() {
            linear(trace, runs)
        } else {
            None
        };
        if let Some(rotation) = sides {
            group.rotation = rotation;
        }
    }
}

/// Sides of a product of activations: no constant may feed both.
fn bilinear(trace: &Trace<'_>, parts: &Parts, part: usize, runs: Vec<Runs>) -> Option<Rotation> {
    let (mut left, mut right) = (BTreeSet::new(), BTreeSet::new());
    for contracted in &trace.contracted {
        left.extend(nodes(trace, parts, part, contracted.left.atoms()));
        right.extend(nodes(trace, parts, part, contracted.right.atoms()));
    }
    if !left.is_disjoint(&right) {
        return None;
    }
    let heads = heads(&runs);
    let (mut sides, mut fits) = ((vec![], vec![]), true);
    for own in runs {
        match (own.nodes.is_subset(&left), own.nodes.is_subset(&right)) {
            (true, false) => sides.0.extend(blocks(own, &heads)),
            (false, true) => sides.1.extend(blocks(own, &heads)),
            _ => fits = false,
        }
    }
    (fits && !sides.0.is_empty() && !sides.1.is_empty()).then_some(Rotation::Bilinear { left: sides.0, right: sides.1 })
}

/// Layers that make the units, and layers that sum over them.
fn linear(trace: &Trace<'_>, runs: Vec<Runs>) -> Option<Rotation> {
    let heads = heads(&runs);
    let (mut made, mut read) = (vec![], vec![]);
    for own in runs {
        let reads = trace.summed.iter().any(|s| s.weight == own.constant && s.weight_axis == own.axis);
        let makes = trace.made.iter().any(|m| m.weight == own.constant && m.weight_axis == own.axis);
        if reads && makes {
            return None;
        }
        if reads { &mut read } else { &mut made }.extend(blocks(own, &heads));
    }
    (!made.is_empty() && !read.is_empty()).then_some(Rotation::Linear { made, read })
}

/// The runs of a part in all constants; `None` when it lies on one in another way than as whole factors.
fn runs(trace: &Trace<'_>, parts: &Parts, part: usize) -> Option<Vec<Runs>> {
    let mut constants: Vec<(&String, &Vec<Option<Axis>>)> = trace.constants.iter().collect();
    constants.sort_by_key(|(name, _)| *name);
    let mut all = Vec::new();
    for (name, axes) in constants {
        for (axis, bound) in axes.iter().enumerate().filter_map(|(i, bound)| Some((i, bound.as_ref()?))) {
            let mut offset = 0;
            for piece in &bound.0 {
                let runs = runs_of_piece(trace, parts, part, piece, offset)?;
                offset += trace.atoms.piece_length(piece);
                if !runs.is_empty() {
                    let nodes = nodes(trace, parts, part, piece.iter().copied());
                    all.push(Runs { constant: name.clone(), axis, nodes, runs });
                }
            }
        }
    }
    Some(all)
}

fn nodes(trace: &Trace<'_>, parts: &Parts, part: usize, atoms: impl Iterator<Item = AtomId>) -> BTreeSet<usize> {
    let nodes = atoms.filter_map(|id| trace.atoms.nodes(id)).flatten().copied();
    nodes.filter(|&node| parts.part(&trace.atoms, node) == Some(part)).collect()
}

type Run = (Vec<usize>, Vec<usize>);

/// The runs on one piece, which starts at `offset`: each is told by the classes of the other factors' indices.
fn runs_of_piece(trace: &Trace<'_>, parts: &Parts, part: usize, piece: &[AtomId], offset: usize) -> Option<Vec<Run>> {
    let atoms = &trace.atoms;
    // Units of the one factor that the part is, by index.
    let mut own: Option<(usize, Vec<usize>)> = None;
    for (at, &id) in piece.iter().enumerate() {
        let units: Vec<Option<usize>> = atoms.nodes(id).unwrap_or_default().iter().map(|&node| parts.unit(atoms, node, part)).collect();
        if units.iter().all(Option::is_none) {
            continue;
        }
        let units: Vec<usize> = units.into_iter().collect::<Option<_>>()?;
        let mut sorted = units.clone();
        sorted.sort_unstable();
        if own.is_some() || !sorted.into_iter().eq(0..parts.size(part)) {
            return None;
        }
        own = Some((at, units));
    }
    let Some((at, units)) = own else { return Some(vec![]) };
    let mut runs: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    let length = piece.iter().map(|&id| atoms.length(id)).product::<usize>();
    for index in 0..length {
        // Places of the index in each factor.
        let (mut rest, mut places) = (index, vec![0; piece.len()]);
        for (place, &id) in places.iter_mut().zip(piece).rev() {
            *place = rest % atoms.length(id).max(1);
            rest /= atoms.length(id).max(1);
        }
        let unit = *units.get(*places.get(at)?)?;
        places.remove(at);
        runs.entry(places).or_insert_with(|| vec![0; units.len()]).get_mut(unit).map(|slot| *slot = offset + index)?;
    }
    let others: Vec<_> = piece.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, &id)| id).collect();
    // An opaque factor tells nothing: its runs are of one head.
    let class = |(&place, &id): (&usize, &AtomId)| Some(atoms.class(*atoms.nodes(id)?.get(place)?));
    Some(runs.into_iter().map(|(places, indices)| (places.iter().zip(&others).filter_map(class).collect(), indices)).collect())
}

/// Numbers the heads: a head is what chooses a run in every constant alike.
fn heads(all: &[Runs]) -> impl Fn(&[usize]) -> usize + use<> {
    let of = |own: &Runs| -> BTreeSet<usize> { own.runs.iter().flat_map(|(key, _)| key).copied().collect() };
    let common = all.iter().map(of).reduce(|a, b| a.intersection(&b).copied().collect()).unwrap_or_default();
    let shorten = move |key: &[usize]| -> Vec<usize> { key.iter().copied().filter(|class| common.contains(class)).collect() };
    let mut numbers: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    let mut lengths = BTreeSet::new();
    for (key, _) in all.iter().flat_map(|own| &own.runs) {
        let key = shorten(key);
        lengths.insert(key.len());
        let next = numbers.len();
        numbers.entry(key).or_insert(next);
    }
    let one = lengths.len() > 1;
    move |key: &[usize]| if one { 0 } else { numbers.get(&shorten(key)).copied().unwrap_or(0) }
}

fn blocks(own: Runs, head: &impl Fn(&[usize]) -> usize) -> Vec<Block> {
    let block =
        |(key, indices): (Vec<usize>, Vec<usize>)| Block { head: head(&key), constant: own.constant.clone(), axis: own.axis, indices };
    own.runs.into_iter().map(block).collect()
}
