//! Choosing a token and turning it into text allocates nothing.

use std::{fs, path::Path};

use takt_engine::{
    sampler::SamplingParams,
    sequence::{Sequence, SequenceLimits, SequenceOptions},
    text::{GenerationDefaults, Text},
};
use takt_tests::counting::{CountingAllocator, num_allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn fixture_text() -> Text {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hf/tiny-llama/tokenizer.json");
    fs::copy(fixture, dir.path().join(Text::TOKENIZER_FILE)).unwrap();
    fs::write(dir.path().join(GenerationDefaults::FILE), r#"{"eos_token_ids":[2]}"#).unwrap();
    Text::open(dir.path()).unwrap().unwrap()
}

// One test alone in its binary: the counter sees every thread of the process.
#[test]
fn advancing_a_sequence_allocates_nothing() {
    let text = fixture_text();
    let vocab_size = 640;
    let logits: Vec<f32> = (0..vocab_size as u16).map(|token| f32::from(token * 37 % 101) / 16.0).collect();
    let greedy = SamplingParams::default();
    let hot = SamplingParams { temperature: 1.2, ..greedy };
    for sampling in [
        greedy,
        hot,
        SamplingParams { top_k: Some(20), ..hot },
        SamplingParams { top_p: 0.9, min_p: 0.05, ..hot },
        SamplingParams { top_k: Some(100), top_p: 0.7, ..hot },
    ] {
        let stop = vec!["never\u{0}said".to_owned()];
        let options = SequenceOptions { sampling, stop, max_tokens: Some(200), ..SequenceOptions::default() };
        let limits = SequenceLimits { lane_capacity: 400, vocab_size };
        let mut sequence = Sequence::new(&[5, 6, 7], &options, limits, Some(text.stream_decoder())).unwrap();
        let before = num_allocations();
        while !sequence.pending().is_empty() {
            sequence.commit(sequence.pending().len()).unwrap();
            sequence.advance(&logits).unwrap();
        }
        let num_allocations = num_allocations() - before;
        assert_eq!((num_allocations, sequence.token_ids().len()), (0, 200), "{sampling:?}");
    }
}
