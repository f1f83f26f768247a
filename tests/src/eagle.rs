//! The fixtures' draft heads: their golden files, engines with them, heads of other habits, and the plain reference after the same tokens.

use std::{fs, path::Path};

use serde_json::Value;
use takt_eagle_spec::tree::{DraftTree, TreeShape};
use takt_engine::{
    TokenId,
    backend::Backend,
    dir::EngineDir,
    draft::{DraftPlan, DraftRow},
    kv::LaneId,
    quant::{MatrixData, WeightKind},
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::{
    BuildOptions, build,
    draft::{DraftOptions, PublishedHead},
};

use crate::{
    checkpoint::{fixtures, read_tensors, write_tensors},
    reference_head::{ReferenceHead, ReferenceLane},
};

/// The lane of a test that needs one.
pub const LANE: LaneId = LaneId(0);
/// Heads and their targets.
pub const HEADS: [(&str, &str); 2] =
    [("tiny-llama-midlayer", "tiny-llama"), ("tiny-qwen3-layers", "tiny-qwen3")];
/// What sets a head apart from others.
#[derive(Debug, Clone, Copy)]
pub struct Habit {
    /// For people, and for folders.
    pub name: &'static str,
    /// Flags of its config that are set.
    flags: &'static [&'static str],
    /// Tensors it has besides, with their shapes.
    tensors: &'static [(&'static str, &'static [usize])],
}

/// Heads of every habit.
pub const HABITS: [Habit; 6] = [
    Habit { name: "plain", flags: &[], tensors: &[] },
    Habit { name: "residual", flags: &["norm_before_residual"], tensors: &[] },
    Habit { name: "output", flags: &["norm_output"], tensors: &[] },
    Habit { name: "fc", flags: &["fc_norm"], tensors: &FC_NORMS },
    Habit { name: "embedding", flags: &[], tensors: &[("embed_tokens.weight", &[640, 128])] },
    Habit { name: "all", flags: &["norm_before_residual", "norm_output", "fc_norm"], tensors: &FC_NORMS },
];
const FC_NORMS: [(&str, &[usize]); 3] =
    [("fc_norm.0.weight", &[128]), ("fc_norm.1.weight", &[128]), ("fc_norm.2.weight", &[128])];

/// Builds `target` with the head in folder `head`; nothing is rounded but to bf16, which the files are.
///
/// # Panics
/// When that fails.
pub fn build_with(head: &Path, target: &str, out: &Path) {
    let draft = Some(DraftOptions { folder: head, prompts: None, measures: false });
    let options = BuildOptions { draft, ..BuildOptions::new(WeightKind::Bf16) };
    build(&fixtures().join("hf").join(target), out, &options, &mut |_| {}).expect("an engine");
}

/// What the published definition said of `head`.
///
/// # Panics
/// Without the file.
#[must_use]
pub fn golden(head: &str) -> Value {
    let path = fixtures().join(format!("eagle3/{head}/golden.json"));
    serde_json::from_slice(&fs::read(path).expect("a golden file")).expect("JSON")
}

/// A list of numbers.
///
/// # Panics
/// For anything else.
#[must_use]
pub fn floats(value: &Value) -> Vec<f32> {
    let all = value.as_array().expect("a list").iter();
    all.map(|value| value.as_f64().expect("a number") as f32).collect()
}

/// A list of tokens.
///
/// # Panics
/// For anything else.
#[must_use]
pub fn tokens(value: &Value) -> Vec<TokenId> {
    let all = value.as_array().expect("a list").iter();
    all.map(|value| u32::try_from(value.as_u64().expect("a token")).expect("a token")).collect()
}

/// The token behind a case's prompt.
///
/// # Panics
/// Without one.
#[must_use]
pub fn next_token(case: &Value) -> TokenId {
    u32::try_from(case["next_token"].as_u64().expect("a token")).expect("a token")
}

/// The golden trees' shape.
///
/// # Panics
/// Without parameters.
#[must_use]
pub fn tree_shape(golden: &Value) -> TreeShape {
    let parameter = |name: &str| {
        usize::try_from(golden["tree_parameters"][name].as_u64().expect("a number")).expect("a size")
    };
    TreeShape {
        top_k: parameter("top_k"),
        num_levels: 1 + parameter("levels_after_first"),
        num_nodes: parameter("total_nodes_with_root"),
    }
}

/// A case's tree.
///
/// # Panics
/// Without one.
#[must_use]
pub fn reference_tree(case: &Value) -> DraftTree {
    let expected = &case["tree"];
    let indices = |name: &str| -> Vec<usize> {
        let values = expected[name].as_array().expect("a list").iter();
        values.map(|value| usize::try_from(value.as_i64().expect("an index").max(0)).expect("one")).collect()
    };
    DraftTree {
        tokens: tokens(&expected["tokens"]),
        parents: indices("parents"),
        depths: indices("depths"),
        cumulative_log_probs: floats(&expected["cumulative_log_prob"]),
        num_certain: 1,
    }
}

/// Of L2 norms.
///
/// # Panics
/// For lists of different lengths.
#[must_use]
pub fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// Reads `input_ids` into the emptied lane in slices; returns the features of all of them, where the backend hands them out.
///
/// # Panics
/// When a step fails.
pub fn read(backend: &mut dyn Backend, input_ids: &[TokenId], slice_len: usize) -> Vec<f32> {
    backend.truncate(LANE, 0).expect("an empty lane");
    let mut features = Vec::new();
    for slice in input_ids.chunks(slice_len) {
        features.extend_from_slice(&append(backend, LANE, slice));
    }
    features
}

/// Reads `tokens` behind what is in `lane`, as one slice; returns their features, where the backend hands them out.
///
/// # Panics
/// When the step fails.
pub fn append(backend: &mut dyn Backend, lane: LaneId, tokens: &[TokenId]) -> Vec<f32> {
    let mut plan = StepPlan::default();
    plan.push(lane, tokens, LogitsWanted::None);
    backend.run_step(&plan).expect("a step").features().to_vec()
}

/// Draft logits after `chain` in `lane`, whose first token is the root; one row for each.
///
/// # Panics
/// When a level fails.
pub fn chain_logits(backend: &mut dyn Backend, lane: LaneId, chain: &[TokenId]) -> Vec<Vec<f32>> {
    let level = |number: usize| DraftPlan {
        rows: vec![DraftRow { lane, parent: number.checked_sub(1), token: chain[number] }],
        top_k: 3,
        wants_logits: true,
    };
    (0..chain.len()).map(|number| backend.draft(&level(number)).expect("a level").logits.to_vec()).collect()
}

/// The plain reference's draft logits after the same tokens, given the target's features of `input_ids`.
///
/// # Panics
/// When a file does not hold.
#[must_use]
pub fn reference_chain(
    head: &Path,
    engine: &Path,
    features: &[f32],
    input_ids: &[TokenId],
    chain: &[TokenId],
) -> Vec<Vec<f32>> {
    let published = PublishedHead::open(head).expect("a head");
    let dir = EngineDir::open(engine).expect("an engine");
    let spec = dir.draft().expect("with a head").manifest().spec.clone();
    let reference = ReferenceHead::new(&published, spec.rope_theta);
    let own = published.values("embed_tokens.weight", &[spec.vocab_size, spec.hidden_size]).ok();
    let embed = |token: TokenId| match &own {
        Some(own) => own[token as usize * spec.hidden_size..][..spec.hidden_size].to_vec(),
        None => {
            let view = dir.embedding().expect("an embedding");
            assert!(matches!(view.data, MatrixData::Bf16(_)));
            let mut row = vec![0.0; view.num_cols];
            view.dequantize_row(token as usize, &mut row);
            row
        }
    };
    let mut lane = ReferenceLane::default();
    let following = input_ids[1..].iter().chain(&chain[..1]);
    for (features, &next) in features.chunks_exact(spec.features_len()).zip(following) {
        reference.commit_row(&mut lane, &reference.fuse(features), &embed(next));
    }
    let rest: Vec<Vec<f32>> = chain[1..].iter().map(|&token| embed(token)).collect();
    let mut all = vec![reference.tip_logits(&lane)];
    all.extend(reference.chain_logits(&mut lane, &rest));
    all
}

/// A fixture's head with other habits: its config changed, and tensors added.
///
/// # Panics
/// When files cannot be written.
pub fn variant(folder: &Path, head: &str, change: impl FnOnce(&mut Value), more: &[(&str, &[usize])]) {
    let original = fixtures().join("eagle3").join(head);
    let config = fs::read(original.join("config.json")).expect("a config");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    let mut tensors = read_tensors(&original.join("model.safetensors"));
    change(&mut config);
    for (name, shape) in more {
        let len: usize = shape.iter().product();
        let value = |i: usize| half::bf16::from_f32(0.5 + (i as f32 * 0.37).sin() * 0.3).to_le_bytes();
        let data = (0..len).flat_map(value).collect();
        tensors.insert((*name).into(), (safetensors::Dtype::BF16, shape.to_vec(), data));
    }
    fs::create_dir_all(folder).expect("a folder");
    fs::write(folder.join("config.json"), config.to_string()).expect("a file");
    write_tensors(&folder.join("model.safetensors"), &tensors);
}

/// The first fixture's head with another habit in `folder`/name, and its engine in `folder`/engine-name.
///
/// # Panics
/// When files cannot be written.
pub fn build_habit(folder: &Path, habit: Habit) {
    let (head, target) = HEADS[0];
    let name = habit.name;
    let set = |config: &mut Value| {
        habit.flags.iter().for_each(|flag| config[*flag] = true.into());
        if name == "all" {
            config["rope_theta"] = 777.0.into();
        }
    };
    variant(&folder.join(name), head, set, habit.tensors);
    build_with(&folder.join(name), target, &folder.join(format!("engine-{name}")));
}
