//! Text: tokenizer, chat template, streaming detokenizer, stop strings.
//!
//! | file of the engine directory | read by |
//! |---|---|
//! | `tokenizer.json` | the `tokenizers` crate, Hugging Face's own |
//! | `chat_template.jinja` (optional) | minijinja, with transformers' settings and functions |
//! | `generation.json` | [`GenerationDefaults`] |

mod chat;
mod civil;
mod generation;
mod literal;
mod pieces;
mod python_json;
mod stop;
mod stream;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::{fs, path::Path, sync::Arc};

pub use chat::{ChatOptions, Message};
pub use civil::CivilTime;
pub use generation::{GenerationDefaults, SamplingDefaults};
pub use stop::{StopScan, StopStrings};
pub use stream::StreamDecoder;
pub use tokenizer::SpecialTokens;

use crate::{EngineError, Result, TokenId};
use literal::SpecialSpellings;
use pieces::{Piece, PieceTable};
use template::ChatTemplate;
use tokenizer::Tokenizer;

/// Everything between text and tokens of one model.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    pieces: Arc<PieceTable>,
    special: SpecialSpellings,
    template: Option<ChatTemplate>,
    defaults: GenerationDefaults,
}

impl Text {
    /// The tokenizer's file name in an engine directory.
    pub const TOKENIZER_FILE: &str = "tokenizer.json";
    /// The chat template's file name in an engine directory.
    pub const TEMPLATE_FILE: &str = "chat_template.jinja";

    /// Reads the text files of an engine directory; `None` when it has no tokenizer.
    ///
    /// # Errors
    /// [`EngineError::Io`] when a file cannot be read, [`EngineError::Corrupt`] when one is not what its name says,
    /// [`EngineError::Unsupported`] for a tokenizer whose decoder has no streaming form.
    pub fn open(engine_dir: &Path) -> Result<Option<Self>> {
        let tokenizer_path = engine_dir.join(Self::TOKENIZER_FILE);
        if !exists(&tokenizer_path)? {
            return Ok(None);
        }
        let defaults = GenerationDefaults::read(&engine_dir.join(GenerationDefaults::FILE))?;
        let tokenizer = Tokenizer::open(&tokenizer_path)?;
        let pieces = Arc::new(PieceTable::new(tokenizer.inner())?);
        let special = SpecialSpellings::new(tokenizer.special_tokens());
        let template = open_template(&engine_dir.join(Self::TEMPLATE_FILE), &defaults)?;
        Ok(Some(Self { tokenizer, pieces, special, template, defaults }))
    }

    /// What the model's makers say about ending and sampling.
    #[must_use]
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.defaults
    }

    /// One past the largest token id the tokenizer knows. A model's vocabulary is often padded beyond it.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.pieces.num_ids()
    }

    /// Checks that the model has a row for every token of the tokenizer's own vocabulary.
    ///
    /// Tokens added later may lie beyond (fine-tunes add padding tokens without resizing the model): a prompt that uses one is refused then.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] when tokenizer and model cannot belong together.
    pub fn check_vocab_size(&self, model_vocab_size: usize) -> Result<()> {
        let own = self.tokenizer.inner().get_vocab_size(false);
        if own > model_vocab_size {
            return Err(EngineError::Unsupported(format!(
                "the tokenizer has {own} tokens, the model {model_vocab_size}: they do not belong together"
            )));
        }
        Ok(())
    }

    /// Token ids of `text`. Special tokens spelled in it count as such: for text that is a prompt as it stands.
    ///
    /// # Errors
    /// [`EngineError::Text`] when the tokenizer fails.
    pub fn encode(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<TokenId>> {
        self.tokenizer.encode(text, special_tokens)
    }

    /// Text of `ids`; ids without a token have none.
    ///
    /// # Errors
    /// [`EngineError::Text`] when the tokenizer fails.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special)
    }

    /// What `token` adds to a text that has begun; `None` for special tokens and ids without a token.
    #[must_use]
    pub fn token_bytes(&self, token: TokenId) -> Option<Vec<u8>> {
        match self.pieces.piece(token, false, true)? {
            Piece::Text(bytes) => Some(bytes.to_vec()),
            Piece::Byte(byte) => Some(vec![byte]),
        }
    }

    /// A decoder for one stream of tokens, whose text leaves special tokens out.
    #[must_use]
    pub fn stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.pieces), true)
    }

    /// A decoder for one stream of tokens, whose text shows special tokens.
    #[must_use]
    pub fn verbatim_stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.pieces), false)
    }

    /// True when conversations can be rendered.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The conversation as one text, exactly as the template writes it.
    ///
    /// # Errors
    /// [`EngineError::Input`] without a chat template or when it refuses the messages; [`EngineError::Text`] when it fails.
    pub fn render_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            EngineError::Input(
                "this engine has no chat template: ask with a raw prompt, or rebuild it with one".into(),
            )
        })?;
        template.render(messages, options)
    }

    /// Token ids of the conversation: the template's special tokens are commands, those spelled in messages are words.
    ///
    /// # Errors
    /// As [`Self::render_chat`]; [`EngineError::Text`] when the tokenizer fails.
    pub fn encode_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<Vec<TokenId>> {
        match self.special.mark(messages)? {
            None => self.encode(&self.render_chat(messages, options)?, SpecialTokens::AsWritten),
            Some((marked, mark)) => self.tokenizer.encode_marked(&self.render_chat(&marked, options)?, mark),
        }
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|source| EngineError::Io { path: path.into(), source })
}

fn open_template(path: &Path, defaults: &GenerationDefaults) -> Result<Option<ChatTemplate>> {
    if !exists(path)? {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(|source| EngineError::Io { path: path.into(), source })?;
    let corrupt = |fact: String| EngineError::Corrupt { path: path.into(), fact };
    let source = String::from_utf8(bytes).map_err(|error| corrupt(error.to_string()))?;
    ChatTemplate::new(&source, &defaults.special_tokens).map(Some).map_err(corrupt)
}
