//! Every bound of this module in one place. A request's grammar comes from outside: whatever it says, compiling and masking end in bounded time.

use llguidance::api::ParserLimits;

/// Most bytes of a JSON schema as text.
pub const MAX_SCHEMA_BYTES: usize = 256 * 1024;
/// Deepest nesting of a schema document. Walks over schemas recurse this deep.
pub const MAX_SCHEMA_DEPTH: usize = 96;
/// Deepest nesting of a value that a schema may describe; JSON parsers stop at 128.
pub const MAX_VALUE_DEPTH: usize = 48;
/// Most schema nodes after references and combinations are expanded.
pub const MAX_NODES: usize = 5_000;
/// Most properties of one object; llguidance recurses over them.
pub const MAX_PROPERTIES: usize = 256;
/// Most alternatives of a `oneOf`; each two are compared.
pub const MAX_ONE_OF: usize = 24;
/// Compiled grammars that are kept.
pub const MAX_CACHED_GRAMMARS: usize = 16;
/// Most bytes of a regex.
pub const MAX_REGEX_BYTES: usize = 16 * 1024;
/// Most choices.
pub const MAX_CHOICES: usize = 4_096;
/// Most bytes of all choices together.
pub const MAX_CHOICES_BYTES: usize = 256 * 1024;
/// Most bytes of the completion of a value that was never begun.
pub const MAX_FILL_BYTES: usize = 64 * 1024;
/// Most states of the automaton of one string, number or regex.
pub const MAX_AUTOMATON_STATES: usize = 20_000;
/// Most transitions of the automata of one grammar: bounds compile time and memory (4 bytes each).
pub const MAX_TRANSITIONS: usize = 4_000_000;
/// Strings without pattern and format count their characters beside the automaton when a length bound is longer than this.
pub const MAX_COUNTED_STATES: usize = 32;
/// Longest string, in characters, that a schema may demand: a closing would have to write it.
pub const MAX_MIN_LENGTH: u64 = 4_096;
/// Most items that a schema may demand.
pub const MAX_MIN_ITEMS: u64 = 1_024;
/// Largest magnitude of a number: beyond it F64 does not hold every integer (RFC 8259, section 6).
pub const MAX_NUMBER: f64 = 9_007_199_254_740_991.0;
/// Most decimals of a number: more would let a model write digits for ever, and round across bounds when read as F64.
pub const NUMBER_STEP: f64 = 1e-8;
/// Most decimals of a `multipleOf`.
pub const MAX_STEP_DECIMALS: i32 = 8;
/// Decimal digits that F64 always keeps.
pub const NUMBER_DIGITS: i32 = 15;
/// Nesting of a value that a schema says nothing about.
pub const FREE_VALUE_DEPTH: usize = 3;

/// What llguidance may spend. The defaults allow 14 ms of lexer work a mask; these allow about a quarter of it.
pub fn parser_limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 1_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 50_000,
        step_max_items: 20_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}
