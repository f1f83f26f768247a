//! A drafter and a target with known acceptance, and a clock that counts known costs: what the policy's tests run in.

use std::{convert::Infallible, time::Duration};

use takt_engine::{Result, TokenId};

use super::{Limits, Policy, RoundCosts, Verdict};
use crate::{
    tree::{DraftTree, Drafter, Frontier, Growth, Proposal, Proposals, TreeShape, grow},
    verify::walk,
};

/// Tokens that nobody proposes.
const OTHER: TokenId = 99_999;

/// Costs by bucket, in microseconds.
#[derive(Debug, Clone)]
pub(super) struct StepCosts {
    pub decode_us: Vec<u64>,
    /// Of up to 1, 2, 4, 8, … nodes.
    pub verify_us: Vec<u64>,
    /// Of up to 1, 2, 4, 8, … rows.
    pub draft_us: Vec<u64>,
}

fn bucket(costs: &[u64], num: usize) -> Duration {
    let idx = num.max(1).next_power_of_two().ilog2() as usize;
    Duration::from_micros(costs[idx.min(costs.len() - 1)])
}

impl RoundCosts for StepCosts {
    fn decode(&self, num_lanes: usize) -> Duration {
        bucket(&self.decode_us, num_lanes)
    }

    fn verify(&self, num_nodes: usize) -> Duration {
        bucket(&self.verify_us, num_nodes)
    }

    fn draft(&self, num_rows: usize) -> Duration {
        bucket(&self.draft_us, num_rows)
    }
}

impl StepCosts {
    /// A memory-bound target with a small head, as measured ones are shaped.
    pub fn typical() -> Self {
        Self {
            decode_us: vec![8000, 8100, 8300, 8800],
            verify_us: vec![8000, 8200, 8600, 9400, 11_500, 16_000, 25_000],
            draft_us: vec![500, 520, 560, 650, 900],
        }
    }
}

/// How good the drafter is, and how good it says it is.
#[derive(Debug, Clone)]
pub(super) struct Quality {
    /// `[depth − 1]`: what it says of its first proposal, on average.
    pub claimed: Vec<f32>,
    /// Its first proposal is claimed at up to so much more or less.
    pub spread: f32,
    /// Proposals are accepted with what is claimed times this.
    pub honesty: f32,
}

/// Drafter and target.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub quality: Quality,
    state: u64,
}

impl World {
    pub fn new(quality: Quality, seed: u64) -> Self {
        Self { quality, state: seed }
    }

    /// SplitMix64.
    fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// The target's walk down `tree`; forced tokens are followed. Returns the tokens that came of it.
    pub fn verify(&mut self, tree: &DraftTree, path: &mut Vec<usize>) -> (usize, Option<TokenId>) {
        let choose = |node: usize| {
            let mut left = self.uniform();
            let child = tree.children(node).find(|&child| {
                let claimed = tree.cumulative_log_probs[child] - tree.cumulative_log_probs[node];
                left -= claimed.exp() * self.quality.honesty;
                child < tree.num_certain || left < 0.0
            });
            Ok::<_, Infallible>(Some(child.map_or(OTHER, |child| tree.tokens[child])))
        };
        let next = walk(tree, choose, path).unwrap();
        (path.len(), next)
    }
}

impl Drafter for World {
    fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<()> {
        for node in level {
            let claimed = &self.quality.claimed;
            let mean = claimed[node.depth.min(claimed.len() - 1)];
            let first = (mean + self.quality.spread * (2.0 * self.uniform() - 1.0)).clamp(0.01, 0.98);
            let mut prob = first;
            for token in 0..top_k as u32 {
                out.push(Proposal { token, log_prob: prob.ln() });
                // Half of what is left, as long as that is less.
                prob = prob.min((1.0 - first) * 0.5_f32.powi(token as i32 + 1));
            }
            out.end_list();
        }
        Ok(())
    }
}

/// What a stretch of a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    pub num_tokens: usize,
    pub took: Duration,
    pub plain: Duration,
    pub num_rounds: usize,
    pub num_steps: usize,
}

impl Account {
    /// Time in plain decodings' time.
    pub fn ratio(&self) -> f64 {
        self.took.as_secs_f64() / self.plain.as_secs_f64()
    }

    /// Of all steps, those that drafted.
    pub fn share_of_rounds(&self) -> f64 {
        self.num_rounds as f64 / self.num_steps as f64
    }
}

/// A worker's loop, with buffers as it keeps them.
pub(super) struct Worker {
    pub policy: Policy,
    pub costs: StepCosts,
    pub limits: Limits,
    /// Drafting and verifying take so much more than their typical costs.
    pub slowness: f64,
    pub growths: Vec<Growth>,
    pub trees: Vec<DraftTree>,
    pub level: Vec<Frontier>,
    proposals: Proposals,
    path: Vec<usize>,
}

impl Worker {
    pub fn new(policy: Policy, costs: StepCosts, limits: Limits, num_lanes: usize) -> Self {
        Self {
            policy,
            costs,
            limits,
            slowness: 1.0,
            growths: (0..num_lanes).map(|_| Growth::with_capacity(256)).collect(),
            trees: (0..num_lanes).map(|_| DraftTree::with_capacity(64)).collect(),
            level: Vec::new(),
            proposals: Proposals::default(),
            path: Vec::new(),
        }
    }

    /// Drafts as the policy says, after `num_certain` tokens in each lane; returns the verdict, the levels, and what drafting took.
    pub fn draft(&mut self, world: &mut World, num_certain: &[usize]) -> (Verdict, usize, Duration) {
        for (growth, &num_certain) in self.growths.iter_mut().zip(num_certain) {
            growth.start(&vec![1; num_certain]).unwrap();
        }
        self.policy.begin_round(&self.growths, self.limits, &self.costs);
        let (mut num_levels, mut took) = (0, Duration::ZERO);
        while self.policy.next_level(&self.growths, &mut self.level) {
            for slot in 0..self.growths.len() {
                let num_rows = self.level.iter().filter(|node| node.slot == slot).count();
                assert!(num_rows <= self.limits.top_k);
            }
            self.proposals.clear();
            world.propose(&self.level, self.limits.top_k, &mut self.proposals).unwrap();
            for (slot, growth) in self.growths.iter_mut().enumerate() {
                growth.add_level(slot, &self.level, &self.proposals).unwrap();
            }
            took += self.costs.draft(self.level.len()).mul_f64(self.slowness);
            num_levels += 1;
        }
        (self.policy.choose(&mut self.growths, &mut self.trees), num_levels, took)
    }

    /// One round of all lanes.
    pub fn step(&mut self, world: &mut World, account: &mut Account) {
        let num_lanes = self.growths.len();
        let (verdict, num_levels, drafting) = self.draft(world, &vec![1; num_lanes]);
        let step = match verdict {
            Verdict::Plain => self.costs.decode(num_lanes),
            Verdict::Verify { num_nodes } => self.costs.verify(num_nodes).mul_f64(self.slowness),
        };
        let mut num_tokens = 0;
        for tree in &self.trees {
            let (num_new, next) = world.verify(tree, &mut self.path);
            num_tokens += num_new;
            self.policy.observe(tree, &self.path, next);
        }
        let (took, plain) = (drafting + step, self.policy.plain_equivalent(num_tokens));
        account.num_steps += 1;
        if num_levels == 0 {
            self.policy.record_plain(took);
        } else {
            self.policy.record_round(took, plain);
            account.num_rounds += 1;
        }
        account.num_tokens += num_tokens;
        account.took += took;
        account.plain += plain;
    }

    /// Rounds until `num_tokens` tokens have come.
    pub fn run(&mut self, world: &mut World, num_tokens: usize) -> Account {
        let mut account = Account::default();
        while account.num_tokens < num_tokens {
            self.step(world, &mut account);
        }
        account
    }
}

/// Time in plain decoding's time of one lane with the same shape in every round.
pub(super) fn fixed_shape_ratio(
    world: &mut World,
    costs: &StepCosts,
    shape: TreeShape,
    num_rounds: usize,
) -> f64 {
    let (mut took, mut num_tokens, mut path) = (Duration::ZERO, 0, Vec::new());
    for _ in 0..num_rounds {
        let tree = grow(world, 1, shape).unwrap();
        took += costs.draft(1) + costs.draft(shape.top_k) * (shape.num_levels as u32 - 1);
        took += costs.verify(tree.len());
        num_tokens += world.verify(&tree, &mut path).0;
    }
    took.as_secs_f64() / (costs.decode(1) * num_tokens as u32).as_secs_f64()
}
