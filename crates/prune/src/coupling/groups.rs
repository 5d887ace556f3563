//! From atoms and classes to groups, members and reasons.

use std::collections::{BTreeMap, HashMap};

use pleach_onnx::NodeId;

use super::axes::{AtomId, Atoms, Axis};
use super::rules::{Mask, SPATIAL, Trace};
use super::{
    Consumer, Contraction, Count, Coupling, Frozen, Group, GroupId, Indices, Member, Producer, Rotation, Scale, TensorAxis, Units, Zeros,
    rotation,
};

/// Most reasons told for one frozen part.
const MAX_REASONS: usize = 3;

/// Classes that lie on the same atoms equally often, so that they may change places.
struct Part {
    /// Classes, which are its units, in the order of atoms.
    size: usize,
    reason: Option<String>,
}

/// Where each class belongs.
pub(super) struct Parts {
    parts: Vec<Part>,
    /// Part and unit of each class.
    places: HashMap<usize, (usize, usize)>,
}

/// Builds the result of a walk.
pub(super) fn collect(trace: Trace<'_>) -> Coupling {
    let parts = Parts::of(&trace.atoms);
    let mut members: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
    let mut constants: Vec<(&String, &Vec<Option<Axis>>)> = trace.constants.iter().collect();
    constants.sort_by_key(|(name, _)| *name);
    for (name, axes) in constants {
        for (axis, bound) in axes.iter().enumerate().filter_map(|(i, bound)| Some((i, bound.as_ref()?))) {
            for (part, units) in parts.on(&trace.atoms, bound) {
                members.entry(part).or_default().push(Member { constant: name.clone(), axis, units });
            }
        }
    }
    let mut producers: BTreeMap<usize, Vec<Producer>> = BTreeMap::new();
    let output = |id: NodeId| trace.model.node(id).and_then(|n| n.output(0)).unwrap_or_default().to_owned();
    for made in &trace.made {
        for (part, units) in parts.on(&trace.atoms, &made.axis) {
            let (weight, bias, output) = (made.weight.clone(), made.bias.clone(), output(made.node));
            producers.entry(part).or_default().push(Producer { node: made.node, weight, axis: made.weight_axis, bias, output, units });
        }
    }
    let first = |part: usize| producers.get(&part).and_then(|made| made.first()).map(|made| made.node);
    let mut order: Vec<usize> = members.keys().copied().collect();
    order.sort_by_key(|&part| (first(part).unwrap_or(NodeId(usize::MAX)), part));
    let weights: std::collections::HashSet<&str> = trace.made.iter().map(|m| m.weight.as_str()).collect();
    let mut coupling = Coupling::default();
    let mut ids: HashMap<usize, GroupId> = HashMap::new();
    for index in order {
        let (Some(part), Some(members)) = (parts.parts.get(index), members.remove(&index)) else { continue };
        let name = match first(index).and_then(|id| trace.model.node(id)) {
            Some(node) => node.label(),
            None => members.first().map(|m| m.constant.clone()).unwrap_or_default(),
        };
        let made = first(index).is_some();
        let alone = || (made && part.size < 2).then(|| "it has a single channel".to_owned());
        let reason = part.reason.clone().or_else(alone);
        if let Some(reason) = reason.filter(|r| r != SPATIAL && members.iter().any(|m| weights.contains(m.constant.as_str()))) {
            tell(&mut coupling.frozen, name, reason, &members);
            continue;
        }
        if !made || part.reason.is_some() || part.size < 2 {
            continue; // no channels: nothing anyone would ask to prune
        }
        let id = GroupId(coupling.groups.len());
        ids.insert(index, id);
        coupling.groups.push(Group {
            id,
            name,
            size: part.size,
            members,
            producers: producers.get(&index).cloned().unwrap_or_default(),
            consumers: vec![],
            depthwise: vec![],
            contractions: vec![],
            rotation: Rotation::None,
            tensors: vec![],
        });
    }
    tell_opaque(&trace, &mut coupling.frozen);
    for (node, reason) in trace.closed.iter().filter_map(|(id, reason)| Some((trace.model.node(*id)?, reason))) {
        let constants =
            node.inputs().chain(node.captured()).filter_map(|name| Some((trace.root(name)?, trace.model.constant_dims(name)?.len())));
        let members = constants.flat_map(|(name, rank)| (0..rank).map(move |axis| (name.clone(), axis))).collect();
        coupling.frozen.push(Frozen { name: node.label(), reason: reason.clone(), members });
    }
    fill(&trace, &parts, &ids, &mut coupling);
    rotation::find(&trace, &parts, &ids, &mut coupling);
    coupling
}

/// Adds the axes of weights that meet an axis which is never cut, such as a graph input's.
fn tell_opaque(trace: &Trace<'_>, frozen: &mut Vec<Frozen>) {
    let mut weights: Vec<&str> = trace.summed.iter().map(|s| s.weight.as_str()).collect();
    weights.sort_unstable();
    weights.dedup();
    for weight in weights {
        for (axis, bound) in trace.constants.get(weight).into_iter().flatten().enumerate() {
            let opaque = bound.iter().flat_map(Axis::atoms).find_map(|atom| trace.atoms.opaque(atom));
            let Some(reason) = opaque.map(|reasons| reasons.collect::<Vec<_>>().join("; ")).filter(|r| r != SPATIAL) else { continue };
            match frozen.iter_mut().find(|f| f.reason == reason && f.members.iter().any(|(name, _)| name == weight)) {
                Some(known) => known.members.push((weight.to_owned(), axis)),
                None => frozen.push(Frozen { name: weight.to_owned(), reason, members: vec![(weight.to_owned(), axis)] }),
            }
        }
    }
}

/// Adds a frozen part, or its members to one of the same name and reason.
fn tell(frozen: &mut Vec<Frozen>, name: String, reason: String, members: &[Member]) {
    let places = members.iter().map(|m| (m.constant.clone(), m.axis));
    match frozen.iter_mut().find(|f| f.name == name && f.reason == reason) {
        Some(known) => {
            let new: Vec<_> = places.filter(|place| !known.members.contains(place)).collect();
            known.members.extend(new);
        }
        None => frozen.push(Frozen { name, reason, members: places.collect() }),
    }
}

/// Gives the groups all that lies on their units but for constants and producers.
fn fill(trace: &Trace<'_>, parts: &Parts, ids: &HashMap<usize, GroupId>, coupling: &mut Coupling) {
    let on = |axis: &Axis| -> Vec<(GroupId, Units)> {
        parts.on(&trace.atoms, axis).into_iter().filter_map(|(part, units)| Some((*ids.get(&part)?, units))).collect()
    };
    let output = |id: NodeId| trace.model.node(id).and_then(|n| n.output(0)).unwrap_or_default().to_owned();
    for summed in &trace.summed {
        for (id, units) in on(&summed.axis) {
            let Some(group) = coupling.groups.get_mut(id.0) else { continue };
            group.consumers.push(Consumer {
                node: summed.node,
                weight: summed.weight.clone(),
                axis: summed.weight_axis,
                input: summed.input.clone(),
                input_axis: summed.input_axis,
                bias: summed.bias.clone(),
                output: output(summed.node),
                units,
            });
        }
    }
    for contracted in &trace.contracted {
        for (id, _) in on(&contracted.left) {
            let zeros = contracted.masks.iter().filter_map(|mask| zeros(trace, mask, &|axis| on(axis).into_iter().find(|(i, _)| *i == id)));
            let contraction = Contraction { node: contracted.node, zeros: zeros.collect() };
            let Some(group) = coupling.groups.get_mut(id.0) else { continue };
            group.contractions.push(contraction);
        }
    }
    for (node, axis) in &trace.depthwise {
        for (id, _) in on(axis) {
            let Some(group) = coupling.groups.get_mut(id.0) else { continue };
            group.depthwise.push(*node);
        }
    }
    let mut names: Vec<(&String, &Vec<Axis>)> = trace.tensors.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    for (name, axes) in names {
        for (axis, own) in axes.iter().enumerate() {
            for (id, units) in on(own) {
                let Some(group) = coupling.groups.get_mut(id.0) else { continue };
                group.tensors.push(TensorAxis { tensor: name.clone(), axis, units });
            }
        }
    }
    for counted in &trace.counts {
        let groups = on(&counted.axis);
        coupling.counts.push(Count { node: counted.node, place: counted.place, index: counted.index, dense: counted.dense, groups });
    }
    coupling.scales = trace.scales.iter().map(|scale| Scale { node: scale.node, value: scale.value, groups: on(&scale.axis) }).collect();
    let indices =
        |(constant, axis): &(String, Axis)| Indices { constant: constant.clone(), length: trace.atoms.axis_length(axis), groups: on(axis) };
    coupling.indices = trace.indices.iter().map(indices).collect();
}

/// Where a group's units vanish when zeros stand there.
fn zeros(trace: &Trace<'_>, mask: &Mask, on: &dyn Fn(&Axis) -> Option<(GroupId, Units)>) -> Option<Zeros> {
    match mask {
        Mask::Input { node, input, axis } => {
            let name = trace.model.node(*node)?.input(*input)?;
            let axes = trace.tensors.get(name)?;
            let own = axes.get(*axis)?;
            let (length, inner) = (trace.atoms.axis_length(own), axes.len() - axis - 1);
            Some(Zeros::Input { node: *node, input: *input, length, inner, units: on(own)?.1 })
        }
        Mask::Constant { name, axis } => {
            let own = trace.constants.get(name)?.get(*axis)?.as_ref()?;
            Some(Zeros::Constant { name: name.clone(), axis: *axis, units: on(own)?.1 })
        }
    }
}

impl Parts {
    /// The part of a node, if it has one.
    pub(super) fn part(&self, atoms: &Atoms, node: usize) -> Option<usize> {
        self.places.get(&atoms.class(node)).map(|&(part, _)| part)
    }

    /// The unit of a part that a node is of.
    pub(super) fn unit(&self, atoms: &Atoms, node: usize, part: usize) -> Option<usize> {
        self.places.get(&atoms.class(node)).filter(|place| place.0 == part).map(|&(_, unit)| unit)
    }

    /// Number of units of a part.
    pub(super) fn size(&self, part: usize) -> usize {
        self.parts.get(part).map_or(0, |p| p.size)
    }

    fn of(atoms: &Atoms) -> Self {
        // How often each class stands in each atom, and the classes in the order of atoms.
        let mut signatures: HashMap<usize, Vec<(AtomId, usize)>> = HashMap::new();
        let mut order: Vec<usize> = Vec::new();
        for id in atoms.ids() {
            for &node in atoms.nodes(id).unwrap_or_default() {
                let class = atoms.class(node);
                let signature = signatures.entry(class).or_insert_with(|| {
                    order.push(class);
                    vec![]
                });
                match signature.last_mut().filter(|(last, _)| *last == id) {
                    Some((_, count)) => *count += 1,
                    None => signature.push((id, 1)),
                }
            }
        }
        let mut reasons: HashMap<usize, Vec<&str>> = HashMap::new();
        for (node, own) in atoms.reasons() {
            let told = reasons.entry(atoms.class(node)).or_default();
            for reason in own {
                if told.len() < MAX_REASONS && !told.contains(&reason) {
                    told.push(reason);
                }
            }
        }
        type Kind<'a> = (&'a [(AtomId, usize)], Option<&'a [&'a str]>);
        let mut numbers: HashMap<Kind<'_>, usize> = HashMap::new();
        let (mut parts, mut places): (Vec<Part>, _) = (vec![], HashMap::new());
        for class in &order {
            let Some(signature) = signatures.get(class) else { continue };
            let why = reasons.get(class).map(Vec::as_slice);
            let number = *numbers.entry((signature, why)).or_insert_with(|| {
                parts.push(Part { size: 0, reason: why.map(|r| r.join("; ")) });
                parts.len() - 1
            });
            let Some(part) = parts.get_mut(number) else { continue };
            places.insert(*class, (number, part.size));
            part.size += 1;
        }
        Self { parts, places }
    }

    /// The parts on an axis, with the places of their units.
    fn on(&self, atoms: &Atoms, axis: &Axis) -> BTreeMap<usize, Units> {
        let mut found: BTreeMap<usize, Vec<Vec<usize>>> = BTreeMap::new();
        let mut offset = 0;
        for piece in &axis.0 {
            let length = atoms.piece_length(piece);
            let mut inner = length;
            for &id in piece {
                let own = atoms.length(id).max(1);
                inner /= own;
                for (index, &node) in atoms.nodes(id).unwrap_or_default().iter().enumerate() {
                    let Some(&(part, unit)) = self.places.get(&atoms.class(node)) else { continue };
                    let size = self.parts.get(part).map_or(0, |p| p.size);
                    let units = found.entry(part).or_insert_with(|| vec![vec![]; size]);
                    let Some(indices) = units.get_mut(unit) else { continue };
                    for outer in (0..length).step_by(own * inner.max(1)) {
                        let start = offset + outer + index * inner;
                        indices.extend(start..start + inner);
                    }
                }
            }
            offset += length;
        }
        let sorted = |mut units: Vec<Vec<usize>>| {
            for indices in &mut units {
                indices.sort_unstable();
                indices.dedup();
            }
            Units(units)
        };
        found.into_iter().map(|(part, units)| (part, sorted(units))).collect()
    }
}
