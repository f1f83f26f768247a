//! Speculation on the demo model's held-out set: that every answer is the plain one, and how many tokens a round emits, by task.
//! `cargo run --release -p takt-tests --example speculation -- nvfp4 [bf16 fp8 int4] [stride]`.

use std::{collections::BTreeMap, env, error::Error, path::Path};

use takt_eagle_spec::tree::TreeShape;
use takt_engine::{Engine, EngineOptions, quant::WeightKind, sequence::SequenceOptions, text::Text};
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_tests::{
    heldout,
    speculated::{Method, answer},
};

/// Rounds, proposals accepted, lines, and lines whose answer differs from plain decoding's.
#[derive(Default, Clone, Copy)]
struct Count {
    rounds: usize,
    accepted: usize,
    lines: usize,
    different: usize,
}

impl Count {
    fn accept_len(self) -> f64 {
        1.0 + self.accepted as f64 / self.rounds.max(1) as f64
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    let (numbers, kinds): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|argument| argument.parse::<usize>().is_ok());
    let stride = numbers.first().map_or(Ok(1), |number| number.parse())?;
    let lines = heldout::read(&model.join("eval/heldout.jsonl"), stride)?;
    let methods = [
        ("chain of 4", Method::Head(TreeShape::chain(4))),
        ("chain of 7", Method::Head(TreeShape::chain(7))),
        ("tree of 16", Method::Head(TreeShape { top_k: 4, num_levels: 6, num_nodes: 16 })),
        ("lookup, 4", Method::Lookup(TreeShape::chain(4))),
    ];
    let scratch = tempfile::tempdir()?;
    let mut num_different = 0;
    for name in &kinds {
        let kind: WeightKind = name.parse()?;
        let dir = scratch.path().join(name);
        let head = model.join("eagle3");
        let draft = Some(DraftOptions { folder: &head, prompts: None, measures: false });
        build(&model, &dir, &BuildOptions { draft, ..BuildOptions::new(kind) }, &mut |_| {})?;
        let text = Text::open(&dir)?.ok_or("the demo model has no tokenizer")?;
        let mut engine = Engine::open(&dir, &EngineOptions::default())?;
        let options = SequenceOptions {
            max_tokens: Some(48),
            eos_token_ids: engine.manifest.eos_token_ids.clone(),
            ..SequenceOptions::default()
        };
        let mut counts = vec![BTreeMap::<String, Count>::new(); methods.len()];
        for line in &lines {
            let prompt = heldout::prompt(&text, line)?;
            let backend = engine.backend.as_mut();
            let plain = answer(backend, &prompt, &options, Method::Plain)?;
            let skill = serde_json::from_str::<serde_json::Value>(&line.answer)?["skill"].to_string();
            for ((_, method), counts) in methods.iter().zip(&mut counts) {
                let found = answer(backend, &prompt, &options, *method)?;
                for task in ["all".to_owned(), skill.clone()] {
                    let count = counts.entry(task).or_default();
                    count.rounds += found.num_rounds;
                    count.accepted += found.num_accepted;
                    count.lines += 1;
                    count.different += usize::from(found.tokens != plain.tokens);
                }
            }
        }
        for ((method, _), counts) in methods.iter().zip(&counts) {
            let all = counts["all"];
            num_different += all.different;
            println!(
                "{name}, {method}: {} of {} answers differ from plain decoding; {:.2} tokens a round",
                all.different,
                all.lines,
                all.accept_len()
            );
            let tasks: Vec<String> =
                counts.iter().map(|(task, count)| format!("{task} {:.2}", count.accept_len())).collect();
            println!("  {}", tasks.join(", "));
        }
    }
    if num_different > 0 {
        return Err(format!("{num_different} answers differ: speculation must change none").into());
    }
    Ok(())
}
