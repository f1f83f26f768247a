//! What each format costs the demo model: perplexity of the held-out set's right answers, as a table of weights × KV cache, with F32
//! and with 8-bit activations: `cargo run --release -p takt-tests --example perplexity -- [stride]`.

use std::{env, error::Error, path::Path};

use takt_engine::{
    Engine, EngineOptions, backend::cpu::ActivationArithmetic, kv::KvKind, quant::WeightKind, text::Text,
};
use takt_engine_builder::{BuildOptions, build};
use takt_tests::heldout;

fn main() -> Result<(), Box<dyn Error>> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    let stride = env::args().nth(1).map_or(Ok(1), |stride| stride.parse())?;
    let lines = heldout::read(&model.join("eval/heldout.jsonl"), stride)?;
    let scratch = tempfile::tempdir()?;
    println!("perplexity of {} answers", lines.len());
    println!("| weights | KV cache | F32 activations | 8-bit activations |\n|---|---|---|---|");
    for weights in WeightKind::ALL {
        let dir = scratch.path().join(weights.name());
        build(&model, &dir, &BuildOptions::new(weights), &mut |_| {})?;
        let text = Text::open(&dir)?.ok_or("the demo model has no tokenizer")?;
        for kv in KvKind::ALL {
            let of = |arithmetic| -> Result<f64, Box<dyn Error>> {
                let options = EngineOptions { arithmetic, kv: Some(kv), ..EngineOptions::default() };
                heldout::perplexity(Engine::open(&dir, &options)?.backend.as_mut(), &text, &lines)
            };
            let (float, integer) = (of(ActivationArithmetic::F32)?, of(ActivationArithmetic::Int8)?);
            println!("| {} | {} | {float:.5} | {integer:.5} |", weights.name(), kv.name());
        }
    }
    Ok(())
}
