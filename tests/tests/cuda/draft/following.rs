//! Reading along: however a lane's tokens come, and whatever was done to it, it drafts as if they had been read at once.

use std::path::Path;

use takt_engine::{
    TokenId,
    backend::{Backend, cuda::CudaBackend},
    draft::{DraftPlan, DraftRow},
    kv::{KvKind, LaneId},
    step::{LogitsWanted, StepPlan},
};
use takt_tests::eagle::{HEADS, append, chain_logits, read, variant};

use super::{A, B, C, Fixture, open_at, step, step_tree};
use crate::models::{on_device, options};

const CHAIN: [TokenId; 3] = [7, 8, 91];

fn text(len: u32) -> Vec<TokenId> {
    (0..len).map(|i| (i * 37 + 5) % 600).collect()
}

/// What is drafted after `text`, read at once.
fn after(backend: &mut CudaBackend, text: &[TokenId]) -> Vec<Vec<f32>> {
    read(backend, text, 96);
    chain_logits(backend, A, &CHAIN)
}

#[track_caller]
fn drafts(backend: &mut CudaBackend, lane: LaneId, expected: &[Vec<f32>], what: &str) {
    assert!(backend.can_draft(lane), "{what}");
    assert!(chain_logits(backend, lane, &CHAIN) == expected, "{what}");
    assert!(chain_logits(backend, lane, &CHAIN) == expected, "{what}, again");
}

#[test]
fn plain_steps_slices_trees_and_snapshots_leave_the_same_bits() {
    on_device("draft::following::plain_steps_slices_trees_and_snapshots_leave_the_same_bits").run(|_| {
        for kv in [KvKind::Bf16, KvKind::Int8] {
            let mut backend = Fixture::new(1).with_head(&options(kv));
            let backend = &mut backend;
            let text = text(60);
            let expected = after(backend, &text);
            // Steps: more than wait at most, with drafts between some.
            read(backend, &text[..37], 96);
            for (idx, token) in text[37..].iter().enumerate() {
                step(backend, A, &[*token]);
                if idx % 5 == 3 {
                    chain_logits(backend, A, &[text[38 + idx], 2]);
                }
            }
            drafts(backend, A, &expected, "steps");
            // Rounds: trees whose paths are kept, chains and others, beside plain steps.
            read(backend, &text[..40], 96);
            step(backend, A, &[text[40]]);
            for (at, tokens, parents, path) in [
                (41, vec![text[41], 9, text[42], 8, text[43]], vec![0, 0, 0, 2, 2], vec![0, 2, 4]),
                (44, vec![text[44]], vec![0], vec![0]),
                (45, vec![text[45], text[46], text[47], 3], vec![0, 0, 1, 2], vec![0, 1, 2]),
            ] {
                assert_eq!(backend.committed_len(A), at);
                step_tree(backend, A, &tokens, &parents);
                backend.keep(A, &path).unwrap();
            }
            (48..51).for_each(|idx| step(backend, A, &[text[idx]]));
            append(backend, A, &text[51..]);
            drafts(backend, A, &expected, "trees");
            // A snapshot with rows that wait, restored into another lane.
            read(backend, &text[..50], 96);
            (50..54).for_each(|idx| step(backend, A, &[text[idx]]));
            let snapshot = backend.save_snapshot(A, 53).unwrap();
            append(backend, A, &[1, 2, 3]);
            append(backend, B, &[4, 5, 6]);
            step(backend, B, &[4]);
            backend.restore_snapshot(B, snapshot).unwrap();
            append(backend, B, &text[53..]);
            drafts(backend, B, &expected, "restored");
            backend.restore_snapshot(C, snapshot).unwrap();
            backend.drop_snapshot(snapshot);
            (53..60).for_each(|idx| step(backend, C, &[text[idx]]));
            drafts(backend, C, &expected, "restored and dropped");
            // Cut back among rows that were read, and among those that wait.
            (0..5).for_each(|token| step(backend, C, &[token]));
            backend.truncate(C, 62).unwrap();
            backend.truncate(C, 57).unwrap();
            assert!(!backend.can_draft(C), "the last row's features are gone");
            append(backend, C, &text[57..]);
            drafts(backend, C, &expected, "cut back");
        }
    });
}

#[test]
fn lanes_side_by_side_read_and_draft_the_bits_of_each_alone() {
    on_device("draft::following::lanes_side_by_side_read_and_draft_the_bits_of_each_alone").run(|_| {
        let mut backend = Fixture::new(0).with_head(&options(KvKind::Fp8));
        let backend = &mut backend;
        let text = text(80);
        let parts = [&text[..30], &text[10..22], &text[40..77]];
        let alone = parts.map(|part| after(backend, part));
        backend.truncate(A, 0).unwrap();
        for lane in [A, B, C] {
            append(backend, lane, &parts[lane.0][..5]);
        }
        // A slice beside a plain step beside a tree, until all are through.
        let mut at = [5; 3];
        while at.iter().zip(parts).any(|(at, part)| *at < part.len()) {
            let mut plan = StepPlan::default();
            let mut kept = Vec::new();
            for lane in [C, A, B] {
                let rest = &parts[lane.0][at[lane.0]..];
                match (lane, rest) {
                    (_, []) => {}
                    (A, _) => plan.push(A, &rest[..1], LogitsWanted::Last),
                    (C, [first, second, ..]) => {
                        plan.push_tree(C, &[*first, 99, *second], &[0, 0, 0]);
                        kept.push((C, vec![0, 2]));
                    }
                    _ => plan.push(lane, &rest[..rest.len().min(4)], LogitsWanted::None),
                }
                let taken = plan.segments.last().filter(|segment| segment.lane == lane && !rest.is_empty());
                at[lane.0] += match taken {
                    Some(segment) if segment.is_tree => 2,
                    Some(segment) => segment.tokens.len(),
                    None => 0,
                };
            }
            backend.run_step(&plan).unwrap();
            kept.iter().for_each(|(lane, path)| backend.keep(*lane, path).unwrap());
        }
        // One level after the other, all lanes in each.
        for number in 0..CHAIN.len() {
            let row = |lane| DraftRow { lane, parent: number.checked_sub(1), token: CHAIN[number] };
            let plan = DraftPlan { rows: [B, C, A].map(row).to_vec(), top_k: 5, wants_logits: true };
            let output = backend.draft(&plan).unwrap();
            let len = output.logits.len() / 3;
            for (place, lane) in [B, C, A].into_iter().enumerate() {
                assert!(
                    output.logits[place * len..][..len] == alone[lane.0][number],
                    "{lane:?}, level {number}"
                );
            }
        }
    });
}

#[test]
fn lanes_it_is_not_to_follow_and_lanes_others_wrote_to_are_cold_until_they_are_emptied() {
    let test = "draft::following::lanes_it_is_not_to_follow_and_lanes_others_wrote_to_are_cold_until_they_are_emptied";
    on_device(test).run(|_| {
        let mut backend = Fixture::new(0).with_head(&options(KvKind::Bf16));
        let backend = &mut backend;
        let text = text(30);
        assert!(!backend.can_draft(A), "nothing was read");
        let expected = after(backend, &text);
        backend.follow(A, false);
        assert!(!backend.can_draft(A));
        step(backend, A, &[3]);
        backend.follow(A, true);
        assert!(!backend.can_draft(A), "it missed a token");
        let cold = backend.save_snapshot(A, 31).unwrap();
        read(backend, &text, 9);
        drafts(backend, A, &expected, "emptied and read");
        backend.restore_snapshot(A, cold).unwrap();
        assert!(!backend.can_draft(A), "a snapshot of a lane that was not followed");
        // Not followed while its neighbour is.
        backend.truncate(B, 0).unwrap();
        backend.follow(B, false);
        backend.truncate(A, 0).unwrap();
        let mut plan = StepPlan::default();
        plan.push(B, &text, LogitsWanted::Last);
        plan.push(A, &text, LogitsWanted::Last);
        backend.run_step(&plan).unwrap();
        drafts(backend, A, &expected, "beside one that is not followed");
        assert!(!backend.can_draft(B));
    });
}

#[test]
fn beyond_the_positions_a_head_was_trained_for_nothing_is_drafted_and_a_shorter_text_is_again() {
    let test = "draft::following::beyond_the_positions_a_head_was_trained_for_nothing_is_drafted_and_a_shorter_text_is_again";
    on_device(test).run(|_| {
        let folder = tempfile::tempdir().unwrap();
        let (head, target) = HEADS[0];
        let paths = ["short", "engine"].map(|name| folder.path().join(name));
        variant(&paths[0], head, |config| config["max_position_embeddings"] = 24.into(), &[]);
        takt_tests::eagle::build_with(&paths[0], target, &paths[1]);
        let mut backend = open_at(Path::new(&paths[1]), KvKind::Bf16);
        let backend = &mut backend;
        assert_eq!(backend.draft_facts().unwrap().max_positions, 24);
        let text = text(40);
        let expected = after(backend, &text[..12]);
        read(backend, &text[..20], 7);
        let snapshot = backend.save_snapshot(A, 20).unwrap();
        step(backend, A, &text[20..30]);
        assert!(!backend.can_draft(A), "30 tokens");
        // A text that begins alike, as the next request with the same system prompt does.
        backend.truncate(A, 10).unwrap();
        step(backend, A, &text[10..12]);
        drafts(backend, A, &expected, "a text that begins alike");
        backend.restore_snapshot(A, snapshot).unwrap();
        step(backend, A, &text[20..22]);
        assert!(backend.can_draft(A), "22 tokens, after a snapshot from before");
        // A path that leads beyond.
        step_tree(backend, A, &[1, 2, 3], &[0, 0, 1]);
        backend.keep(A, &[0, 1, 2]).unwrap();
        assert!(!backend.can_draft(A), "25 tokens");
        // The last positions and the deepest proposals there is room for.
        read(backend, &text[..23], 96);
        let chain: Vec<TokenId> = (0..128).collect();
        assert!(chain_logits(backend, A, &chain).iter().flatten().all(|logit| logit.is_finite()));
    });
}

#[test]
fn a_tree_that_is_kept_after_another_lanes_step_is_not_read() {
    let test = "draft::following::a_tree_that_is_kept_after_another_lanes_step_is_not_read";
    on_device(test).run(|_| {
        let fixture = Fixture::new(0);
        let mut backend = fixture.with_head(&options(KvKind::Bf16));
        let expected = after(&mut backend, &text(9));
        step_tree(&mut backend, A, &[1, 2], &[0, 0]);
        step(&mut backend, B, &[7, 8, 9]);
        backend.keep(A, &[0, 1]).unwrap();
        assert_eq!(backend.committed_len(A), 11);
        assert!(!backend.can_draft(A), "its features are the other lane's by then");
        assert!(backend.can_draft(B));
        backend.truncate(A, 9).unwrap();
        drafts(&mut backend, A, &expected, "what was read before is there");
    });
}
