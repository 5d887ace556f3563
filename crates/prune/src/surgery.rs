//! Cuts a graph: removes units, or masks or permutes them to prove that a cut is exact.
//!
//! All three change constants, numbers that count channels and recorded shapes through one [`Patch`]; nodes,
//! their order and names stay, so a [`NodeId`] means the same node before and after.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use pleach_onnx::builder::attribute;
use pleach_onnx::proto::TensorProto;
use pleach_onnx::tensor::{encode_ints, select, zero};
use pleach_onnx::{Model, Node, NodeId, OnnxError, Patch, Shapes};
use thiserror::Error;

use crate::coupling::{Coupling, Group, GroupId, Keep, Place, Units, complement};

/// Why a cut was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SurgeryError {
    /// A group that was not found in the model.
    #[error("group {0} does not exist")]
    NoSuchGroup(usize),
    /// Units that are no cut of the group.
    #[error("group `{group}` of {size} units: {reason}")]
    Units {
        /// Its name.
        group: String,
        /// Its size.
        size: usize,
        /// What is wrong with the units.
        reason: String,
    },
    /// A constant or shape the coupling names and the model does not have: they do not belong together.
    #[error("the model has no `{0}`: the coupling is of another model")]
    Foreign(String),
    /// The changed graph does not validate.
    #[error("the cut graph is not valid")]
    Graph(#[from] OnnxError),
}

/// Removes every unit that `keep` does not name from the groups it names. With nothing to remove, the result is the model itself.
///
/// # Errors
/// [`SurgeryError`] when `keep` names no cut of these groups.
pub fn prune(model: &Model, coupling: &Coupling, shapes: &Shapes, keep: &Keep) -> Result<Model, SurgeryError> {
    let cut = cut_groups(coupling, keep)?;
    let mut patch = Patch::new();
    // Everything that moves along an axis, by constant and axis.
    let mut gone: BTreeMap<(&str, usize), Vec<usize>> = BTreeMap::new();
    let mut shorter: BTreeMap<(&str, usize), Vec<usize>> = BTreeMap::new();
    for (group, units) in &cut {
        for member in &group.members {
            gone.entry((&member.constant, member.axis)).or_default().extend(member.units.indices(units));
        }
        for tensor in &group.tensors {
            shorter.entry((&tensor.tensor, tensor.axis)).or_default().extend(tensor.units.indices(units));
        }
    }
    let mut constants = reindexed(model, coupling, &cut)?;
    for ((name, axis), mut removed) in gone {
        removed.sort_unstable();
        removed.dedup();
        let tensor = match constants.remove(name) {
            Some(tensor) => tensor,
            None => model.constant_tensor(name).ok_or_else(|| SurgeryError::Foreign(name.to_owned()))?,
        };
        let length = tensor.dims.get(axis).and_then(|&d| usize::try_from(d).ok()).unwrap_or(0);
        constants.insert(name, select(&tensor, axis, &complement(length, &removed))?);
    }
    for tensor in constants.into_values() {
        patch.set_constant(tensor);
    }
    for ((tensor, axis), removed) in &mut shorter {
        removed.sort_unstable();
        removed.dedup();
        let dense = shapes.axes(tensor).and_then(|axes| axes.get(*axis)).ok_or_else(|| SurgeryError::Foreign((*tensor).to_owned()))?;
        patch.set_axis_length(tensor, *axis, dense.at(1).saturating_sub(removed.len()));
    }
    recount(&mut patch, model, coupling, &cut)?;
    Ok(model.apply(&patch)?)
}

/// The dense graph with the weights of consumers zeroed where `keep` removes a unit: it computes what [`prune`] computes.
///
/// # Errors
/// As [`prune`].
pub fn mask(model: &Model, coupling: &Coupling, keep: &Keep) -> Result<Model, SurgeryError> {
    let mut constants = BTreeMap::new();
    for (group, gone) in cut_groups(coupling, keep)? {
        for consumer in &group.consumers {
            let name = consumer.weight.as_str();
            let tensor = match constants.remove(name) {
                Some(tensor) => tensor,
                None => model.constant_tensor(name).ok_or_else(|| SurgeryError::Foreign(name.to_owned()))?,
            };
            constants.insert(name, zero(&tensor, consumer.axis, &consumer.units.indices(&gone))?);
        }
    }
    let mut patch = Patch::new();
    for tensor in constants.into_values() {
        patch.set_constant(tensor);
    }
    Ok(model.apply(&patch)?)
}

/// Reorders the units of a group: unit `u` of the result is unit `order[u]` of the model. Outputs stay what they were.
///
/// # Errors
/// [`SurgeryError::Units`] when `order` is no permutation.
pub fn permute(model: &Model, coupling: &Coupling, id: GroupId, order: &[usize]) -> Result<Model, SurgeryError> {
    let group = coupling.group(id).ok_or(SurgeryError::NoSuchGroup(id.0))?;
    let wrong = |reason: &str| SurgeryError::Units { group: group.name.clone(), size: group.size, reason: reason.to_owned() };
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..group.size) {
        return Err(wrong("the order is no permutation"));
    }
    let mut constants = BTreeMap::new();
    for member in &group.members {
        let name = member.constant.as_str();
        let tensor = match constants.remove(name) {
            Some(tensor) => tensor,
            None => model.constant_tensor(name).ok_or_else(|| SurgeryError::Foreign(name.to_owned()))?,
        };
        let length = tensor.dims.get(member.axis).and_then(|&d| usize::try_from(d).ok()).unwrap_or(0);
        let mut indices: Vec<usize> = (0..length).collect();
        for (unit, &old) in order.iter().enumerate() {
            for (&to, &from) in member.units.of(unit).iter().zip(member.units.of(old)) {
                if let Some(slot) = indices.get_mut(to) {
                    *slot = from;
                }
            }
        }
        constants.insert(name, select(&tensor, member.axis, &indices)?);
    }
    let mut patch = Patch::new();
    for tensor in constants.into_values() {
        patch.set_constant(tensor);
    }
    Ok(model.apply(&patch)?)
}

/// The groups of a cut with the units they lose.
fn cut_groups<'a>(coupling: &'a Coupling, keep: &Keep) -> Result<Vec<(&'a Group, Vec<usize>)>, SurgeryError> {
    let mut cut = Vec::new();
    for (id, kept) in keep {
        let group = coupling.group(*id).ok_or(SurgeryError::NoSuchGroup(id.0))?;
        let wrong = |reason: String| SurgeryError::Units { group: group.name.clone(), size: group.size, reason };
        if kept.is_empty() {
            return Err(wrong("none is kept".to_owned()));
        }
        if let Some(&last) = kept.last().filter(|&&last| last >= group.size) {
            return Err(wrong(format!("unit {last} does not exist")));
        }
        if !kept.is_sorted_by(|a, b| a < b) {
            return Err(wrong("kept units are not sorted, or repeat".to_owned()));
        }
        let gone = complement(group.size, kept);
        if !gone.is_empty() {
            cut.push((group, gone));
        }
    }
    Ok(cut)
}

/// Indices that a cut removes from an axis, ascending, from the places of the groups' units on it.
fn removed_on<'a>(cut: &[(&Group, Vec<usize>)], places: impl Iterator<Item = (GroupId, &'a Units)>) -> Vec<usize> {
    let mut removed: Vec<usize> = Vec::new();
    for (id, units) in places {
        if let Some((_, gone)) = cut.iter().find(|(group, _)| group.id == id) {
            removed.extend(units.indices(gone));
        }
    }
    removed.sort_unstable();
    removed.dedup();
    removed
}

/// Lets the numbers that count channels follow.
fn recount(patch: &mut Patch, model: &Model, coupling: &Coupling, cut: &[(&Group, Vec<usize>)]) -> Result<(), SurgeryError> {
    let mut lists: BTreeMap<(NodeId, Place), Vec<i64>> = BTreeMap::new();
    for count in &coupling.counts {
        let less = removed_on(cut, count.groups.iter().map(|(id, units)| (*id, units))).len();
        if less == 0 {
            continue;
        }
        let node = model.node(count.node).ok_or(OnnxError::NoSuchNode(count.node))?;
        let list = match lists.entry((count.node, count.place)) {
            Entry::Occupied(list) => list.into_mut(),
            Entry::Vacant(place) => place.insert(numbers(model, node, count.place)?),
        };
        if let Some(slot) = list.get_mut(count.index) {
            *slot = count.dense - i64::try_from(less).unwrap_or(i64::MAX);
        }
    }
    for ((id, place), list) in lists {
        match place {
            Place::Attribute(name) => {
                let scalar = model.node(id).and_then(|node| node.int(name)).and(list.first().copied());
                patch.set_attribute(id, scalar.map_or_else(|| attribute(name, list.clone()), |value| attribute(name, value)));
            }
            Place::Input(slot) => {
                let input = model.node(id).and_then(|node| node.input(slot)).unwrap_or_default();
                // It may serve other nodes too: this node gets its own.
                let name = if model.consumers(input).len() == 1 { input.to_owned() } else { model.free_name(&format!("{input}.{}", id.0)) };
                patch.set_ints(&name, &[list.len()], &list)?;
                patch.set_input(id, slot, &name);
            }
        }
    }
    Ok(())
}

/// The integers that stand at a place, one for a single number.
fn numbers(model: &Model, node: Node<'_>, place: Place) -> Result<Vec<i64>, SurgeryError> {
    match place {
        Place::Attribute(name) => Ok(node.int(name).map_or_else(|| node.ints(name).unwrap_or_default().to_vec(), |value| vec![value])),
        Place::Input(slot) => {
            let name = node.input(slot).unwrap_or_default();
            model.ints(name).ok_or_else(|| SurgeryError::Foreign(name.to_owned()))
        }
    }
}

/// Constants whose values are indices, by name, with the indices counted anew.
fn reindexed<'a>(
    model: &Model,
    coupling: &'a Coupling,
    cut: &[(&Group, Vec<usize>)],
) -> Result<BTreeMap<&'a str, TensorProto>, SurgeryError> {
    let mut places: BTreeMap<&str, Vec<(GroupId, &Units)>> = BTreeMap::new();
    for (name, id, units) in &coupling.indices {
        places.entry(name).or_default().push((*id, units));
    }
    let mut constants = BTreeMap::new();
    for (name, groups) in places {
        let removed = removed_on(cut, groups.into_iter());
        if !removed.is_empty() {
            let tensor = model.constant_tensor(name).ok_or_else(|| SurgeryError::Foreign(name.to_owned()))?;
            constants.insert(name, reindex(model, &tensor, &removed)?);
        }
    }
    Ok(constants)
}

/// A list of indices after the removal of some (ascending) of the axis they count.
fn reindex(model: &Model, tensor: &TensorProto, removed: &[usize]) -> Result<TensorProto, SurgeryError> {
    let foreign = || SurgeryError::Foreign(tensor.name().to_owned());
    let below = |index: i64| index - i64::try_from(removed.partition_point(|&r| (r as i64) < index)).unwrap_or(0);
    let indices: Vec<i64> = model.ints(tensor.name()).ok_or_else(foreign)?.into_iter().map(below).collect();
    let dims: Vec<usize> = tensor.dims.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
    Ok(encode_ints(tensor.name(), &dims, &indices)?)
}
