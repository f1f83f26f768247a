//! An answer bound to a form: masks its logits, forces what can only follow, closes it when it is cut.

use super::{Finish, Sequence, answer::AnswerText};
use crate::{
    EngineError, Result, TokenId,
    grammar::{Checker, Closing, Grammar, Mask, Matcher, Steering},
    rows::LogitsRow,
    sampler::Sampler,
};

/// The grammar's part of a sequence.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    matcher: Matcher,
    /// For proposals; made when the first come.
    checker: Option<Checker>,
    /// Tokens of the answer where it last failed: there it is not tried again.
    unchecked_at: Option<usize>,
    /// Masked logits, `[vocab_size]`.
    logits: Vec<f32>,
    forced: Vec<TokenId>,
    steering: Steering,
    closing: Option<Closing>,
    /// Set once masking failed; the answer ends there.
    is_broken: bool,
    /// Set when the matcher is ahead of an answer that ended before its forced tokens.
    is_ahead: bool,
}

impl Bound {
    pub fn new(grammar: &Grammar, vocab_size: usize, max_tokens: usize) -> Self {
        let mut matcher = grammar.matcher();
        matcher.reserve(max_tokens);
        Self {
            matcher,
            checker: None,
            unchecked_at: None,
            logits: Vec::with_capacity(vocab_size),
            forced: Vec::with_capacity(max_tokens.min(64)),
            steering: Steering::Free,
            closing: None,
            is_broken: false,
            is_ahead: false,
        }
    }

    /// Chooses among the tokens that are allowed. When the mask cannot be had within its limits, the closing's first token is chosen.
    pub fn choose(&mut self, sampler: &mut Sampler, row: &mut LogitsRow<'_>) -> Result<TokenId> {
        let Ok(mask) = self.matcher.mask() else { return Ok(self.give_up()) };
        let token = match self.choose_listed(sampler, row, &mask) {
            Some(token) => token,
            None => self.choose_of_all(sampler, row.whole()?, &mask)?,
        };
        match self.matcher.commit(token) {
            Ok(()) => Ok(token),
            Err(_) => Ok(self.give_up()),
        }
    }

    /// By the row's list, where the choice can only fall on one of it.
    fn choose_listed(&self, sampler: &mut Sampler, row: &LogitsRow<'_>, mask: &Mask) -> Option<TokenId> {
        let list = row.list().filter(|_| !self.is_steered())?;
        sampler.sample_list(list, row.vocab_size(), |token| mask.allows(token))
    }

    /// Whether tokens are looked at that are not likely.
    pub fn is_steered(&self) -> bool {
        self.steering != Steering::Free
    }

    fn choose_of_all(&mut self, sampler: &mut Sampler, logits: &[f32], mask: &Mask) -> Result<TokenId> {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.matcher.apply_mask(mask, &mut self.logits, self.steering);
        sampler.sample(&self.logits)
    }

    fn give_up(&mut self) -> TokenId {
        self.is_broken = true;
        let closing = self.matcher.close();
        let token = self.matcher.token_towards(&closing.bytes);
        self.matcher.note(token);
        token
    }

    /// Why the answer ends with the last token, as far as the grammar knows.
    pub fn finish(&self) -> Option<Finish> {
        self.is_broken.then_some(Finish::MaskLimit)
    }

    /// How many of `proposals` may come after `answer`; none when finding out takes too long.
    pub fn num_allowed(&mut self, answer: &[TokenId], proposals: &[TokenId]) -> usize {
        if self.is_broken || self.is_ahead || self.unchecked_at == Some(answer.len()) {
            return 0;
        }
        let checker = self.checker.get_or_insert_with(|| self.matcher.checker());
        match checker.follow(answer).and_then(|()| checker.num_valid(proposals)) {
            Ok(num_valid) => num_valid,
            Err(_) => {
                (self.checker, self.unchecked_at) = (None, Some(answer.len()));
                0
            }
        }
    }

    pub fn is_complete(&self) -> bool {
        self.matcher.is_complete() && !self.is_ahead
    }

    /// The tokens that can only follow; give the list back with [`Self::keep`].
    pub fn force(&mut self) -> Vec<TokenId> {
        let mut forced = std::mem::take(&mut self.forced);
        forced.clear();
        self.matcher.force(&mut forced);
        forced
    }

    /// Takes the list of forced tokens back, of which the last `num_left_out` did not become part of the answer.
    pub fn keep(&mut self, forced: Vec<TokenId>, num_left_out: usize) {
        self.forced = forced;
        self.is_ahead = num_left_out > 0;
        self.matcher.forget(num_left_out);
    }

    /// Completes `answer`, unless it was closed before.
    pub fn close(&mut self, answer: &mut AnswerText) {
        if self.closing.is_some() {
            return;
        }
        let closing = self.closing_of(answer);
        answer.close(&closing.bytes);
        self.closing = Some(closing);
    }

    fn closing_of(&self, answer: &AnswerText) -> Closing {
        // What a stop string took away is gone: the closing goes on from what is left.
        let left = answer.stopped_text().and_then(|text| self.matcher.grammar().close(text.as_bytes()));
        left.unwrap_or_else(|| self.matcher.close())
    }

    pub fn closing(&self) -> Option<&Closing> {
        self.closing.as_ref()
    }

    pub fn closing_len(&self) -> usize {
        self.matcher.close().bytes.len()
    }
}

impl Sequence {
    /// The same sequence, whose answer will have the form `grammar` however it ends. Call before the first token.
    ///
    /// # Errors
    /// [`EngineError::Input`] without a decoder, or after the first token.
    pub fn bound_to(mut self, grammar: &Grammar) -> Result<Self> {
        if !self.token_ids().is_empty() {
            return Err(EngineError::Input("a grammar came after the answer's first token".into()));
        }
        if !self.answer.begin_inside_text() {
            let fact = "a grammar needs a tokenizer, which this engine does not have";
            return Err(EngineError::Input(fact.into()));
        }
        let max_new = self.tokens.capacity() - self.prompt_len;
        self.bound = Some(Bound::new(grammar, self.limits.vocab_size, max_new));
        Ok(self)
    }

    /// Ends the answer here with the closing of its grammar, for a deadline or a cancellation, and returns what was not shown yet; without
    /// a grammar as [`Self::finish_now`]. The text is then of the form that was asked for. Costs microseconds and no model step.
    /// Nothing more comes after an answer that ended by itself.
    pub fn close(&mut self) -> &str {
        let offset = self.answer.shown_len;
        if let Some(bound) = self.bound.as_mut().filter(|_| self.finish.is_none()) {
            bound.close(&mut self.answer);
        }
        self.answer.end();
        self.answer.shown_from(offset)
    }

    /// What completed the answer, once something did: its text is part of [`Self::text`], its bytes are no tokens.
    #[must_use]
    pub fn closing(&self) -> Option<&Closing> {
        self.bound.as_ref().and_then(Bound::closing)
    }

    /// Whether its answer has a form asked for.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.bound.is_some()
    }

    /// How much the mask leaves to the model from now on; nothing happens without a grammar.
    pub fn steer(&mut self, steering: Steering) {
        if let Some(bound) = &mut self.bound {
            bound.steering = steering;
        }
    }

    /// Bytes of the closing from here, 0 without a grammar: with [`Steering::Shorten`], at most so many tokens follow.
    #[must_use]
    pub fn closing_len(&self) -> usize {
        self.bound.as_ref().map_or(0, Bound::closing_len)
    }

    /// Adds the tokens that can only follow: the next step computes them together with the chosen one.
    pub(super) fn take_forced(&mut self) {
        let Some(bound) = self.bound.as_mut().filter(|_| self.finish.is_none()) else { return };
        let forced = bound.force();
        let mut num_taken = 0;
        while num_taken < forced.len() && self.finish.is_none() {
            self.take(forced[num_taken]);
            num_taken += 1;
        }
        if let Some(bound) = &mut self.bound {
            let num_left_out = forced.len() - num_taken;
            bound.keep(forced, num_left_out);
        }
    }
}
