//! What a head's proposals are worth: chains drafted, verified and counted over prompts.
//!
//! A head that is read wrongly (RoPE base, layer numbering) still gives right answers, only slowly, and no file says for sure how it is to be
//! read: what the target accepts does.

use takt_engine::{
    EngineError, Result, TokenId,
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuBackend, CpuOptions},
    },
    dir::EngineDir,
    draft::{AcceptanceCheck, AcceptanceRecord, DraftPlan, DraftRow, DraftSpec, Trial},
    kv::LaneId,
    sampler::{Sampler, SamplingParams},
    step::{LogitsWanted, StepPlan},
};

use super::Reading;

/// Tokens of each chain.
const CHAIN_LEN: usize = 6;
/// Tokens generated after each prompt.
const ANSWER_LEN: usize = 32;
/// Prompts every reading is tried on; the best one then gets all.
const NUM_SCREENED: usize = 3;
/// Lane of the canary's runs; prompts longer than this leave no room for an answer and are cut.
const LANE_CAPACITY: usize = 1024;
const LANE: LaneId = LaneId(0);

/// How many proposals were tried and accepted, by position in the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// Proposals whose predecessors were all accepted.
    pub tried: [usize; CHAIN_LEN],
    /// Those of them that the target accepted.
    pub accepted: [usize; CHAIN_LEN],
    /// Chains drafted.
    pub num_chains: usize,
}

impl Acceptance {
    /// Tokens a round emits on average, the target's own included.
    #[must_use]
    pub fn accept_len(&self) -> f32 {
        let accepted: usize = self.accepted.iter().sum();
        1.0 + accepted as f32 / self.num_chains.max(1) as f32
    }

    fn record(&self, num_prompts: usize, check: AcceptanceCheck, trials: Vec<Trial>) -> AcceptanceRecord {
        let shares = self.accepted.iter().zip(&self.tried).take_while(|(_, tried)| **tried > 0);
        AcceptanceRecord {
            acceptance: shares.map(|(&accepted, &tried)| accepted as f32 / tried as f32).collect(),
            accept_len: self.accept_len(),
            num_chains: self.num_chains,
            num_prompts,
            check,
            trials,
        }
    }
}

/// The reading whose proposals are accepted most, and the record of it.
///
/// # Errors
/// Whatever the engine reports; [`EngineError::Unsupported`] for a head that does not belong to it.
pub(super) fn choose_reading(
    dir: &EngineDir,
    readings: &[Reading],
    spec: impl Fn(Reading) -> DraftSpec,
    prompts: &[Vec<TokenId>],
) -> Result<(Reading, AcceptanceRecord)> {
    let Some(draft) = dir.draft() else {
        return Err(EngineError::Backend("the engine under construction has no draft head".into()));
    };
    let mut backend = open(dir)?;
    let eos = &dir.manifest().eos_token_ids;
    let screened = &prompts[..prompts.len().min(NUM_SCREENED)];
    let mut trials = Vec::with_capacity(readings.len());
    let mut best: Option<(Reading, f32)> = None;
    for &reading in readings {
        backend.attach_draft(&spec(reading), draft)?;
        let accept_len = measure_acceptance(&mut backend, screened, eos)?.accept_len();
        trials.push(Trial { rope_theta: reading.rope_theta, captured: reading.captured, accept_len });
        // The first of equals is what the files suggest.
        if best.is_none_or(|(_, best)| accept_len > best) {
            best = Some((reading, accept_len));
        }
    }
    let Some((reading, _)) = best else {
        return Err(EngineError::Backend("no reading of the draft head to try".into()));
    };
    backend.attach_draft(&spec(reading), draft)?;
    let acceptance = measure_acceptance(&mut backend, prompts, eos)?;
    let prompt = prompts.first().cloned().unwrap_or_default();
    let accept_len = measure_acceptance(&mut backend, std::slice::from_ref(&prompt), eos)?.accept_len();
    let check = AcceptanceCheck { prompt, accept_len };
    Ok((reading, acceptance.record(prompts.len(), check, trials)))
}

fn open(dir: &EngineDir) -> Result<CpuBackend> {
    let manifest = dir.manifest();
    let options = CpuOptions {
        num_threads: std::thread::available_parallelism().map_or(1, usize::from),
        num_lanes: 1,
        lane_capacity: manifest.spec.max_context.min(LANE_CAPACITY),
        kv: manifest.quantization.kv,
        arithmetic: ActivationArithmetic::Auto,
        max_step_tokens: 128,
        max_logits_rows: CHAIN_LEN + 1,
        max_kv_bytes: None,
    };
    CpuBackend::new(&manifest.spec, dir, &options)
}

/// Answers every prompt greedily in lane 0 of `backend`, whose head is attached, with a chain each round.
///
/// # Errors
/// Whatever the backend reports.
pub fn measure_acceptance(
    backend: &mut dyn Backend,
    prompts: &[Vec<TokenId>],
    eos: &[TokenId],
) -> Result<Acceptance> {
    let mut run = Run { backend, plan: StepPlan::default(), counts: Acceptance::default() };
    for prompt in prompts {
        run.answer(prompt, eos)?;
    }
    run.backend.truncate(LANE, 0)?;
    Ok(run.counts)
}

struct Run<'a> {
    backend: &'a mut dyn Backend,
    plan: StepPlan,
    counts: Acceptance,
}

impl Run<'_> {
    fn answer(&mut self, prompt: &[TokenId], eos: &[TokenId]) -> Result<()> {
        let facts = self.backend.capabilities();
        let positions = self.backend.draft_facts().map_or(0, |facts| facts.max_positions);
        let room = facts.lane_capacity.min(positions).saturating_sub(ANSWER_LEN + 2 * CHAIN_LEN);
        let Some(prompt) = prompt.get(..prompt.len().min(room)).filter(|prompt| !prompt.is_empty()) else {
            return Ok(());
        };
        let mut root = self.read(prompt)?;
        let mut num_tokens = 1;
        while num_tokens < ANSWER_LEN && !eos.contains(&root) && self.backend.can_draft(LANE) {
            let chain = self.draft(root)?;
            let new = self.verify(root, &chain, eos)?;
            num_tokens += new.len();
            let Some(&last) = new.last() else { break };
            root = last;
        }
        Ok(())
    }

    /// Reads the prompt into the emptied lane; the target's token after it.
    fn read(&mut self, prompt: &[TokenId]) -> Result<TokenId> {
        self.backend.truncate(LANE, 0)?;
        let slice_len = self.backend.capabilities().max_step_tokens;
        let mut next = 0;
        for slice in prompt.chunks(slice_len) {
            self.plan.clear();
            self.plan.push(LANE, slice, LogitsWanted::Last);
            let output = self.backend.run_step(&self.plan)?;
            next = greedy(output.last_logits(0))?;
        }
        Ok(next)
    }

    fn draft(&mut self, root: TokenId) -> Result<Vec<TokenId>> {
        let mut plan = DraftPlan { rows: Vec::with_capacity(1), top_k: 1, wants_logits: false };
        let (mut chain, mut token) = (Vec::with_capacity(CHAIN_LEN), root);
        for number in 0..CHAIN_LEN {
            plan.rows.clear();
            plan.rows.push(DraftRow { lane: LANE, parent: number.checked_sub(1), token });
            let output = self.backend.draft(&plan)?;
            let Some(&proposed) = output.tokens.first() else { break };
            chain.push(proposed);
            token = proposed;
        }
        Ok(chain)
    }

    /// Verifies the chain, counts, and keeps what is accepted; returns the round's tokens, up to one that ends the answer.
    fn verify(&mut self, root: TokenId, chain: &[TokenId], eos: &[TokenId]) -> Result<Vec<TokenId>> {
        let tokens: Vec<TokenId> = [root].iter().chain(chain).copied().collect();
        let parents: Vec<usize> = (0..tokens.len()).map(|node| node.saturating_sub(1)).collect();
        self.plan.clear();
        self.plan.push_tree(LANE, &tokens, &parents);
        let output = self.backend.run_step(&self.plan)?;
        let logits = output.segment_logits(0).unwrap_or_default();
        let vocab_size = output.vocab_size();
        let mut new = Vec::with_capacity(tokens.len());
        self.counts.num_chains += 1;
        for node in 0..tokens.len() {
            let token = greedy(logits.get(node * vocab_size..(node + 1) * vocab_size))?;
            new.push(token);
            let Some(&proposed) = chain.get(node) else { break };
            self.counts.tried[node] += 1;
            if proposed != token {
                break;
            }
            self.counts.accepted[node] += 1;
            if eos.contains(&token) {
                break;
            }
        }
        let path: Vec<usize> = (0..new.len()).collect();
        self.backend.keep(LANE, &path)?;
        Ok(new)
    }
}

fn greedy(logits: Option<&[f32]>) -> Result<TokenId> {
    let logits = logits.ok_or_else(|| EngineError::Backend("no logits came back".into()))?;
    Sampler::new(&SamplingParams::default())?.sample(logits)
}
