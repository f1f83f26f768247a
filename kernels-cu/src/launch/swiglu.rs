//! The gate of the feed-forward network.
