//! One request's token timeline.
//!
//! ```text
//! [0, prompt_len)          the prompt
//! [prompt_len, len)        the answer so far
//! [0, committed_len)       tokens whose KV is in the lane
//! [committed_len, len)     pending: what the next steps compute
//! ```
//!
//! A sequence knows no backend and no clock. Its owner puts pending tokens into a [`StepPlan`] ([`Sequence::push_to`]), runs it, tells how
//! many were computed ([`Sequence::commit`]) and, when those were all, hands the last one's row of logits to [`Sequence::advance_by`].

mod answer;
mod bound;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::{
    EngineError, Result, TokenId,
    backend::Backend,
    kv::LaneId,
    rows::{LogitsRow, MAX_LIST_LEN},
    sampler::{Sampler, SamplingParams},
    step::{Detail, LogitsWanted, StepPlan},
    text::{StopStrings, StreamDecoder},
};
use answer::AnswerText;
use bound::Bound;

/// Bytes of text set aside for each token that may come; English has about four.
const TEXT_BYTES_PER_TOKEN: usize = 8;

/// Where an answer may end, and how its tokens are chosen.
#[derive(Debug, Clone, Default)]
pub struct SequenceOptions {
    /// Most tokens of the answer; `None` for what the lane has room for.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer; they count among its tokens, but have no text.
    pub eos_token_ids: Vec<TokenId>,
}

/// What the sequence runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceLimits {
    /// Tokens its lane holds.
    pub lane_capacity: usize,
    /// Tokens the model has.
    pub vocab_size: usize,
}

impl SequenceLimits {
    /// What a lane of `backend` offers.
    #[must_use]
    pub fn of(backend: &dyn Backend) -> Self {
        Self { lane_capacity: backend.capabilities().lane_capacity, vocab_size: backend.spec().vocab_size }
    }
}

/// Why an answer ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop string came.
    Stop,
    /// It has as many tokens as asked for.
    Length,
    /// The lane is full.
    ContextFull,
    /// It has the form that was asked for, and nothing can follow.
    Grammar,
    /// The mask of the next token would have taken more than its limits allow; the closing ended it.
    MaskLimit,
}

impl Finish {
    /// The name in replies: `stop` or `length`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Eos | Self::Stop | Self::Grammar => "stop",
            Self::Length | Self::ContextFull | Self::MaskLimit => "length",
        }
    }
}

/// What one token changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance<'a> {
    /// The token.
    pub token: TokenId,
    /// Text that can be shown now: whole characters that no stop string can take back. Often empty, or of several tokens.
    pub text: &'a str,
    /// Byte offset of `text` in the answer.
    pub offset: usize,
    /// Why this was the last one, if it was.
    pub finish: Option<Finish>,
}

/// One prompt and the answer to it.
#[derive(Debug, Clone)]
pub struct Sequence {
    tokens: Vec<TokenId>,
    prompt_len: usize,
    committed_len: usize,
    /// Tokens after which the answer has its length.
    max_len: usize,
    limits: SequenceLimits,
    eos_token_ids: Vec<TokenId>,
    sampler: Sampler,
    answer: AnswerText,
    finish: Option<Finish>,
    bound: Option<Bound>,
}

impl Sequence {
    /// A sequence at its start. `decoder` makes its text; without one (an engine without tokenizer) it has tokens only.
    ///
    /// # Errors
    /// [`EngineError::Capacity`] when the prompt is longer than the lane; [`EngineError::Input`] for an empty prompt, a token outside the
    /// vocabulary, an empty stop string, stop strings without a decoder, zero `max_tokens` or sampling parameters out of range.
    pub fn new(
        prompt: &[TokenId],
        options: &SequenceOptions,
        limits: SequenceLimits,
        decoder: Option<StreamDecoder>,
    ) -> Result<Self> {
        check(prompt, options, limits, decoder.is_some())?;
        let mut sampler = Sampler::new(&options.sampling)?;
        sampler.reserve(limits.vocab_size);
        let room = limits.lane_capacity - prompt.len() + 1;
        let max_new = options.max_tokens.map_or(room, |max_tokens| max_tokens.min(room));
        let mut tokens = Vec::with_capacity(prompt.len() + max_new);
        tokens.extend_from_slice(prompt);
        let text_capacity = if decoder.is_some() { max_new.saturating_mul(TEXT_BYTES_PER_TOKEN) } else { 0 };
        Ok(Self {
            tokens,
            prompt_len: prompt.len(),
            committed_len: 0,
            max_len: options
                .max_tokens
                .map_or(usize::MAX, |max_tokens| max_tokens.saturating_add(prompt.len())),
            limits,
            eos_token_ids: options.eos_token_ids.clone(),
            sampler,
            answer: AnswerText::new(decoder, StopStrings::new(&options.stop)?, text_capacity),
            finish: None,
            bound: None,
        })
    }

    /// Tokens whose KV is not in the lane yet; empty when the answer is complete.
    #[must_use]
    pub fn pending(&self) -> &[TokenId] {
        if self.finish.is_some() { &[] } else { &self.tokens[self.committed_len..] }
    }

    /// What the next step can compute within `max_tokens`: positions in the lane, and whether logits come of it.
    #[must_use]
    pub fn next_slice(&self, max_tokens: usize) -> (Range<usize>, LogitsWanted) {
        let len = self.pending().len().min(max_tokens);
        let wants_logits = len > 0 && len == self.pending().len();
        let logits = if wants_logits { LogitsWanted::Last } else { LogitsWanted::None };
        (self.committed_len..self.committed_len + len, logits)
    }

    /// Appends the next slice of at most `max_tokens` tokens to `plan` as a segment of `lane`; returns its length. Nothing for none.
    pub fn push_to(&self, plan: &mut StepPlan, lane: LaneId, max_tokens: usize) -> usize {
        let (slice, logits) = self.next_slice(max_tokens);
        let len = slice.len();
        if len > 0 {
            plan.push(lane, &self.tokens[slice], logits);
            plan.last_needs(self.detail());
        }
        len
    }

    /// What [`Self::advance_by`] needs of a row, as a rule: nothing where the backend chooses.
    #[must_use]
    pub fn detail(&self) -> Detail {
        // Masks are known here only.
        let Some(bound) = &self.bound else { return Detail::Chosen(self.sampler.state()) };
        match self.sampler.detail(self.limits.vocab_size) {
            // Steered the last time, it will be now.
            _ if bound.is_steered() => Detail::Whole,
            // The likeliest of all may not be allowed; that none of so many is happens, and then the row is fetched.
            Detail::Likeliest(_) => Detail::Likeliest(MAX_LIST_LEN),
            detail => detail,
        }
    }

    /// What a tree's nodes need: of whole rows only those that are come to.
    #[must_use]
    pub fn tree_detail(&self) -> Detail {
        match self.detail() {
            Detail::Whole => Detail::OnDemand,
            detail => detail,
        }
    }

    /// Proposals behind the pending tokens that the lane has room for; 0 when at most one more token can come.
    #[must_use]
    pub fn room(&self) -> usize {
        let is_ending = self.finish.is_some() || self.tokens.len() + 1 >= self.max_len;
        if is_ending { 0 } else { self.limits.lane_capacity.saturating_sub(self.tokens.len()) }
    }

    /// Prompt and answer up to the next token to be computed, with it.
    #[must_use]
    pub fn history(&self) -> &[TokenId] {
        &self.tokens[..self.tokens.len().min(self.committed_len + 1)]
    }

    /// How many of `proposals`, one after another behind the pending tokens, the form asked for allows; all without one. Changes nothing.
    pub fn num_allowed(&mut self, proposals: &[TokenId]) -> usize {
        match &mut self.bound {
            None => proposals.len(),
            Some(bound) => bound.num_allowed(&self.tokens[self.prompt_len..], proposals),
        }
    }

    /// Notes that the lane now holds `num_tokens` more tokens: after a step, or for a restored prefix snapshot.
    ///
    /// # Errors
    /// [`EngineError::Input`] when fewer are pending.
    pub fn commit(&mut self, num_tokens: usize) -> Result<()> {
        if num_tokens > self.pending().len() {
            return Err(EngineError::Input(format!(
                "{num_tokens} tokens committed, {} were pending",
                self.pending().len()
            )));
        }
        self.committed_len += num_tokens;
        Ok(())
    }

    /// True when every token is in the lane, so that [`Self::advance_by`] is due with the last one's row of logits.
    #[must_use]
    pub fn awaits_logits(&self) -> bool {
        self.finish.is_none() && self.committed_len == self.tokens.len()
    }

    /// [`Self::advance_by`] a row that is here, `[vocab_size]`.
    ///
    /// # Errors
    /// As there.
    pub fn advance(&mut self, logits: &[f32]) -> Result<Advance<'_>> {
        self.advance_by(logits.into())
    }

    /// Chooses the next token by the row of logits of the last one: what the backend chose by it in this sequence's place, where it did; by its list,
    /// where that decides. Allocates nothing but the growth of a text
    /// longer than foreseen, and what a grammar's mask takes.
    ///
    /// # Errors
    /// [`EngineError::Input`] when tokens are still pending or the answer is complete, [`EngineError::Backend`] for broken logits. The sequence is unchanged.
    pub fn advance_by(&mut self, mut row: LogitsRow<'_>) -> Result<Advance<'_>> {
        if !self.awaits_logits() {
            return Err(EngineError::Input(
                "the sequence was advanced while tokens are pending, or after its end".into(),
            ));
        }
        let token = self.choose(&mut row)?;
        let offset = self.answer.shown_len;
        self.take(token);
        self.take_forced();
        self.end_if_finished();
        Ok(Advance { token, text: self.answer.shown_from(offset), offset, finish: self.finish })
    }

    /// Adds a token to the answer and notes whether it ends it.
    fn take(&mut self, token: TokenId) {
        self.tokens.push(token);
        let is_eos = self.eos_token_ids.contains(&token);
        let stopped = !is_eos && self.answer.push(token);
        self.finish = self.ending(is_eos, stopped);
    }

    /// At the answer's end: shows what was held back and, where the form asked for is not complete, closes it.
    fn end_if_finished(&mut self) {
        let is_complete = self.bound.as_ref().is_some_and(Bound::is_complete);
        if is_complete && !matches!(self.finish, Some(Finish::Eos | Finish::Stop)) {
            self.finish = Some(Finish::Grammar);
        }
        let Some(finish) = self.finish else { return };
        if let Some(bound) = &mut self.bound {
            if !matches!(finish, Finish::Eos | Finish::Grammar) {
                bound.close(&mut self.answer);
            }
            self.answer.end();
        } else if self.answer.end() {
            self.finish = Some(Finish::Stop);
        }
    }

    /// Ends the answer here and releases the text held back, for a deadline or a cancellation; returns what was not shown yet.
    /// Nothing more comes after an answer that ended by itself.
    pub fn finish_now(&mut self) -> &str {
        let offset = self.answer.shown_len;
        self.answer.end();
        self.answer.shown_from(offset)
    }

    /// From logits to a token; a grammar's mask comes between the two.
    fn choose(&mut self, row: &mut LogitsRow<'_>) -> Result<TokenId> {
        let (num_logits, vocab_size) = (row.vocab_size(), self.limits.vocab_size);
        if num_logits != vocab_size {
            return Err(EngineError::Backend(format!("{num_logits} logits for {vocab_size} tokens")));
        }
        match &mut self.bound {
            None => self.sampler.sample_row(row),
            Some(bound) => bound.choose(&mut self.sampler, row),
        }
    }

    /// Why the answer ends with the last token, if it does.
    fn ending(&self, is_eos: bool, stopped: bool) -> Option<Finish> {
        if let Some(finish) = self.bound.as_ref().and_then(Bound::finish) {
            Some(finish)
        } else if is_eos {
            Some(Finish::Eos)
        } else if stopped {
            Some(Finish::Stop)
        } else if self.tokens.len() >= self.max_len {
            Some(Finish::Length)
        } else if self.tokens.len() > self.limits.lane_capacity {
            // The last token's KV has no place, so nothing can follow it.
            Some(Finish::ContextFull)
        } else {
            None
        }
    }

    /// The prompt.
    #[must_use]
    pub fn prompt_token_ids(&self) -> &[TokenId] {
        &self.tokens[..self.prompt_len]
    }

    /// The answer's tokens, including one that ended it.
    #[must_use]
    pub fn token_ids(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// The answer as far as it may be shown.
    #[must_use]
    pub fn text(&self) -> &str {
        self.answer.shown_from(0)
    }

    /// Whether the likeliest token is always chosen, without a form that narrows the choice.
    #[must_use]
    pub fn is_plainly_greedy(&self) -> bool {
        self.bound.is_none() && self.sampler.is_greedy()
    }

    /// Tokens that end the answer.
    #[must_use]
    pub fn eos_token_ids(&self) -> &[TokenId] {
        &self.eos_token_ids
    }

    /// Tokens of the prompt and of the answer whose KV is in the lane.
    #[must_use]
    pub fn committed_len(&self) -> usize {
        self.committed_len
    }

    /// True until the whole prompt is in the lane.
    #[must_use]
    pub fn is_prefilling(&self) -> bool {
        self.committed_len < self.prompt_len
    }

    /// Why the answer ended, once it has by itself.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }
}

fn check(
    prompt: &[TokenId],
    options: &SequenceOptions,
    limits: SequenceLimits,
    has_decoder: bool,
) -> Result<()> {
    if prompt.is_empty() {
        return Err(EngineError::Input("the prompt has no tokens".into()));
    }
    if prompt.len() > limits.lane_capacity {
        return Err(EngineError::Capacity(format!(
            "prompt is {} tokens, the lane holds {}: shorten it or raise --max-context",
            prompt.len(),
            limits.lane_capacity
        )));
    }
    if let Some(token) = prompt.iter().find(|&&token| token as usize >= limits.vocab_size) {
        return Err(EngineError::Input(format!(
            "token {token} in the prompt, the model has {} tokens",
            limits.vocab_size
        )));
    }
    if options.max_tokens == Some(0) {
        return Err(EngineError::Input("max_tokens is 0, expected at least 1".into()));
    }
    if !options.stop.is_empty() && !has_decoder {
        return Err(EngineError::Input(
            "stop strings need a tokenizer, which this engine does not have".into(),
        ));
    }
    Ok(())
}
