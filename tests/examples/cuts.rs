//! What masks cost over a large vocabulary: `cargo run --release -p takt-tests --example cuts [CUTS] [VOCABULARY]`.
//!
//! The same cuts as in `takt bench --deadlines`, which takes the tokenizer of an engine; here it is made up, of any size.

use std::{env, process::ExitCode};

use takt_node::bench::forms::cut_at_random;
use takt_tests::grammar::made_up_tokens;

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let num_cuts: usize = args.next().map_or(2_170, |text| text.parse().unwrap());
    let vocab_size: usize = args.next().map_or(128_000, |text| text.parse().unwrap());
    let tokens = made_up_tokens(vocab_size);
    let cuts = cut_at_random(&tokens.text, vocab_size, num_cuts, |_| true).unwrap();
    println!("{}", serde_json::to_string_pretty(&cuts).unwrap());
    if cuts.num_valid == cuts.num_cuts { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
