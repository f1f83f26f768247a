//! Cuts random answers at random moments, completes them and has every one judged.
//!
//! Answers are chosen at random among what the mask allows, so nothing of a model's good sense helps; the tokenizer is the engine's.
//!
//! | file | concept |
//! |---|---|
//! | `schemas/` | JSON Schemas as they occur in practice; `make.py` writes them |
//! | `cases` | those schemas by name |
//! | `judge` | an independent validator |
//! | `cuts` | the measurement |

mod cases;
mod cuts;
mod judge;

pub use cases::{Case, cases};
pub use cuts::{Cuts, Spent, cut_at_random};
pub use judge::Judge;
