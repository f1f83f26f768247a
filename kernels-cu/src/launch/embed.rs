//! Rows of the embedding.
