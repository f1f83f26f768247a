//! Attention: prefill, decode and tree verification.
