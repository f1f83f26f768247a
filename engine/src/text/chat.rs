//! A conversation, as a chat template receives it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::civil::CivilTime;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What was said. Special tokens spelled in it are words, not commands.
    pub content: String,
}

impl Message {
    /// A message.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What else a chat template may look at.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatOptions {
    /// End with the start of the assistant's answer.
    pub add_generation_prompt: bool,
    /// The date for templates that print one (`strftime_now`); without it most of them fall back to a fixed date.
    pub now: Option<CivilTime>,
    /// Further template variables, such as Qwen3's `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl Default for ChatOptions {
    /// Ready for an answer, no date, no further variables.
    fn default() -> Self {
        Self { add_generation_prompt: true, now: None, variables: BTreeMap::new() }
    }
}
