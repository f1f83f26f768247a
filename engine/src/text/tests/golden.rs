//! Token ids and rendered prompts by transformers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct ModelGolden {
    cases: Vec<ModelCase>,
}

#[derive(Deserialize)]
struct ModelCase {
    text: String,
    chat: bool,
    rendered: String,
    input_ids: Vec<TokenId>,
    greedy_48: Vec<TokenId>,
    decoded: String,
}

fn cases(model: &str) -> Vec<ModelCase> {
    let golden = fs::read(fixture(model).join("golden.json")).unwrap();
    let golden: ModelGolden = serde_json::from_slice(&golden).unwrap();
    assert!(golden.cases.iter().any(|case| case.chat) && golden.cases.iter().any(|case| !case.chat));
    golden.cases
}

fn robot_chat(text: &str) -> [Message; 2] {
    [Message::new("system", "You are a robot."), Message::new("user", text)]
}

#[test]
fn prompts_render_and_encode_as_in_transformers() {
    for model in MODELS {
        let text = fixture_text(model);
        for case in cases(model) {
            if case.chat {
                let (messages, options) = (robot_chat(&case.text), ChatOptions::default());
                assert_eq!(text.render_chat(&messages, &options).unwrap(), case.rendered);
                assert_eq!(text.encode_chat(&messages, &options).unwrap(), case.input_ids);
                assert_eq!(text.encode(&case.rendered, SpecialTokens::AsWritten).unwrap(), case.input_ids);
            } else {
                assert_eq!(text.encode(&case.text, SpecialTokens::Add).unwrap(), case.input_ids);
            }
        }
    }
}

#[test]
fn answers_decode_as_in_transformers_at_once_and_streamed() {
    for model in MODELS {
        let text = fixture_text(model);
        for case in cases(model) {
            assert_eq!(text.decode(&case.greedy_48, false).unwrap(), case.decoded);
            let (mut decoder, mut streamed) = (text.verbatim_stream_decoder(), String::new());
            case.greedy_48.iter().for_each(|&token| decoder.push(token, &mut streamed));
            decoder.finish(&mut streamed);
            assert_eq!(streamed, case.decoded);
        }
    }
}

#[derive(Deserialize)]
struct TemplateGolden {
    special_tokens: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<Message>>,
    cases: Vec<TemplateCase>,
}

#[derive(Deserialize)]
struct TemplateCase {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    variables: BTreeMap<String, serde_json::Value>,
    rendered: Option<String>,
    refused: Option<String>,
}

#[test]
fn published_templates_render_as_in_transformers() {
    let golden: TemplateGolden = serde_json::from_str(include_str!("../golden_templates.json")).unwrap();
    let (mut num_rendered, mut num_refused) = (0, 0);
    for case in &golden.cases {
        let template = ChatTemplate::new(&golden.templates[&case.template], &golden.special_tokens).unwrap();
        let options = ChatOptions {
            add_generation_prompt: case.add_generation_prompt,
            // 2026-11-05 06:07:08, the golden's clock.
            now: Some(CivilTime::from_unix_seconds(1_793_858_828)),
            variables: case.variables.clone(),
        };
        let ours = template.render(&golden.conversations[&case.conversation], &options);
        let name = format!("{} × {}", case.template, case.conversation);
        match (&case.rendered, &case.refused) {
            (Some(rendered), _) => assert_eq!(&ours.unwrap(), rendered, "{name}"),
            (None, Some(refused)) => {
                let error = ours.expect_err(&name);
                assert!(
                    matches!(&error, EngineError::Input(text) if text.contains(refused)),
                    "{name}: {error}"
                );
                num_refused += 1;
            }
            (None, None) => panic!("{name}: a case without an answer"),
        }
        num_rendered += usize::from(case.rendered.is_some());
    }
    assert!(num_rendered > 50 && num_refused > 5, "{num_rendered} rendered, {num_refused} refused");
}

#[test]
fn a_template_that_asks_for_the_date_falls_back_when_nobody_tells_it() {
    let template = "{{ strftime_now('%Y') if strftime_now is defined else 'some year' }}";
    let template = ChatTemplate::new(template, &BTreeMap::new()).unwrap();
    assert_eq!(template.render(&[], &ChatOptions::default()).unwrap(), "some year");
}

#[test]
fn a_raw_prompt_gets_what_the_post_processor_adds_and_a_chat_does_not() {
    let (_, decoder) = sentencepiece_decoders().swap_remove(0);
    let text = open(&sentencepiece_like(&decoder), None).unwrap();
    let with = text.encode("ab", SpecialTokens::Add).unwrap();
    let without = text.encode("ab", SpecialTokens::AsWritten).unwrap();
    assert_eq!((with[0], &with[1..]), (1, without.as_slice()));
    assert_eq!(text.decode(&without, true).unwrap(), "ab");
}
