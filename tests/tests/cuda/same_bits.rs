//! A token's logits have the same bits whichever way it came: in a prompt's slice, decoded, beside other lanes, in a tree, after a snapshot.

use takt_engine::{
    TokenId,
    backend::Backend,
    kv::{KvKind, LaneId},
    quant::WeightKind,
    spec::DecoderSpec,
    step::{LogitsWanted, StepPlan},
};
use takt_tests::{backends::run_slices, memory_weights::MemoryWeights};

use crate::models::{on_device, open, options, spec, tokens};

fn all_options() -> DecoderSpec {
    DecoderSpec { windows: vec![None, Some(20), None], qk_norm: true, qkv_bias: true, ..spec() }
}

const FORMATS: [(WeightKind, KvKind); 3] =
    [(WeightKind::Bf16, KvKind::Bf16), (WeightKind::Nvfp4, KvKind::Fp8), (WeightKind::Int4, KvKind::Int8)];

#[test]
fn slices_of_any_size_give_the_bits_of_one() {
    on_device("same_bits::slices_of_any_size_give_the_bits_of_one").run(|_| {
        for (weights, kv) in FORMATS {
            let spec = all_options();
            let model = MemoryWeights::random(&spec, weights, WeightKind::Bf16, 1);
            let mut backend = open(&spec, &model, &options(kv)).unwrap();
            let tokens = tokens(&spec, 60);
            let whole = run_slices(&mut backend, LaneId(0), &tokens, 60);
            for slice_len in [1, 7, 33] {
                backend.truncate(LaneId(0), 0).unwrap();
                let sliced = run_slices(&mut backend, LaneId(0), &tokens, slice_len);
                assert_eq!(sliced, whole, "{weights}, {kv}, slices of {slice_len}");
            }
        }
    });
}

#[test]
fn lanes_side_by_side_do_not_touch_each_other() {
    on_device("same_bits::lanes_side_by_side_do_not_touch_each_other").run(|_| {
        let spec = all_options();
        let model = MemoryWeights::random(&spec, WeightKind::Fp8, WeightKind::Nvfp4, 2);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        let tokens = tokens(&spec, 40);
        let alone = run_slices(&mut backend, LaneId(0), &tokens[..30], 30);
        backend.truncate(LaneId(0), 0).unwrap();
        let mut plan = StepPlan::default();
        // A prompt's slice beside a lane that decodes, then three that decode.
        run_slices(&mut backend, LaneId(1), &tokens[5..15], 10);
        plan.push(LaneId(1), &tokens[15..16], LogitsWanted::Last);
        plan.push(LaneId(0), &tokens[..29], LogitsWanted::All);
        let output = backend.run_step(&plan).unwrap();
        let rows: Vec<_> =
            output.segment_logits(1).unwrap().chunks(spec.vocab_size).map(<[f32]>::to_vec).collect();
        assert_eq!(rows, alone[..29]);
        run_slices(&mut backend, LaneId(2), &tokens[3..9], 6);
        plan.clear();
        for (lane, token) in [(2, tokens[9]), (0, tokens[29]), (1, tokens[16])] {
            plan.push(LaneId(lane), &[token], LogitsWanted::Last);
        }
        let output = backend.run_step(&plan).unwrap();
        assert_eq!(output.last_logits(1).unwrap(), alone[29]);
        assert_eq!([0, 1, 2].map(|lane| backend.committed_len(LaneId(lane))), [30, 12, 7]);
    });
}

/// Tokens and parents of a tree with three branches, and its longest path.
const TREE: ([TokenId; 8], [usize; 8], [usize; 4]) =
    ([5, 9, 11, 30, 31, 7, 50, 51], [0, 0, 0, 1, 1, 2, 4, 6], [0, 1, 4, 6]);

#[test]
fn a_tree_gives_the_bits_of_decoding_and_keeps_its_path() {
    on_device("same_bits::a_tree_gives_the_bits_of_decoding_and_keeps_its_path").run(|_| {
        for (weights, kv) in FORMATS {
            let spec = all_options();
            let model = MemoryWeights::random(&spec, weights, WeightKind::Bf16, 4);
            let mut backend = open(&spec, &model, &options(kv)).unwrap();
            let (tree, parents, path) = TREE;
            let prompt = tokens(&spec, 21);
            let along: Vec<TokenId> = path.iter().map(|&node| tree[node]).collect();
            run_slices(&mut backend, LaneId(0), &prompt, 21);
            let plain = run_slices(&mut backend, LaneId(0), &along, 1);
            let after = run_slices(&mut backend, LaneId(0), &[60, 61], 1);

            run_slices(&mut backend, LaneId(1), &prompt, 8);
            let mut plan = StepPlan::default();
            plan.push_tree(LaneId(1), &tree, &parents);
            let output = backend.run_step(&plan).unwrap();
            let rows: Vec<_> =
                output.segment_logits(0).unwrap().chunks(spec.vocab_size).map(<[f32]>::to_vec).collect();
            for (depth, &node) in path.iter().enumerate() {
                assert_eq!(rows[node], plain[depth], "{weights}, {kv}, node {node}");
            }
            assert_eq!(backend.committed_len(LaneId(1)), 21);
            assert!(backend.keep(LaneId(1), &[0, 4]).is_err());
            backend.keep(LaneId(1), &path).unwrap();
            assert_eq!(backend.committed_len(LaneId(1)), 25);
            assert_eq!(run_slices(&mut backend, LaneId(1), &[60, 61], 1), after, "{weights}, {kv}, after");
        }
    });
}

/// Nobody waits between two lanes' rows being moved together, nor before the next step.
#[test]
fn the_paths_of_all_lanes_are_kept_at_once() {
    on_device("same_bits::the_paths_of_all_lanes_are_kept_at_once").run(|_| {
        let spec = all_options();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Bf16, 6);
        let mut backend = open(&spec, &model, &options(KvKind::Int8)).unwrap();
        let (tree, parents, _) = TREE;
        let paths: [&[usize]; 3] = [&[0, 1, 4, 6], &[0, 2, 5], &[0, 1, 3]];
        let prompt = tokens(&spec, 14);
        let expected: Vec<_> = paths
            .iter()
            .map(|path| {
                let along: Vec<TokenId> = path.iter().map(|&node| tree[node]).collect();
                backend.truncate(LaneId(0), 0).unwrap();
                run_slices(&mut backend, LaneId(0), &prompt, 14);
                run_slices(&mut backend, LaneId(0), &along, 1);
                run_slices(&mut backend, LaneId(0), &[60, 61], 1)
            })
            .collect();
        let mut plan = StepPlan::default();
        for lane in 0..3 {
            backend.truncate(LaneId(lane), 0).unwrap();
            run_slices(&mut backend, LaneId(lane), &prompt, 14);
            plan.push_tree(LaneId(lane), &tree, &parents);
        }
        backend.run_step(&plan).unwrap();
        for (lane, path) in paths.iter().enumerate() {
            backend.keep(LaneId(lane), path).unwrap();
        }
        for (lane, expected) in expected.iter().enumerate() {
            assert_eq!(run_slices(&mut backend, LaneId(lane), &[60, 61], 1), *expected, "lane {lane}");
        }
    });
}

#[test]
fn a_lane_goes_on_from_a_snapshot_as_if_it_had_read_the_prefix() {
    on_device("same_bits::a_lane_goes_on_from_a_snapshot_as_if_it_had_read_the_prefix").run(|_| {
        for (weights, kv) in FORMATS {
            let spec = all_options();
            let model = MemoryWeights::random(&spec, weights, WeightKind::Bf16, 5);
            let mut backend = open(&spec, &model, &options(kv)).unwrap();
            let tokens = tokens(&spec, 50);
            let whole = run_slices(&mut backend, LaneId(0), &tokens, 50);
            let snapshot = backend.save_snapshot(LaneId(0), 37).unwrap();
            backend.truncate(LaneId(0), 0).unwrap();
            run_slices(&mut backend, LaneId(0), &tokens[3..40], 37);
            run_slices(&mut backend, LaneId(2), &tokens[1..3], 2);
            backend.restore_snapshot(LaneId(2), snapshot).unwrap();
            backend.drop_snapshot(snapshot);
            assert_eq!(backend.committed_len(LaneId(2)), 37);
            let rest = run_slices(&mut backend, LaneId(2), &tokens[37..], 6);
            assert_eq!(rest, whole[37..], "{weights}, {kv}");
            assert!(backend.restore_snapshot(LaneId(0), snapshot).is_err());
        }
    });
}

#[test]
fn features_are_the_residual_stream_whatever_the_shape() {
    on_device("same_bits::features_are_the_residual_stream_whatever_the_shape").run(|_| {
        let spec = all_options();
        let model = MemoryWeights::random(&spec, WeightKind::Bf16, WeightKind::Bf16, 6);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        backend.capture(&[0, 2, 3]).unwrap();
        let tokens = tokens(&spec, 12);
        let mut features_of = |len: usize| {
            backend.truncate(LaneId(0), 0).unwrap();
            let mut all = Vec::new();
            for slice in tokens.chunks(len) {
                let mut plan = StepPlan::default();
                plan.push(LaneId(0), slice, LogitsWanted::None);
                all.extend_from_slice(backend.run_step(&plan).unwrap().features());
            }
            all
        };
        let whole = features_of(12);
        assert_eq!(whole.len(), 12 * 3 * spec.hidden_size);
        assert!(whole.iter().all(|value| value.is_finite()) && whole.iter().any(|&value| value != 0.0));
        assert_eq!(features_of(5), whole);
        assert!(backend.capture(&[4]).is_err());
        backend.capture(&[]).unwrap();
    });
}
