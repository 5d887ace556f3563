//! Levels: what may become of a group or of a layer, as the device's measured kernels favour it.

use std::collections::{BTreeMap, BTreeSet};

use crate::coupling::{Group, Keep, Producer};
use crate::criteria::kept;
use crate::flat;
use crate::lowrank::{Rank, Split};
use crate::network::{Kind, Network};
use crate::solve::{Choice, Cost, Problem, Term};

/// Most levels of one group; wider groups take coarser multiples.
const MOST: usize = 10;
/// Fewest levels of a group that only matrix products make.
const LEAST: usize = 4;
/// What may be left of the least width of a large group that only matrix products make: one part in so many.
const LITTLE: [usize; 2] = [4, 2];
/// Most ranks of one layer, each way to split it.
const MOST_RANKS: usize = 4;
/// Share of a layer's work at which its factors are worth timing.
const WORTH: f64 = 0.8;

/// What becomes of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Units that narrowed groups keep.
    pub(crate) keep: Keep,
    /// Ranks of the layers that become two, by place in the network.
    pub(crate) ranks: BTreeMap<usize, Rank>,
    /// Layers that put out a constant, by place in the network.
    pub(crate) flat: BTreeSet<usize>,
}

/// Where something is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A coupling group, by number.
    Group(usize),
    /// A layer, by place in the network.
    Layer(usize),
}

/// What is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Everything stays.
    Keep,
    /// The group keeps so many units.
    Width(usize),
    /// The layer becomes two.
    Rank(Rank),
    /// A constant takes the place of what reads the group, and everything before it goes.
    Flat,
}

/// A place and its levels, the least first, the dense one last.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Site {
    pub(crate) place: Place,
    pub(crate) levels: Vec<Level>,
    /// Units of the group, or outputs of the layer.
    pub(crate) size: usize,
}

impl Site {
    /// Units or channels that a level leaves.
    pub(crate) fn left(&self, level: Level) -> usize {
        match level {
            Level::Keep => self.size,
            Level::Width(left) => left,
            Level::Rank(rank) => rank.channels,
            Level::Flat => 0,
        }
    }
}

/// All places of a network where something may be chosen on a device that favours multiples of `step`: its groups, by number, and
/// behind them the layers that are worth factoring.
pub(crate) fn sites(network: &Network, step: usize) -> Vec<Site> {
    let groups = network.coupling.groups.iter().enumerate().map(|(place, group)| {
        let level = |w: usize| if w < group.size { Level::Width(w) } else { Level::Keep };
        let flat = flat::readers(network, group).map(|_| Level::Flat);
        let levels = flat.into_iter().chain(own_widths(network, group, step).into_iter().map(level)).collect();
        Site { place: Place::Group(place), levels, size: group.size }
    });
    let layers = (0..network.layers.len()).filter_map(|place| {
        let mut levels: Vec<Level> = ranks(network, place, step).into_iter().map(Level::Rank).collect();
        levels.push(Level::Keep);
        let size = network.layers[place].outputs;
        (levels.len() > 1).then_some(Site { place: Place::Layer(place), levels, size })
    });
    groups.chain(layers).collect()
}

/// The widths of a group. Kernels of matrix products hardly mind odd widths, so small groups of theirs, heads and their dims, are cut
/// more finely, and of large ones, as those of feed-forward layers, little may be left.
fn own_widths(network: &Network, group: &Group, step: usize) -> Vec<usize> {
    let linear = |p: &Producer| network.layers.iter().any(|l| l.node == p.node && matches!(l.kind, Kind::Linear { .. }));
    if !group.producers.iter().all(linear) {
        return widths(group.size, step);
    }
    let step = step.min(group.size.div_ceil(LEAST)).max(1);
    let mut all = widths(group.size, step);
    let least = all.first().copied().unwrap_or(0);
    all.extend(LITTLE.map(|share| least / share / step * step).into_iter().filter(|&w| w > 0));
    all.sort_unstable();
    all.dedup();
    all
}

/// The least of a group's widths on a device that favours multiples of `step`.
pub(crate) fn least_width(network: &Network, group: &Group, step: usize) -> usize {
    own_widths(network, group, step).first().copied().unwrap_or(group.size)
}

/// The widths a group of `size` channels may have on a device that favours multiples of `step`: such multiples, and the dense width.
pub fn widths(size: usize, step: usize) -> Vec<usize> {
    let step = step.max(1);
    let coarse = step * size.div_ceil(step * MOST).max(1);
    (1..).map(|i| i * coarse).take_while(|&w| w < size).chain([size]).collect()
}

/// Ranks at which a convolution with a kernel would do less work as two: multiples of the step.
fn ranks(network: &Network, place: usize, step: usize) -> Vec<Rank> {
    let layer = &network.layers[place];
    let Kind::Conv { window, groups: 1 } = &layer.kind else { return Vec::new() };
    if layer.taps == 1 || network.input_groups(layer).is_empty() {
        return Vec::new();
    }
    let step = step.max(1);
    let of = |split: Split| {
        let work = |channels: usize| Rank { split, channels }.work(window, layer.inputs as f64, layer.outputs as f64);
        let widest = match split {
            Split::Pointwise => layer.outputs / 2,
            Split::Separable => (WORTH / work(1)) as usize,
        };
        let coarse = step * widest.div_ceil(step * MOST_RANKS).max(1);
        let rank = move |i: usize| Rank { split, channels: i * coarse };
        (1..=MOST_RANKS)
            .map(rank)
            .filter(|r| work(r.channels) < WORTH && r.pays(window, layer.inputs as f64, layer.outputs as f64))
            .collect::<Vec<_>>()
    };
    let mut all = of(Split::Pointwise);
    if window.kernel.iter().all(|&k| k > 1) {
        all.extend(of(Split::Separable));
    }
    all
}

/// What a choice makes of the network; `orders` says which units of a group go first. A rank at which two layers would be no less than
/// what is left of the one factors nothing.
pub(crate) fn plan(network: &Network, sites: &[Site], orders: &[Vec<usize>], choice: &Choice) -> Plan {
    let mut plan = Plan::default();
    for (site, &level) in sites.iter().zip(choice) {
        match (site.place, site.levels[level]) {
            (_, Level::Keep) | (Place::Layer(_), Level::Flat) => {}
            (Place::Group(group), Level::Flat) => {
                let found = &network.coupling.groups[group];
                plan.keep.insert(found.id, kept(&orders[group], 1));
                plan.flat.extend(flat::readers(network, found).into_iter().flatten());
            }
            (Place::Group(group), Level::Width(width)) => {
                let id = network.coupling.groups[group].id;
                plan.keep.insert(id, kept(&orders[group], width));
            }
            (Place::Layer(layer), Level::Rank(rank)) => {
                plan.ranks.insert(layer, rank);
            }
            (Place::Group(_), Level::Rank(_)) | (Place::Layer(_), Level::Width(_)) => {}
        }
    }
    let keep = &plan.keep;
    plan.ranks.retain(|&layer, rank| {
        let layer = &network.layers[layer];
        let (inputs, outputs) = (network.inputs_staying(layer, keep).len(), network.outputs_staying(layer, keep).len());
        layer.window().is_some_and(|w| rank.pays(w, inputs as f64, outputs as f64))
    });
    plan
}

/// Sorts each site's levels by falling loss, and drops every one that a level of less loss equals or beats in measured time, the other
/// sites being dense: it would cost accuracy for nothing.
pub(crate) fn drop_dominated(problem: &mut Problem, sites: &mut [Site]) {
    for (index, site) in sites.iter_mut().enumerate() {
        let dense = problem.dense();
        let time = |level: usize| {
            let mut choice = dense.clone();
            choice[index] = level;
            problem.cost(&problem.time, &choice)
        };
        let times: Vec<f64> = (0..site.levels.len()).map(time).collect();
        let losses = &problem.sites[index].losses;
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]));
        let better = |at: usize| order[at + 1..].iter().all(|&l| times[order[at]] < times[l]);
        let keep: Vec<usize> = (0..order.len()).filter(|&at| better(at)).map(|at| order[at]).collect();
        site.levels = keep.iter().map(|&l| site.levels[l]).collect();
        restrict(problem, index, &keep);
    }
}

/// Drops constants that lose more than the worst of the other levels does anywhere: what they replace is no branch, but the network.
pub(crate) fn drop_hopeless(problem: &mut Problem, sites: &mut [Site]) {
    let losses = |index: usize, site: &Site| -> Vec<(Level, f64)> {
        site.levels.iter().copied().zip(problem.sites[index].losses.iter().copied()).collect()
    };
    let all: Vec<Vec<(Level, f64)>> = sites.iter().enumerate().map(|(i, s)| losses(i, s)).collect();
    let worst = all.iter().flatten().filter(|(l, _)| *l != Level::Flat).fold(0.0f64, |m, (_, loss)| m.max(*loss));
    for (index, (site, found)) in sites.iter_mut().zip(all).enumerate() {
        let hopeless = |(level, loss): &(Level, f64)| *level == Level::Flat && *loss > worst;
        let keep: Vec<usize> = (0..found.len()).filter(|&l| !hopeless(&found[l])).collect();
        if keep.len() < found.len() {
            site.levels = keep.iter().map(|&l| site.levels[l]).collect();
            restrict(problem, index, &keep);
        }
    }
}

/// Leaves a site only the levels `keep`.
fn restrict(problem: &mut Problem, site: usize, keep: &[usize]) {
    let counts: Vec<usize> = problem.sites.iter().map(|s| s.losses.len()).collect();
    for cost in [&mut problem.time, &mut problem.size] {
        restrict_cost(cost, site, keep, &counts);
    }
    let levels = &mut problem.sites[site];
    levels.shares = keep.iter().map(|&l| levels.shares[l]).collect();
    levels.losses = keep.iter().map(|&l| levels.losses[l]).collect();
}

fn restrict_cost(cost: &mut Cost, site: usize, keep: &[usize], counts: &[usize]) {
    for term in cost.terms.iter_mut().filter(|t| t.sites.contains(&site)) {
        let shape: Vec<usize> = term.sites.iter().map(|&s| counts[s]).collect();
        let Some(axis) = term.sites.iter().position(|&s| s == site) else { continue };
        let inner: usize = shape[axis + 1..].iter().product();
        let block = shape[axis] * inner;
        let table = term.table.chunks(block).flat_map(|b| keep.iter().flat_map(move |&l| b[l * inner..(l + 1) * inner].to_vec())).collect();
        *term = Term { sites: term.sites.clone(), table };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::Levels;

    #[test]
    fn widths_are_multiples_of_the_step_and_the_dense_width() {
        assert_eq!(widths(64, 16), [16, 32, 48, 64]);
        assert_eq!(widths(24, 16), [16, 24]);
        assert_eq!(widths(10, 16), [10]);
        assert_eq!(widths(24, 8), [8, 16, 24]);
        assert_eq!(widths(512, 16).len(), 8);
        assert!(widths(1_000, 1).len() <= MOST + 1);
    }

    #[test]
    fn slow_narrow_widths_vanish() {
        let site = |widths: &[usize]| Site {
            place: Place::Group(0),
            levels: widths.iter().map(|&w| Level::Width(w)).collect(),
            size: widths.last().copied().unwrap(),
        };
        let levels =
            |widths: &[usize]| Levels { shares: vec![1.0; widths.len()], losses: widths.iter().map(|&w| 1.0 / w as f64).collect() };
        // width 24 takes as long as 32; rows are group 0's levels, columns group 1's
        let table = vec![1.0, 2.0, 3.0, 6.0, 2.9, 5.9];
        let time = Cost { constant: 0.0, terms: vec![Term { sites: vec![0, 1], table }] };
        let mut problem = Problem { sites: vec![levels(&[16, 24, 32]), levels(&[8, 16])], time, size: Cost::default() };
        let mut sites = [site(&[16, 24, 32]), site(&[8, 16])];
        drop_dominated(&mut problem, &mut sites);
        assert_eq!(sites[0].levels, [Level::Width(16), Level::Width(32)]);
        assert_eq!(sites[1].levels, [Level::Width(8), Level::Width(16)]);
        assert_eq!(problem.sites[0].losses.len(), 2);
        assert_eq!(problem.time.terms[0].table, [1.0, 2.0, 2.9, 5.9]);
    }
}
