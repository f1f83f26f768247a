//! Sums over answers, passes and tasks.

use std::time::Duration;

use takt_eagle_spec::tree::DraftTree;

/// What some answers by one method came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums {
    /// After the first token, which the prompt's last slice brings.
    pub took: Duration,
    /// Reading the prompts.
    pub reading: Duration,
    /// Tokens after the first.
    pub num_tokens: u64,
    /// Steps without a tree, and what they took.
    pub num_plain: u64,
    /// See `num_plain`.
    pub plain: Duration,
    /// Verified trees, the nodes in them, and what verifying took: the step, the walk, what was kept.
    pub num_rounds: u64,
    /// See `num_rounds`.
    pub num_nodes: u64,
    /// See `num_rounds`.
    pub verifying: Duration,
    /// Drafting what was verified.
    pub drafting: Duration,
    /// Deciding, and drafting that came to nothing, before plain steps.
    pub idle: Duration,
    /// `[accept_len − 1]`: rounds by tokens they emitted.
    pub accept_lens: Vec<u64>,
}

impl Sums {
    /// Counts a step that verified `tree` and accepted `path` of it.
    pub fn add_step(&mut self, tree: &DraftTree, path: &[usize], drafting: Duration, took: Duration) {
        if tree.num_drafted() == 0 {
            self.num_plain += 1;
            self.plain += took;
            self.idle += drafting;
            return;
        }
        self.drafting += drafting;
        self.num_rounds += 1;
        self.num_nodes += tree.len() as u64;
        self.verifying += took;
        if self.accept_lens.len() < path.len() {
            self.accept_lens.resize(path.len(), 0);
        }
        if let Some(count) = path.len().checked_sub(1).and_then(|idx| self.accept_lens.get_mut(idx)) {
            *count += 1;
        }
    }

    /// Adds those of other answers.
    pub fn add(&mut self, other: &Self) {
        self.took += other.took;
        self.reading += other.reading;
        self.num_tokens += other.num_tokens;
        self.num_plain += other.num_plain;
        self.plain += other.plain;
        self.num_rounds += other.num_rounds;
        self.num_nodes += other.num_nodes;
        self.verifying += other.verifying;
        self.drafting += other.drafting;
        self.idle += other.idle;
        if self.accept_lens.len() < other.accept_lens.len() {
            self.accept_lens.resize(other.accept_lens.len(), 0);
        }
        self.accept_lens.iter_mut().zip(&other.accept_lens).for_each(|(sum, count)| *sum += count);
    }

    /// The sums of all of `parts`.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sums = Self::default();
        parts.into_iter().for_each(|part| sums.add(part));
        sums
    }

    /// Tokens a round emits on average; `None` before the first.
    #[must_use]
    pub fn accept_len(&self) -> Option<f64> {
        let weighted = self.accept_lens.iter().zip(1_u64..).map(|(count, len)| count * len).sum::<u64>();
        (self.num_rounds > 0).then(|| weighted as f64 / self.num_rounds as f64)
    }

    /// `[accept_len − 1]`: share of rounds that emit so many tokens.
    #[must_use]
    pub fn accept_shares(&self) -> Vec<f64> {
        self.accept_lens.iter().map(|&count| count as f64 / self.num_rounds.max(1) as f64).collect()
    }

    /// Microseconds of a step without a tree; `None` before the first.
    #[must_use]
    pub fn us_per_step(&self) -> Option<f64> {
        (self.num_plain > 0).then(|| self.plain.as_secs_f64() * 1e6 / self.num_plain as f64)
    }

    /// Microseconds of `part` for each round; `None` before the first.
    #[must_use]
    pub fn us_per_round(&self, part: Duration) -> Option<f64> {
        (self.num_rounds > 0).then(|| part.as_secs_f64() * 1e6 / self.num_rounds as f64)
    }
}

/// Sums by method, pass and task.
#[derive(Debug, Clone)]
pub struct Tally {
    num_passes: usize,
    num_tasks: usize,
    cells: Vec<Sums>,
}

impl Tally {
    /// An empty one.
    #[must_use]
    pub fn new(num_methods: usize, num_passes: usize, num_tasks: usize) -> Self {
        Self { num_passes, num_tasks, cells: vec![Sums::default(); num_methods * num_passes * num_tasks] }
    }

    /// Where an answer is counted; all of the numbers are below those of [`Self::new`].
    pub fn cell(&mut self, method: usize, pass: usize, task: usize) -> &mut Sums {
        &mut self.cells[(method * self.num_passes + pass) * self.num_tasks + task]
    }

    /// Of every pass, over the tasks for which `counts` holds.
    #[must_use]
    pub fn passes(&self, method: usize, counts: impl Fn(usize) -> bool) -> Vec<Sums> {
        let start = method * self.num_passes * self.num_tasks;
        let of_method = &self.cells[start..start + self.num_passes * self.num_tasks];
        let of_pass = |cells: &[Sums]| {
            Sums::of(cells.iter().enumerate().filter(|&(task, _)| counts(task)).map(|(_, sums)| sums))
        };
        of_method.chunks(self.num_tasks.max(1)).map(of_pass).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_summed_by_method_pass_and_task() {
        let mut tally = Tally::new(2, 3, 2);
        for (method, pass, task, num_tokens) in [(0, 0, 0, 1), (1, 0, 0, 10), (1, 2, 0, 20), (1, 2, 1, 300)] {
            tally.cell(method, pass, task).num_tokens += num_tokens;
        }
        let tokens = |sums: Vec<Sums>| sums.iter().map(|sums| sums.num_tokens).collect::<Vec<_>>();
        assert_eq!(tokens(tally.passes(0, |_| true)), [1, 0, 0]);
        assert_eq!(tokens(tally.passes(1, |_| true)), [10, 0, 320]);
        assert_eq!(tokens(tally.passes(1, |task| task == 1)), [0, 0, 300]);
    }

    #[test]
    fn rounds_are_counted_by_what_they_emitted_and_plain_steps_are_none() {
        let (mut sums, us) = (Sums::default(), Duration::from_micros);
        let mut tree = DraftTree::root(1);
        sums.add_step(&tree, &[0], us(1), us(10));
        assert_eq!((sums.num_plain, sums.num_rounds, sums.accept_len(), sums.idle), (1, 0, None, us(1)));
        tree.tokens.push(2);
        sums.add_step(&tree, &[0, 1], us(3), us(20));
        sums.add_step(&tree, &[0], us(3), us(20));
        assert_eq!((sums.num_rounds, sums.num_nodes, sums.accept_len()), (2, 4, Some(1.5)));
        assert_eq!(sums.accept_shares(), [0.5, 0.5]);
        assert_eq!(
            (sums.us_per_round(sums.drafting), sums.us_per_round(sums.verifying)),
            (Some(3.0), Some(20.0))
        );
        assert_eq!(Sums::of([&sums, &sums]).num_nodes, 8);
    }
}
