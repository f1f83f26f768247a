//! What all of it came to.

use serde::Serialize;

use super::{
    median,
    method::Method,
    profile::{FURTHER_SHARE, Profile},
    tally::{Sums, Tally},
};
use crate::scheduler::cost_table::{CostTable, SectionKind};

/// Slower than this share of plain decoding is said aloud.
const WORST_RATIO: f64 = 0.97;

/// The outcome, as `--json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Engine directory, or shape and weights.
    pub model: String,
    /// `measured`, or `simulated` where proposals of a random head were accepted by a profile.
    pub acceptance: &'static str,
    /// The profile; `None` where acceptance is measured.
    pub profile: Option<AssumedChances>,
    /// What ran it.
    pub backend: &'static str,
    /// On what.
    pub device: String,
    /// With so many threads.
    pub threads: usize,
    /// Whether there is a draft head.
    pub has_head: bool,
    /// Prompts answered in each pass; 0 where there were none.
    pub num_prompts: usize,
    /// Passes over the prompts by all methods.
    pub num_passes: usize,
    /// Tokens of one pass of plain decoding, the first of each answer left out.
    pub num_tokens: u64,
    /// Tokens held at the start of an answer, in the middle.
    pub context_len: usize,
    /// Whether all answers were plain decoding's, token for token; `None` where there were none.
    pub identical: Option<bool>,
    /// By method, plain decoding first.
    pub methods: Vec<MethodRow>,
    /// By task, for the adaptive policy; empty where there are no prompts.
    pub tasks: Vec<TaskRow>,
    /// The adaptive policy against plain decoding.
    pub adaptive_vs_plain: Option<AgainstPlain>,
    /// What the adaptive policy went by; empty where nothing was calibrated.
    pub costs: Vec<CostRow>,
    /// What else a reader must know.
    pub notes: Vec<String>,
}

/// A profile, in full.
#[derive(Debug, Clone, Serialize)]
pub struct AssumedChances {
    /// As it was asked for.
    pub name: String,
    /// Of the first proposal, depth by depth; the last holds for all deeper ones.
    pub first: Vec<f64>,
    /// What each further proposal gets of what those before it leave.
    pub further_share: f64,
}

impl From<&Profile> for AssumedChances {
    fn from(profile: &Profile) -> Self {
        Self { name: profile.name.clone(), first: profile.first.clone(), further_share: FURTHER_SHARE }
    }
}

/// Median time of one bucket of sections, as the policy sees it.
#[derive(Debug, Clone, Serialize)]
pub struct CostRow {
    /// `decode`, `verify` or `draft`.
    pub kind: &'static str,
    /// Lanes, nodes or rows: the most of the bucket, which all smaller ones of it are counted as.
    pub size: usize,
    /// Longest context of the bucket.
    pub context_len: usize,
    /// As calibrated.
    pub calibrated_us: f64,
    /// Of the newest real ones; `None` before the first.
    pub recent_us: Option<f64>,
}

impl CostRow {
    /// Those of `table` that matter to a policy.
    #[must_use]
    pub fn of(table: &CostTable) -> Vec<Self> {
        let us = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let rows = table.rows().filter(|(shape, ..)| shape.kind != SectionKind::Prefill);
        rows.map(|(shape, calibrated, recent)| Self {
            kind: shape.kind.name(),
            size: shape.size,
            context_len: shape.context_len,
            calibrated_us: us(calibrated.p50),
            recent_us: recent.map(|recent| us(recent.p50)),
        })
        .collect()
    }
}

/// One method. Times of a round and its acceptance are `None` where there was none.
#[derive(Debug, Clone, Serialize)]
pub struct MethodRow {
    /// For people.
    pub name: String,
    /// `plain`, `chain`, `tree` or `adaptive`.
    pub kind: &'static str,
    /// `eagle3` or `lookup`; `None` for plain decoding.
    pub drafter: Option<&'static str>,
    /// Nodes expanded on each level, where that is fixed.
    pub top_k: Option<usize>,
    /// Levels below the root, where that is fixed.
    pub levels: Option<usize>,
    /// Nodes verified, the root included, where that is fixed.
    pub nodes: Option<usize>,
    /// Tokens a second after the first of each answer.
    pub tok_s: f64,
    /// Times faster than plain decoding: the median of the ratios within each pass.
    pub speedup: f64,
    /// The same with reading the prompt; `None` where none was read.
    pub speedup_with_prompt: Option<f64>,
    /// Tokens a round emits on average.
    pub accept_len: Option<f64>,
    /// `[accept_len − 1]`: share of rounds that emit so many tokens.
    pub accept_len_shares: Vec<f64>,
    /// Verify rounds of a pass, on average.
    pub rounds: f64,
    /// Steps of a pass without a tree, on average.
    pub plain_steps: f64,
    /// Nodes of a round, on average.
    pub nodes_per_round: Option<f64>,
    /// Drafting, for each round.
    pub draft_us: Option<f64>,
    /// Deciding, and drafting that came to nothing, for each plain step; `None` where there was none.
    pub idle_us: Option<f64>,
    /// Verifying: the step, the walk and what is kept.
    pub verify_us: Option<f64>,
    /// Both medians together.
    pub round_us: Option<f64>,
    /// A round in steps of plain decoding: the median of the ratios within each pass.
    pub round_cost: Option<f64>,
}

/// One task under the adaptive policy.
#[derive(Debug, Clone, Serialize)]
pub struct TaskRow {
    /// The task.
    pub task: String,
    /// Who proposed.
    pub drafter: &'static str,
    /// Its prompts.
    pub num_prompts: usize,
    /// Tokens a round emits on average; `None` where nothing was proposed.
    pub accept_len: Option<f64>,
    /// Times faster than plain decoding of the same prompts.
    pub speedup: f64,
}

/// The adaptive policy against plain decoding.
#[derive(Debug, Clone, Serialize)]
pub struct AgainstPlain {
    /// Which drafter's.
    pub drafter: &'static str,
    /// Its speed by plain decoding's.
    pub ratio: f64,
    /// Whether it lost more than the 3 % it promises to lose at most.
    pub is_slower_than_promised: bool,
}

impl AgainstPlain {
    /// Of the first adaptive row: the draft head's where there is one.
    #[must_use]
    pub fn of(methods: &[MethodRow]) -> Option<Self> {
        let row = methods.iter().find(|row| row.kind == "adaptive")?;
        Some(Self {
            drafter: row.drafter.unwrap_or_default(),
            ratio: row.speedup,
            is_slower_than_promised: row.speedup < WORST_RATIO,
        })
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { drafter, ratio, is_slower_than_promised } = self;
        let change = (ratio - 1.0) * 100.0;
        if *is_slower_than_promised {
            format!(
                "the adaptive policy ({drafter}) is {:.1} % SLOWER than plain decoding: more than the 3 % it may lose",
                -change
            )
        } else if *ratio < 1.0 {
            format!(
                "the adaptive policy ({drafter}) is {:.1} % slower than plain decoding, within the 3 % it may lose",
                -change
            )
        } else {
            format!("the adaptive policy ({drafter}) is {ratio:.2} times as fast as plain decoding")
        }
    }
}

/// Rows of `methods`, the first of which is plain decoding.
#[must_use]
pub fn method_rows(methods: &[Method], tally: &Tally) -> Vec<MethodRow> {
    let plain = tally.passes(0, |_| true);
    let rows = methods.iter().enumerate();
    rows.map(|(idx, &method)| method_row(method, &tally.passes(idx, |_| true), &plain)).collect()
}

fn method_row(method: Method, passes: &[Sums], plain: &[Sums]) -> MethodRow {
    let (all, num_passes) = (Sums::of(passes), passes.len().max(1) as f64);
    let secs = |sums: &Sums| sums.took.as_secs_f64().max(1e-9);
    let with_prompt = |sums: &Sums| secs(sums) + sums.reading.as_secs_f64();
    let ratio =
        |of: &dyn Fn(&Sums) -> f64| median(passes.iter().zip(plain).map(|(own, plain)| of(plain) / of(own)));
    let of_round = |part: &dyn Fn(&Sums) -> std::time::Duration| {
        let each: Vec<f64> = passes.iter().filter_map(|sums| sums.us_per_round(part(sums))).collect();
        (!each.is_empty()).then(|| median(each))
    };
    let (draft_us, verify_us) = (of_round(&|sums| sums.drafting), of_round(&|sums| sums.verifying));
    let round_us = draft_us.zip(verify_us).map(|(draft, verify)| draft + verify);
    // Within each pass: a machine that others use is never the same twice.
    let in_steps = passes.iter().zip(plain).filter_map(|(own, plain)| {
        let round = own.us_per_round(own.drafting)? + own.us_per_round(own.verifying)?;
        Some(round / plain.us_per_step()?.max(1e-9))
    });
    let round_cost = (all.num_rounds > 0).then(|| median(in_steps));
    MethodRow {
        tok_s: median(passes.iter().map(|sums| sums.num_tokens as f64 / secs(sums))),
        speedup: ratio(&secs),
        speedup_with_prompt: Some(ratio(&with_prompt)),
        accept_len: all.accept_len(),
        accept_len_shares: all.accept_shares(),
        rounds: all.num_rounds as f64 / num_passes,
        plain_steps: all.num_plain as f64 / num_passes,
        nodes_per_round: (all.num_rounds > 0).then(|| all.num_nodes as f64 / all.num_rounds as f64),
        draft_us,
        idle_us: (all.num_plain > 0).then(|| all.idle.as_secs_f64() * 1e6 / all.num_plain as f64),
        verify_us,
        round_us,
        round_cost,
        ..MethodRow::named(method)
    }
}

impl MethodRow {
    /// A row without any numbers yet.
    #[must_use]
    pub fn named(method: Method) -> Self {
        let shape = method.shape();
        Self {
            name: method.name(),
            kind: method.kind(),
            drafter: method.proposer().map(super::method::Proposer::key),
            top_k: shape.map(|shape| shape.top_k),
            levels: shape.map(|shape| shape.num_levels),
            nodes: shape.map(|shape| shape.num_nodes),
            tok_s: 0.0,
            speedup: 1.0,
            speedup_with_prompt: None,
            accept_len: None,
            accept_len_shares: Vec::new(),
            rounds: 0.0,
            plain_steps: 0.0,
            nodes_per_round: None,
            draft_us: None,
            idle_us: None,
            verify_us: None,
            round_us: None,
            round_cost: None,
        }
    }
}

/// Rows of every task by every adaptive method; `tasks` are their names with the number of their prompts.
#[must_use]
pub fn task_rows(methods: &[Method], tasks: &[(String, usize)], tally: &Tally) -> Vec<TaskRow> {
    let mut rows = Vec::new();
    for (method_idx, &method) in methods.iter().enumerate() {
        let Method::Adaptive(proposer) = method else { continue };
        for (task_idx, (task, num_prompts)) in tasks.iter().enumerate() {
            let passes = |method_idx| tally.passes(method_idx, |idx| idx == task_idx);
            let (own, plain) = (passes(method_idx), passes(0));
            let ratios = own.iter().zip(&plain).filter(|(own, _)| !own.took.is_zero());
            rows.push(TaskRow {
                task: task.clone(),
                drafter: proposer.key(),
                num_prompts: *num_prompts,
                accept_len: Sums::of(&own).accept_len(),
                speedup: median(ratios.map(|(own, plain)| plain.took.as_secs_f64() / own.took.as_secs_f64())),
            });
        }
    }
    rows
}
