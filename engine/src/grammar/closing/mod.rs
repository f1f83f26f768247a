//! The *closing*: the shortest text that makes a valid whole of what the model has written, whenever its time is up.
//!
//! No model step and no search over tokens: the text so far is read as the beginning of JSON ([`partial`]), laid over the schema's shapes
//! ([`walk`]), and completed from the inside out. It costs microseconds and depends only on the text, so it also serves after a stop string.

mod object;
mod partial;
pub(super) mod walk;

pub(super) use walk::{close, is_valid};

/// What completes an answer, and what of the answer is not the model's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Closing {
    /// Bytes to append. They may begin inside a character that the answer so far ends in.
    pub bytes: Vec<u8>,
    /// JSON pointers to values that stand in for what the model did not write: declared defaults, or under
    /// [`super::ClosingPolicy::Minimal`] the shortest values. The empty pointer is the whole answer.
    pub defaulted_fields: Vec<String>,
    /// JSON pointers to values that the model began and the closing ended: a text that stops early, a number that may have had more digits.
    pub cut_fields: Vec<String>,
}

impl Closing {
    /// True when the answer was whole already.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.defaulted_fields.is_empty() && self.cut_fields.is_empty()
    }
}
