//! Draft heads, against what their published definition says.

use takt_engine::{TokenId, dir::EngineDir, draft::DraftSource as _};
use takt_engine_builder::export::{Compute, ExportOptions, Form, export};
use takt_tests::{
    backends::{argmax, relative_errors},
    checkpoint::fixtures,
    eagle::{HEADS, build_with, floats, golden},
};

use crate::{
    lanes::Lanes,
    section::{Buffer, Share},
};

/// 32-bit arithmetic in another order.
const EXACT: f64 = 1e-4;

fn tokens(value: &serde_json::Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as TokenId).collect()
}

/// The last `width` numbers, as one row.
fn last_row(buffer: &Buffer) -> Vec<f32> {
    let (values, width) = (buffer.floats(), buffer.dims[2]);
    values[values.len() - width..].to_vec()
}

/// What the head proposes behind `next`, which follows `prompt`: its first logits, and five tokens.
fn propose(
    models: &mut [Lanes; 2],
    prompt: &[TokenId],
    next: TokenId,
    targets: &[TokenId],
) -> (Vec<f32>, Vec<TokenId>) {
    let [decoder, head] = models;
    let outputs = decoder.run_with(&[Share::text(0, prompt)], Vec::new());
    let (mut features, num_features) = (outputs["features"].floats(), outputs["features"].dims[2]);
    let mut following = [&prompt[1..], &[next]].concat();
    let mut hidden = vec![0.0; following.len() * num_features / 3];
    let (mut first, mut chain) = (Vec::new(), Vec::new());
    while chain.len() < 5 {
        let dims = |width| vec![1, following.len(), width];
        let more = vec![
            ("features", Buffer::of_floats(dims(num_features), &features)),
            ("hidden", Buffer::of_floats(dims(hidden.len() / following.len()), &hidden)),
        ];
        let outputs = head.run_with(&[Share::text(0, &following)], more);
        let logits = last_row(&outputs["logits"]);
        let token = targets[argmax(&logits) as usize];
        if first.is_empty() {
            first = logits;
        }
        chain.push(token);
        (following, hidden, features) =
            (vec![token], last_row(&outputs["next_hidden"]), vec![0.0; num_features]);
    }
    (first, chain)
}

#[test]
fn heads_say_what_their_definition_says() {
    for (head, target) in HEADS {
        let folder = tempfile::tempdir().unwrap();
        let engine = folder.path().join("engine");
        build_with(&fixtures().join("eagle3").join(head), target, &engine);
        let targets = EngineDir::open(&engine).unwrap().draft().unwrap().target_tokens().unwrap();
        for form in [Form::Operators, Form::Primitives] {
            let options = ExportOptions {
                form: Some(form),
                compute: Compute::F32,
                max_context: Some(128),
                ..ExportOptions::default()
            };
            let out = folder.path().join(form.name());
            let contract = export(&engine, &out, &options, &mut |_| {}).unwrap().contract;
            for case in golden(head)["cases"].as_array().unwrap() {
                let mut models = [0, 1].map(|idx| Lanes::open_model(&out, &contract, idx, 1));
                let next = case["next_token"].as_u64().unwrap() as TokenId;
                let (logits, chain) = propose(&mut models, &tokens(&case["input_ids"]), next, &targets);
                let expected: Vec<f64> =
                    floats(&case["draft_logits_last"]).iter().map(|&x| x.into()).collect();
                let error = relative_errors(&logits, &expected).0;
                println!("{head} {}: {error:.1e}", form.name());
                assert!(error <= EXACT, "{head} {}: {error:.1e}, at most {EXACT:.0e}", form.name());
                assert_eq!(chain, tokens(&case["chain_5"]), "{head} {}", form.name());
            }
        }
    }
}
