//! EAGLE-3 heads in an engine against the published definition's own numbers: draft logits, chains, dynamic trees; and against the plain
//! reference for the habits that those files do not have.

use std::{fs, path::Path, sync::LazyLock};

use serde_json::{Value, json};
use takt_eagle_spec::{
    drafter::HeadDrafter,
    tree::{TreeShape, grow},
};
use takt_engine::{
    TokenId,
    backend::cpu::ActivationArithmetic,
    draft::{DraftPlan, DraftRow},
    engine::{Engine, EngineOptions},
    kv::LaneId,
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::{
    BuildOptions, build,
    draft::{DraftOptions, PublishedHead},
};
use takt_tests::{
    checkpoint::fixtures,
    eagle::{
        self, HABITS, HEADS, LANE, build_habit, build_with, floats, golden, next_token, reference_chain,
        reference_tree, relative_error, tokens, tree_shape, variant,
    },
};

/// Targets with their heads as engines, built once for all tests; nothing is rounded but to bf16, which the files are.
static ENGINES: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    for (head, target) in HEADS {
        build_with(&fixtures().join("eagle3").join(head), target, &folder.path().join(head));
    }
    folder
});

fn open(path: &Path) -> Engine {
    let options = EngineOptions {
        arithmetic: ActivationArithmetic::F32,
        num_lanes: 2,
        lane_capacity: Some(200),
        ..EngineOptions::default()
    };
    Engine::open(path, &options).unwrap()
}

/// Reads `input_ids` into the emptied lane in slices; returns the features of all of them.
fn read(engine: &mut Engine, input_ids: &[TokenId], slice_len: usize) -> Vec<f32> {
    eagle::read(engine.backend.as_mut(), input_ids, slice_len)
}

/// Draft logits after `chain`, whose first token is the root; one row for each.
fn chain_logits(engine: &mut Engine, chain: &[TokenId]) -> Vec<Vec<f32>> {
    eagle::chain_logits(engine.backend.as_mut(), LANE, chain)
}

#[test]
fn captured_layers_are_those_of_the_reference() {
    for (head, target) in HEADS {
        let config = fs::read(fixtures().join(format!("hf/{target}/config.json"))).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let num_layers = usize::try_from(config["num_hidden_layers"].as_u64().unwrap()).unwrap();
        let published = PublishedHead::open(&fixtures().join("eagle3").join(head)).unwrap();
        let readings = published.readings(num_layers).unwrap();
        assert_eq!(json!(readings[0].captured), golden(head)["capture_layer_inputs"], "{head}");
    }
}

#[test]
fn draft_logits_are_the_references_however_the_prompt_is_sliced() {
    for (head, _) in HEADS {
        let mut engine = open(&ENGINES.path().join(head));
        for case in golden(head)["cases"].as_array().unwrap() {
            for slice_len in [1, 3, 64] {
                read(&mut engine, &tokens(&case["input_ids"]), slice_len);
                let logits = chain_logits(&mut engine, &[next_token(case)]);
                let error = relative_error(&logits[0], &floats(&case["draft_logits_last"]));
                assert!(error < 2e-3, "{head} in slices of {slice_len}: {error:e}");
            }
        }
    }
}

#[test]
fn chains_are_the_references() {
    for (head, _) in HEADS {
        let mut engine = open(&ENGINES.path().join(head));
        for case in golden(head)["cases"].as_array().unwrap() {
            read(&mut engine, &tokens(&case["input_ids"]), 64);
            let mut drafter = HeadDrafter::new(engine.backend.as_mut(), &[LANE]);
            let tree = grow(&mut drafter, next_token(case), TreeShape::chain(5)).unwrap();
            assert_eq!(tree.tokens[1..], tokens(&case["chain_5"]), "{head}");
        }
    }
}

#[test]
fn trees_are_the_references_and_drafting_twice_gives_the_same() {
    for (head, _) in HEADS {
        let golden = golden(head);
        let shape = tree_shape(&golden);
        let mut engine = open(&ENGINES.path().join(head));
        for case in golden["cases"].as_array().unwrap() {
            read(&mut engine, &tokens(&case["input_ids"]), 64);
            let mut grown = || {
                let mut drafter = HeadDrafter::new(engine.backend.as_mut(), &[LANE]);
                grow(&mut drafter, next_token(case), shape).unwrap()
            };
            let (tree, expected) = (grown(), reference_tree(case));
            assert_eq!(
                (&tree.tokens, &tree.parents, &tree.depths),
                (&expected.tokens, &expected.parents, &expected.depths),
                "{head}"
            );
            for (found, expected) in tree.cumulative_log_probs.iter().zip(&expected.cumulative_log_probs) {
                assert!((found - expected).abs() < 1e-2, "{head}: {found} {expected}");
            }
            assert_eq!(grown(), tree, "again");
        }
    }
}

#[test]
fn every_habit_of_a_head_computes_as_the_plain_reference_does() {
    let folder = tempfile::tempdir().unwrap();
    let (head, _) = HEADS[0];
    let path = |name: &str| folder.path().join(name);
    let case = &golden(head)["cases"][0];
    let input_ids = tokens(&case["input_ids"]);
    let chain: Vec<TokenId> = [next_token(case), 17, 400, 3, 91].into();
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for habit in HABITS {
        let name = habit.name;
        build_habit(folder.path(), habit);
        let engine_path = path(&format!("engine-{name}"));
        let mut engine = open(&engine_path);
        let features = read(&mut engine, &input_ids, 5);
        let found = chain_logits(&mut engine, &chain);
        let expected = reference_chain(&path(name), &engine_path, &features, &input_ids, &chain);
        for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = relative_error(found, expected);
            assert!(error < 5e-3, "{name}, row {place}: {error:e}");
        }
        assert!(!seen.contains(&found[4]), "{name} computes as another does");
        seen.push(found[4].clone());
    }
}

#[test]
fn a_lane_that_was_cut_back_or_restored_drafts_as_if_nothing_had_been() {
    let (head, _) = HEADS[1];
    let mut engine = open(&ENGINES.path().join(head));
    let case = &golden(head)["cases"][0];
    let (input_ids, root) = (tokens(&case["input_ids"]), next_token(case));
    let (start, end) = input_ids.split_at(input_ids.len() - 2);
    read(&mut engine, &input_ids, 64);
    let expected = chain_logits(&mut engine, &[root, 5]);
    // Read in two parts, with a snapshot between them, into another lane and back.
    read(&mut engine, start, 64);
    let snapshot = engine.backend.save_snapshot(LANE, start.len()).unwrap();
    let append = |engine: &mut Engine, lane: LaneId, tokens: &[TokenId]| {
        let mut plan = StepPlan::default();
        plan.push(lane, tokens, LogitsWanted::None);
        engine.backend.run_step(&plan).unwrap();
    };
    append(&mut engine, LANE, &[1, 2, 3]);
    engine.backend.restore_snapshot(LANE, snapshot).unwrap();
    append(&mut engine, LANE, end);
    assert_eq!(chain_logits(&mut engine, &[root, 5]), expected);
    // A tree whose path is kept is as good as tokens read one after another.
    engine.backend.restore_snapshot(LANE, snapshot).unwrap();
    let mut plan = StepPlan::default();
    plan.push_tree(LANE, &[end[0], 9, end[1], 8], &[0, 0, 0, 2]);
    engine.backend.run_step(&plan).unwrap();
    engine.backend.keep(LANE, &[0, 2]).unwrap();
    let kept = chain_logits(&mut engine, &[root, 5]);
    assert!(kept.iter().zip(&expected).all(|(a, b)| relative_error(a, b) < 1e-4));
    // Cut back within what was read: the last row is read again with the next step.
    engine.backend.truncate(LANE, start.len() - 1).unwrap();
    append(&mut engine, LANE, &input_ids[start.len() - 1..]);
    assert!(engine.backend.can_draft(LANE));
    chain_logits(&mut engine, &[root]);
    engine.backend.drop_snapshot(snapshot);
}

#[test]
fn beyond_the_positions_a_head_was_trained_for_nothing_is_drafted_and_a_shorter_text_is_again() {
    let folder = tempfile::tempdir().unwrap();
    let (head, target) = HEADS[0];
    let (short, engine_path) = (folder.path().join("short"), folder.path().join("engine"));
    variant(&short, head, |config| config["max_position_embeddings"] = 24.into(), &[]);
    let draft = Some(DraftOptions { folder: &short, prompts: None, measures: false });
    let options = BuildOptions { draft, ..BuildOptions::new(WeightKind::Bf16) };
    let report = build(&fixtures().join("hf").join(target), &engine_path, &options, &mut |_| {}).unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("trained for 24 positions")), "{report:?}");
    let mut engine = open(&engine_path);
    let text: Vec<TokenId> = (0..40).map(|i| (i * 37 + 5) % 600).collect();
    read(&mut engine, &text[..12], 5);
    let expected = chain_logits(&mut engine, &[7, 8]);
    read(&mut engine, &text[..20], 7);
    let snapshot = engine.backend.save_snapshot(LANE, 20).unwrap();
    let append = |engine: &mut Engine, tokens: &[TokenId]| {
        let mut plan = StepPlan::default();
        plan.push(LANE, tokens, LogitsWanted::Last);
        engine.backend.run_step(&plan).unwrap();
    };
    append(&mut engine, &text[20..30]);
    assert!(!engine.backend.can_draft(LANE), "30 tokens");
    // A text that begins alike, as the next request with the same system prompt does.
    engine.backend.truncate(LANE, 10).unwrap();
    append(&mut engine, &text[10..12]);
    let again = chain_logits(&mut engine, &[7, 8]);
    assert!(again.iter().zip(&expected).all(|(a, b)| relative_error(a, b) < 1e-4));
    engine.backend.restore_snapshot(LANE, snapshot).unwrap();
    append(&mut engine, &text[20..22]);
    assert!(engine.backend.can_draft(LANE), "22 tokens, after a snapshot from before");
}

#[test]
fn drafts_that_cannot_be_are_refused_and_change_nothing() {
    let (head, _) = HEADS[0];
    let mut engine = open(&ENGINES.path().join(head));
    let case = &golden(head)["cases"][0];
    let (input_ids, root) = (tokens(&case["input_ids"]), next_token(case));
    let row = |parent, token| DraftRow { lane: LANE, parent, token };
    let refusal = |engine: &mut Engine, rows: Vec<DraftRow>, top_k| {
        let plan = DraftPlan { rows, top_k, wants_logits: false };
        engine.backend.draft(&plan).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refusal(&mut engine, vec![row(None, 1)], 1).contains("has not read"));
    assert!(!engine.backend.can_draft(LANE));
    read(&mut engine, &input_ids, 64);
    for (rows, top_k, word) in [
        (vec![], 1, "0 rows"),
        (vec![row(None, 1)], 0, "0 proposals"),
        (vec![row(None, 640)], 1, "outside the vocabulary of 640"),
        (vec![row(Some(0), 1)], 1, "was not drafted"),
        (vec![row(None, 1), row(Some(0), 2)], 1, "was not drafted before"),
        (vec![row(None, 1), row(None, 2)], 1, "after other rows"),
        (vec![DraftRow { lane: LaneId(9), parent: None, token: 1 }], 1, "does not exist"),
    ] {
        let error = refusal(&mut engine, rows, top_k);
        assert!(error.contains(word), "{word}: {error}");
    }
    let expected = chain_logits(&mut engine, &[root]);
    assert!(refusal(&mut engine, vec![row(Some(3), 1)], 1).contains("row 3 has children"));
    assert_eq!(chain_logits(&mut engine, &[root]), expected);
    // A lane it does not read along cannot be drafted after, until it is emptied and read again.
    engine.backend.follow(LANE, false);
    assert!(!engine.backend.can_draft(LANE));
    engine.backend.follow(LANE, true);
    assert!(!engine.backend.can_draft(LANE));
    read(&mut engine, &input_ids, 64);
    assert_eq!(chain_logits(&mut engine, &[root]), expected);
    assert!(engine.backend.capture(&[0]).is_err());
}
