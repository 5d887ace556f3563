//! Times of transformers, read off whole networks.
//!
//! What a transformer takes is not the sum of its layers: projections merge, attention costs what its heads and their dims cost, and
//! sums and normalisations ride along. But its groups hardly share kernels and repeat from block to block. So groups of one *role* (same
//! size, same places) are narrowed together, whole networks are timed, and each group is credited an equal share of what that saved. Of
//! groups that lie on one axis, as heads and their dims do, the savings of the inner are scaled by what is left of the outer.

use super::grid::dense;
use crate::coupling::{Group, Rotation};
use crate::levels::{Place, Site};
use crate::network::{Kind, Layer, Network};
use crate::solve::{Choice, Cost, Term};

/// Groups by role, and the whole networks that tell their times.
pub(super) struct Roles {
    /// Sites of each role.
    roles: Vec<Vec<usize>>,
    /// For each site the site whose units lie outside its own on the same axes.
    outer: Vec<Option<usize>>,
    /// The dense choice first, then for each role its levels but the dense one.
    pub(super) choices: Vec<Choice>,
}

impl Roles {
    /// The roles of a network with attention in which only linear layers are narrowed; `None` for all others, which kernels describe
    /// better.
    pub(super) fn of(network: &Network, sites: &[Site]) -> Option<Self> {
        let groups: Vec<&Group> = (sites.iter())
            .map(|site| match site.place {
                Place::Group(group) => network.coupling.groups.get(group),
                Place::Layer(_) => None,
            })
            .collect::<Option<_>>()?;
        let narrowed = |l: &&Layer| !network.input_groups(l).is_empty() || !network.output_groups(l).is_empty();
        let linear = network.layers.iter().filter(narrowed).all(|l| matches!(l.kind, Kind::Linear { .. }));
        if !linear || groups.iter().all(|g| g.rotation == Rotation::None) {
            return None;
        }
        let mut roles: Vec<Vec<usize>> = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            match roles.iter_mut().find(|role| role.first().is_some_and(|&other| alike(network, groups[other], group))) {
                Some(role) => role.push(index),
                None => roles.push(vec![index]),
            }
        }
        let mut choices = vec![dense(sites)];
        for role in &roles {
            let levels = role.first().map_or(0, |&site| sites[site].levels.len().saturating_sub(1));
            for level in 0..levels {
                let mut choice = dense(sites);
                role.iter().for_each(|&site| choice[site] = level);
                choices.push(choice);
            }
        }
        let outer = |inner: &Group| groups.iter().position(|other| other.rotation == Rotation::None && surrounds(other, inner));
        let outer = groups.iter().map(|g| (g.rotation != Rotation::None).then(|| outer(g)).flatten()).collect();
        Some(Self { roles, outer, choices })
    }

    /// Time as a function of the levels, from that of each choice.
    pub(super) fn cost(&self, sites: &[Site], times: &[f64]) -> Cost {
        let constant = times.first().copied().unwrap_or(0.0);
        let mut savings: Vec<Vec<f64>> = sites.iter().map(|s| vec![0.0; s.levels.len()]).collect();
        let mut next = 1;
        for role in &self.roles {
            let levels = role.first().map_or(0, |&site| sites[site].levels.len().saturating_sub(1));
            let found: Vec<f64> =
                (0..levels).map(|l| times.get(next + l).map_or(0.0, |t| (constant - t) / role.len().max(1) as f64)).collect();
            next += levels;
            role.iter().for_each(|&site| savings[site][..levels].copy_from_slice(&found));
        }
        let term = |site: usize| match self.outer[site] {
            None => Term { sites: vec![site], table: savings[site].iter().map(|s| -s).collect() },
            Some(outer) => {
                let share = |l: usize| sites[outer].left(sites[outer].levels[l]) as f64 / sites[outer].size.max(1) as f64;
                let row = |l: usize| savings[site].iter().map(move |s| -s * share(l));
                Term { sites: vec![outer, site], table: (0..sites[outer].levels.len()).flat_map(row).collect() }
            }
        };
        Cost { constant, terms: (0..sites.len()).map(term).collect() }
    }
}

/// Whether two groups lie on constants of the same shapes, in the same way.
fn alike(network: &Network, a: &Group, b: &Group) -> bool {
    let places = |group: &Group| {
        let mut places: Vec<_> = (group.members.iter())
            .map(|m| (network.model.constant_dims(&m.constant), m.axis, m.units.iter().map(<[usize]>::len).sum::<usize>()))
            .collect();
        places.sort();
        places
    };
    a.size == b.size && std::mem::discriminant(&a.rotation) == std::mem::discriminant(&b.rotation) && places(a) == places(b)
}

/// Whether two groups share an axis of a constant.
fn surrounds(outer: &Group, inner: &Group) -> bool {
    outer.members.iter().any(|m| inner.members.iter().any(|n| m.constant == n.constant && m.axis == n.axis && m.units != n.units))
}
