//! What a backend chooses is what the host chooses by the rows: down a tree, after a decode step, at the end of a prompt.

use takt_engine::{
    TokenId,
    kv::LaneId,
    sampler::{Sampler, SamplingParams},
    step::{Detail, LogitsWanted, StepPlan},
};

use super::{Conversation, Said::Tokens};

const GREEDY: SamplingParams =
    SamplingParams { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: 0 };
const HOT: SamplingParams = SamplingParams { temperature: 0.9, seed: 3, ..GREEDY };
/// Of every kind: by lists, and by whole rows.
const KINDS: [SamplingParams; 9] = [
    GREEDY,
    HOT,
    SamplingParams { top_k: Some(5), top_p: 0.9, ..HOT },
    SamplingParams { top_p: 0.8, ..HOT },
    SamplingParams { min_p: 0.1, ..HOT },
    SamplingParams { top_k: Some(64), min_p: 0.02, ..HOT },
    SamplingParams { top_k: Some(70), top_p: 0.95, ..HOT },
    SamplingParams { top_k: Some(1 << 20), temperature: 3.0, ..HOT },
    SamplingParams { top_k: Some(1), ..HOT },
];

/// Tokens that each lane holds, before what the step is about.
const LENS: [usize; 3] = [20, 9, 7];
/// Tokens of a prompt's end.
const TAIL: usize = 3;
/// Proposals that will be accepted, one after another.
const NUM_PROPOSED: usize = 2;

/// Choices of a step: the path down the tree of lane 0, with what is chosen after each of its nodes, and what the two other lanes choose.
#[derive(Debug, PartialEq)]
struct Chosen {
    path: Vec<(usize, TokenId)>,
    beside: [TokenId; 2],
}

/// Every kind of sampler in every lane.
pub(super) fn choices(talk: &mut Conversation<'_>) {
    let prompt = talk.tokens(16, 20);
    let told = [0, 1, 2].map(|lane| (lane, Tokens(&prompt[..LENS[lane]], LogitsWanted::None)));
    talk.say(&told);
    let mut num_accepted = 0;
    // Each in the tree, or beside it.
    for first in (0..KINDS.len()).step_by(2) {
        let samplers: [Sampler; 3] =
            [0, 1, 5].map(|at| Sampler::new(&KINDS[(first + at) % KINDS.len()]).expect("a sampler"));
        // What is chosen without a tree is proposed, and others beside it.
        let mut said = vec![prompt[19]];
        let mut plain = samplers[0].clone();
        for _ in 0..NUM_PROPOSED {
            said.push(plain_choice(talk, &mut plain, &said));
        }
        let plan = step(&prompt, &said, talk.backend.spec().vocab_size);
        let by_rows = chosen(talk, plan.clone(), samplers.clone(), false);
        let in_its_place = chosen(talk, plan, samplers, true);
        assert_eq!(in_its_place, by_rows, "samplers from {:?} on", KINDS[first]);
        num_accepted += by_rows.path.len() - 1;
    }
    // Kernels chosen by shape may differ in a last bit, and so in a choice; not in most.
    let proposed = NUM_PROPOSED * KINDS.len().div_ceil(2);
    let expected = if talk.tier().same_bits { proposed } else { proposed / 2 };
    assert!(num_accepted >= expected, "{num_accepted} of {proposed} accepted");
}

/// What is chosen after `said` in lane 0, one token after another, by whole rows; the lane is as before.
fn plain_choice(talk: &mut Conversation<'_>, sampler: &mut Sampler, said: &[TokenId]) -> TokenId {
    let mut plan = StepPlan::default();
    plan.push(LaneId(0), said, LogitsWanted::Last);
    let mut output = talk.backend.run_step(&plan).expect("a step");
    let token = sampler.sample_row(&mut output.last_row(0).expect("a row")).expect("a choice");
    talk.backend.truncate(LaneId(0), LENS[0]).expect("a shorter lane");
    token
}

/// A tree with the branch `said` and other proposals at each of its nodes, a token of lane 1, the end of a prompt in lane 2.
fn step(prompt: &[TokenId], said: &[TokenId], vocab_size: usize) -> StepPlan {
    let (mut tokens, mut parents, mut last) = (vec![said[0]], vec![0], 0);
    for &token in &said[1..] {
        // One before it, one after: others than it.
        for other in [1, 0, 2] {
            tokens.push((token + other) % vocab_size as TokenId);
            parents.push(last);
        }
        last = tokens.len() - 2;
    }
    let mut plan = StepPlan::default();
    plan.push(LaneId(1), &prompt[LENS[1]..=LENS[1]], LogitsWanted::Last);
    plan.push_tree(LaneId(0), &tokens, &parents);
    plan.push(LaneId(2), &prompt[LENS[2]..LENS[2] + TAIL], LogitsWanted::Last);
    plan
}

/// The choices of `samplers`, of lanes 0 to 2: made by the backend, where it does, or by whole rows.
fn chosen(talk: &mut Conversation<'_>, mut plan: StepPlan, mut samplers: [Sampler; 3], asks: bool) -> Chosen {
    if asks {
        for segment in &mut plan.segments {
            segment.detail = Detail::Chosen(samplers[segment.lane.0].state());
        }
    }
    let chooses = asks && talk.makes_lists;
    let (tokens, parents) = (&plan.tokens[1..], &plan.parents[1..]);
    let mut output = talk.backend.run_step(&plan).expect("a step");
    let mut choose = |segment: usize, row: usize, sampler: &mut Sampler| {
        let mut row = output.row(segment, row).expect("a row");
        let made_for = row.choice().map(|choice| choice.sampler);
        assert_eq!(made_for, chooses.then(|| sampler.state()), "segment {segment}");
        sampler.sample_row(&mut row).expect("a choice")
    };
    let (mut path, mut node) = (Vec::new(), 0);
    loop {
        let token = choose(1, node, &mut samplers[0]);
        path.push((node, token));
        let num_nodes = plan.segments[1].tokens.len();
        let next = (node + 1..num_nodes).find(|&child| parents[child] == node && tokens[child] == token);
        let Some(next) = next else { break };
        node = next;
    }
    let beside = [choose(0, 0, &mut samplers[1]), choose(2, 0, &mut samplers[2])];
    let off_path = (0..plan.segments[1].tokens.len()).filter(|row| path.iter().all(|(node, _)| node != row));
    for row in off_path {
        assert_eq!(output.row(1, row).expect("a row").choice(), None, "node {row} is not on {path:?}");
    }
    for lane in [1, 2] {
        talk.backend.truncate(LaneId(lane), LENS[lane]).expect("a shorter lane");
    }
    Chosen { path, beside }
}
