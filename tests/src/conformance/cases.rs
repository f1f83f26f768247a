//! What is asked of every backend.

use takt_engine::{
    TokenId,
    kv::LaneId,
    step::{Detail, LogitsWanted, StepPlan},
};

use super::{
    Conversation,
    Said::{Tokens, Tree},
    choices::choices,
};

type Case = fn(&mut Conversation<'_>);

pub(super) const ALL: [(&str, Case); 8] = [
    ("a prompt in slices of any length", slices),
    ("lanes side by side", side_by_side),
    ("trees, and paths that are kept", trees),
    ("lanes that are shortened, saved and restored", snapshots),
    ("a lane to its last token", last_token),
    ("plans that do not hold", refusals),
    ("lists of the likeliest tokens", lists),
    ("tokens chosen in the host's place", choices),
];

/// Three branches of 10 nodes, and its longest path.
const PARENTS: [usize; 10] = [0, 0, 0, 1, 1, 2, 4, 6, 0, 8];
const PATH: [usize; 5] = [0, 1, 4, 6, 7];

/// In one piece, then in others; where bits are promised they are the same.
fn slices(talk: &mut Conversation<'_>) {
    let prompt = talk.tokens(3, 60);
    let whole = talk.say(&[(0, Tokens(&prompt, LogitsWanted::All))]).remove(0);
    for slice_len in [1, 7, 33] {
        talk.truncate(0, 0);
        let mut sliced = Vec::new();
        for slice in prompt.chunks(slice_len) {
            sliced.extend(talk.say(&[(0, Tokens(slice, LogitsWanted::All))]).remove(0));
        }
        if talk.tier().same_bits {
            assert_eq!(sliced, whole, "slices of {slice_len}");
        }
    }
}

/// Prompts beside prompts and beside tokens, in any order, with a lane between that has nothing to say.
fn side_by_side(talk: &mut Conversation<'_>) {
    let [a, b, c] = [5, 6, 7].map(|seed| talk.tokens(seed, 50));
    talk.say(&[(2, Tokens(&a[..23], LogitsWanted::Last)), (0, Tokens(&b[..40], LogitsWanted::None))]);
    for idx in 0..3 {
        talk.say(&[
            (0, Tokens(&b[40 + idx..=40 + idx], LogitsWanted::Last)),
            (2, Tokens(&a[23 + idx..=23 + idx], LogitsWanted::Last)),
        ]);
    }
    talk.say(&[(1, Tokens(&c[..17], LogitsWanted::All)), (0, Tokens(&b[43..44], LogitsWanted::Last))]);
    talk.say(&[
        (2, Tokens(&a[26..27], LogitsWanted::Last)),
        (1, Tokens(&c[17..18], LogitsWanted::Last)),
        (0, Tokens(&b[44..45], LogitsWanted::Last)),
    ]);
    talk.say(&[(1, Tokens(&c[18..19], LogitsWanted::Last))]);
}

/// In two lanes at once and beside a prompt; kept, forgotten, and waiting while others go on.
fn trees(talk: &mut Conversation<'_>) {
    let (prompt, tree) = (talk.tokens(8, 60), talk.tokens(9, PARENTS.len()));
    talk.say(&[
        (0, Tokens(&prompt[..30], LogitsWanted::None)),
        (2, Tokens(&prompt[30..41], LogitsWanted::Last)),
    ]);
    talk.say(&[
        (0, Tree(&tree, &PARENTS)),
        (1, Tokens(&prompt[..9], LogitsWanted::Last)),
        (2, Tree(&tree[..3], &PARENTS[..3])),
    ]);
    // Both wait; what the other lane says meanwhile must not touch them.
    talk.say(&[(1, Tokens(&prompt[9..10], LogitsWanted::Last))]);
    talk.say(&[(1, Tokens(&prompt[10..14], LogitsWanted::Last))]);
    talk.keep(0, &PATH);
    talk.keep(2, &[0]);
    talk.say(&[
        (0, Tokens(&prompt[50..51], LogitsWanted::Last)),
        (1, Tokens(&prompt[14..15], LogitsWanted::Last)),
        (2, Tokens(&prompt[51..52], LogitsWanted::Last)),
    ]);
    talk.say(&[(0, Tree(&tree, &PARENTS))]);
    assert!(talk.backend.keep(LaneId(0), &[0, 3]).is_err(), "3 is no child of the root");
    assert!(talk.backend.keep(LaneId(1), &[0]).is_err(), "no tree waits in lane 1");
    talk.assert_lens();
    // None is kept: the next step forgets the tree.
    talk.say(&[(0, Tokens(&prompt[52..54], LogitsWanted::All))]);
    assert!(talk.backend.keep(LaneId(0), &[0]).is_err(), "the tree is gone");
    let chain: Vec<usize> = (0..talk.max_tree).map(|node| node.saturating_sub(1)).collect();
    let one_by_one: Vec<TokenId> = talk.tokens(10, chain.len());
    let as_tree = talk.say(&[(1, Tree(&one_by_one, &chain))]).remove(0);
    let as_tokens = talk.say(&[(1, Tokens(&one_by_one, LogitsWanted::All))]).remove(0);
    if talk.tier().same_bits {
        assert_eq!(as_tree, as_tokens, "a tree that is a chain");
    }
}

/// A snapshot outlives its lane, and goes into another.
fn snapshots(talk: &mut Conversation<'_>) {
    let tokens = talk.tokens(11, 60);
    talk.say(&[
        (0, Tokens(&tokens[..40], LogitsWanted::None)),
        (1, Tokens(&tokens[3..20], LogitsWanted::Last)),
    ]);
    let (whole, part) = (talk.save(0, 40), talk.save(1, 9));
    talk.truncate(0, 12);
    talk.say(&[(0, Tokens(&tokens[50..53], LogitsWanted::All))]);
    talk.restore(2, whole);
    talk.restore(0, part);
    talk.truncate(1, 0);
    talk.say(&[
        (0, Tokens(&tokens[53..54], LogitsWanted::Last)),
        (1, Tokens(&tokens[54..55], LogitsWanted::Last)),
        (2, Tokens(&tokens[55..56], LogitsWanted::Last)),
    ]);
    talk.restore(1, whole);
    talk.say(&[(1, Tokens(&tokens[56..60], LogitsWanted::All))]);
    assert!(talk.backend.save_snapshot(LaneId(0), 11).is_err(), "10 tokens are there");
    assert!(talk.backend.truncate(LaneId(0), 11).is_err(), "10 tokens are there");
    let gone = talk.drop_snapshots();
    assert!(talk.backend.restore_snapshot(LaneId(0), gone).is_err(), "it was freed");
    talk.backend.drop_snapshot(gone);
    talk.say(&[(2, Tokens(&tokens[40..41], LogitsWanted::Last))]);
}

fn last_token(talk: &mut Conversation<'_>) {
    let facts = talk.backend.capabilities();
    let (capacity, max_step) = (facts.lane_capacity, facts.max_step_tokens);
    let tokens = talk.tokens(12, capacity);
    let (all_but_two, last) = tokens.split_at(capacity - 2);
    for slice in all_but_two.chunks(max_step) {
        talk.say(&[(1, Tokens(slice, LogitsWanted::None))]);
    }
    talk.say(&[(1, Tree(last, &[0, 0])), (0, Tokens(&tokens[..1], LogitsWanted::Last))]);
    let mut plan = StepPlan::default();
    plan.push(LaneId(1), &tokens[..3], LogitsWanted::None);
    talk.assert_refused(&plan, true);
    talk.keep(1, &[0]);
    talk.say(&[(0, Tokens(&tokens[1..2], LogitsWanted::Last)), (1, Tokens(&last[1..], LogitsWanted::Last))]);
    plan.clear();
    plan.push(LaneId(1), &tokens[..1], LogitsWanted::None);
    talk.assert_refused(&plan, true);
    talk.say(&[(0, Tokens(&tokens[2..3], LogitsWanted::Last))]);
}

fn refusals(talk: &mut Conversation<'_>) {
    use LogitsWanted::{All, Last, None};
    let facts = talk.backend.capabilities();
    let (num_lanes, max_tokens, max_rows) = (facts.num_lanes, facts.max_step_tokens, facts.max_logits_rows);
    let (vocab_size, capacity) = (talk.backend.spec().vocab_size as TokenId, facts.lane_capacity);
    let tokens = talk.tokens(13, 10);
    talk.say(&[(0, Tokens(&tokens[..9], Last))]);
    let of = |segments: &[(usize, usize, LogitsWanted)]| {
        let mut plan = StepPlan::default();
        for &(lane, len, logits) in segments {
            plan.push(LaneId(lane), &vec![1; len], logits);
        }
        plan
    };
    for bad in [
        vec![],
        vec![(1, 2, Last), (2, 0, Last)],
        vec![(0, 1, Last), (0, 1, Last)],
        vec![(num_lanes, 1, Last)],
    ] {
        talk.assert_refused(&of(&bad), false);
    }
    let mut outside = of(&[(0, 2, Last)]);
    outside.tokens[1] = vocab_size;
    talk.assert_refused(&outside, false);
    let mut backwards = StepPlan::default();
    backwards.push_tree(LaneId(0), &[1; 3], &[0, 2, 0]);
    talk.assert_refused(&backwards, false);
    // As many lanes as it takes; none may be too small first.
    let spread = |num_tokens: usize, logits| {
        let each = num_tokens.div_ceil(num_lanes);
        assert!(9 + each <= capacity, "{each} tokens in each of {num_lanes} lanes");
        of(&(0..num_lanes).map(|lane| (lane, each, logits)).collect::<Vec<_>>())
    };
    talk.assert_refused(&spread(max_tokens + 1, None), true);
    if max_rows < max_tokens {
        talk.assert_refused(&spread(max_rows + 1, All), true);
    }
    assert!(talk.backend.truncate(LaneId(num_lanes), 0).is_err(), "lane {num_lanes}");
    assert_eq!(talk.backend.committed_len(LaneId(num_lanes)), 0);
    talk.say(&[(0, Tokens(&tokens[9..], Last))]);
}

/// A list says what its row says; a row that is not here can be had.
fn lists(talk: &mut Conversation<'_>) {
    let (prompt, tree) = (talk.tokens(14, 30), talk.tokens(15, PARENTS.len()));
    talk.say(&[
        (0, Tokens(&prompt[..20], LogitsWanted::None)),
        (1, Tokens(&prompt[20..29], LogitsWanted::None)),
    ]);
    let wanted = [1, 8, 64].map(Detail::Likeliest).into_iter().chain([Detail::OnDemand]);
    for detail in wanted {
        let mut plan = StepPlan::default();
        plan.push_tree(LaneId(0), &tree, &PARENTS);
        plan.last_needs(detail);
        plan.push_tree(LaneId(1), &prompt[29..], &[0]);
        plan.last_needs(Detail::Likeliest(1));
        let mut output = talk.backend.run_step(&plan).expect("a step");
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for (segment, detail, num_rows) in [(0, detail, PARENTS.len()), (1, Detail::Likeliest(1), 1)] {
            assert_eq!(output.num_rows(segment), num_rows);
            let is_here = output.segment_logits(segment).is_some();
            for idx in 0..num_rows {
                let mut row = output.row(segment, idx).expect("a row");
                let listed: Option<Vec<_>> = row.list().map(|list| list.entries().collect());
                let whole = row.whole().expect("all of it").to_vec();
                let is_asked = matches!(detail, Detail::Likeliest(_));
                assert!(listed.is_some() || !(is_asked && talk.makes_lists), "no list for {detail:?}");
                if let Some(listed) = listed {
                    assert_eq!(listed, likeliest(&whole, listed.len()), "row {idx} of segment {segment}");
                    let wanted = if let Detail::Likeliest(len) = detail { len.min(whole.len()) } else { 0 };
                    assert!(is_here || listed.len() >= wanted, "{} tokens for {detail:?}", listed.len());
                }
                rows.push(whole);
            }
        }
        // The same trees with whole rows: the conversation holds those against the naive decoder.
        let said = talk.say(&[(0, Tree(&tree, &PARENTS)), (1, Tree(&prompt[29..], &[0]))]);
        assert_eq!(said.concat(), rows);
    }
}

/// The `len` likeliest, of equal ones the lower first.
fn likeliest(row: &[f32], len: usize) -> Vec<(TokenId, f32)> {
    let mut all: Vec<(TokenId, f32)> = (0..).zip(row.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(len);
    all
}
