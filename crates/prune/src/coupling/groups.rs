//! From atoms and classes to groups, members and reasons.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pleach_onnx::NodeId;

use super::axes::{AtomId, Axis};
use super::rules::{SPATIAL, Trace};
use super::{Consumer, Coupling, Frozen, Group, GroupId, Member, Producer, TensorAxis, Units};

/// Most reasons told for one frozen part.
const MAX_REASONS: usize = 3;

/// A connected set of atoms.
#[derive(Default)]
struct Component {
    atoms: Vec<AtomId>,
    /// Unit of each class, numbered in the order of atoms.
    units: HashMap<usize, usize>,
}

/// Builds the result of a walk.
pub(super) fn collect(trace: Trace<'_>) -> Coupling {
    let components = components(&trace);
    let of_atom: HashMap<AtomId, usize> = components.iter().enumerate().flat_map(|(i, c)| c.atoms.iter().map(move |&a| (a, i))).collect();
    let touching = |axis: &Axis| -> BTreeSet<usize> { axis.atoms().filter_map(|a| of_atom.get(&a).copied()).collect() };
    let mut members: BTreeMap<usize, Vec<(String, usize, Axis)>> = BTreeMap::new();
    let mut constants: Vec<(&String, &Vec<Option<Axis>>)> = trace.constants.iter().collect();
    constants.sort_by_key(|(name, _)| *name);
    for (name, axes) in constants {
        for (axis, bound) in axes.iter().enumerate() {
            for component in bound.iter().flat_map(&touching) {
                members.entry(component).or_default().push((name.clone(), axis, bound.clone().unwrap_or_default()));
            }
        }
    }
    let mut first: HashMap<usize, NodeId> = HashMap::new();
    for made in &trace.made {
        for component in touching(&made.axis) {
            first.entry(component).or_insert(made.node);
        }
    }
    let weights: HashSet<&str> = trace.made.iter().map(|m| m.weight.as_str()).collect();
    let mut order: Vec<usize> = members.keys().copied().collect();
    order.sort_by_key(|c| (first.get(c).copied().unwrap_or(NodeId(usize::MAX)), *c));
    let mut coupling =
        Coupling { depthwise: trace.depthwise.iter().map(|d| d.0).collect(), reshapes: trace.reshapes.clone(), ..Coupling::default() };
    for index in order {
        let (Some(component), Some(members)) = (components.get(index), members.get(&index)) else { continue };
        let name = match first.get(&index).and_then(|&id| trace.model.node(id)) {
            Some(node) => node.label(),
            None => members.first().map(|m| m.0.clone()).unwrap_or_default(),
        };
        match reason(&trace, component, first.contains_key(&index)) {
            Some(reason) => {
                if reason == SPATIAL || !members.iter().any(|(name, ..)| weights.contains(name.as_str())) {
                    continue; // no channels: nothing anyone would ask to prune
                }
                let members = members.iter().map(|(name, axis, _)| (name.clone(), *axis)).collect();
                coupling.frozen.push(Frozen { name, reason, members });
            }
            None => {
                let id = GroupId(coupling.groups.len());
                coupling.groups.push(group(&trace, component, id, name, members));
            }
        }
    }
    coupling
}

/// Atoms connected through shared classes, with their units numbered.
fn components(trace: &Trace<'_>) -> Vec<Component> {
    let mut owner: HashMap<usize, usize> = HashMap::new(); // class to set
    let mut sets: Vec<usize> = Vec::new(); // parent of each set
    fn find(sets: &[usize], mut set: usize) -> usize {
        while let Some(&parent) = sets.get(set).filter(|&&p| p != set) {
            set = parent;
        }
        set
    }
    let atoms: Vec<AtomId> = trace.atoms.ids().collect();
    for (i, &atom) in atoms.iter().enumerate() {
        sets.push(i);
        for index in 0..trace.atoms.length(atom) {
            let other = *owner.entry(trace.atoms.class(atom, index)).or_insert(i);
            let (a, b) = (find(&sets, i), find(&sets, other));
            if let Some(parent) = sets.get_mut(a.max(b)) {
                *parent = a.min(b);
            }
        }
    }
    let mut components: BTreeMap<usize, Component> = BTreeMap::new();
    for (i, &atom) in atoms.iter().enumerate() {
        let component = components.entry(find(&sets, i)).or_default();
        component.atoms.push(atom);
        for index in 0..trace.atoms.length(atom) {
            let next = component.units.len();
            component.units.entry(trace.atoms.class(atom, index)).or_insert(next);
        }
    }
    components.into_values().collect()
}

/// Why a component is frozen, if it is.
fn reason(trace: &Trace<'_>, component: &Component, has_producer: bool) -> Option<String> {
    let mut reasons: Vec<&str> = Vec::new();
    for reason in component.atoms.iter().flat_map(|&atom| trace.atoms.reasons(atom)) {
        if !reasons.contains(&reason) && reasons.len() < MAX_REASONS {
            reasons.push(reason);
        }
    }
    if !reasons.is_empty() {
        return Some(reasons.join("; "));
    }
    if !has_producer {
        return Some("no layer makes it".to_owned());
    }
    (component.units.len() < 2).then(|| "it has a single channel".to_owned())
}

fn group(trace: &Trace<'_>, component: &Component, id: GroupId, name: String, members: &[(String, usize, Axis)]) -> Group {
    let units = |axis: &Axis| units(trace, component, axis);
    let members = members.iter().map(|(name, axis, bound)| Member {
        constant: name.clone(),
        axis: *axis,
        units: units(bound).unwrap_or(Units(vec![])),
    });
    let output = |id: NodeId| trace.model.node(id).and_then(|n| n.output(0)).unwrap_or_default().to_owned();
    let producers = trace.made.iter().filter_map(|made| {
        let (weight, bias) = (made.weight.clone(), made.bias.clone());
        Some(Producer { node: made.node, weight, axis: made.weight_axis, bias, output: output(made.node), units: units(&made.axis)? })
    });
    let consumers = trace.summed.iter().filter_map(|summed| {
        Some(Consumer {
            node: summed.node,
            weight: summed.weight.clone(),
            axis: summed.weight_axis,
            input: summed.input.clone(),
            input_axis: summed.input_axis,
            bias: summed.bias.clone(),
            output: output(summed.node),
            units: units(&summed.axis)?,
        })
    });
    let mut names: Vec<&String> = trace.tensors.keys().collect();
    names.sort();
    let tensors = names
        .into_iter()
        .flat_map(|name| trace.tensors.get(name).into_iter().flatten().enumerate().map(move |(axis, own)| (name, axis, own)));
    Group {
        id,
        name,
        size: component.units.len(),
        members: members.collect(),
        producers: producers.collect(),
        consumers: consumers.collect(),
        depthwise: trace.depthwise.iter().filter(|(_, axis)| units(axis).is_some()).map(|d| d.0).collect(),
        tensors: tensors.filter_map(|(name, axis, own)| Some(TensorAxis { tensor: name.clone(), axis, units: units(own)? })).collect(),
    }
}

/// Where a component's units lie on an axis; `None` when they do not.
fn units(trace: &Trace<'_>, component: &Component, axis: &Axis) -> Option<Units> {
    let mut units: Vec<Vec<usize>> = Vec::new();
    let mut offset = 0;
    for piece in &axis.0 {
        let length = trace.atoms.piece_length(piece);
        let mut inner = length;
        for &atom in piece {
            let own = trace.atoms.length(atom).max(1);
            inner /= own;
            let class = trace.atoms.class(atom, 0);
            if !component.units.contains_key(&class) {
                continue;
            }
            units.resize(component.units.len(), Vec::new());
            for outer in (0..length).step_by(own * inner.max(1)) {
                for index in 0..own {
                    let unit = component.units.get(&trace.atoms.class(atom, index)).and_then(|&u| units.get_mut(u));
                    if let Some(unit) = unit {
                        let start = offset + outer + index * inner;
                        unit.extend(start..start + inner);
                    }
                }
            }
        }
        offset += length;
    }
    for indices in &mut units {
        indices.sort_unstable();
        indices.dedup();
    }
    (!units.is_empty()).then_some(Units(units))
}
