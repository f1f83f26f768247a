//! Answers in a demanded form: schemas to try, a model that chooses at random, and an independent judge.

use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

use serde_json::Value;
use takt_engine::{
    EngineError,
    grammar::{Closing, ClosingPolicy, Grammar, GrammarCompiler, GrammarSpec, Matcher, Steering},
    text::{GenerationDefaults, Text},
};
use takt_node::{bench::forms::Case, random::SplitMix64};

/// A tokenizer with its number of tokens and its end tokens.
pub struct Tokens {
    /// The tokenizer.
    pub text: Arc<Text>,
    /// Compiles grammars for it.
    pub compiler: GrammarCompiler,
    /// Logits of its model.
    pub vocab_size: usize,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

/// The tokenizer of a fixture model, as `tiny-llama`.
#[must_use]
pub fn fixture_tokens(model: &str) -> Tokens {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hf").join(model);
    fs::copy(fixture.join("tokenizer.json"), dir.path().join(Text::TOKENIZER_FILE)).unwrap();
    fs::write(dir.path().join(GenerationDefaults::FILE), r#"{"eos_token_ids":[2]}"#).unwrap();
    tokens(dir.path(), 640)
}

/// The tokenizer of an engine directory or model folder with `generation.json`.
#[must_use]
pub fn tokens(dir: &Path, vocab_size: usize) -> Tokens {
    let text = Arc::new(Text::open(dir).unwrap().unwrap());
    let eos = text.defaults().eos_token_ids.clone();
    let compiler = GrammarCompiler::new(&text, vocab_size, &eos).unwrap();
    Tokens { text, compiler, vocab_size }
}

/// A model without preferences: any allowed token, now and then one that ends a value, so that answers come to an end.
#[derive(Debug)]
pub struct RandomModel {
    random: SplitMix64,
    logits: Vec<f32>,
}

impl RandomModel {
    /// A model with a seed.
    #[must_use]
    pub fn new(seed: u64, vocab_size: usize) -> Self {
        Self { random: SplitMix64(seed), logits: vec![0.0; vocab_size] }
    }

    /// Random numbers for other purposes.
    pub fn random(&mut self) -> &mut SplitMix64 {
        &mut self.random
    }

    /// Logits without preference.
    pub fn logits(&mut self) -> &mut [f32] {
        self.logits.fill(0.0);
        &mut self.logits
    }

    /// Writes the next token; false when nothing can follow.
    pub fn step(&mut self, matcher: &mut Matcher, tokens: &Tokens) -> bool {
        if matcher.is_complete() {
            return false;
        }
        let steering = if self.random.below(4) == 0 { Steering::Shorten } else { Steering::Free };
        self.logits.fill(0.0);
        matcher.apply(&mut self.logits, steering).unwrap();
        let allowed: Vec<u32> =
            (0..self.logits.len() as u32).filter(|&token| self.logits[token as usize] == 0.0).collect();
        let token = allowed[self.random.below(allowed.len())];
        matcher.commit(token).unwrap();
        !tokens.text.defaults().eos_token_ids.contains(&token)
    }
}

/// An answer that was cut: what the model wrote, and the whole.
#[derive(Debug)]
pub struct Cut {
    /// The model's text.
    pub produced: Vec<u8>,
    /// What completed it.
    pub closing: Closing,
}

impl Cut {
    /// The whole answer.
    #[must_use]
    pub fn whole(&self) -> Vec<u8> {
        [&self.produced[..], &self.closing.bytes].concat()
    }
}

/// Compiles a case.
#[must_use]
pub fn compile(tokens: &Tokens, case: &Case) -> Grammar {
    tokens
        .compiler
        .compile(&case.spec(), case.policy)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// A byte-level tokenizer of `vocab_size` made-up tokens, for the cost of masks over large vocabularies. It never joins tokens when it
/// splits text, so nothing is forced with more than single bytes.
#[must_use]
pub fn made_up_tokens(vocab_size: usize) -> Tokens {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab = serde_json::Map::new();
    let mut words: Vec<String> = (0..=255_u8).map(|byte| byte_level(byte).to_string()).collect();
    let mut random = SplitMix64(1);
    let syllables = [
        "to", "ra", "in", "é", "st", "er", "{\"", "\":", ",\"", "\",\"", "0", "12", "9.", "Ġ", "Ġthe", "_",
        "-", "an", "[", "]", "}", "null",
    ];
    while words.len() < vocab_size - 3 {
        let len = 1 + random.below(4);
        let word: String = (0..len).map(|_| syllables[random.below(syllables.len())]).collect();
        let word = if random.below(2) == 0 { word } else { format!("{word}{}", random.below(1000)) };
        words.push(word);
        if words.len() == vocab_size - 3 {
            words.sort();
            words.dedup();
        }
    }
    for (id, word) in SPECIAL.into_iter().map(str::to_owned).chain(words).enumerate() {
        vocab.insert(word, Value::from(id));
    }
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let special = |(id, text): (usize, &&str)| {
        serde_json::json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
        })
    };
    let added: Vec<Value> = SPECIAL.iter().enumerate().map(special).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added,
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    fs::write(dir.path().join(Text::TOKENIZER_FILE), tokenizer.to_string()).unwrap();
    fs::write(dir.path().join(GenerationDefaults::FILE), r#"{"eos_token_ids":[2]}"#).unwrap();
    tokens(dir.path(), vocab_size)
}

/// The character that stands for a byte in byte-level vocabularies.
fn byte_level(byte: u8) -> char {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_itself(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !is_itself(other)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

/// The tokenizer of `tiny-llama`, for all tests of a process.
pub static TOKENS: LazyLock<Tokens> = LazyLock::new(|| fixture_tokens("tiny-llama"));

/// `schema` compiled for [`TOKENS`].
///
/// # Errors
/// Why it is refused.
pub fn grammar(schema: &Value, policy: ClosingPolicy) -> Result<Grammar, EngineError> {
    TOKENS.compiler.compile(&GrammarSpec::JsonSchema(schema.clone()), policy)
}

/// (place, fact) of a refusal under the declared policy.
#[must_use]
pub fn refusal(schema: &Value) -> (String, String) {
    match grammar(schema, ClosingPolicy::Declared) {
        Err(EngineError::Grammar { at, fact }) => (at, fact),
        other => panic!("{schema}: {other:?}"),
    }
}

/// `produced` with its closing, and the closing's defaulted and cut fields.
#[must_use]
pub fn whole(grammar: &Grammar, produced: &str) -> (String, Vec<String>, Vec<String>) {
    let closing = grammar.close(produced.as_bytes()).unwrap_or_else(|| panic!("{produced} has no closing"));
    let text = [produced.as_bytes(), &closing.bytes].concat();
    (String::from_utf8(text).unwrap(), closing.defaulted_fields, closing.cut_fields)
}
