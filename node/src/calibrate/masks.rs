//! Times what choosing a token within a form adds to a section.

use std::time::Duration;

use takt_engine::{
    TokenId,
    grammar::{ClosingPolicy, GrammarCompiler, GrammarSpec, Steering},
};

use crate::clock::Clock;

/// Tokens that are chosen.
const NUM_SAMPLES: usize = 64;
/// A skill call with one value of each kind.
const SCHEMA: &str = r#"{"type": "object", "required": ["skill", "object", "speed", "steps"], "properties": {
    "skill": {"enum": ["stop", "goto", "pick", "place"], "x-takt-safe": true},
    "object": {"type": "string", "maxLength": 40, "default": ""},
    "speed": {"type": "number", "minimum": 0, "maximum": 2, "default": 0},
    "steps": {"type": "array", "maxItems": 8, "items": {"type": "string", "default": ""}, "default": []}}}"#;

/// What masks of a common form take over the vocabulary of `compiler`, steered ones as well; nothing when it cannot be compiled. The worker
/// learns the rest from its own sections.
pub fn measure_masks(compiler: &GrammarCompiler, vocab_size: usize, clock: &dyn Clock) -> Vec<Duration> {
    let spec = GrammarSpec::from_schema_text(SCHEMA);
    let Ok(grammar) = spec.and_then(|spec| compiler.compile(&spec, ClosingPolicy::Declared)) else {
        return Vec::new();
    };
    let (mut samples, mut logits) = (Vec::with_capacity(NUM_SAMPLES), vec![0.0; vocab_size]);
    while samples.len() < NUM_SAMPLES {
        let mut matcher = grammar.matcher();
        let before = samples.len();
        while !matcher.is_complete() && samples.len() < NUM_SAMPLES {
            let i = samples.len();
            // Different tokens win each time, so that answers differ.
            logits
                .iter_mut()
                .enumerate()
                .for_each(|(token, logit)| *logit = ((token * 31 + i * 17) % 101) as f32);
            let steering = if i % 4 == 3 { Steering::Shorten } else { Steering::Free };
            let begun = clock.now();
            if matcher.apply(&mut logits, steering).is_err() {
                break;
            }
            let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
            let token = best.map_or(0, |(token, _)| token);
            if matcher.commit(TokenId::try_from(token).unwrap_or_default()).is_err() {
                break;
            }
            samples.push(clock.now().saturating_duration_since(begun));
        }
        if samples.len() == before {
            break; // it ends at once: there is nothing to measure
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_one_that_closes() {
        assert!(GrammarSpec::from_schema_text(SCHEMA).unwrap().check().is_ok());
    }
}
