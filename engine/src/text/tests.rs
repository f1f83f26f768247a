//! The whole of text against Hugging Face's own answers.
