//! Rotary positions, and rows into the KV cache.
