//! The choice of widths: least summed loss under a time and a size budget.
//!
//! Costs are sums of terms that depend on one or two groups (a convolution's time depends on both of its widths), losses are
//! sums over groups. Small problems are enumerated; larger ones are solved by a greedy descent and an iterated local search
//! over pairs of groups, seeded and so deterministic. Pure: it knows neither models nor devices.

/// One group's levels, ascending in width; the last is the dense one, with loss 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Levels {
    pub(crate) widths: Vec<usize>,
    /// Loss at each width, not rising with it.
    pub(crate) losses: Vec<f64>,
}

/// One part of a cost: a table over the levels of the groups it depends on (a lone group uses 1 column).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Term {
    pub(crate) groups: Vec<usize>,
    /// Row-major over the levels of `groups`, of which there are at most two.
    pub(crate) table: Vec<f64>,
}

/// A cost as a function of the levels chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) constant: f64,
    pub(crate) terms: Vec<Term>,
}

/// The whole problem.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) groups: Vec<Levels>,
    pub(crate) time: Cost,
    pub(crate) size: Cost,
}

/// Budgets for [`Problem::solve`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) time: f64,
    pub(crate) size: f64,
}

/// How a solution is sought: diverse candidates come from different emphases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Emphasis {
    /// Exponent of the losses: 1 lets one group carry much, 0.5 spreads.
    pub(crate) power: f64,
    /// No group narrower than this share of its width.
    pub(crate) floor: f64,
}

/// The level chosen for each group.
pub(crate) type Choice = Vec<usize>;

/// Combinations up to which all are tried.
const ENUMERATE: usize = 20_000;
/// Rounds of the local search.
const ROUNDS: usize = 30;

impl Problem {
    /// The dense choice.
    pub(crate) fn dense(&self) -> Choice {
        self.groups.iter().map(|g| g.widths.len() - 1).collect()
    }

    /// Sum of losses of a choice.
    pub(crate) fn loss(&self, choice: &Choice) -> f64 {
        self.groups.iter().zip(choice).map(|(g, &l)| g.losses[l]).sum()
    }

    /// A cost of a choice.
    pub(crate) fn cost(&self, cost: &Cost, choice: &Choice) -> f64 {
        let term = |t: &Term| {
            let index = t.groups.iter().fold(0, |at, &g| at * self.groups[g].widths.len() + choice[g]);
            t.table[index]
        };
        cost.constant + cost.terms.iter().map(term).sum::<f64>()
    }

    /// Whether a choice keeps to a budget.
    pub(crate) fn fits(&self, choice: &Choice, budget: Budget) -> bool {
        self.cost(&self.time, choice) <= budget.time && self.cost(&self.size, choice) <= budget.size
    }

    /// The choice of least loss within the budget; `None` when nothing fits.
    pub(crate) fn solve(&self, budget: Budget, emphasis: Emphasis) -> Option<Choice> {
        let lowest: Vec<usize> = self.groups.iter().map(|g| lowest_level(g, emphasis.floor)).collect();
        let combinations = self.groups.iter().zip(&lowest).try_fold(1usize, |n, (g, &l)| n.checked_mul(g.widths.len() - l));
        let search = Search { problem: self, budget, lowest, power: emphasis.power };
        if combinations.is_some_and(|n| n <= ENUMERATE) { search.enumerate() } else { search.local() }
    }

    /// The choice nearest to a budget that nothing keeps: the least time (or, when time fits, the least size).
    pub(crate) fn least(&self, cost: &Cost) -> Choice {
        let mut choice: Choice = vec![0; self.groups.len()];
        // Narrower is not always faster: descend from the narrowest until no single change helps.
        loop {
            let now = self.cost(cost, &choice);
            let Some(better) = self.neighbours(&choice).find(|c| self.cost(cost, c) < now) else { return choice };
            choice = better;
        }
    }

    /// The choice whose widths are nearest to one share of the dense ones, as large as the budget allows; `None` when nothing fits.
    pub(crate) fn uniform(&self, budget: Budget) -> Option<Choice> {
        let at = |share: f64| -> Choice {
            let level = |g: &Levels| {
                let want = share * g.widths.last().copied().unwrap_or(1) as f64;
                g.widths
                    .iter()
                    .enumerate()
                    .min_by(|a, b| (*a.1 as f64 - want).abs().total_cmp(&(*b.1 as f64 - want).abs()))
                    .map_or(0, |(i, _)| i)
            };
            self.groups.iter().map(level).collect()
        };
        (1..=64).rev().map(|i| at(f64::from(i) / 64.0)).find(|c| self.fits(c, budget))
    }

    fn neighbours<'a>(&'a self, choice: &'a Choice) -> impl Iterator<Item = Choice> + 'a {
        (0..self.groups.len()).flat_map(move |g| {
            (0..self.groups[g].widths.len()).filter(move |&l| l != choice[g]).map(move |l| {
                let mut next = choice.clone();
                next[g] = l;
                next
            })
        })
    }
}

fn lowest_level(group: &Levels, floor: f64) -> usize {
    let dense = group.widths.last().copied().unwrap_or(0) as f64;
    group.widths.iter().position(|&w| w as f64 >= floor * dense).unwrap_or(group.widths.len() - 1)
}

struct Search<'a> {
    problem: &'a Problem,
    budget: Budget,
    lowest: Vec<usize>,
    power: f64,
}

impl Search<'_> {
    fn loss(&self, choice: &Choice) -> f64 {
        self.problem.groups.iter().zip(choice).map(|(g, &l)| g.losses[l].powf(self.power)).sum()
    }

    fn levels(&self, group: usize) -> std::ops::Range<usize> {
        self.lowest[group]..self.problem.groups[group].widths.len()
    }

    fn enumerate(&self) -> Option<Choice> {
        let mut choice = self.lowest.clone();
        let mut best: Option<(f64, Choice)> = None;
        loop {
            if self.problem.fits(&choice, self.budget) {
                let loss = self.loss(&choice);
                if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                    best = Some((loss, choice.clone()));
                }
            }
            let next = (0..choice.len()).find(|&g| choice[g] + 1 < self.levels(g).end);
            let Some(next) = next else { return best.map(|(_, c)| c) };
            choice[next] += 1;
            choice[..next].copy_from_slice(&self.lowest[..next]);
        }
    }

    fn local(&self) -> Option<Choice> {
        let mut best = self.descend()?;
        self.improve(&mut best);
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..ROUNDS {
            let mut next = best.clone();
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let group = (random >> 33) as usize % next.len();
                let levels = self.levels(group);
                next[group] = levels.start + (random >> 11) as usize % levels.len();
            }
            if !self.problem.fits(&next, self.budget) && !self.repair(&mut next) {
                continue;
            }
            self.improve(&mut next);
            if self.loss(&next) < self.loss(&best) {
                best = next;
            }
        }
        Some(best)
    }

    /// From dense down to the budget.
    fn descend(&self) -> Option<Choice> {
        let mut choice = self.problem.dense();
        self.repair(&mut choice).then_some(choice)
    }

    /// Takes the step of least loss for each unit of excess removed until the choice fits.
    fn repair(&self, choice: &mut Choice) -> bool {
        while !self.problem.fits(choice, self.budget) {
            let (excess, loss) = (self.excess(choice), self.loss(choice));
            let mut best: Option<(f64, usize, usize)> = None;
            for group in 0..choice.len() {
                let level = choice[group];
                for next in self.levels(group).start..level {
                    choice[group] = next;
                    let gain = excess - self.excess(choice);
                    let price = (self.loss(choice) - loss).max(1e-12) / gain;
                    if gain > 0.0 && best.is_none_or(|(least, _, _)| price < least) {
                        best = Some((price, group, next));
                    }
                }
                choice[group] = level;
            }
            let Some((_, group, level)) = best else { return false };
            choice[group] = level;
        }
        true
    }

    /// Budgets overshot, as shares.
    fn excess(&self, choice: &Choice) -> f64 {
        let over = |cost: f64, budget: f64| if budget.is_finite() { (cost / budget.max(f64::MIN_POSITIVE) - 1.0).max(0.0) } else { 0.0 };
        over(self.problem.cost(&self.problem.time, choice), self.budget.time)
            + over(self.problem.cost(&self.problem.size, choice), self.budget.size)
    }

    /// Best change of one or two groups, until none helps.
    fn improve(&self, choice: &mut Choice) {
        while let Some(better) = self.best_pair(choice) {
            *choice = better;
        }
    }

    fn best_pair(&self, choice: &Choice) -> Option<Choice> {
        let (mut least, mut found) = (self.loss(choice) - 1e-15, None);
        let mut next = choice.clone();
        for a in 0..choice.len() {
            for b in a..choice.len() {
                for la in self.levels(a) {
                    for lb in self.levels(b) {
                        next[b] = lb;
                        next[a] = la;
                        let loss = self.loss(&next);
                        if loss < least && self.problem.fits(&next, self.budget) {
                            (least, found) = (loss, Some(next.clone()));
                        }
                    }
                }
                next[b] = choice[b];
                next[a] = choice[a];
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of `n` groups with irregular, deterministic losses and pair times.
    fn chain(n: usize, levels: usize, salt: usize) -> Problem {
        let wave = |i: usize| ((i * 37 + salt * 11) % 17) as f64 / 17.0;
        let group = |g: usize| {
            let widths = (1..=levels).map(|l| l * 8).collect();
            let losses = (0..levels).map(|l| (levels - 1 - l) as f64 * (0.5 + wave(g)) * (0.8 + wave(g * levels + l) / 4.0)).collect();
            Levels { widths, losses }
        };
        let pair = |g: usize| {
            let table = (0..levels * levels).map(|i| ((i / levels + 1) * (i % levels + 1)) as f64 * (1.0 + wave(i + g) / 3.0)).collect();
            Term { groups: vec![g, g + 1], table }
        };
        let time = Cost { constant: 1.0, terms: (0..n - 1).map(pair).collect() };
        let size = Cost {
            constant: 0.0,
            terms: (0..n).map(|g| Term { groups: vec![g], table: (1..=levels).map(|l| l as f64).collect() }).collect(),
        };
        Problem { groups: (0..n).map(group).collect(), time, size }
    }

    fn plain() -> Emphasis {
        Emphasis { power: 1.0, floor: 0.0 }
    }

    #[test]
    fn local_search_equals_enumeration() {
        for salt in 0..20 {
            let p = chain(5, 5, salt);
            let dense = p.cost(&p.time, &p.dense());
            for share in [0.7, 0.4, 0.2] {
                let budget = Budget { time: share * dense, size: f64::INFINITY };
                let search = Search { problem: &p, budget, lowest: vec![0; 5], power: 1.0 };
                let (best, found) = (search.enumerate().unwrap(), search.local().unwrap());
                assert!(p.fits(&found, budget));
                assert!(p.loss(&found) <= p.loss(&best) + 1e-12, "{salt} {share}: {} {}", p.loss(&found), p.loss(&best));
            }
        }
    }

    #[test]
    fn size_budget_binds_too() {
        let p = chain(4, 4, 3);
        let choice = p.solve(Budget { time: f64::INFINITY, size: 9.0 }, plain()).unwrap();
        assert!(p.cost(&p.size, &choice) <= 9.0);
        assert!(p.loss(&choice) > 0.0);
    }

    #[test]
    fn impossible_budget_has_no_choice_but_a_nearest() {
        let p = chain(4, 4, 1);
        assert_eq!(p.solve(Budget { time: 0.5, size: f64::INFINITY }, plain()), None);
        let least = p.least(&p.time);
        assert!(p.solve(Budget { time: p.cost(&p.time, &least), size: f64::INFINITY }, plain()).is_some());
    }

    #[test]
    fn ample_budget_keeps_everything() {
        let p = chain(12, 6, 2);
        assert_eq!(p.solve(Budget { time: f64::INFINITY, size: f64::INFINITY }, plain()).unwrap(), p.dense());
        assert_eq!(p.uniform(Budget { time: f64::INFINITY, size: f64::INFINITY }).unwrap(), p.dense());
    }
}
