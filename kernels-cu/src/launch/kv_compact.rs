//! Accepted rows moved together.
