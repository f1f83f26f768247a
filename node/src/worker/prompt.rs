//! From a request's prompt to tokens, and how many of them are the system prompt.

use std::sync::Arc;

use takt_engine::{
    EngineError, TokenId,
    text::{ChatOptions, Message, SpecialTokens, Text},
};

use crate::request::Prompt;

/// A prompt as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EncodedPrompt {
    pub tokens: Vec<TokenId>,
    /// Leading tokens that every request with this system prompt shares; 0 without one.
    pub system_len: usize,
}

/// Encodes prompts; keeps the last system prompt's tokens, which a robot's requests repeat.
#[derive(Debug)]
pub(super) struct PromptEncoder {
    text: Arc<Text>,
    last_system: Option<(Message, Vec<TokenId>)>,
}

impl PromptEncoder {
    pub fn new(text: Arc<Text>) -> Self {
        Self { text, last_system: None }
    }

    pub fn encode(&mut self, prompt: &Prompt) -> Result<EncodedPrompt, EngineError> {
        match prompt {
            Prompt::Raw(text) => {
                Ok(EncodedPrompt { tokens: self.text.encode(text, SpecialTokens::Add)?, system_len: 0 })
            }
            Prompt::Chat(turns) => self.encode_chat(turns),
        }
    }

    fn encode_chat(&mut self, turns: &[(String, String)]) -> Result<EncodedPrompt, EngineError> {
        let messages: Vec<Message> =
            turns.iter().map(|(role, content)| Message::new(role, content)).collect();
        let tokens = self.text.encode_chat(&messages, &ChatOptions::default())?;
        let system_len = match messages.first() {
            Some(first) if first.role == "system" && messages.len() > 1 => self.system_len(first, &tokens),
            _ => 0,
        };
        Ok(EncodedPrompt { tokens, system_len })
    }

    /// Tokens of the system message alone, if the whole prompt starts with exactly those; templates that cannot render it
    /// alone, or render it differently, share nothing.
    fn system_len(&mut self, system: &Message, prompt: &[TokenId]) -> usize {
        if self.last_system.as_ref().is_none_or(|(known, _)| known != system) {
            let options = ChatOptions { add_generation_prompt: false, ..ChatOptions::default() };
            let alone = self.text.encode_chat(std::slice::from_ref(system), &options).unwrap_or_default();
            self.last_system = Some((system.clone(), alone));
        }
        let shared = self.last_system.as_ref().map_or(&[][..], |(_, tokens)| tokens);
        if prompt.starts_with(shared) { shared.len().min(prompt.len().saturating_sub(1)) } else { 0 }
    }
}
