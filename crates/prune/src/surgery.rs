//! Cuts a graph: removes units, or masks or permutes them to prove that a cut is exact.
//!
//! All three change constants, `group` attributes, literal Reshape targets and recorded shapes through one [`Patch`]; nodes,
//! their order and names stay, so a [`NodeId`] means the same node before and after.

use std::collections::BTreeMap;

use pleach_onnx::builder::attribute;
use pleach_onnx::tensor::{select, zero};
use pleach_onnx::{Model, NodeId, OnnxError, Patch, Shapes};
use thiserror::Error;

use crate::coupling::{Coupling, Group, GroupId, Keep, complement};

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
    let mut constants = BTreeMap::new();
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
    let removed = |tensor: &str, axis: usize| shorter.get(&(tensor, axis)).map_or(0, Vec::len);
    for &id in &coupling.depthwise {
        regroup(&mut patch, model, id, &removed)?;
    }
    for &id in &coupling.reshapes {
        reshape(&mut patch, model, id, &removed)?;
    }
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
/// [`SurgeryError::Units`] when `order` is no permutation, or moves a unit to a place that lies on other axes.
pub fn permute(model: &Model, coupling: &Coupling, id: GroupId, order: &[usize]) -> Result<Model, SurgeryError> {
    let group = coupling.group(id).ok_or(SurgeryError::NoSuchGroup(id.0))?;
    let wrong = |reason: &str| SurgeryError::Units { group: group.name.clone(), size: group.size, reason: reason.to_owned() };
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..group.size) {
        return Err(wrong("the order is no permutation"));
    }
    let parts = group.parts();
    let part = |unit: usize| parts.iter().position(|part| part.binary_search(&unit).is_ok());
    if order.iter().enumerate().any(|(u, &old)| part(u) != part(old)) {
        return Err(wrong("the order moves a unit to a place that lies on other axes"));
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
        if let Some(axis) = emptied(group, kept) {
            return Err(wrong(format!("nothing would be left of `{axis}`")));
        }
        let gone = complement(group.size, kept);
        if !gone.is_empty() {
            cut.push((group, gone));
        }
    }
    Ok(cut)
}

/// An axis of the group on which no kept unit lies although it holds some.
fn emptied<'a>(group: &'a Group, kept: &[usize]) -> Option<&'a str> {
    let members = group.members.iter().map(|m| (m.constant.as_str(), &m.units));
    let tensors = group.tensors.iter().map(|t| (t.tensor.as_str(), &t.units));
    members.chain(tensors).find(|(_, units)| kept.iter().all(|&unit| units.of(unit).is_empty())).map(|(name, _)| name)
}

/// Sets a depthwise convolution's `group` to its input channels.
fn regroup(patch: &mut Patch, model: &Model, id: NodeId, removed: &impl Fn(&str, usize) -> usize) -> Result<(), SurgeryError> {
    let node = model.node(id).ok_or(OnnxError::NoSuchNode(id))?;
    let gone = removed(node.input(0).unwrap_or_default(), 1);
    if gone > 0 {
        let channels = node.int("group").unwrap_or(1) - i64::try_from(gone).unwrap_or(0);
        patch.set_attribute(id, attribute("group", channels));
    }
    Ok(())
}

/// Rewrites the literal lengths of a Reshape's target; 0 (as the input) and -1 (whatever is left) stay.
fn reshape(patch: &mut Patch, model: &Model, id: NodeId, removed: &impl Fn(&str, usize) -> usize) -> Result<(), SurgeryError> {
    let node = model.node(id).ok_or(OnnxError::NoSuchNode(id))?;
    let (Some(target), Some(output)) = (node.input(1), node.output(0)) else { return Ok(()) };
    let old = model.ints(target).ok_or_else(|| SurgeryError::Foreign(target.to_owned()))?;
    let less =
        |(axis, &length): (usize, &i64)| if length > 0 { length - i64::try_from(removed(output, axis)).unwrap_or(0) } else { length };
    let new: Vec<i64> = old.iter().enumerate().map(less).collect();
    if new != old {
        // The target may serve other nodes too: this node gets its own.
        let name = if model.consumers(target).len() == 1 { target.to_owned() } else { model.free_name(&format!("{output}.shape")) };
        patch.set_ints(&name, &[new.len()], &new)?;
        patch.set_input(id, 1, &name);
    }
    Ok(())
}
