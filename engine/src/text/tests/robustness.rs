//! Files that are missing, broken or malicious.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn render(template: &str) -> Result<String> {
    ChatTemplate::new(template, &BTreeMap::new())
        .unwrap()
        .render(&[Message::new("user", "hi")], &ChatOptions::default())
}

#[test]
fn an_engine_without_tokenizer_has_no_text() {
    assert!(Text::open(tempfile::tempdir().unwrap().path()).unwrap().is_none());
}

#[test]
fn every_broken_file_is_refused_by_name() {
    let good = fs::read_to_string(fixture("tiny-llama").join("tokenizer.json")).unwrap();
    let unknown_model = good.replace("\"BPE\"", "\"Telepathy\"");
    let strip_end = r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":" ","start":0,"stop":1}]}"#;
    for (tokenizer, template, expected) in [
        ("", None, "tokenizer.json"),
        (&good[..good.len() / 2], None, "no JSON"),
        ("{}", None, "no tokenizer"),
        ("[1, 2]", None, "no tokenizer"),
        (unknown_model.as_str(), None, "no tokenizer"),
        (&sentencepiece_like(&serde_json::from_str(strip_end).unwrap()), None, "decoder {\"type\":\"Strip\""),
        (
            &sentencepiece_like(
                &serde_json::json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": false}),
            ),
            None,
            "CTC",
        ),
        (&good, Some("{% for message in %}"), "chat_template.jinja"),
        (&good, Some("{{ messages "), "chat_template.jinja"),
        (&good, Some(&"x".repeat((1 << 20) + 1)), "1048577 bytes"),
    ] {
        let error = open(tokenizer, template).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_missing_generation_file_and_an_undecodable_template_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("tiny-llama").join("tokenizer.json"), dir.path().join(Text::TOKENIZER_FILE)).unwrap();
    let error = Text::open(dir.path()).unwrap_err();
    assert!(matches!(&error, EngineError::Io { path, .. } if path.ends_with("generation.json")), "{error}");
    fs::write(dir.path().join(GenerationDefaults::FILE), r#"{"eos_token_ids":[2]}"#).unwrap();
    fs::write(dir.path().join(Text::TEMPLATE_FILE), b"\xff\xfe").unwrap();
    assert!(Text::open(dir.path()).unwrap_err().to_string().contains("utf-8"));
}

#[test]
fn a_chat_without_template_says_what_to_do() {
    let text =
        open(&fs::read_to_string(fixture("tiny-llama").join("tokenizer.json")).unwrap(), None).unwrap();
    assert!(!text.has_chat_template());
    let error = text.encode_chat(&[Message::new("user", "hi")], &ChatOptions::default()).unwrap_err();
    assert!(matches!(&error, EngineError::Input(fact) if fact.contains("raw prompt")), "{error}");
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let text = fixture_text("tiny-llama");
    text.check_vocab_size(640).unwrap();
    assert!(text.check_vocab_size(100).unwrap_err().to_string().contains("the model 100"));
}

#[test]
fn templates_cannot_run_on_forever() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(render(nested).unwrap_err().to_string().contains("instructions"));
    assert!(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").is_err());
    let flood = "{% for a in range(9999) %}{{ 'xxxxxxxx' * 10000 }}{% endfor %}";
    assert!(render(flood).unwrap_err().to_string().contains("bytes"));
    assert!(render("{{ 'x' * 10 ** 18 }}").is_err());
    let deep = "{% if true %}".repeat(5_000) + &"{% endif %}".repeat(5_000);
    assert!(ChatTemplate::new(&deep, &BTreeMap::new()).is_err(), "the parser's stack is bounded");
}

#[test]
fn values_that_json_cannot_hold_are_an_error() {
    for template in ["{{ range | tojson }}", "{{ nothing | tojson }}", "{{ 1 | tojson(colour=2) }}"] {
        assert!(matches!(render(template), Err(EngineError::Text(_))), "{template}");
    }
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    assert!(render(nested).unwrap_err().to_string().contains("deeper"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn damaged_tokenizers_never_panic(at in 0.0_f64..1.0, len in 0_usize..40, filling in "[ -~]{0,12}") {
        let good = sentencepiece_like(&sentencepiece_decoders()[0].1);
        let boundary = |mut at: usize| { while !good.is_char_boundary(at) { at += 1; } at };
        let start = boundary((at * good.len() as f64) as usize);
        let end = boundary((start + len).min(good.len()));
        let damaged = format!("{}{filling}{}", &good[..start], &good[end..]);
        if let Ok(text) = open(&damaged, None) {
            let ids = text.encode("ab <s> é🤖", SpecialTokens::Add);
            let _ = ids.and_then(|ids| text.decode(&ids, true));
        }
    }

    #[test]
    fn random_templates_never_panic(template in r#"(\{%-? |\{\{ |%\}|\}\}|\{#|for |if |endfor |messages|\[0\]|\.content|\||trim|tojson|'a'| in |\+|~|1|\(|\)|set |=|[ -~]){0,30}"#) {
        if let Ok(template) = ChatTemplate::new(&template, &BTreeMap::new()) {
            let _ = template.render(&[Message::new("user", "hi")], &ChatOptions::default());
        }
    }
}
