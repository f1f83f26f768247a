//! Streamed text against the library's own decoding of the whole.

use proptest::prelude::*;

use super::*;

fn streamed(mut decoder: StreamDecoder, ids: &[TokenId]) -> String {
    let mut out = String::new();
    ids.iter().for_each(|&id| decoder.push(id, &mut out));
    decoder.finish(&mut out);
    out
}

fn all_texts() -> Vec<(&'static str, Text)> {
    let mut texts: Vec<_> = MODELS.iter().map(|&model| (model, fixture_text(model))).collect();
    for (name, decoder) in sentencepiece_decoders() {
        texts.push((name, open(&sentencepiece_like(&decoder), None).unwrap()));
    }
    texts
}

#[test]
fn any_tokens_stream_to_what_they_decode_to() {
    let texts = all_texts();
    let runner_config = ProptestConfig { cases: 400, ..ProptestConfig::default() };
    // Ids a little beyond the vocabulary, and twice as often the synthetic tokenizer's pieces, which otherwise drown in bytes.
    let id = prop_oneof![0_u32..700, 255_u32..275, 0_u32..4];
    proptest!(runner_config, |(ids in prop::collection::vec(id, 0..40))| {
        for (name, text) in &texts {
            prop_assert_eq!(&streamed(text.verbatim_stream_decoder(), &ids), &text.decode(&ids, false).unwrap(), "{}", name);
            prop_assert_eq!(&streamed(text.stream_decoder(), &ids), &text.decode(&ids, true).unwrap(), "{}", name);
        }
    });
}

#[test]
fn multi_byte_characters_come_whole() {
    let original = "naïve café — 机器人 🤖 👩‍👩‍👧 e\u{301} ab";
    for (name, text) in all_texts()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("metaspace") && *name != "wordpiece" && *name != "none")
    {
        let ids = text.encode(original, SpecialTokens::AsWritten).unwrap();
        let (mut decoder, mut out) = (text.stream_decoder(), String::new());
        for (token_idx, &id) in ids.iter().enumerate() {
            decoder.push(id, &mut out);
            assert!(!out.contains('\u{FFFD}'), "{name}: token {token_idx}: {out:?}");
            assert!(original.starts_with(out.trim_start_matches(' ')), "{name}: {out:?}");
        }
        decoder.finish(&mut out);
        assert_eq!(out.trim_start_matches(' '), original, "{name}");
    }
}

#[test]
fn an_incomplete_character_shows_only_at_the_end() {
    let text = fixture_text("tiny-llama");
    let ids = text.encode("🐢", SpecialTokens::AsWritten).unwrap();
    assert!(ids.len() > 1, "the fixture has no token for a turtle");
    let (mut decoder, mut out) = (text.stream_decoder(), String::new());
    decoder.push(ids[0], &mut out);
    assert_eq!(out, "");
    decoder.finish(&mut out);
    assert_eq!(out, "\u{FFFD}");
}
