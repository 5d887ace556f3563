//! Levels: the widths a group may be cut to, as the device's measured kernels favour them.

use std::collections::BTreeMap;

use crate::coupling::Keep;
use crate::solve::{Cost, Problem, Term};

/// What becomes of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Units that narrowed groups keep.
    pub(crate) keep: Keep,
    /// Ranks of the layers that become two, by place in the network.
    pub(crate) ranks: BTreeMap<usize, usize>,
}

/// Most levels of one group; wider groups take coarser multiples.
const MOST: usize = 10;

/// The widths a group of `size` channels may have on a device that favours multiples of `step`: such multiples, and the dense width.
pub fn widths(size: usize, step: usize) -> Vec<usize> {
    let step = step.max(1);
    let coarse = step * size.div_ceil(step * MOST).max(1);
    (1..).map(|i| i * coarse).take_while(|&w| w < size).chain([size]).collect()
}

/// Drops every level that a wider one equals or beats in measured time, the other groups being dense: it would cost accuracy for nothing.
pub(crate) fn drop_dominated(problem: &mut Problem) {
    for group in 0..problem.groups.len() {
        let dense = problem.dense();
        let time = |level: usize| {
            let mut choice = dense.clone();
            choice[group] = level;
            problem.cost(&problem.time, &choice)
        };
        let times: Vec<f64> = (0..problem.groups[group].widths.len()).map(time).collect();
        let keep: Vec<usize> = (0..times.len()).filter(|&l| times[l + 1..].iter().all(|&wider| times[l] < wider)).collect();
        restrict(problem, group, &keep);
    }
}

/// Leaves a group only the levels `keep`.
fn restrict(problem: &mut Problem, group: usize, keep: &[usize]) {
    let counts: Vec<usize> = problem.groups.iter().map(|g| g.widths.len()).collect();
    for cost in [&mut problem.time, &mut problem.size] {
        restrict_cost(cost, group, keep, &counts);
    }
    let levels = &mut problem.groups[group];
    levels.widths = keep.iter().map(|&l| levels.widths[l]).collect();
    levels.losses = keep.iter().map(|&l| levels.losses[l]).collect();
}

fn restrict_cost(cost: &mut Cost, group: usize, keep: &[usize], counts: &[usize]) {
    for term in cost.terms.iter_mut().filter(|t| t.groups.contains(&group)) {
        let shape: Vec<usize> = term.groups.iter().map(|&g| counts[g]).collect();
        let Some(axis) = term.groups.iter().position(|&g| g == group) else { continue };
        let inner: usize = shape[axis + 1..].iter().product();
        let block = shape[axis] * inner;
        let table = term.table.chunks(block).flat_map(|b| keep.iter().flat_map(move |&l| b[l * inner..(l + 1) * inner].to_vec())).collect();
        *term = Term { groups: term.groups.clone(), table };
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
        let levels = |widths: &[usize]| Levels { widths: widths.to_vec(), losses: widths.iter().map(|&w| 1.0 / w as f64).collect() };
        // width 24 takes as long as 32; rows are group 0's levels, columns group 1's
        let table = vec![1.0, 2.0, 3.0, 6.0, 2.9, 5.9];
        let time = Cost { constant: 0.0, terms: vec![Term { groups: vec![0, 1], table }] };
        let mut problem = Problem { groups: vec![levels(&[16, 24, 32]), levels(&[8, 16])], time, size: Cost::default() };
        drop_dominated(&mut problem);
        assert_eq!(problem.groups[0].widths, [16, 32]);
        assert_eq!(problem.groups[1].widths, [8, 16]);
        assert_eq!(problem.time.terms[0].table, [1.0, 2.0, 2.9, 5.9]);
    }
}
