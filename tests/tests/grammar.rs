//! Answers in a demanded form are valid at any moment they are cut.

use serde_json::{Value, json};
use takt_engine::grammar::{ClosingPolicy, GrammarSpec, Steering};
use takt_node::{
    bench::forms::{Judge, cases},
    random::SplitMix64,
};
use takt_tests::grammar::{RandomModel, TOKENS, compile, fixture_tokens, grammar, whole};

fn skill_call() -> Value {
    json!({
        "type": "object",
        "properties": {
            "skill": {"enum": ["stop", "go", "grasp"], "x-takt-safe": true},
            "speed": {"type": "number", "minimum": 0, "maximum": 1.5, "default": 0.25},
            "target": {"type": ["string", "null"], "maxLength": 20},
            "way": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 3}
        },
        "required": ["skill", "speed", "target"],
        "additionalProperties": false,
        "$defs": {"point": {
            "type": "object",
            "properties": {"x": {"type": "number", "default": 0}, "é\"": {"type": "number", "default": 0}},
            "required": ["x"]
        }}
    })
}

#[test]
fn a_closing_is_the_shortest_end_with_declared_values() {
    let grammar = grammar(&skill_call(), ClosingPolicy::Declared).unwrap();
    for (produced, expected, defaulted, cut) in [
        ("", r#"{"skill":"stop","speed":0.25,"target":null}"#, vec!["/skill", "/speed", "/target"], vec![]),
        ("{", r#"{"skill":"stop","speed":0.25,"target":null}"#, vec!["/skill", "/speed", "/target"], vec![]),
        (
            r#"{"sk"#,
            r#"{"skill":"stop","speed":0.25,"target":null}"#,
            vec!["/skill", "/speed", "/target"],
            vec![],
        ),
        (
            r#"{"skill":""#,
            r#"{"skill":"stop","speed":0.25,"target":null}"#,
            vec!["/skill", "/speed", "/target"],
            vec![],
        ),
        (
            r#"{"skill":"g"#,
            r#"{"skill":"go","speed":0.25,"target":null}"#,
            vec!["/speed", "/target"],
            vec!["/skill"],
        ),
        (
            r#"{"skill":"gr"#,
            r#"{"skill":"grasp","speed":0.25,"target":null}"#,
            vec!["/speed", "/target"],
            vec![],
        ),
        (
            r#"{"skill":"go","speed":1"#,
            r#"{"skill":"go","speed":1,"target":null}"#,
            vec!["/target"],
            vec!["/speed"],
        ),
        (
            r#"{"skill":"go","speed":0."#,
            r#"{"skill":"go","speed":0.25,"target":null}"#,
            vec!["/speed", "/target"],
            vec![],
        ),
        (
            r#"{"skill":"go","speed":1."#,
            r#"{"skill":"go","speed":1.0,"target":null}"#,
            vec!["/target"],
            vec!["/speed"],
        ),
        (
            r#"{"skill":"go","speed":1,"target":"a\"#,
            r#"{"skill":"go","speed":1,"target":"a\""}"#,
            vec![],
            vec!["/target"],
        ),
        (
            r#"{"skill":"go","speed":1,"target":"ab"}"#,
            r#"{"skill":"go","speed":1,"target":"ab"}"#,
            vec![],
            vec![],
        ),
        (
            r#"{"skill":"go","speed":1,"target":null,"way":[{"x":2,"#,
            r#"{"skill":"go","speed":1,"target":null,"way":[{"x":2,"é\"":0}]}"#,
            vec!["/way/0/é\""],
            vec![],
        ),
        (
            r#"{"skill":"go","speed":1,"target":null,"way":[{"x":2},"#,
            r#"{"skill":"go","speed":1,"target":null,"way":[{"x":2},{"x":0}]}"#,
            vec!["/way/1/x"],
            vec![],
        ),
    ] {
        let (text, was_defaulted, was_cut) = whole(&grammar, produced);
        assert_eq!(text, expected, "after {produced}");
        assert_eq!(
            (was_defaulted, was_cut),
            (
                defaulted.into_iter().map(str::to_owned).collect(),
                cut.into_iter().map(str::to_owned).collect()
            ),
            "after {produced}"
        );
    }
    assert!(grammar.close(b"{\"speed\":2}").is_none(), "no valid answer begins like this");
}

#[test]
fn a_text_cut_inside_a_character_becomes_whole() {
    let schema = json!({"type": "string", "maxLength": 400});
    let grammar = grammar(&schema, ClosingPolicy::Minimal).unwrap();
    let judge = Judge::new(&schema).unwrap();
    let text = "\"é日🤖\\n\\\\ \u{7ff}\u{d7ff}\u{ffff}\u{10ffff}".as_bytes();
    for len in 0..=text.len() {
        let closing = grammar.close(&text[..len]).unwrap();
        let whole = [&text[..len], &closing.bytes].concat();
        judge.check(&whole).unwrap_or_else(|error| panic!("{len}: {error}"));
    }
}

/// Every schema, a few random answers each, cut after every token.
#[test]
fn every_fixture_schema_is_valid_wherever_it_is_cut() {
    let cases = cases();
    assert!(cases.len() >= 200, "{} schemas", cases.len());
    let mut num_cuts = 0;
    for (number, case) in cases.iter().enumerate() {
        let grammar = compile(&TOKENS, case);
        let judge = Judge::new(&case.schema).unwrap();
        for seed in 0..2 {
            let mut model = RandomModel::new(number as u64 * 1000 + seed, TOKENS.vocab_size);
            let mut matcher = grammar.matcher();
            for _ in 0..40 {
                let closing = grammar.close(matcher.produced());
                let produced = String::from_utf8_lossy(matcher.produced()).into_owned();
                let closing = closing.unwrap_or_else(|| panic!("{}: no closing after {produced}", case.name));
                let whole = [matcher.produced(), &closing.bytes].concat();
                let shown = String::from_utf8_lossy(&whole).into_owned();
                judge
                    .check(&whole)
                    .unwrap_or_else(|error| panic!("{}: {error}: {shown} after {produced}", case.name));
                num_cuts += 1;
                if !model.step(&mut matcher, &TOKENS) {
                    break;
                }
            }
        }
    }
    println!("{num_cuts} cuts of {} schemas", cases.len());
}

#[test]
fn steering_shortens_the_closing_until_the_answer_ends() {
    for case in cases().iter().step_by(5) {
        let grammar = compile(&TOKENS, case);
        let mut model = RandomModel::new(7, TOKENS.vocab_size);
        let mut matcher = grammar.matcher();
        for _ in 0..12 {
            model.step(&mut matcher, &TOKENS);
        }
        let mut logits = vec![0.0; TOKENS.vocab_size];
        let mut left = matcher.close().bytes.len();
        let mut random = SplitMix64(1);
        while !matcher.is_complete() && left > 0 {
            logits.fill(0.0);
            matcher.apply(&mut logits, Steering::Shorten).unwrap();
            let allowed: Vec<usize> = (0..logits.len()).filter(|&token| logits[token] == 0.0).collect();
            let token = allowed[random.below(allowed.len())];
            matcher.commit(token as u32).unwrap();
            let now = matcher.close().bytes.len();
            assert!(now < left, "{}: {now} after {left}: {:?}", case.name, matcher);
            left = now;
        }
    }
}

#[test]
fn a_choice_that_the_closing_makes_is_declared_and_listed() {
    let call = |skill: &str| json!({"properties": {"skill": {"const": skill}}, "required": ["skill"]});
    let schema = json!({"anyOf": [call("stop"), call("go"), call("sing")], "x-takt-safe": true});
    let grammar = grammar(&schema, ClosingPolicy::Declared).unwrap();
    let listed = || vec![String::new()];
    let stop = r#"{"skill":"stop"}"#;
    assert_eq!(whole(&grammar, ""), (stop.into(), listed(), vec![]));
    assert_eq!(whole(&grammar, "{\"skill\":\""), (stop.into(), vec![], listed()));
    assert_eq!(whole(&grammar, "{\"skill\":\"s"), (stop.into(), vec![], listed()));
    assert_eq!(whole(&grammar, "{\"skill\":\"si").0, r#"{"skill":"sing"}"#);
    assert_eq!(whole(&grammar, "{\"skill\":\"g"), (r#"{"skill":"go"}"#.into(), vec![], vec![]));
}

#[test]
fn held_answers_get_no_longer_closings() {
    for case in cases().iter().step_by(7) {
        let grammar = compile(&TOKENS, case);
        let mut model = RandomModel::new(9, TOKENS.vocab_size);
        let mut matcher = grammar.matcher();
        for _ in 0..6 {
            model.step(&mut matcher, &TOKENS);
        }
        let mut left = matcher.close().bytes.len();
        for _ in 0..20 {
            if matcher.is_complete() || left == 0 {
                break;
            }
            let mut logits = vec![0.0; TOKENS.vocab_size];
            matcher.apply(&mut logits, Steering::Hold).unwrap();
            let allowed: Vec<u32> = (0..640).filter(|&token| logits[token as usize] == 0.0).collect();
            assert!(allowed.len() <= 100, "{}", allowed.len());
            matcher.commit(allowed[model.random().below(allowed.len())]).unwrap();
            let now = matcher.close().bytes.len();
            assert!(now <= left, "{}: {now} after {left}: {matcher:?}", case.name);
            left = now;
        }
    }
}

#[test]
fn a_grammar_compiled_before_is_found_again_in_its_own_order() {
    let schema = |first: &str, second: &str| json!({"properties": {first: {"type": "null"}, second: {"type": "null"}}, "required": [first, second]});
    let compile = |schema| whole(&grammar(&schema, ClosingPolicy::Declared).unwrap(), "").0;
    for _ in 0..2 {
        assert_eq!(compile(schema("a", "b")), r#"{"a":null,"b":null}"#);
        assert_eq!(compile(schema("b", "a")), r#"{"b":null,"a":null}"#);
    }
}

#[test]
fn forms_known_from_the_start_stay_compiled_and_others_only_for_a_while() {
    let compiler = fixture_tokens("tiny-llama").compiler;
    let form = |i: usize| GrammarSpec::Regex(format!("{i}[ab]"));
    let is_known = |i: usize| compiler.is_cached(&form(i), ClosingPolicy::Declared);
    compiler.keep(&form(0), ClosingPolicy::Declared).unwrap();
    assert!(compiler.keep(&GrammarSpec::Regex("a(b".into()), ClosingPolicy::Declared).is_err());
    for i in 1..40 {
        assert!(!is_known(i));
        compiler.compile(&form(i), ClosingPolicy::Declared).unwrap();
        assert!(is_known(i) && is_known(0), "{i}");
    }
    assert_eq!((0..40).filter(|&i| is_known(i)).count(), 1 + 16);
    assert!(!compiler.is_cached(&form(0), ClosingPolicy::Minimal));
}

#[test]
fn a_regex_and_choices_are_closed_too() {
    let compile = |spec: GrammarSpec| TOKENS.compiler.compile(&spec, ClosingPolicy::Declared);
    let regex = compile(GrammarSpec::Regex("^(left|right) [0-9]{1,3}(cm|m)$".into())).unwrap();
    assert_eq!(whole(&regex, "").0, "left 0m");
    assert_eq!(whole(&regex, "ri").0, "right 0m");
    assert_eq!(whole(&regex, "right 12c"), ("right 12cm".into(), vec![], vec![]));
    let choice = compile(GrammarSpec::Choice(vec!["stop (now)".into(), "go".into(), "gone".into()])).unwrap();
    assert_eq!(whole(&choice, ""), ("stop (now)".into(), vec![String::new()], vec![]), "the first stands in");
    assert_eq!(
        whole(&choice, "g"),
        ("go".into(), vec![], vec![String::new()]),
        "the shortest that was begun"
    );
    assert_eq!(whole(&choice, "gon"), ("gone".into(), vec![], vec![]));
    assert_eq!(whole(&choice, "s").0, "stop (now)");
    for (spec, reason) in [
        (GrammarSpec::Regex(String::new()), "empty"),
        (GrammarSpec::Regex("a(b".into()), "unclosed group"),
        (GrammarSpec::Regex("[a&&b]".into()), ""),
        (GrammarSpec::Regex("x".repeat(20_000)), "20000 bytes"),
        (GrammarSpec::Choice(vec![]), "no choices"),
        (GrammarSpec::Choice(vec!["a".into(), String::new()]), "choice 1 is empty"),
        (GrammarSpec::Choice(vec!["a".into(); 5000]), "5000 choices"),
    ] {
        let error = compile(spec.clone()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
