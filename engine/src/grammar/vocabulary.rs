//! The tokenizer as llguidance sees it: what each token adds to a text, and how text is split into tokens.

use std::sync::Arc;

use llguidance::{
    ParserFactory,
    toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv},
};

use super::{
    error::{guarded, refuse},
    limits::parser_limits,
};
use crate::{
    EngineError, Result, TokenId,
    text::{SpecialTokens, Text},
};

/// Text as answers have it, to see whether the tokenizer gives back what it was given.
const PROBE: &str = "{\"speed\":1.5,\"way\":[\"é\",null]}";

/// One tokenizer's token trie, built once and shared by every grammar of an engine.
#[derive(Clone)]
pub(super) struct Vocabulary {
    pub factory: Arc<ParserFactory>,
    pub env: TokEnv,
}

impl Vocabulary {
    /// Builds the trie for a model with `vocab_size` logits.
    ///
    /// # Errors
    /// [`EngineError::Grammar`] for a tokenizer without an end token or without tokens.
    pub fn new(text: &Arc<Text>, vocab_size: usize, eos_token_ids: &[TokenId]) -> Result<Self> {
        let eos: Vec<TokenId> =
            eos_token_ids.iter().copied().filter(|&token| (token as usize) < vocab_size).collect();
        let Some(&first_eos) = eos.first() else {
            return Err(refuse("", "the engine names no end token, so an answer could not end".into()));
        };
        let num_tokens = u32::try_from(vocab_size)
            .map_err(|_| EngineError::Unsupported(format!("a vocabulary of {vocab_size} tokens")))?;
        // A special token never stands for its own spelling: its words get the marker that no UTF-8 text contains.
        let words: Vec<Vec<u8>> = (0..num_tokens).map(|token| word(text, token, &eos)).collect();
        let factory = guarded("", || {
            let trie = TokTrie::from(&TokRxInfo::new(num_tokens, first_eos), &words).with_eos_tokens(&eos);
            let probe = text.encode(PROBE, SpecialTokens::AsWritten).unwrap_or_default();
            let is_canonical = trie.decode_raw(&probe) == PROBE.as_bytes();
            let env: TokEnv = Arc::new(Env { trie, text: Arc::clone(text), is_canonical });
            let capabilities =
                InferenceCapabilities { ff_tokens: is_canonical, ..InferenceCapabilities::default() };
            let slices = llguidance::earley::SlicedBiasComputer::json_slices();
            let mut factory =
                ParserFactory::new(&env, capabilities, &slices).map_err(|error| error.to_string())?;
            *factory.limits_mut() = parser_limits();
            factory.quiet();
            Ok(factory)
        })?;
        let env = factory.tok_env().clone();
        Ok(Self { factory: Arc::new(factory), env })
    }

    /// What `token` adds to the text; nothing for a special one.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        let trie = self.env.tok_trie();
        let bytes = if (token as usize) < trie.vocab_size() { trie.token(token) } else { &[] };
        if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) { &[] } else { bytes }
    }
}

fn word(text: &Text, token: TokenId, eos: &[TokenId]) -> Vec<u8> {
    let bytes = text.token_bytes(token);
    match bytes {
        Some(bytes) if !eos.contains(&token) => bytes,
        _ => {
            let mut marked = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            marked.extend_from_slice(format!("<|{token}|>").as_bytes());
            marked
        }
    }
}

/// llguidance's view of the tokenizer.
struct Env {
    trie: TokTrie,
    text: Arc<Text>,
    /// False for a tokenizer that adds to what it splits, as sentencepiece does with its leading space: no token is forced then.
    is_canonical: bool,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let tokens = self.text.encode(text, SpecialTokens::AsWritten).unwrap_or_default();
            let is_faithful = self.trie.decode_raw(&tokens) == text.as_bytes();
            if is_faithful { tokens } else { self.trie.greedy_tokenize(text.as_bytes()) }
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.is_canonical
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("num_tokens", &self.env.tok_trie().vocab_size()).finish()
    }
}
