//! Random cuts, and what masks and closings cost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;
use takt_engine::{
    EngineError, TokenId,
    grammar::{Grammar, GrammarCompiler, Matcher, Steering},
    text::Text,
};

use super::{Case, Judge, cases};
use crate::random::SplitMix64;

/// Cuts taken from one answer.
const CUTS_AN_ANSWER: usize = 4;
/// Longest answer.
const MAX_TOKENS: usize = 120;
/// Wrong answers that are shown.
const MAX_SHOWN: usize = 20;

/// What came of the cuts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cuts {
    /// Schemas tried.
    pub num_schemas: usize,
    /// Tokens that masks were computed over.
    pub vocab_size: usize,
    /// Answers cut.
    pub num_cuts: usize,
    /// Of those, parsed and accepted by the judge once closed.
    pub num_valid: usize,
    /// The first that were not.
    pub wrong: Vec<String>,
    /// Values of all closed answers that were the model's own.
    pub num_model_fields: usize,
    /// Values that stood in.
    pub num_defaulted_fields: usize,
    /// Values that were begun and ended by the closing.
    pub num_cut_fields: usize,
    /// What each part cost.
    pub spent: Vec<Spent>,
}

/// What one part cost, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spent {
    /// Which part.
    pub what: &'static str,
    /// How often it was measured.
    pub num_samples: usize,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Largest.
    pub max_us: f64,
    /// The schema it was measured with: the same in every run, unless the machine's doing.
    pub max_at: String,
}

/// Makes and judges `num_cuts` cuts over all schemas, in order on this thread; `tick` is told the share done and may end it by saying
/// false.
///
/// # Errors
/// [`EngineError::Grammar`] when a schema cannot be compiled or judged.
pub fn cut_at_random(
    text: &Arc<Text>,
    vocab_size: usize,
    num_cuts: usize,
    mut tick: impl FnMut(f64) -> bool,
) -> Result<Cuts, EngineError> {
    let eos_token_ids = text.defaults().eos_token_ids.clone();
    let compiler = GrammarCompiler::new(text, vocab_size, &eos_token_ids)?;
    let cases = cases();
    let each = num_cuts.div_ceil(cases.len().max(1));
    let mut found = Cuts { num_schemas: cases.len(), vocab_size, ..Cuts::default() };
    let mut times = Times::default();
    for (number, case) in cases.iter().enumerate() {
        times.begin_case(number);
        let grammar = times.compile.time(|| compiler.compile(&case.spec(), case.policy))?;
        let judge =
            Judge::new(&case.schema).map_err(|fact| EngineError::Grammar { at: case.name.clone(), fact })?;
        let random = SplitMix64((number as u64) << 32);
        let mut model = RandomModel { random, logits: vec![0.0; vocab_size], eos_token_ids: &eos_token_ids };
        let until = found.num_cuts + each;
        while found.num_cuts < until {
            let (matcher, lens) = model.answer(&grammar, &mut times);
            for _ in 0..CUTS_AN_ANSWER.min(until - found.num_cuts) {
                let len = lens.get(model.random.below(lens.len())).copied().unwrap_or(0);
                found.judge(case, &judge, &grammar, &matcher.produced()[..len], &mut times.closing);
            }
        }
        if !tick((number + 1) as f64 / cases.len() as f64) {
            break;
        }
    }
    found.spent = times.into_rows(&cases);
    Ok(found)
}

/// A model without preferences.
struct RandomModel<'a> {
    random: SplitMix64,
    logits: Vec<f32>,
    eos_token_ids: &'a [TokenId],
}

impl RandomModel<'_> {
    /// An answer, and its length in bytes after each token.
    fn answer(&mut self, grammar: &Grammar, times: &mut Times) -> (Matcher, Vec<usize>) {
        let mut matcher = times.begin.time(|| grammar.matcher());
        let mut lens = vec![0];
        // Some answers run on, some are led towards their end sooner: cuts meet both.
        let patience = 1 + self.random.below(40);
        while !matcher.is_complete() && lens.len() < MAX_TOKENS {
            self.logits.fill(0.0);
            // A mask beyond its limits ends an answer, as it does in service.
            if times.mask.time(|| matcher.apply(&mut self.logits, Steering::Free)).is_err() {
                break;
            }
            if lens.len() > patience && self.random.below(3) == 0 {
                self.logits.fill(0.0);
                if times.steered.time(|| matcher.apply(&mut self.logits, Steering::Shorten)).is_err() {
                    break;
                }
            }
            let num_allowed = self.logits.iter().filter(|logit| **logit == 0.0).count();
            let chosen = self.random.below(num_allowed);
            let allowed = self.logits.iter().enumerate().filter(|(_, logit)| **logit == 0.0);
            let Some(token) = allowed.map(|(token, _)| token).nth(chosen) else { break };
            let token = TokenId::try_from(token).unwrap_or_default();
            if times.commit.time(|| matcher.commit(token)).is_err() {
                break;
            }
            if self.eos_token_ids.contains(&token) {
                break;
            }
            lens.push(matcher.produced().len());
        }
        (matcher, lens)
    }
}

impl Cuts {
    fn judge(
        &mut self,
        case: &Case,
        judge: &Judge,
        grammar: &Grammar,
        produced: &[u8],
        closing: &mut Samples,
    ) {
        self.num_cuts += 1;
        let closed = closing.time(|| grammar.close(produced));
        let has_closing = closed.is_some();
        let closing = closed.unwrap_or_default();
        let whole = [produced, &closing.bytes].concat();
        let verdict = if has_closing { judge.check(&whole) } else { Err("no closing".to_owned()) };
        match verdict {
            Ok(value) => {
                self.num_valid += 1;
                // What a default of several values stands in for counts as often as it has values.
                let fields = closing.defaulted_fields.iter().filter_map(|field| value.pointer(field));
                let defaulted: usize = fields.map(num_fields).sum();
                let cut = closing.cut_fields.len();
                self.num_defaulted_fields += defaulted;
                self.num_cut_fields += cut;
                self.num_model_fields += num_fields(&value).saturating_sub(defaulted + cut);
            }
            Err(error) if self.wrong.len() < MAX_SHOWN => {
                let (whole, produced) = (String::from_utf8_lossy(&whole), String::from_utf8_lossy(produced));
                self.wrong.push(format!("{}: {error}: {whole} after {produced}", case.name));
            }
            Err(_) => {}
        }
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

/// Durations of one part.
#[derive(Debug, Default)]
struct Samples {
    times: Vec<Duration>,
    max: Duration,
    /// The case of `max`.
    max_case: usize,
    case: usize,
}

impl Samples {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        let took = begun.elapsed();
        self.times.push(took);
        if took > self.max {
            (self.max, self.max_case) = (took, self.case);
        }
        done
    }

    fn row(mut self, what: &'static str, cases: &[Case]) -> Spent {
        self.times.sort_unstable();
        let at = |share: f64| {
            let idx = (self.times.len().saturating_sub(1) as f64 * share) as usize; // within the samples
            self.times.get(idx).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        let max_at = cases.get(self.max_case).map(|case| case.name.clone()).unwrap_or_default();
        Spent {
            what,
            num_samples: self.times.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            max_us: at(1.0),
            max_at,
        }
    }
}

/// Durations of all parts.
#[derive(Debug, Default)]
struct Times {
    compile: Samples,
    begin: Samples,
    mask: Samples,
    steered: Samples,
    commit: Samples,
    closing: Samples,
}

impl Times {
    fn begin_case(&mut self, case: usize) {
        let Self { compile, begin, mask, steered, commit, closing } = self;
        [compile, begin, mask, steered, commit, closing].into_iter().for_each(|samples| samples.case = case);
    }

    fn into_rows(self, cases: &[Case]) -> Vec<Spent> {
        vec![
            self.compile.row("compile a form", cases),
            self.begin.row("copy it for a request", cases),
            self.mask.row("mask", cases),
            self.steered.row("mask, steered", cases),
            self.commit.row("take a token", cases),
            self.closing.row("closing", cases),
        ]
    }
}
