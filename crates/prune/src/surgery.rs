//! Cuts a graph: removes units, or masks or permutes them to prove that a cut is exact.
//!
//! All three change constants, numbers that count channels and recorded shapes through one [`Patch`]; nodes,
//! their order and names stay, so a [`NodeId`] means the same node before and after.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use pleach_onnx::builder::{attribute, node};
use pleach_onnx::proto::TensorProto;
use pleach_onnx::proto::tensor_proto::DataType;
use pleach_onnx::tensor::{encode_floats, encode_ints, select, zero};
use pleach_onnx::{Model, Node, NodeId, OnnxError, Patch, Shapes};
use thiserror::Error;

use crate::coupling::{Block, Coupling, Group, GroupId, Indices, Keep, Place, Units, Zeros, complement};

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
    for scale in &coupling.scales {
        if !removed_on(&cut, scale.groups.iter().map(|(id, units)| (*id, units))).is_empty() {
            patch.set_attribute(scale.node, attribute("scale", scale.value));
        }
    }
    Ok(model.apply(&patch)?)
}

/// The dense graph with zeros where something reads a unit that `keep` removes: in the weights of consumers, and in one factor of
/// products of activations. It computes what [`prune`] computes.
///
/// # Errors
/// As [`prune`].
pub fn mask(model: &Model, coupling: &Coupling, keep: &Keep) -> Result<Model, SurgeryError> {
    let mut constants = BTreeMap::new();
    let mut inputs: BTreeMap<(NodeId, usize), Vec<TensorProto>> = BTreeMap::new();
    for (group, gone) in cut_groups(coupling, keep)? {
        for consumer in &group.consumers {
            zero_in(&mut constants, model, &consumer.weight, consumer.axis, &consumer.units.indices(&gone))?;
        }
        for zeros in group.contractions.iter().flat_map(|c| &c.zeros) {
            match zeros {
                Zeros::Constant { name, axis, units } => zero_in(&mut constants, model, name, *axis, &units.indices(&gone))?,
                Zeros::Input { node, input, length, inner, units } => {
                    let factor = factor(model, group, *length, *inner, &units.indices(&gone))?;
                    inputs.entry((*node, *input)).or_default().push(factor);
                }
            }
        }
    }
    let mut patch = Patch::new();
    for tensor in constants.into_values() {
        patch.set_constant(tensor);
    }
    for ((id, input), factors) in inputs {
        let mut read = model.node(id).and_then(|node| node.input(input)).ok_or(OnnxError::NoSuchNode(id))?.to_owned();
        for (i, factor) in factors.into_iter().enumerate() {
            let name = model.free_name(&format!("mask.{}.{input}.{i}", id.0));
            patch.set_constant(TensorProto { name: Some(format!("{name}.factor")), ..factor });
            patch.insert_before(id, node("Mul", &name, &[&read, &format!("{name}.factor")], &name, vec![]));
            read = name;
        }
        patch.set_input(id, input, &read);
    }
    Ok(model.apply(&patch)?)
}

/// Zeros a constant at the given indices of an axis, on top of what was changed in it before.
fn zero_in<'a>(
    constants: &mut BTreeMap<&'a str, TensorProto>,
    model: &Model,
    name: &'a str,
    axis: usize,
    indices: &[usize],
) -> Result<(), SurgeryError> {
    let tensor = match constants.remove(name) {
        Some(tensor) => tensor,
        None => model.constant_tensor(name).ok_or_else(|| SurgeryError::Foreign(name.to_owned()))?,
    };
    constants.insert(name, zero(&tensor, axis, indices)?);
    Ok(())
}

/// A factor for an axis of `length` with `inner` axes behind it: 0 at the given indices, 1 elsewhere, in the group's own type.
fn factor(model: &Model, group: &Group, length: usize, inner: usize, indices: &[usize]) -> Result<TensorProto, SurgeryError> {
    let types = group.members.iter().filter_map(|m| DataType::try_from(model.constant_proto(&m.constant)?.data_type()).ok());
    let floats = [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double];
    let data_type = types.into_iter().find(|t| floats.contains(t)).unwrap_or(DataType::Float);
    let values: Vec<f32> = (0..length).map(|i| if indices.binary_search(&i).is_ok() { 0.0 } else { 1.0 }).collect();
    let dims: Vec<usize> = std::iter::once(length).chain(std::iter::repeat_n(1, inner)).collect();
    Ok(encode_floats("factor", &dims, &values, data_type)?)
}

/// Applies a matrix to each block of a [`Rotation`](crate::coupling::Rotation): `matrices[head]`, row-major, of as many rows and columns as the block has
/// units. The slice at unit `u` becomes the sum over `v` of `matrix[v][u]` times the slice at `v`.
///
/// # Errors
/// [`SurgeryError::Foreign`] when a block is not of this model or its head has no matrix.
pub fn change_basis(model: &Model, blocks: &[Block], matrices: &[Vec<f64>]) -> Result<Model, SurgeryError> {
    let mut constants: BTreeMap<&str, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for block in blocks {
        let foreign = || SurgeryError::Foreign(block.constant.clone());
        let (dims, values) = match constants.remove(block.constant.as_str()) {
            Some(own) => own,
            None => model.floats(&block.constant).ok_or_else(foreign)?,
        };
        let n = block.indices.len();
        let matrix = matrices.get(block.head).filter(|m| m.len() == n * n).ok_or_else(foreign)?;
        let (axis, inner) = (*dims.get(block.axis).ok_or_else(foreign)?, dims.iter().skip(block.axis + 1).product::<usize>());
        let mut changed = values.clone();
        for outer in 0..values.len() / (axis * inner).max(1) {
            let at = |unit: usize, i: usize| outer * axis * inner + unit * inner + i;
            for (u, &to) in block.indices.iter().enumerate() {
                for i in 0..inner {
                    let term = |(v, &from): (usize, &usize)| Some(matrix.get(v * n + u)? * f64::from(*values.get(at(from, i))?));
                    let sum: f64 = block.indices.iter().enumerate().filter_map(term).sum();
                    *changed.get_mut(at(to, i)).ok_or_else(foreign)? = sum as f32;
                }
            }
        }
        constants.insert(&block.constant, (dims, changed));
    }
    let mut patch = Patch::new();
    for (name, (dims, values)) in constants {
        patch.set_floats(model, name, &dims, &values)?;
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
    // What an index picks moves with it: lists of indices stay as they are.
    let stays = |name: &str| coupling.indices.iter().any(|indices| indices.constant == name);
    for member in group.members.iter().filter(|member| !stays(&member.constant)) {
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
            Entry::Vacant(place) => {
                let own = numbers(model, node, count.place)?;
                // An attribute that is left out has the dense lengths.
                let dense = || coupling.counts.iter().filter(|c| (c.node, c.place) == (count.node, count.place)).map(|c| c.dense).collect();
                place.insert(if own.is_empty() { dense() } else { own })
            }
        };
        if let Some(slot) = list.get_mut(count.index) {
            *slot = count.dense - count.dense.signum() * i64::try_from(less).unwrap_or(i64::MAX);
        }
    }
    for ((id, place), list) in lists {
        match place {
            Place::Attribute(name) => {
                let listed = list.len() > 1 || model.node(id).is_some_and(|node| node.ints(name).is_some_and(|own| !own.is_empty()));
                let value = list.first().copied().filter(|_| !listed);
                patch.set_attribute(id, value.map_or_else(|| attribute(name, list.clone()), |value| attribute(name, value)));
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
        Place::Attribute(name) => {
            let list = node.ints(name).filter(|list| !list.is_empty()).map(<[i64]>::to_vec);
            Ok(list.unwrap_or_else(|| node.attribute(name).and_then(|_| node.int(name)).into_iter().collect()))
        }
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
    let mut constants = BTreeMap::new();
    for Indices { constant, length, groups } in &coupling.indices {
        let removed = removed_on(cut, groups.iter().map(|(id, units)| (*id, units)));
        if !removed.is_empty() {
            let tensor = model.constant_tensor(constant).ok_or_else(|| SurgeryError::Foreign(constant.clone()))?;
            constants.insert(constant.as_str(), reindex(model, &tensor, *length, &removed)?);
        }
    }
    Ok(constants)
}

/// A list of indices into an axis of `length` after the removal of some (ascending) of it.
fn reindex(model: &Model, tensor: &TensorProto, length: usize, removed: &[usize]) -> Result<TensorProto, SurgeryError> {
    let foreign = || SurgeryError::Foreign(tensor.name().to_owned());
    let below = |index: i64| {
        let index = if index < 0 { index + length as i64 } else { index };
        index - i64::try_from(removed.partition_point(|&r| (r as i64) < index)).unwrap_or(0)
    };
    let indices: Vec<i64> = model.ints(tensor.name()).ok_or_else(foreign)?.into_iter().map(below).collect();
    let dims: Vec<usize> = tensor.dims.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
    Ok(encode_ints(tensor.name(), &dims, &indices)?)
}
