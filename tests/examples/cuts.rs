//! Cuts random answers at random moments and judges every one: `cargo run --release -p takt-tests --example cuts [CUTS] [VOCABULARY]`.
//!
//! Answers are chosen at random among what the mask allows, over all schemas of `fixtures/schemas`, so nothing of a model's good sense helps.
//! VOCABULARY is the number of tokens: 640 is a fixture's tokenizer, any other number a made-up one of that size.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use takt_engine::grammar::Steering;
use takt_tests::grammar::{Case, Judge, Random, Tokens, compile, fixture_tokens, made_up_tokens, schemas};

/// Cuts taken from one answer.
const CUTS_AN_ANSWER: usize = 4;
const MAX_TOKENS: usize = 120;

#[derive(Default)]
struct Tally {
    cuts: usize,
    closed: usize,
    parsed: usize,
    validated: usize,
    model_fields: usize,
    defaulted_fields: usize,
    cut_fields: usize,
    wrong: Vec<String>,
    compile: Vec<Duration>,
    begin: Vec<Duration>,
    mask: Vec<Duration>,
    commit: Vec<Duration>,
    steer: Vec<Duration>,
    close: Vec<Duration>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.closed += other.closed;
        self.parsed += other.parsed;
        self.validated += other.validated;
        self.model_fields += other.model_fields;
        self.defaulted_fields += other.defaulted_fields;
        self.cut_fields += other.cut_fields;
        self.wrong.extend(other.wrong);
        self.compile.extend(other.compile);
        self.begin.extend(other.begin);
        self.mask.extend(other.mask);
        self.commit.extend(other.commit);
        self.steer.extend(other.steer);
        self.close.extend(other.close);
    }
}

fn main() {
    let mut args = env::args().skip(1);
    let num_cuts: usize = args.next().map_or(100_000, |text| text.parse().unwrap());
    let vocab_size: usize = args.next().map_or(640, |text| text.parse().unwrap());
    let cases = schemas();
    let cuts_a_case = num_cuts.div_ceil(cases.len());
    let begun = Instant::now();
    let num_threads = thread::available_parallelism().map_or(1, usize::from);
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..num_threads)
            .map(|worker| {
                let cases = &cases;
                scope.spawn(move || {
                    let tokens = if vocab_size == 640 {
                        fixture_tokens("tiny-llama")
                    } else {
                        made_up_tokens(vocab_size)
                    };
                    let mut tally = Tally::default();
                    for (number, case) in cases.iter().enumerate().skip(worker).step_by(num_threads) {
                        tally.add(try_case(&tokens, case, number as u64, cuts_a_case));
                    }
                    tally
                })
            })
            .collect();
        for worker in workers {
            tally.add(worker.join().unwrap());
        }
    });
    print(tally, cases.len(), vocab_size, begun.elapsed());
}

fn try_case(tokens: &Tokens, case: &Case, number: u64, num_cuts: usize) -> Tally {
    let mut tally = Tally::default();
    let begun = Instant::now();
    let grammar = compile(tokens, case);
    tally.compile.push(begun.elapsed());
    let judge = Judge::new(&case.schema);
    let mut random = Random(number << 32);
    let mut logits = vec![0.0; tokens.vocab_size];
    while tally.cuts < num_cuts {
        let begun = Instant::now();
        let mut matcher = grammar.matcher();
        tally.begin.push(begun.elapsed());
        let mut lens = vec![0];
        // Some answers run on, some are led towards their end sooner: cuts meet both.
        let patience = 1 + random.below(40);
        while !matcher.is_complete() && lens.len() < MAX_TOKENS {
            logits.fill(0.0);
            let begun = Instant::now();
            matcher.apply(&mut logits, Steering::Free).unwrap();
            tally.mask.push(begun.elapsed());
            if lens.len() > patience && random.below(3) == 0 {
                logits.fill(0.0);
                let begun = Instant::now();
                matcher.apply(&mut logits, Steering::Shorten).unwrap();
                tally.steer.push(begun.elapsed());
            }
            let allowed: Vec<usize> = (0..logits.len()).filter(|&token| logits[token] == 0.0).collect();
            let token = allowed[random.below(allowed.len())] as u32;
            let begun = Instant::now();
            matcher.commit(token).unwrap();
            tally.commit.push(begun.elapsed());
            if tokens.text.defaults().eos_token_ids.contains(&token) {
                break;
            }
            lens.push(matcher.produced().len());
        }
        for _ in 0..CUTS_AN_ANSWER.min(num_cuts - tally.cuts) {
            let produced = &matcher.produced()[..lens[random.below(lens.len())]];
            judge_cut(&mut tally, case, &judge, &grammar, produced);
        }
    }
    tally
}

fn judge_cut(
    tally: &mut Tally,
    case: &Case,
    judge: &Judge,
    grammar: &takt_engine::grammar::Grammar,
    produced: &[u8],
) {
    tally.cuts += 1;
    let begun = Instant::now();
    let closing = grammar.close(produced);
    tally.close.push(begun.elapsed());
    let shown = String::from_utf8_lossy(produced).into_owned();
    let Some(closing) = closing else {
        tally.wrong.push(format!("{}: no closing after {shown}", case.name));
        return;
    };
    tally.closed += 1;
    let whole = [produced, &closing.bytes].concat();
    tally.parsed += usize::from(serde_json::from_slice::<Value>(&whole).is_ok());
    match judge.check(&whole) {
        Ok(value) => {
            tally.validated += 1;
            // What a default of several values stands in for counts as often as it has values.
            let defaulted: usize = closing
                .defaulted_fields
                .iter()
                .filter_map(|field| value.pointer(field))
                .map(num_fields)
                .sum();
            tally.defaulted_fields += defaulted;
            tally.cut_fields += closing.cut_fields.len();
            tally.model_fields += num_fields(&value).saturating_sub(defaulted + closing.cut_fields.len());
        }
        Err(error) => tally.wrong.push(format!(
            "{}: {error}: {} after {shown}",
            case.name,
            String::from_utf8_lossy(&whole)
        )),
    }
}

/// Values without parts.
fn num_fields(value: &Value) -> usize {
    match value {
        Value::Array(items) if !items.is_empty() => items.iter().map(num_fields).sum(),
        Value::Object(members) if !members.is_empty() => members.values().map(num_fields).sum(),
        _ => 1,
    }
}

fn print(mut tally: Tally, num_cases: usize, vocab_size: usize, took: Duration) {
    for wrong in tally.wrong.iter().take(20) {
        println!("WRONG {wrong}");
    }
    let fields = tally.model_fields + tally.defaulted_fields + tally.cut_fields;
    let share = |part: usize| 100.0 * part as f64 / fields.max(1) as f64;
    println!("schemas {num_cases}, vocabulary {vocab_size}, {:.1} s", took.as_secs_f64());
    println!(
        "cuts {}, closed {}, parsed {}, validated {}",
        tally.cuts, tally.closed, tally.parsed, tally.validated
    );
    println!(
        "fields {fields}: by the model {:.1} %, defaults {:.1} %, cut {:.1} %",
        share(tally.model_fields),
        share(tally.defaulted_fields),
        share(tally.cut_fields)
    );
    println!("{:8} {:>9} {:>10} {:>10} {:>10}", "µs", "count", "p50", "p99", "max");
    for (name, times) in [
        ("compile", &mut tally.compile),
        ("begin", &mut tally.begin),
        ("mask", &mut tally.mask),
        ("steered", &mut tally.steer),
        ("commit", &mut tally.commit),
        ("closing", &mut tally.close),
    ] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        println!("{name:8} {:>9} {:>10.1} {:>10.1} {:>10.1}", times.len(), at(0.5), at(0.99), at(1.0));
    }
    assert!(
        tally.wrong.is_empty() && tally.cuts == tally.validated,
        "{} of {} are wrong",
        tally.wrong.len(),
        tally.cuts
    );
}
