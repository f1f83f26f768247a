//! Sequences bound to a form: masked, forced, streamed, cut, closed.

use std::{ops::ControlFlow, path::Path, sync::LazyLock};

use serde_json::{Value, json};
use takt_engine::{
    Engine, EngineOptions, TokenId, generate,
    grammar::{ClosingPolicy, Grammar, GrammarCompiler, GrammarSpec, Steering},
    kv::LaneId,
    quant::WeightKind,
    sampler::SamplingParams,
    sequence::{Finish, Sequence, SequenceLimits, SequenceOptions},
    text::{ChatOptions, Message, Text},
};
use takt_engine_builder::{BuildOptions, build};
use takt_node::{bench::forms::Judge, random::SplitMix64};
use takt_tests::grammar::{Tokens, fixture_tokens};

static TOKENS: LazyLock<Tokens> = LazyLock::new(|| fixture_tokens("tiny-llama"));

const LIMITS: SequenceLimits = SequenceLimits { lane_capacity: 400, vocab_size: 640 };

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "skill": {"enum": ["stop", "go", "grasp"], "x-takt-safe": true},
            "text": {"type": "string", "default": ""},
            "speeds": {"type": "array", "items": {"type": "number", "default": 0}, "maxItems": 4}
        },
        "required": ["skill", "text"],
        "additionalProperties": false
    })
}

fn grammar(spec: GrammarSpec) -> Grammar {
    TOKENS.compiler.compile(&spec, ClosingPolicy::Declared).unwrap()
}

fn options(max_tokens: Option<usize>, stop: &[&str], seed: u64) -> SequenceOptions {
    SequenceOptions {
        max_tokens,
        stop: stop.iter().map(ToString::to_string).collect(),
        eos_token_ids: vec![2],
        sampling: SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() },
    }
}

fn sequence(grammar: &Grammar, options: &SequenceOptions) -> Sequence {
    let decoder = Some(TOKENS.text.stream_decoder());
    Sequence::new(&[5, 6], options, LIMITS, decoder).unwrap().bound_to(grammar).unwrap()
}

/// Advances with flat logits until the end or `max_steps`; what was shown.
fn run(sequence: &mut Sequence, max_steps: usize) -> String {
    let logits = vec![0.0; LIMITS.vocab_size];
    let mut shown = String::new();
    for _ in 0..max_steps {
        if sequence.pending().is_empty() {
            break;
        }
        sequence.commit(sequence.pending().len()).unwrap();
        shown.push_str(sequence.advance(&logits).unwrap().text);
    }
    shown
}

#[test]
fn however_an_answer_ends_it_has_its_form() {
    let grammar = grammar(GrammarSpec::JsonSchema(schema()));
    let judge = Judge::new(&schema()).unwrap();
    let mut ends = std::collections::HashMap::new();
    for seed in 0..300 {
        let mut random = SplitMix64(seed);
        let max_tokens = (seed % 3 == 0).then(|| 1 + random.below(30));
        let stop: &[&str] = if seed % 2 == 0 { &[] } else { &["a", "1"] };
        let mut sequence = sequence(&grammar, &options(max_tokens, stop, seed));
        let mut shown = run(&mut sequence, random.below(60));
        shown.push_str(sequence.close());
        assert_eq!(shown, sequence.text(), "what was shown is not taken back");
        let value = judge.check(shown.as_bytes()).unwrap_or_else(|error| {
            panic!("{error}: {shown}: {:?} {:?}", sequence.finish(), sequence.closing())
        });
        for field in sequence.closing().into_iter().flat_map(|closing| &closing.defaulted_fields) {
            assert!(value.pointer(field).is_some(), "{field} of {value}");
        }
        *ends.entry(sequence.finish()).or_insert(0) += 1;
        assert_eq!(sequence.close(), "", "closing twice adds nothing");
    }
    println!("{ends:?}");
    assert!(ends.len() >= 4, "{ends:?}");
}

#[test]
fn tokens_that_can_only_follow_need_no_step_of_their_own() {
    let schema = json!({"const": {"skill": "stop", "reason": "no reason to go on"}});
    let grammar = grammar(GrammarSpec::JsonSchema(schema));
    let mut sequence = sequence(&grammar, &options(None, &[], 1));
    sequence.commit(2).unwrap();
    let advance = sequence.advance(&vec![0.0; LIMITS.vocab_size]).unwrap();
    assert_eq!(advance.finish, Some(Finish::Grammar));
    assert_eq!(advance.text, r#"{"skill":"stop","reason":"no reason to go on"}"#);
    assert!(sequence.pending().is_empty() && sequence.token_ids().len() > 5, "{:?}", sequence.token_ids());
    let canonical = TOKENS.text.encode(sequence.text(), takt_engine::text::SpecialTokens::AsWritten).unwrap();
    assert_eq!(sequence.token_ids()[1..].concat_text(), canonical_tail(&canonical, sequence.token_ids()[0]));
}

/// Texts of tokens, joined.
trait ConcatText {
    fn concat_text(&self) -> String;
}

impl ConcatText for [TokenId] {
    fn concat_text(&self) -> String {
        TOKENS.text.decode(self, true).unwrap()
    }
}

fn canonical_tail(canonical: &[TokenId], first: TokenId) -> String {
    let whole = canonical.concat_text();
    whole[[first].as_slice().concat_text().len()..].to_owned()
}

#[test]
fn forced_tokens_are_pending_together() {
    let grammar = grammar(GrammarSpec::JsonSchema(schema()));
    let mut most = 0;
    for seed in 0..20 {
        let mut sequence = sequence(&grammar, &options(None, &[], seed));
        for _ in 0..40 {
            if sequence.pending().is_empty() {
                break;
            }
            most = most.max(sequence.pending().len());
            sequence.commit(sequence.pending().len()).unwrap();
            sequence.advance(&vec![0.0; LIMITS.vocab_size]).unwrap();
        }
    }
    assert!(most > 2, "{most}");
}

#[test]
fn a_number_alone_ends_with_the_end_token_and_choices_end_by_themselves() {
    let number = json!({"type": "integer", "minimum": 0, "maximum": 999, "default": 0});
    let number = grammar(GrammarSpec::JsonSchema(number));
    let mut sequence = sequence(&number, &options(None, &[], 3));
    sequence.steer(Steering::Shorten);
    run(&mut sequence, 10);
    assert_eq!(sequence.finish(), Some(Finish::Eos));
    let choice = grammar(GrammarSpec::Choice(vec!["left".into(), "right".into()]));
    let mut chosen = self::sequence(&choice, &options(None, &[], 3));
    run(&mut chosen, 10);
    assert_eq!(chosen.finish(), Some(Finish::Grammar));
    assert!(["left", "right"].contains(&chosen.text()));
}

#[test]
fn two_sequences_of_one_grammar_do_not_disturb_each_other() {
    let grammar = grammar(GrammarSpec::JsonSchema(schema()));
    let alone: Vec<String> = (0..2)
        .map(|seed| {
            let mut sequence = sequence(&grammar, &options(None, &[], seed));
            run(&mut sequence, 25)
        })
        .collect();
    let mut both: Vec<Sequence> = (0..2).map(|seed| sequence(&grammar, &options(None, &[], seed))).collect();
    let mut shown = [String::new(), String::new()];
    for _ in 0..25 {
        for (sequence, shown) in both.iter_mut().zip(&mut shown) {
            shown.push_str(&run(sequence, 1));
        }
    }
    assert_eq!(alone, shown);
}

#[test]
fn proposals_that_are_not_accepted_are_taken_back() {
    let grammar = grammar(GrammarSpec::JsonSchema(schema()));
    let mut matcher = grammar.matcher();
    let encode = |text: &str| TOKENS.text.encode(text, takt_engine::text::SpecialTokens::AsWritten).unwrap();
    let (begun, proposed) = (encode(r#"{"skill":"go","text":"#), encode("\"hello\"}"));
    for &token in &begun {
        matcher.commit(token).unwrap();
    }
    let before = matcher.clone();
    assert_eq!(matcher.checker().num_valid(&proposed).unwrap(), proposed.len());
    for &token in &proposed {
        matcher.commit(token).unwrap();
    }
    assert!(matcher.is_complete());
    matcher.roll_back(proposed.len()).unwrap();
    assert_eq!((matcher.produced(), matcher.close()), (before.produced(), before.close()));
    let mask = |mut matcher: takt_engine::grammar::Matcher| {
        let mut logits = vec![0.0; LIMITS.vocab_size];
        matcher.apply(&mut logits, Steering::Free).unwrap();
        logits
    };
    assert_eq!(mask(matcher.clone()), mask(before));
    assert!(matcher.roll_back(1000).is_err());
}

#[test]
fn the_demo_model_answers_in_form_whenever_it_is_cut() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("engine");
    build(&model, &dir, &BuildOptions::new(WeightKind::Nvfp4), &mut |_| {}).unwrap();
    let mut engine = Engine::open(&dir, &EngineOptions::default()).unwrap();
    let text = std::sync::Arc::new(Text::open(&dir).unwrap().unwrap());
    let limits = SequenceLimits::of(engine.backend.as_ref());
    let eos = text.defaults().eos_token_ids.clone();
    let compiler = GrammarCompiler::new(&text, limits.vocab_size, &eos).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {
            "skill": {"enum": ["stop", "goto", "grasp", "say"], "x-takt-safe": true},
            "place": {"type": ["string", "null"], "maxLength": 12},
            "speed": {"type": "number", "minimum": 0, "maximum": 1, "default": 0}
        },
        "required": ["skill", "place", "speed"]
    });
    let judge = Judge::new(&schema).unwrap();
    let grammar = compiler.compile(&GrammarSpec::JsonSchema(schema), ClosingPolicy::Declared).unwrap();
    let prompt =
        text.encode_chat(&[Message::new("user", "Go to the kitchen.")], &ChatOptions::default()).unwrap();
    let mut full = None;
    for cut_after in 0..30 {
        engine.backend.truncate(LaneId(0), 0).unwrap();
        let options = SequenceOptions { eos_token_ids: eos.clone(), ..SequenceOptions::default() };
        let decoder = Some(text.stream_decoder());
        let mut sequence =
            Sequence::new(&prompt, &options, limits, decoder).unwrap().bound_to(&grammar).unwrap();
        let mut num_left = cut_after;
        if cut_after > 0 {
            generate(engine.backend.as_mut(), LaneId(0), &mut sequence, &mut |_| {
                num_left -= 1;
                if num_left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        }
        sequence.close();
        judge
            .check(sequence.text().as_bytes())
            .unwrap_or_else(|error| panic!("{error}: {}", sequence.text()));
        if sequence.finish() == Some(Finish::Grammar) {
            full = Some(sequence.text().to_owned());
        }
    }
    println!("{full:?}");
    assert!(full.is_some(), "thirty steps are enough for the whole answer");
}
