//! From a demanded form to a grammar that requests can share.

use std::{fmt, sync::Arc};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};

use super::{
    automaton::Automaton,
    cache::{GrammarCache, Key},
    closing::{self, Closing},
    error::guarded,
    matcher::Matcher,
    schema::{self, Schema},
    spec::{ClosingPolicy, GrammarSpec},
    vocabulary::Vocabulary,
};
use crate::{Result, TokenId, text::Text};

/// Compiles grammars for one model.
#[derive(Debug, Clone)]
pub struct GrammarCompiler {
    vocabulary: Vocabulary,
    cache: GrammarCache,
}

impl GrammarCompiler {
    /// A compiler for a model with `vocab_size` logits, whose answers end with one of `eos_token_ids`. Takes some 100 ms for a large
    /// vocabulary: once an engine.
    ///
    /// # Errors
    /// [`crate::EngineError::Grammar`] when the engine names no end token.
    pub fn new(text: &Arc<Text>, vocab_size: usize, eos_token_ids: &[TokenId]) -> Result<Self> {
        Ok(Self {
            vocabulary: Vocabulary::new(text, vocab_size, eos_token_ids)?,
            cache: GrammarCache::default(),
        })
    }

    /// Compiles `spec`, or finds it among those compiled last. Whatever is demanded, this ends in bounded time, but that may be a second: it
    /// belongs on the thread that takes requests in, not on the one that runs the model.
    ///
    /// # Errors
    /// [`crate::EngineError::Grammar`] when the form contradicts itself, is too large, uses what is not supported, or has no closing
    /// under `policy`; with the place and what to do.
    pub fn compile(&self, spec: &GrammarSpec, policy: ClosingPolicy) -> Result<Grammar> {
        spec.check()?;
        let key = Key::of(spec, policy);
        if let Some(grammar) = self.cache.get(&key) {
            return Ok(grammar);
        }
        let grammar = self.compile_new(spec, policy)?;
        self.cache.put(key, grammar.clone());
        Ok(grammar)
    }

    /// Compiles `spec` and keeps it, whatever else is compiled: for the few forms that are known from the start.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub fn keep(&self, spec: &GrammarSpec, policy: ClosingPolicy) -> Result<()> {
        self.compile(spec, policy)?;
        self.cache.keep(&Key::of(spec, policy));
        Ok(())
    }

    /// Whether `spec` is among those compiled last, so that [`Self::compile`] takes microseconds.
    #[must_use]
    pub fn is_cached(&self, spec: &GrammarSpec, policy: ClosingPolicy) -> bool {
        spec.check().is_ok() && self.cache.get(&Key::of(spec, policy)).is_some()
    }

    fn compile_new(&self, spec: &GrammarSpec, policy: ClosingPolicy) -> Result<Grammar> {
        let (grammar, source) = match spec {
            GrammarSpec::JsonSchema(document) => {
                let schema = schema::build(document, policy)?;
                let emitted = schema::emit::emit(&schema);
                (GrammarWithLexer::from_json_schema(emitted), Source::Json(schema))
            }
            GrammarSpec::Regex(regex) => {
                schema::check_regex(regex, "")?;
                Self::text(regex_text(regex), None)?
            }
            GrammarSpec::Choice(choices) => {
                let escaped: Vec<String> = choices.iter().map(|choice| escaped(choice)).collect();
                Self::text(&escaped.join("|"), choices.first())?
            }
        };
        let factory = &self.vocabulary.factory;
        let template = guarded("", || {
            let parser = factory.create_parser(TopLevelGrammar::from_grammar(grammar));
            let mut matcher = llguidance::Matcher::new(parser);
            matcher.get_error().map_or(Ok(()), Err)?;
            // The first mask finds what compiling does not: it is computed while a refusal is still possible.
            matcher.compute_mask().map_err(|error| error.to_string())?;
            Ok(matcher)
        })?;
        let vocabulary = self.vocabulary.clone();
        Ok(Grammar { inner: Arc::new(Inner { template, source, vocabulary }) })
    }

    /// `unbegun` stands in for an answer of which nothing was written; the shortest way for `None`.
    fn text(regex: &str, unbegun: Option<&String>) -> Result<(GrammarWithLexer, Source)> {
        let grammar = GrammarWithLexer::from_regex(regex);
        let automaton = Box::new(Automaton::of(grammar.clone(), "")?);
        Ok((grammar, Source::Text { automaton, unbegun: unbegun.cloned() }))
    }
}

/// A compiled form of an answer. Clones share it.
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Inner>,
}

struct Inner {
    /// A matcher at the start of an answer, copied for every request.
    template: llguidance::Matcher,
    source: Source,
    vocabulary: Vocabulary,
}

/// What closings are made from.
enum Source {
    Json(Schema),
    Text { automaton: Box<Automaton>, unbegun: Option<String> },
}

impl Grammar {
    /// A matcher at the start of an answer.
    #[must_use]
    pub fn matcher(&self) -> Matcher {
        // Deep: a shared lexer would grow with every request, up to its limit.
        Matcher::new(self.clone(), self.inner.template.deep_clone())
    }

    /// What completes an answer that so far is `produced`; `None` when no valid answer begins like this.
    #[must_use]
    pub fn close(&self, produced: &[u8]) -> Option<Closing> {
        match &self.inner.source {
            Source::Json(schema) => closing::close(schema, produced),
            Source::Text { automaton, unbegun } => {
                let mut closing = close_text(automaton, produced)?;
                if let Some(text) = unbegun.as_ref().filter(|_| produced.is_empty()) {
                    closing.bytes.clear();
                    closing.bytes.extend_from_slice(text.as_bytes());
                }
                Some(closing)
            }
        }
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.inner.vocabulary
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.inner.source {
            Source::Json(_) => "JSON",
            Source::Text { .. } => "text",
        };
        f.debug_struct("Grammar").field("kind", &kind).finish_non_exhaustive()
    }
}

fn close_text(automaton: &Automaton, produced: &[u8]) -> Option<Closing> {
    let state = automaton.run(automaton.start(), produced)?;
    let mut closing = Closing::default();
    automaton.complete(state, &mut closing.bytes);
    if !automaton.is_forced(state) {
        let fields =
            if produced.is_empty() { &mut closing.defaulted_fields } else { &mut closing.cut_fields };
        fields.push(String::new());
    }
    Some(closing)
}

/// The regex without the anchors that a whole match makes needless.
fn regex_text(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if !rest.ends_with('\\') => rest,
        _ => regex,
    }
}

/// A text as a regex that matches only it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(character);
    }
    out
}
