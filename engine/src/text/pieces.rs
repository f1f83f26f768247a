//! What each token contributes to a text: the tokenizer's decoder, compiled once into a table of byte strings.
//!
//! `tokenizers` decodes a whole list of tokens at a time and allocates a string a token. Streaming wants the opposite, so the decoder's
//! stages are split here: those that map each token by itself are applied to the whole vocabulary when the table is built; what depends on
//! neighbours (bytes that form a character together, the stripped leading space) is left to [`super::StreamDecoder`].

use std::ops::Range;

use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

use crate::{EngineError, Result, TokenId};

/// Vocabularies beyond this are refused; the largest published ones have about a quarter million tokens.
const MAX_TOKENS: usize = 1 << 22;

/// How pieces become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// Pieces are whole strings.
    Text,
    /// Pieces are bytes of one long string, read as UTF-8 with U+FFFD for what is none (byte-level BPE).
    Bytes,
    /// Strings, and single bytes whose runs are one string each, or one U+FFFD a byte (sentencepiece's byte fallback).
    ByteRuns,
}

/// A leading character of the whole text that is dropped, and how many times at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeadingStrip {
    pub content: char,
    pub max_count: usize,
}

/// One token's contribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Some bytes of text; whole characters unless the table's join is [`Join::Bytes`].
    Text(&'a [u8]),
    /// One byte of a run.
    Byte(u8),
}

#[derive(Debug, Clone, Default)]
struct Entry {
    present: bool,
    special: bool,
    byte: Option<u8>,
    /// Into `bytes`: at the start of a text, and elsewhere.
    first: Range<usize>,
    inner: Range<usize>,
}

/// Every token's bytes, by token id.
#[derive(Debug)]
pub(super) struct PieceTable {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
    pub join: Join,
    pub strip: Option<LeadingStrip>,
}

impl PieceTable {
    /// Compiles the tokenizer's decoder.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] naming the decoder stage that has no streaming form.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let vocab = tokenizer.get_vocab(true);
        let num_ids = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if num_ids > MAX_TOKENS {
            return Err(EngineError::Unsupported(format!(
                "a tokenizer of {num_ids} tokens, expected at most {MAX_TOKENS}"
            )));
        }
        let (ids, tokens): (Vec<_>, Vec<_>) = (0..num_ids as TokenId)
            .filter_map(|id| tokenizer.id_to_token(id).map(|token| (id, token)))
            .unzip();
        let stages = Stages::compile(tokenizer.get_decoder())?;
        let mut table = Self {
            entries: vec![Entry::default(); num_ids],
            bytes: Vec::new(),
            join: stages.join,
            strip: stages.strip,
        };
        let inner = stages.map_inner(&tokens)?;
        let first = if stages.position_matters { Some(stages.map_first(&tokens)?) } else { None };
        for (token_idx, (&id, token)) in ids.iter().zip(&tokens).enumerate() {
            let byte = if table.join == Join::ByteRuns { fallback_byte(&inner[token_idx]) } else { None };
            let inner_range = table.append(&inner[token_idx]);
            let first_range =
                first.as_ref().map_or(inner_range.clone(), |first| table.append(&first[token_idx]));
            let special = tokenizer.get_added_vocabulary().is_special_token(token);
            table.entries[id as usize] =
                Entry { present: true, special, byte, first: first_range, inner: inner_range };
        }
        Ok(table)
    }

    /// One past the largest token id.
    pub fn num_ids(&self) -> usize {
        self.entries.len()
    }

    /// What `token` contributes at the start of a text or later; `None` for an unknown token, and for a special one if those are skipped.
    pub fn piece(&self, token: TokenId, is_first: bool, skip_special: bool) -> Option<Piece<'_>> {
        let entry = self
            .entries
            .get(token as usize)
            .filter(|entry| entry.present && !(skip_special && entry.special))?;
        Some(match entry.byte {
            Some(byte) => Piece::Byte(byte),
            None => {
                Piece::Text(&self.bytes[if is_first { entry.first.clone() } else { entry.inner.clone() }])
            }
        })
    }

    fn append(&mut self, text: &str) -> Range<usize> {
        let start = self.bytes.len();
        match self.join {
            Join::Bytes => append_byte_level(text, &mut self.bytes),
            Join::Text | Join::ByteRuns => self.bytes.extend_from_slice(text.as_bytes()),
        }
        start..self.bytes.len()
    }
}

/// The decoder, split into what maps tokens one by one and what joins them.
struct Stages {
    each: Vec<DecoderWrapper>,
    separator: &'static str,
    position_matters: bool,
    join: Join,
    strip: Option<LeadingStrip>,
}

impl Stages {
    fn compile(decoder: Option<&DecoderWrapper>) -> Result<Self> {
        let mut stages =
            Self { each: Vec::new(), separator: "", position_matters: false, join: Join::Text, strip: None };
        let Some(decoder) = decoder else {
            // Without a decoder `tokenizers` joins the tokens with spaces.
            return Ok(Self { separator: " ", position_matters: true, ..stages });
        };
        let mut flat = Vec::new();
        flatten(decoder, &mut flat);
        let mut fused = false;
        for stage in flat {
            let by_itself = stages.join == Join::Text && !fused;
            match stage {
                DecoderWrapper::Replace(_) if by_itself => stages.each.push(stage.clone()),
                DecoderWrapper::Strip(strip) if by_itself && strip.stop == 0 => {
                    stages.each.push(stage.clone())
                }
                DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) if by_itself => {
                    stages.each.push(stage.clone());
                    stages.position_matters = true;
                }
                DecoderWrapper::ByteFallback(_) if by_itself => stages.join = Join::ByteRuns,
                DecoderWrapper::ByteLevel(_) if by_itself => (stages.join, fused) = (Join::Bytes, true),
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::Strip(strip) if fused && strip.stop == 0 && stages.strip.is_none() => {
                    stages.strip = Some(LeadingStrip { content: strip.content, max_count: strip.start });
                }
                other => return Err(unsupported(other)),
            }
        }
        Ok(stages)
    }

    /// Every token as it reads after another one.
    fn map_inner(&self, tokens: &[String]) -> Result<Vec<String>> {
        let after_another = std::iter::once(String::new())
            .chain(tokens.iter().map(|token| format!("{}{token}", self.separator)));
        let mut mapped = self.run(after_another.collect())?;
        mapped.remove(0);
        Ok(mapped)
    }

    /// Every token as it reads at the start of a text.
    fn map_first(&self, tokens: &[String]) -> Result<Vec<String>> {
        tokens.iter().map(|token| Ok(self.run(vec![token.clone()])?.swap_remove(0))).collect()
    }

    fn run(&self, tokens: Vec<String>) -> Result<Vec<String>> {
        let num_tokens = tokens.len();
        let mapped = self.each.iter().try_fold(tokens, |tokens, stage| stage.decode_chain(tokens));
        match mapped {
            Ok(mapped) if mapped.len() == num_tokens => Ok(mapped),
            Ok(_) => Err(EngineError::Unsupported("a tokenizer whose decoder joins or drops tokens".into())),
            Err(error) => Err(EngineError::Text(format!("the tokenizer's decoder failed: {error}"))),
        }
    }
}

fn flatten<'a>(decoder: &'a DecoderWrapper, stages: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|inner| flatten(inner, stages))
        }
        other => stages.push(other),
    }
}

fn unsupported(stage: &DecoderWrapper) -> EngineError {
    let form = serde_json::to_string(stage).unwrap_or_default();
    EngineError::Unsupported(format!(
        "tokenizer decoder {form} at this place; known are ByteLevel, Replace, ByteFallback, Fuse, Strip at the start, Metaspace, WordPiece"
    ))
}

/// The byte of a token such as `<0x0A>`, read exactly as `tokenizers` does.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Undoes GPT-2's byte-to-character table; a token with a character outside the table stands for its own UTF-8 bytes.
fn append_byte_level(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        let Some(byte) = byte_of(character) else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// GPT-2's table: printable Latin-1 stands for itself, the 68 other bytes for U+0100… in their order.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_covers_each_byte_once() {
        let mut characters_of = [0_u32; 256];
        for character in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(character) {
                characters_of[usize::from(byte)] += 1;
            }
        }
        assert_eq!(characters_of, [1; 256]);
    }

    #[test]
    fn the_byte_table_is_the_one_of_the_tokenizers_crate() {
        use tokenizers::pre_tokenizers::byte_level::ByteLevel;
        for character in ByteLevel::alphabet() {
            let byte = byte_of(character).unwrap();
            if byte.is_ascii() {
                let decoded = ByteLevel::default().decode_chain(vec![character.to_string()]).unwrap();
                assert_eq!(decoded, [char::from(byte).to_string()]);
            }
        }
        assert_eq!(ByteLevel::alphabet().len(), 256);
    }

    #[test]
    fn bytes_are_read_as_the_tokenizers_crate_reads_them() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xff>"), Some(255));
        for other in ["<0x0A", "<0xGG>", "<0x1>", "<0x001>", "0x0A", "<0xé>"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }
}
