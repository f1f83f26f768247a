//! Answers in a demanded form: schemas to try, a model that chooses at random, and an independent judge.

use std::{fs, path::Path, sync::Arc};

use serde_json::Value;
use takt_engine::{
    grammar::{Closing, ClosingPolicy, Grammar, GrammarCompiler, GrammarSpec, Matcher, Steering},
    text::{GenerationDefaults, Text},
};

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

/// A schema of the fixture set.
#[derive(Debug, Clone)]
pub struct Case {
    /// `family/name`.
    pub name: String,
    /// The schema.
    pub schema: Value,
    /// What may stand in: robots' schemas declare it, others do not.
    pub policy: ClosingPolicy,
}

/// Every schema of `fixtures/schemas`, in order.
#[must_use]
pub fn schemas() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/schemas");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let family: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let policy = match family["policy"].as_str() {
            Some("minimal") => ClosingPolicy::Minimal,
            _ => ClosingPolicy::Declared,
        };
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        for (name, schema) in family["schemas"].as_object().unwrap() {
            cases.push(Case { name: format!("{stem}/{name}"), schema: schema.clone(), policy });
        }
    }
    cases
}

/// SplitMix64: the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end.max(1) as u64) as usize
    }
}

/// A model without preferences: any allowed token, now and then one that ends a value, so that answers come to an end.
#[derive(Debug)]
pub struct RandomModel {
    random: Random,
    logits: Vec<f32>,
}

impl RandomModel {
    /// A model with a seed.
    #[must_use]
    pub fn new(seed: u64, vocab_size: usize) -> Self {
        Self { random: Random(seed), logits: vec![0.0; vocab_size] }
    }

    /// Random numbers for other purposes.
    pub fn random(&mut self) -> &mut Random {
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

/// The independent judge of one schema.
#[derive(Debug)]
pub struct Judge {
    validator: jsonschema::Validator,
}

impl Judge {
    /// A judge that checks formats, too.
    #[must_use]
    #[expect(clippy::result_large_err, reason = "the validator's own error type")]
    pub fn new(schema: &Value) -> Self {
        let options = jsonschema::options()
            .should_validate_formats(true)
            .with_keyword("multipleOf", |_, step, _| Ok(Box::new(ExactMultiple::new(step))));
        Self { validator: options.build(schema).unwrap() }
    }

    /// The value, when `text` is JSON that the schema accepts; what is wrong otherwise.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, text: &[u8]) -> Result<Value, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
        let wrong = self.validator.iter_errors(&value).next();
        let wrong = wrong.map(|error| format!("{error} at {}", error.instance_path));
        wrong.map_or(Ok(value), Err)
    }
}

/// `multipleOf` in decimals: the validator's own divides in F64, where 4.19 is no multiple of 0.01.
struct ExactMultiple {
    step: i128,
}

impl ExactMultiple {
    fn new(step: &Value) -> Self {
        Self { step: hundred_millionths(step).unwrap() }
    }
}

/// A number with at most eight decimals.
fn hundred_millionths(number: &Value) -> Option<i128> {
    let text = number.to_string();
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    format!("{whole}{decimals:0<8}").parse().ok().filter(|_| decimals.len() <= 8)
}

impl jsonschema::Keyword for ExactMultiple {
    fn validate<'i>(
        &self,
        instance: &'i Value,
        location: &jsonschema::paths::LazyLocation<'_, '_>,
    ) -> Result<(), jsonschema::ValidationError<'i>> {
        if self.is_valid(instance) {
            return Ok(());
        }
        let place = jsonschema::paths::Location::new();
        Err(jsonschema::ValidationError::custom(place, location.into(), instance, "not a multiple"))
    }

    fn is_valid(&self, instance: &Value) -> bool {
        !instance.is_number() || hundred_millionths(instance).is_some_and(|number| number % self.step == 0)
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
    let spec = GrammarSpec::JsonSchema(case.schema.clone());
    tokens.compiler.compile(&spec, case.policy).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// A byte-level tokenizer of `vocab_size` made-up tokens, for the cost of masks over large vocabularies. It never joins tokens when it
/// splits text, so nothing is forced with more than single bytes.
#[must_use]
pub fn made_up_tokens(vocab_size: usize) -> Tokens {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab = serde_json::Map::new();
    let mut words: Vec<String> = (0..=255_u8).map(|byte| byte_level(byte).to_string()).collect();
    let mut random = Random(1);
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
