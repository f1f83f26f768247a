//! Structured output: answers in a demanded form, valid at any moment they are cut.
//!
//! | file | concept |
//! |---|---|
//! | `spec` | what may be demanded: JSON Schema, regex, choices; the closing policy |
//! | `limits` | every bound, so that no demand costs unbounded time |
//! | `vocabulary` | the tokenizer as llguidance sees it |
//! | `schema/` | JSON Schema brought into shapes, the one source of mask and closing |
//! | `automaton` | one string, number or regex as a finite automaton with shortest ways |
//! | `compile` | a demand becomes a [`Grammar`], or is refused with the place and the reason |
//! | `cache` | grammars compiled before |
//! | `matcher` | one request's way: mask, commit, force, steer, roll back |
//! | `closing/` | the shortest valid completion, without a model step |
//!
//! Architecture invariant: the closing never guesses. Whatever it does not understand is refused when the grammar is compiled.

mod automaton;
mod cache;
mod closing;
mod compile;
mod error;
pub mod limits;
mod matcher;
mod schema;
mod spec;
mod vocabulary;

pub use closing::Closing;
pub use compile::{Grammar, GrammarCompiler};
pub use matcher::{Checker, Mask, Matcher, Steering};
pub use spec::{ClosingPolicy, GrammarSpec};
