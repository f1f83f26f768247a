//! `tokenizer.json`, read and applied as Hugging Face does.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use tokenizers::{
    Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as HfTokenizer,
    tokenizer,
};

use super::literal::LiteralMark;
use crate::{EngineError, Result, TokenId};

/// Whether the tokenizer adds what its post-processor prescribes, such as a first `<s>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As for a raw prompt.
    Add,
    /// As for a rendered chat, whose template writes them itself.
    AsWritten,
}

/// A tokenizer without truncation or padding.
#[derive(Debug)]
pub(super) struct Tokenizer {
    inner: HfTokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`EngineError::Io`] when it cannot be read, [`EngineError::Corrupt`] when it is no tokenizer.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| EngineError::Io { path: path.into(), source })?;
        Self::parse(&bytes).map_err(|fact| EngineError::Corrupt { path: path.into(), fact })
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        // The crate panics on some invalid files (seen with 0.23.2: broken JSON inside "decoder"), so JSON is checked before.
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
            .map_err(|error| format!("no JSON: {error}"))?;
        let mut inner = catch_unwind(|| HfTokenizer::from_bytes(bytes))
            .map_err(|_| "the tokenizers library gave up on it".to_owned())?
            .map_err(|error| format!("no tokenizer that the tokenizers library knows: {error}"))?;
        // Training-time settings that transformers switches off too.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        Ok(Self { inner })
    }

    /// The library's own type.
    pub fn inner(&self) -> &HfTokenizer {
        &self.inner
    }

    /// Texts of the tokens that control the model.
    pub fn special_tokens(&self) -> Vec<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.values().filter(|token| token.special).map(|token| token.content.clone()).collect()
    }

    /// Token ids of `text`; special tokens written in it count as such.
    pub fn encode(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<TokenId>> {
        guarded(|| {
            let encoding = self.inner.encode_fast(text, special_tokens == SpecialTokens::Add)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// Token ids of `text`, where a special token with a mark inside is ordinary text. The marks themselves leave no trace.
    ///
    /// The same stages as [`Self::encode`] without post-processing; between finding special tokens and splitting words, marks go.
    pub fn encode_marked(&self, text: &str, mark: LiteralMark) -> Result<Vec<TokenId>> {
        guarded(|| {
            let added = self.inner.get_added_vocabulary();
            let mut pieces: PreTokenizedString =
                added.extract_and_normalize(self.inner.get_normalizer(), text);
            pieces.normalize(|piece| {
                piece.filter(|character| character != mark.character());
                Ok(())
            })?;
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
            Ok(splits
                .iter()
                .filter_map(|(_, _, tokens)| tokens.as_ref())
                .flatten()
                .map(|token| token.id)
                .collect())
        })
    }

    /// Text of `ids`; unknown ids have none.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special))
    }
}

/// Runs the library; a panic inside it (none is known for valid files) becomes an error, as no input may end the process.
fn guarded<T>(work: impl FnOnce() -> tokenizer::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| EngineError::Text(format!("tokenizer: {error}"))),
        Err(_) => Err(EngineError::Text("the tokenizers library gave up on this text".into())),
    }
}
