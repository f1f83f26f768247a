//! `takt bench --compare`: the table beside a rival.

use std::process::ExitCode;

use serde_json::{Value, json};
use takt_engine::backend::Backend;

use super::{CliError, interrupt::Interrupt, paint, print_json};
use crate::bench::compare::{Comparison, Round, Spread};

/// Measures and prints.
pub(super) fn run(
    name: &str,
    backend: &mut dyn Backend,
    comparison: &Comparison,
    as_json: bool,
    interrupt: &Interrupt,
) -> Result<ExitCode, CliError> {
    let (mut num_done, num_rounds) = (0, comparison.num_rounds);
    let rounds = comparison.run(backend, &mut |round| {
        num_done += 1;
        if !as_json {
            eprintln!(
                "  round {num_done} of {num_rounds}: decode {:.1} beside {:.1}, prefill {:.0} beside {:.0} tokens/s",
                round.decode_tok_s, round.rival.decode_tok_s, round.prefill_tok_s, round.rival.prefill_tok_s
            );
        }
        !interrupt.is_raised()
    });
    let rounds = rounds.map_err(|error| CliError::Failed(error.to_string()))?;
    let bytes = backend.capabilities().weight_bytes_per_step;
    let compared = Compared::of(&rounds, bytes);
    if as_json {
        return print_json(&compared.as_json(name, comparison, &rounds));
    }
    say!("{}", compared.as_text(name, comparison, &rounds));
    Ok(ExitCode::SUCCESS)
}

/// A figure of both sides, and their ratio round by round.
struct Pair {
    ours: Spread,
    theirs: Spread,
    ratio: Spread,
}

impl Pair {
    fn of(rounds: &[Round], ours: impl Fn(&Round) -> f64, theirs: impl Fn(&Round) -> f64) -> Self {
        Self {
            ours: Spread::of(rounds.iter().map(&ours)),
            theirs: Spread::of(rounds.iter().map(&theirs)),
            ratio: Spread::of(rounds.iter().map(|round| ours(round) / theirs(round))),
        }
    }

    fn as_json(&self) -> Value {
        let spread = |of: Spread| json!({"median": of.median, "least": of.least, "most": of.most});
        json!({"ours": spread(self.ours), "theirs": spread(self.theirs), "ratio": spread(self.ratio)})
    }
}

struct Compared {
    decode: Pair,
    prefill: Pair,
    /// Of the bandwidth read in the same round.
    share: Pair,
}

impl Compared {
    fn of(rounds: &[Round], bytes: u64) -> Self {
        let share = |tok_s: f64, bytes: u64, round: &Round| tok_s * bytes as f64 / round.read_bandwidth;
        Self {
            decode: Pair::of(rounds, |round| round.decode_tok_s, |round| round.rival.decode_tok_s),
            prefill: Pair::of(rounds, |round| round.prefill_tok_s, |round| round.rival.prefill_tok_s),
            share: Pair::of(
                rounds,
                |round| share(round.decode_tok_s, bytes, round),
                |round| share(round.rival.decode_tok_s, round.rival.model_bytes, round),
            ),
        }
    }

    fn as_json(&self, name: &str, comparison: &Comparison, rounds: &[Round]) -> Value {
        let rival = rounds.first().map(|round| &round.rival);
        json!({
            "model": name, "prompt_len": comparison.prompt_len, "tokens": comparison.num_tokens, "rounds": rounds.len(),
            "rival": {
                "program": "llama-bench", "build": rival.map(|rival| &rival.build), "model": rival.map(|rival| &rival.model),
                "file": comparison.rival.model, "model_bytes": rival.map(|rival| rival.model_bytes),
            },
            "decode_tok_s": self.decode.as_json(), "prefill_tok_s": self.prefill.as_json(),
            "bandwidth_share": self.share.as_json(),
            "read_bandwidth_gb_s": rounds.iter().map(|round| round.read_bandwidth / 1e9).collect::<Vec<_>>(),
        })
    }

    fn as_text(&self, name: &str, comparison: &Comparison, rounds: &[Round]) -> String {
        let (mut text, rival) = (String::new(), rounds.first().map(|round| &round.rival));
        let theirs = rival.map_or_else(String::new, |rival| {
            format!("{}, {}, llama.cpp {}", rival.model, paint::bytes(rival.model_bytes), rival.build)
        });
        text += &format!("{}\n  beside {theirs}\n", paint::bold(name));
        text += &format!(
            "  {} rounds in turn, a prompt of {} tokens, {} decoded; medians, and the ratio's least and most\n\n",
            rounds.len(),
            comparison.prompt_len,
            comparison.num_tokens
        );
        text += &format!("  {:<24}{:>10}{:>12}   ratio\n", "", "Takt", "llama.cpp");
        for (what, pair, factor) in [
            ("decode, tokens/s", &self.decode, 1.0),
            ("prefill, tokens/s", &self.prefill, 1.0),
            ("share of bandwidth, %", &self.share, 100.0),
        ] {
            let Pair { ours, theirs, ratio } = pair;
            text += &format!(
                "  {what:<24}{:>10.1}{:>12.1}   {:.2} ({:.2} to {:.2})\n",
                ours.median * factor,
                theirs.median * factor,
                ratio.median,
                ratio.least,
                ratio.most
            );
        }
        let bandwidth = Spread::of(rounds.iter().map(|round| round.read_bandwidth / 1e9));
        text + &format!(
            "\n  memory read at {:.1} GB/s ({:.1} to {:.1})",
            bandwidth.median, bandwidth.least, bandwidth.most
        )
    }
}
