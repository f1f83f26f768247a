//! Rows of logits as a step hands them out: whole; or a short list of the likeliest tokens, or the token that was chosen by them, with the rest left where it
//! was computed.
//!
//! Lists and choices are shortcuts and nothing else: whoever cannot choose by a list, or is not who was chosen for, fetches the row, and chooses by that.

use std::{fmt::Debug, ops::Range};

use crate::{Result, TokenId, sampler::SamplerState};

/// Longest list that is asked for; a sampler that keeps more tokens gets whole rows.
pub const MAX_LIST_LEN: usize = 64;

/// The likeliest tokens of one row, larger logits first ([`f32::total_cmp`]: 0 before −0), of equal ones the lower id. A list of
/// one token is the greedy choice: there −0 equals 0. Never of a row with a logit that is NaN or +∞.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likeliest<'a> {
    tokens: &'a [TokenId],
    logits: &'a [f32],
    max_len: usize,
}

impl<'a> Likeliest<'a> {
    /// The first `max_len` of a row's tokens that have a finite logit; fewer when the row has no more.
    #[must_use]
    pub fn new(tokens: &'a [TokenId], logits: &'a [f32], max_len: usize) -> Self {
        let len = tokens.len().min(logits.len()).min(max_len);
        Self { tokens: &tokens[..len], logits: &logits[..len], max_len }
    }

    /// `(token, logit)`, likeliest first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (TokenId, f32)> + use<'a> {
        self.tokens.iter().copied().zip(self.logits.iter().copied())
    }

    /// Whether every token with a finite logit is in it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.tokens.len() < self.max_len
    }

    /// The most tokens it could have had.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.max_len
    }
}

/// A token that a backend chose by a row in a sampler's place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The one that the sampler chooses by the whole row.
    pub token: TokenId,
    /// The sampler before it chooses it.
    pub sampler: SamplerState,
}

/// Where a step's rows are: what a backend has of them, and how the others are had.
pub trait RowSource: Debug {
    /// The whole rows `[rows.len(), vocab_size]`, where all of them are here.
    fn here(&self, rows: Range<usize>) -> Option<&[f32]>;

    /// The likeliest tokens of a row, where there is such a list; `None` for a row with broken logits.
    fn list(&self, row: usize) -> Option<Likeliest<'_>>;

    /// What was chosen by a row, where that was asked for ([`crate::step::Detail::Chosen`]) and is done here: of a tree's rows those of the path that
    /// the choices make. `None` for a row with broken logits.
    fn choice(&self, row: usize) -> Option<Choice> {
        let _ = row;
        None
    }

    /// Brings a whole row `[vocab_size]` here, over whatever was there. The permit says that nobody looks at a row that is here.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] for a row that the step did not have, [`crate::EngineError::Backend`] when the device fails.
    fn fetch(&self, row: usize, permit: FetchPermit) -> Result<&[f32]>;
}

/// Given by a [`LogitsRow`] alone, of which there is one at a time, and no other look at the step's output beside it: so the device may write
/// what the host reads.
#[derive(Debug)]
pub struct FetchPermit(());

/// One row of logits.
#[derive(Debug)]
pub struct LogitsRow<'a> {
    place: Place<'a>,
    vocab_size: usize,
}

#[derive(Debug)]
enum Place<'a> {
    Here(&'a [f32]),
    Behind(&'a dyn RowSource, usize),
}

impl<'a> LogitsRow<'a> {
    /// Row `row` of `source`.
    pub(crate) fn behind(source: &'a dyn RowSource, row: usize, vocab_size: usize) -> Self {
        Self { place: Place::Behind(source, row), vocab_size }
    }

    /// Logits of the row, listed or not.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Its likeliest tokens, where there is a list of them.
    #[must_use]
    pub fn list(&self) -> Option<Likeliest<'a>> {
        match self.place {
            Place::Here(_) => None,
            Place::Behind(source, row) => source.list(row),
        }
    }

    /// The token that was chosen by it, where one was.
    #[must_use]
    pub fn choice(&self) -> Option<Choice> {
        match self.place {
            Place::Here(_) => None,
            Place::Behind(source, row) => source.choice(row),
        }
    }

    /// All of it, `[vocab_size]`: fetched from the device where it is not here.
    ///
    /// # Errors
    /// [`crate::EngineError::Backend`] when the device fails.
    pub fn whole(&mut self) -> Result<&[f32]> {
        match self.place {
            Place::Here(logits) => Ok(logits),
            Place::Behind(source, row) => match source.here(row..row + 1) {
                Some(logits) => Ok(logits),
                None => source.fetch(row, FetchPermit(())),
            },
        }
    }
}

impl<'a> From<&'a [f32]> for LogitsRow<'a> {
    /// A row that is here, whole.
    fn from(logits: &'a [f32]) -> Self {
        Self { place: Place::Here(logits), vocab_size: logits.len() }
    }
}
