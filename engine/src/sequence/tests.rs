use std::{fs, path::Path, sync::LazyLock};

use proptest::prelude::*;

use super::*;
use crate::text::{GenerationDefaults, SpecialTokens, Text};

const VOCAB_SIZE: usize = 640;
const EOS: TokenId = 2;

/// The byte-level tokenizer of a fixture model.
static TEXT: LazyLock<Text> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hf/tiny-llama/tokenizer.json");
    fs::copy(fixture, dir.path().join(Text::TOKENIZER_FILE)).unwrap();
    fs::write(dir.path().join(GenerationDefaults::FILE), r#"{"eos_token_ids":[2]}"#).unwrap();
    Text::open(dir.path()).unwrap().unwrap()
});

fn limits(lane_capacity: usize) -> SequenceLimits {
    SequenceLimits { lane_capacity, vocab_size: VOCAB_SIZE }
}

fn options(stop: &[&str]) -> SequenceOptions {
    let stop = stop.iter().map(ToString::to_string).collect();
    SequenceOptions { stop, eos_token_ids: vec![EOS], ..SequenceOptions::default() }
}

fn sequence(prompt: &[TokenId], options: &SequenceOptions, lane_capacity: usize) -> Sequence {
    Sequence::new(prompt, options, limits(lane_capacity), Some(TEXT.stream_decoder())).unwrap()
}

/// Logits that make `token` the greedy choice.
fn favouring(token: TokenId) -> Vec<f32> {
    let mut logits = vec![0.0; VOCAB_SIZE];
    logits[token as usize] = 1.0;
    logits
}

fn encode(text: &str) -> Vec<TokenId> {
    TEXT.encode(text, SpecialTokens::AsWritten).unwrap()
}

/// Feeds `answer` token by token until the sequence ends; what was shown, piece by piece, and why it ended.
fn run(sequence: &mut Sequence, answer: &[TokenId]) -> (Vec<String>, Option<Finish>) {
    let (mut shown, mut finish) = (Vec::new(), None);
    for &token in answer {
        sequence.commit(sequence.pending().len()).unwrap();
        let offset: usize = shown.iter().map(String::len).sum();
        let advance = sequence.advance(&favouring(token)).unwrap();
        assert_eq!((advance.token, advance.offset), (token, offset));
        shown.push(advance.text.to_owned());
        finish = advance.finish;
        if finish.is_some() {
            break;
        }
    }
    (shown, finish)
}

#[test]
fn a_prompt_goes_in_slices_and_only_the_last_wants_logits() {
    let mut sequence = sequence(&[5; 10], &options(&[]), 64);
    let mut plan = StepPlan::default();
    for (expected, logits) in
        [(0..4, LogitsWanted::None), (4..8, LogitsWanted::None), (8..10, LogitsWanted::Last)]
    {
        assert_eq!(sequence.next_slice(4), (expected.clone(), logits));
        plan.clear();
        assert_eq!(sequence.push_to(&mut plan, LaneId(3), 4), expected.len());
        assert_eq!((plan.segments[0].lane, plan.segments[0].logits), (LaneId(3), logits));
        assert!(sequence.is_prefilling() && !sequence.awaits_logits());
        assert!(sequence.advance(&favouring(7)).is_err(), "tokens are pending");
        sequence.commit(expected.len()).unwrap();
    }
    assert!(sequence.awaits_logits() && !sequence.is_prefilling() && sequence.pending().is_empty());
    sequence.advance(&favouring(7)).unwrap();
    assert_eq!((sequence.pending(), sequence.next_slice(4)), ([7].as_slice(), (10..11, LogitsWanted::Last)));
    assert!(sequence.commit(2).unwrap_err().to_string().contains("1 were pending"));
}

#[test]
fn a_restored_prefix_is_not_computed_again() {
    let mut sequence = sequence(&[5, 6, 7], &options(&[]), 64);
    sequence.commit(2).unwrap();
    assert_eq!((sequence.pending(), sequence.committed_len()), ([7].as_slice(), 2));
}

#[test]
fn the_answer_ends_with_the_models_own_end_which_has_no_text() {
    let mut sequence = sequence(&[5], &options(&[]), 64);
    let answer = [encode("go 🤖"), vec![EOS, 5]].concat();
    let (shown, finish) = run(&mut sequence, &answer);
    assert_eq!((shown.concat().as_str(), finish), ("go 🤖", Some(Finish::Eos)));
    assert_eq!(sequence.token_ids(), &answer[..answer.len() - 1]);
    assert_eq!((sequence.text(), sequence.prompt_token_ids()), ("go 🤖", [5].as_slice()));
    assert!(sequence.pending().is_empty() && sequence.finish_now().is_empty());
    assert!(sequence.advance(&favouring(5)).is_err(), "it has ended");
}

#[test]
fn a_stop_string_cuts_the_answer_before_itself_and_never_shows() {
    let mut sequence = sequence(&[5], &options(&["\n\n", "} now"]), 200);
    let (shown, finish) = run(&mut sequence, &encode("{\"a\": 1} no} now and then"));
    assert_eq!((shown.concat().as_str(), finish), ("{\"a\": 1} no", Some(Finish::Stop)));
    assert_eq!(sequence.text(), "{\"a\": 1} no");
}

#[test]
fn a_possible_stop_string_is_shown_when_the_answer_ends_otherwise() {
    for cut_by in [Some(EOS), None] {
        let mut sequence = sequence(&[5], &options(&["} now"]), 200);
        let answer: Vec<_> = encode("{x} no").into_iter().chain(cut_by).collect();
        let (shown, finish) = run(&mut sequence, &answer);
        assert_eq!(finish, cut_by.map(|_| Finish::Eos));
        assert_eq!(shown.concat() + sequence.finish_now(), "{x} no");
        assert_eq!(sequence.text(), "{x} no");
    }
}

#[test]
fn a_cut_inside_a_character_ends_with_a_replacement_character() {
    let mut sequence = sequence(&[5], &options(&[]), 200);
    let (shown, _) = run(&mut sequence, &encode("🐢")[..2]);
    assert_eq!((shown.concat().as_str(), sequence.finish_now()), ("", "\u{FFFD}"));
    assert_eq!(sequence.finish_now(), "", "once is enough");
}

#[test]
fn length_and_a_full_lane_end_the_answer() {
    let tokens = [9, 9, 9, 9, 9, 9];
    let mut limited = sequence(&[5, 5], &SequenceOptions { max_tokens: Some(3), ..options(&[]) }, 64);
    assert_eq!(run(&mut limited, &tokens).1, Some(Finish::Length));
    assert_eq!(limited.token_ids().len(), 3);
    // 2 + 3 tokens have their KV in the lane; one more needs none to be chosen.
    let mut full = sequence(&[5, 5], &options(&[]), 5);
    assert_eq!(run(&mut full, &tokens).1, Some(Finish::ContextFull));
    assert_eq!((full.token_ids().len(), full.committed_len()), (4, 5));
    let mut brim = sequence(&[5, 5, 5], &options(&[]), 3);
    assert_eq!(run(&mut brim, &tokens).1, Some(Finish::ContextFull));
    assert_eq!(brim.token_ids().len(), 1);
}

#[test]
fn impossible_requests_are_refused_with_the_numbers() {
    let new = |prompt: &[TokenId], options: &SequenceOptions| {
        Sequence::new(prompt, options, limits(512), None).unwrap_err().to_string()
    };
    let plain = SequenceOptions::default();
    assert_eq!(
        new(&[1; 700], &plain),
        "prompt is 700 tokens, the lane holds 512: shorten it or raise --max-context"
    );
    assert!(new(&[], &plain).contains("no tokens"));
    assert!(new(&[1, 640], &plain).contains("token 640 in the prompt, the model has 640 tokens"));
    assert!(new(&[1], &SequenceOptions { max_tokens: Some(0), ..plain.clone() }).contains("max_tokens is 0"));
    assert!(
        new(&[1], &SequenceOptions { stop: vec!["x".into()], ..plain.clone() }).contains("need a tokenizer")
    );
    let hot = SamplingParams { temperature: -1.0, ..SamplingParams::default() };
    assert!(new(&[1], &SequenceOptions { sampling: hot, ..plain }).contains("temperature"));
}

#[test]
fn broken_logits_leave_the_sequence_as_it_was() {
    let mut sequence = sequence(&[5], &options(&[]), 64);
    sequence.commit(1).unwrap();
    assert!(sequence.advance(&[f32::NAN; VOCAB_SIZE]).unwrap_err().to_string().contains("NaN"));
    assert!(sequence.advance(&[0.0; 3]).unwrap_err().to_string().contains("3 logits for 640 tokens"));
    assert!(sequence.token_ids().is_empty());
    assert_eq!(sequence.advance(&favouring(8)).unwrap().token, 8);
}

#[test]
fn an_engine_without_tokenizer_yields_tokens() {
    let mut sequence = Sequence::new(&[1], &SequenceOptions::default(), limits(64), None).unwrap();
    sequence.commit(1).unwrap();
    let advance = sequence.advance(&favouring(8)).unwrap();
    assert_eq!((advance.token, advance.text), (8, ""));
}

proptest! {
    /// Whatever the tokens: what is shown is never taken back, and adds up to the decoded answer before its first stop string.
    #[test]
    fn shown_pieces_add_up_to_the_answer(
        answer in prop::collection::vec(3_u32..640, 1..60),
        stop in prop::sample::select(vec!["", "1", "r", "on", "\u{FFFD}", " a"]),
    ) {
        let stops: Vec<&str> = Some(stop).filter(|stop| !stop.is_empty()).into_iter().collect();
        let mut sequence = sequence(&[5], &options(&stops), 200);
        let (shown, finish) = run(&mut sequence, &answer);
        let shown = shown.concat() + sequence.finish_now();
        let whole = TEXT.decode(&answer, true).unwrap();
        let expected = whole.find(stop).filter(|_| !stops.is_empty()).map_or(whole.as_str(), |at| &whole[..at]);
        prop_assert_eq!(&shown, expected);
        prop_assert_eq!(sequence.text(), expected);
        if finish.is_some() {
            prop_assert_eq!(finish, Some(Finish::Stop));
        }
    }
}
