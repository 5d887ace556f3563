//! The choice of levels: least summed loss under a time and a size budget.
//!
//! Costs are sums of terms that depend on a few sites (a convolution's time depends on both of its widths and on its rank), losses
//! are sums over sites. Small problems are enumerated; larger ones are solved by a greedy descent and an iterated local search
//! over pairs of sites, seeded and so deterministic. Pure: it knows neither models nor devices.

/// One site's levels, the least first; the last is the dense one, with loss 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Levels {
    /// What each leaves of the dense one, 0..=1.
    pub(crate) shares: Vec<f64>,
    /// Loss at each level.
    pub(crate) losses: Vec<f64>,
}

/// One part of a cost: a table over the levels of the sites it depends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Term {
    pub(crate) sites: Vec<usize>,
    /// Row-major over the levels of `sites`.
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
    pub(crate) sites: Vec<Levels>,
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
    /// Exponent of the losses: 1 lets one site carry much, 0.5 spreads.
    pub(crate) power: f64,
    /// No site below this share.
    pub(crate) floor: f64,
}

/// The level chosen at each site.
pub(crate) type Choice = Vec<usize>;

/// Combinations up to which all are tried.
const ENUMERATE: usize = 20_000;
/// Rounds of the local search.
const ROUNDS: usize = 30;

impl Problem {
    /// The dense choice.
    pub(crate) fn dense(&self) -> Choice {
        self.sites.iter().map(|s| s.losses.len() - 1).collect()
    }

    /// Sum of losses of a choice.
    pub(crate) fn loss(&self, choice: &Choice) -> f64 {
        self.sites.iter().zip(choice).map(|(s, &l)| s.losses[l]).sum()
    }

    /// A cost of a choice.
    pub(crate) fn cost(&self, cost: &Cost, choice: &Choice) -> f64 {
        cost.constant + cost.terms.iter().map(|t| self.part(t, choice)).sum::<f64>()
    }

    fn part(&self, term: &Term, choice: &Choice) -> f64 {
        let index = term.sites.iter().fold(0, |at, &s| at * self.sites[s].losses.len() + choice[s]);
        term.table[index]
    }

    /// Whether a choice keeps to a budget.
    pub(crate) fn fits(&self, choice: &Choice, budget: Budget) -> bool {
        self.cost(&self.time, choice) <= budget.time && self.cost(&self.size, choice) <= budget.size
    }

    /// The choice of least loss within the budget; `None` when nothing fits.
    pub(crate) fn solve(&self, budget: Budget, emphasis: Emphasis) -> Option<Choice> {
        let lowest: Vec<usize> = self.sites.iter().map(|s| lowest_level(s, emphasis.floor)).collect();
        let combinations = self.sites.iter().zip(&lowest).try_fold(1usize, |n, (s, &l)| n.checked_mul(s.losses.len() - l));
        let search = Search { problem: self, budget, lowest, power: emphasis.power };
        if combinations.is_some_and(|n| n <= ENUMERATE) { search.enumerate() } else { search.local() }
    }

    /// The choice nearest to a budget that nothing keeps: the least time (or, when time fits, the least size).
    /// No site goes below its level in `lowest`.
    pub(crate) fn least(&self, cost: &Cost, lowest: &Choice) -> Choice {
        let mut choice = lowest.clone();
        // Narrower is not always faster: descend from the narrowest until no single change helps.
        loop {
            let now = self.cost(cost, &choice);
            let Some(better) = self.neighbours(&choice, lowest).find(|c| self.cost(cost, c) < now) else { return choice };
            choice = better;
        }
    }

    /// The choice that is nearest to one share at every site that `narrows`, as large as the budget allows; `None` when nothing fits.
    pub(crate) fn uniform(&self, budget: Budget, narrows: &[bool]) -> Option<Choice> {
        let at = |share: f64| -> Choice {
            let nearest = |s: &Levels| {
                let gap = |l: &usize| (s.shares[*l] - share).abs();
                (0..s.shares.len()).rev().min_by(|a, b| gap(a).total_cmp(&gap(b))).unwrap_or(0)
            };
            self.sites.iter().zip(narrows).map(|(s, &narrows)| if narrows { nearest(s) } else { s.losses.len() - 1 }).collect()
        };
        (1..=64).rev().map(|i| at(f64::from(i) / 64.0)).find(|c| self.fits(c, budget))
    }

    /// The choice of least loss, in roots, that gives one site its next level up and takes at most one level from up to two others, keeps
    /// to the budget and pleases `wanted`.
    pub(crate) fn neighbour(&self, choice: &Choice, budget: Budget, wanted: impl Fn(&Choice) -> bool) -> Option<Choice> {
        let loss = |c: &Choice| self.sites.iter().zip(c).map(|(s, &l)| s.losses[l].sqrt()).sum::<f64>();
        let lower = |c: &Choice, site: usize| {
            let mut next = c.clone();
            next[site] = next[site].saturating_sub(1);
            next
        };
        let mut best: Option<(f64, Choice)> = None;
        let mut offer = |c: Choice| {
            let sum = loss(&c);
            if best.as_ref().is_none_or(|(least, _)| sum < *least) && c != *choice && self.fits(&c, budget) && wanted(&c) {
                best = Some((sum, c));
            }
        };
        for up in (0..choice.len()).filter(|&s| choice[s] + 1 < self.sites[s].losses.len()) {
            let mut raised = choice.clone();
            raised[up] += 1;
            offer(raised.clone());
            for a in (0..choice.len()).filter(|&s| s != up) {
                let one = lower(&raised, a);
                offer(one.clone());
                (a + 1..choice.len()).filter(|&s| s != up).for_each(|b| offer(lower(&one, b)));
            }
        }
        best.map(|(_, c)| c)
    }

    fn neighbours<'a>(&'a self, choice: &'a Choice, lowest: &'a Choice) -> impl Iterator<Item = Choice> + 'a {
        (0..self.sites.len()).flat_map(move |g| {
            (lowest[g]..self.sites[g].losses.len()).filter(move |&l| l != choice[g]).map(move |l| {
                let mut next = choice.clone();
                next[g] = l;
                next
            })
        })
    }
}

fn lowest_level(site: &Levels, floor: f64) -> usize {
    site.shares.iter().position(|&share| share >= floor).unwrap_or(site.shares.len() - 1)
}

struct Search<'a> {
    problem: &'a Problem,
    budget: Budget,
    lowest: Vec<usize>,
    power: f64,
}

impl Search<'_> {
    fn loss(&self, choice: &Choice) -> f64 {
        (0..choice.len()).map(|site| self.site_loss(site, choice[site])).sum()
    }

    fn site_loss(&self, site: usize, level: usize) -> f64 {
        self.problem.sites[site].losses[level].powf(self.power)
    }

    fn levels(&self, site: usize) -> std::ops::Range<usize> {
        self.lowest[site]..self.problem.sites[site].losses.len()
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

    /// Best change of one or two sites, until none helps.
    fn improve(&self, choice: &mut Choice) {
        while let Some(better) = self.best_pair(choice) {
            *choice = better;
        }
    }

    fn best_pair(&self, choice: &Choice) -> Option<Choice> {
        let (time, size) = (&self.problem.time, &self.problem.size);
        let (now_time, now_size) = (self.problem.cost(time, choice), self.problem.cost(size, choice));
        let mut next = choice.clone();
        // Each single change with what it does to loss, time and size.
        let mut singles: Vec<Vec<(usize, [f64; 3])>> = Vec::with_capacity(choice.len());
        for site in 0..choice.len() {
            let was = self.site_loss(site, choice[site]);
            let mut changes = Vec::new();
            for level in self.levels(site) {
                next[site] = level;
                let moved = |cost| self.moved(cost, &[site], choice, &next);
                changes.push((level, [self.site_loss(site, level) - was, moved(time), moved(size)]));
            }
            next[site] = choice[site];
            singles.push(changes);
        }
        let fits = |t: f64, s: f64| now_time + t <= self.budget.time && now_size + s <= self.budget.size;
        let (mut least, mut found) = (-1e-15, None);
        for a in 0..choice.len() {
            for b in a + 1..choice.len() {
                let apart = !time.terms.iter().chain(&size.terms).any(|t| t.sites.contains(&a) && t.sites.contains(&b));
                for &(la, [dl, dt, ds]) in &singles[a] {
                    for &(lb, [el, et, es]) in &singles[b] {
                        if dl + el >= least {
                            continue;
                        }
                        let good = if apart {
                            fits(dt + et, ds + es)
                        } else {
                            (next[a], next[b]) = (la, lb);
                            let fits = fits(self.moved(time, &[a, b], choice, &next), self.moved(size, &[a, b], choice, &next));
                            (next[a], next[b]) = (choice[a], choice[b]);
                            fits
                        };
                        if good {
                            (least, found) = (dl + el, Some((a, la, b, lb)));
                        }
                    }
                }
            }
        }
        let (a, la, b, lb) = found?;
        (next[a], next[b]) = (la, lb);
        // Sums of differences round: what does not fit exactly is no improvement.
        self.problem.fits(&next, self.budget).then_some(next)
    }

    /// What a cost moves by from one choice to another that differs at `sites` alone.
    fn moved(&self, cost: &Cost, sites: &[usize], from: &Choice, to: &Choice) -> f64 {
        let touched = cost.terms.iter().filter(|t| t.sites.iter().any(|s| sites.contains(s)));
        touched.map(|t| self.problem.part(t, to) - self.problem.part(t, from)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of `n` groups with irregular, deterministic losses and pair times.
    fn chain(n: usize, levels: usize, salt: usize) -> Problem {
        let wave = |i: usize| ((i * 37 + salt * 11) % 17) as f64 / 17.0;
        let group = |g: usize| {
            let shares = (1..=levels).map(|l| l as f64 / levels as f64).collect();
            let losses = (0..levels).map(|l| (levels - 1 - l) as f64 * (0.5 + wave(g)) * (0.8 + wave(g * levels + l) / 4.0)).collect();
            Levels { shares, losses }
        };
        let pair = |g: usize| {
            let table = (0..levels * levels).map(|i| ((i / levels + 1) * (i % levels + 1)) as f64 * (1.0 + wave(i + g) / 3.0)).collect();
            Term { sites: vec![g, g + 1], table }
        };
        let time = Cost { constant: 1.0, terms: (0..n - 1).map(pair).collect() };
        let size = Cost {
            constant: 0.0,
            terms: (0..n).map(|g| Term { sites: vec![g], table: (1..=levels).map(|l| l as f64).collect() }).collect(),
        };
        Problem { sites: (0..n).map(group).collect(), time, size }
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
        let least = p.least(&p.time, &vec![0; 4]);
        assert!(p.solve(Budget { time: p.cost(&p.time, &least), size: f64::INFINITY }, plain()).is_some());
    }

    #[test]
    fn ample_budget_keeps_everything() {
        let p = chain(12, 6, 2);
        assert_eq!(p.solve(Budget { time: f64::INFINITY, size: f64::INFINITY }, plain()).unwrap(), p.dense());
        assert_eq!(p.uniform(Budget { time: f64::INFINITY, size: f64::INFINITY }, &[true; 12]).unwrap(), p.dense());
    }
}
