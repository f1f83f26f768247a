//! One request's way through a grammar.

use std::fmt;

use super::{closing::Closing, compile::Grammar, error::shortened};
use crate::{EngineError, Result, TokenId};

/// Tokens that steering weighs: the likeliest allowed ones. Each costs one closing.
const MAX_CANDIDATES: usize = 32;

/// How much a mask leaves to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Steering {
    /// Everything that is valid.
    #[default]
    Free,
    /// Nothing that makes the closing longer: values are finished, no optional member or further item is begun.
    Hold,
    /// Only what makes the closing shorter, so that at most as many tokens follow as the closing has bytes.
    Shorten,
}

/// The tokens that may come next.
#[derive(Debug, Clone)]
pub struct Mask(llguidance::toktrie::SimpleVob);

impl Mask {
    /// Whether `token` may come.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        // Tokens beyond the mask are left alone, as `apply_mask` leaves them.
        self.0.as_slice().get(token as usize / 32).is_none_or(|word| word >> (token % 32) & 1 == 1)
    }
}

/// Says which tokens may come next, and keeps what has come.
///
/// Follows Park et al., "TruncProof" (arXiv 2605.13076), in steering by the length of the shortest completion; unlike there the completion
/// itself needs no tokens.
#[derive(Clone)]
pub struct Matcher {
    grammar: Grammar,
    inner: llguidance::Matcher,
    produced: Vec<u8>,
    /// End of each committed token in `produced`.
    ends: Vec<usize>,
    candidates: Vec<(f32, TokenId)>,
}

impl Matcher {
    pub(super) fn new(grammar: Grammar, inner: llguidance::Matcher) -> Self {
        let candidates = Vec::with_capacity(2 * MAX_CANDIDATES);
        Self { grammar, inner, produced: Vec::new(), ends: Vec::new(), candidates }
    }

    /// Sets memory aside for an answer of `num_tokens` tokens.
    pub fn reserve(&mut self, num_tokens: usize) {
        self.ends.reserve(num_tokens);
        self.produced.reserve(num_tokens.saturating_mul(8));
    }

    /// Sets the logits `[vocab_size]` of all tokens that may not come next to −∞.
    ///
    /// # Errors
    /// As [`Self::mask`].
    pub fn apply(&mut self, logits: &mut [f32], steering: Steering) -> Result<()> {
        let mask = self.mask()?;
        self.apply_mask(&mask, logits, steering);
        Ok(())
    }

    /// Which tokens may come next. Costs of the grammar's limits each time it is asked.
    ///
    /// # Errors
    /// [`EngineError::Grammar`] when the mask takes more than its limits allow, or the answer is complete. Then only [`Self::close`] is left.
    pub fn mask(&mut self) -> Result<Mask> {
        self.inner.compute_mask().map(Mask).map_err(|error| broken(&error.to_string()))
    }

    /// [`Self::apply`] with the mask from here.
    pub fn apply_mask(&mut self, mask: &Mask, logits: &mut [f32], steering: Steering) {
        for (word, chunk) in mask.0.as_slice().iter().zip(logits.chunks_mut(32)) {
            match *word {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in chunk.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        if steering != Steering::Free {
            self.steer(logits, steering);
        }
    }

    /// Narrows masked `logits` to candidates that go the right way; leaves them when none does.
    fn steer(&mut self, logits: &mut [f32], steering: Steering) {
        let Some(now) = self.grammar.close(&self.produced) else { return };
        self.gather_candidates(logits, &now.bytes);
        let produced_len = self.produced.len();
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.retain(|&(_, token)| {
            self.produced.extend_from_slice(self.grammar.vocabulary().bytes(token));
            let is_end = self.produced.len() == produced_len;
            let then = self.grammar.close(&self.produced);
            self.produced.truncate(produced_len);
            match (then, steering) {
                _ if is_end => now.bytes.is_empty(),
                (None, _) => false,
                (Some(then), Steering::Shorten) => then.bytes.len() < now.bytes.len(),
                (Some(then), _) => then.bytes.len() <= now.bytes.len(),
            }
        });
        if !candidates.is_empty() {
            logits.fill(f32::NEG_INFINITY);
            for &(logit, token) in &candidates {
                logits[token as usize] = logit;
            }
        }
        self.candidates = candidates;
    }

    /// The likeliest allowed tokens, those that write the closing, and the end tokens.
    fn gather_candidates(&mut self, logits: &[f32], closing: &[u8]) {
        let found = &mut self.candidates;
        found.clear();
        let mut lowest = f32::NEG_INFINITY;
        for (token, &logit) in logits.iter().enumerate() {
            if logit <= lowest {
                continue;
            }
            found.push((logit, token as TokenId));
            if found.len() == 2 * MAX_CANDIDATES {
                found.sort_unstable_by(|one, other| other.0.total_cmp(&one.0));
                found.truncate(MAX_CANDIDATES);
                lowest = found.last().map_or(lowest, |last| last.0);
            }
        }
        let trie = self.grammar.vocabulary().env.tok_trie();
        for token in trie.all_prefixes(closing).into_iter().chain(trie.eos_tokens().iter().copied()) {
            let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            if logit > f32::NEG_INFINITY && !found.iter().any(|&(_, known)| known == token) {
                found.push((logit, token));
            }
        }
    }

    /// Notes that `token` came next.
    ///
    /// # Errors
    /// [`EngineError::Grammar`] when it may not, or reading it takes more than the limits allow.
    pub fn commit(&mut self, token: TokenId) -> Result<()> {
        self.inner.consume_token(token).map_err(|error| broken(&error.to_string()))?;
        self.note(token);
        Ok(())
    }

    /// Adds a token to the answer without asking the grammar, for a matcher that no longer works.
    pub(crate) fn note(&mut self, token: TokenId) {
        self.produced.extend_from_slice(self.grammar.vocabulary().bytes(token));
        self.ends.push(self.produced.len());
    }

    /// Appends the tokens that must come next, because there is only one continuation and the tokenizer would split it so; they count as
    /// committed. Nothing for a tokenizer whose splitting cannot be relied on.
    pub fn force(&mut self, out: &mut Vec<TokenId>) {
        if self.inner.is_stopped() {
            return;
        }
        // On a failure the list is empty; the next mask says why.
        for token in self.inner.consume_ff_tokens() {
            self.note(token);
            out.push(token);
        }
    }

    /// Takes the last `num_tokens` back: for proposals that are not accepted.
    ///
    /// # Errors
    /// [`EngineError::Grammar`] when fewer were committed.
    pub fn roll_back(&mut self, num_tokens: usize) -> Result<()> {
        let Some(num_left) = self.ends.len().checked_sub(num_tokens) else {
            return Err(broken(&format!(
                "{num_tokens} tokens taken back, {} were committed",
                self.ends.len()
            )));
        };
        self.inner.rollback(num_tokens).map_err(|error| broken(&error.to_string()))?;
        self.ends.truncate(num_left);
        self.produced.truncate(self.ends.last().copied().unwrap_or(0));
        Ok(())
    }

    /// Drops the last `num_tokens` from the answer, of which only the closing is still asked.
    pub(crate) fn forget(&mut self, num_tokens: usize) {
        self.ends.truncate(self.ends.len().saturating_sub(num_tokens));
        self.produced.truncate(self.ends.last().copied().unwrap_or(0));
    }

    /// Something beside it that says which proposals may come. What that costs is its own: the matcher's limits are not touched.
    #[must_use]
    pub fn checker(&self) -> Checker {
        Checker { inner: self.inner.deep_clone(), num_tokens: self.ends.len() }
    }

    /// True when nothing can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.inner.is_stopped() && !self.inner.is_error()
    }

    /// The answer so far.
    #[must_use]
    pub fn produced(&self) -> &[u8] {
        &self.produced
    }

    /// What completes the answer from here.
    #[must_use]
    pub fn close(&self) -> Closing {
        // Masks let nothing come that has no closing; that closings know every masked text is what the tests are for.
        self.grammar.close(&self.produced).unwrap_or_default()
    }

    /// The grammar it follows.
    #[must_use]
    pub fn grammar(&self) -> &Grammar {
        &self.grammar
    }

    /// The longest token that begins `text`; an end token for none.
    pub(crate) fn token_towards(&self, text: &[u8]) -> TokenId {
        let trie = self.grammar.vocabulary().env.tok_trie();
        if text.is_empty() { trie.eos_token() } else { trie.prefix_token_id(text).0 }
    }
}

/// Checks proposals, beside a [`Matcher`] and at the same place of the answer.
pub struct Checker {
    inner: llguidance::Matcher,
    num_tokens: usize,
}

impl Checker {
    /// Goes to the end of `answer`, all of whose tokens the matcher has committed.
    ///
    /// # Errors
    /// [`EngineError::Grammar`] when its limits are used up: another one begins anew.
    pub fn follow(&mut self, answer: &[TokenId]) -> Result<()> {
        for &token in answer.get(self.num_tokens..).unwrap_or_default() {
            self.inner.consume_token(token).map_err(|error| broken(&error.to_string()))?;
            self.num_tokens += 1;
        }
        Ok(())
    }

    /// How many of `tokens` may come next, one after another; nothing is committed.
    ///
    /// # Errors
    /// [`EngineError::Grammar`] when finding out takes more than the limits allow.
    pub fn num_valid(&mut self, tokens: &[TokenId]) -> Result<usize> {
        self.inner.validate_tokens(tokens).map_err(|error| broken(&error.to_string()))
    }
}

impl Clone for Checker {
    /// With limits of its own, as a new one.
    fn clone(&self) -> Self {
        Self { inner: self.inner.deep_clone(), num_tokens: self.num_tokens }
    }
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("num_tokens", &self.num_tokens).finish_non_exhaustive()
    }
}

fn broken(fact: &str) -> EngineError {
    EngineError::Grammar { at: String::new(), fact: shortened(fact) }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher")
            .field("grammar", &self.grammar)
            .field("produced", &String::from_utf8_lossy(&self.produced))
            .finish_non_exhaustive()
    }
}
