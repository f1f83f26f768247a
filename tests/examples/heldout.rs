//! The demo model's held-out set through Takt's own engine:
//! `cargo run --release -p takt-tests --example heldout -- nvfp4 [bf16 …] [stride]`.

use std::{env, error::Error, path::Path};

use takt_engine::{Engine, EngineOptions, backend::cpu::ActivationArithmetic, quant::WeightKind, text::Text};
use takt_engine_builder::{BuildOptions, build};
use takt_tests::heldout;

fn main() -> Result<(), Box<dyn Error>> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    let (numbers, kinds): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|argument| argument.parse::<usize>().is_ok());
    let stride = numbers.first().map_or(Ok(1), |number| number.parse())?;
    let lines = heldout::read(&model.join("eval/heldout.jsonl"), stride)?;
    let scratch = tempfile::tempdir()?;
    for name in &kinds {
        let kind: WeightKind = name.parse()?;
        let dir = scratch.path().join(name);
        build(&model, &dir, &BuildOptions::new(kind), &mut |_| {})?;
        let text = Text::open(&dir)?.ok_or("the demo model has no tokenizer")?;
        for arithmetic in [ActivationArithmetic::F32, ActivationArithmetic::Int8] {
            let options = EngineOptions { arithmetic, ..EngineOptions::default() };
            let mut engine = Engine::open(&dir, &options)?;
            let mut wrong = Vec::new();
            let tally =
                heldout::evaluate(engine.backend.as_mut(), &text, &lines, &mut |line, answer, right| {
                    if !right && wrong.len() < 5 {
                        wrong.push(format!(
                            "    {:?}\n      expected {}\n      answered {answer}",
                            line.user, line.answer
                        ));
                    }
                })?;
            let (right, all) = tally.total();
            println!(
                "{name}, {arithmetic:?} activations: {right}/{all} exact ({:.2} %)",
                100.0 * tally.share()
            );
            for (split, (right, all)) in &tally.by_split {
                println!("  {split}: {right}/{all}");
            }
            println!("{}", wrong.join("\n"));
        }
    }
    Ok(())
}
