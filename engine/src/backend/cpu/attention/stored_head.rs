//! One key/value head by itself: what a benchmark or an experiment needs of attention.

use super::{Attention, MAX_QUERIES, Query, with_room};
use crate::{
    backend::cpu::vectors::Vectors,
    kv::{HeadRows, KvKind, store},
};

/// Keys and values of one head, `[num_rows, head_dim]` each, as a lane keeps them.
#[derive(Debug)]
pub struct StoredHead {
    kind: KvKind,
    head_dim: usize,
    keys: Vec<u8>,
    key_scales: Vec<f32>,
    values: Vec<u8>,
    value_scales: Vec<f32>,
}

impl StoredHead {
    /// Stores `keys` and `values`, both `[num_rows, head_dim]`, in the format `kind`.
    ///
    /// # Panics
    /// When the two differ in length or hold no whole rows of at most 1024 values.
    #[must_use]
    pub fn new(kind: KvKind, head_dim: usize, keys: &[f32], values: &[f32]) -> Self {
        assert!((1..=1024).contains(&head_dim), "{head_dim} values a row, expected 1 to 1024");
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(head_dim), "whole rows of both");
        let ((keys, key_scales), (values, value_scales)) =
            (stored(kind, head_dim, keys), stored(kind, head_dim, values));
        Self { kind, head_dim, keys, key_scales, values, value_scales }
    }

    /// Bytes that one use of all rows reads.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.keys.len() + self.values.len() + 4 * (self.key_scales.len() + self.value_scales.len())
    }

    /// `out[t, h] = softmax(q[t, h] · Kᵀ / √head_dim) · V`, causal: the last of the tokens sees all rows, the one before it all but
    /// one, and so on. `q` and `out` `[num_tokens, heads_per_token, head_dim]`.
    ///
    /// # Panics
    /// When `q` and `out` differ in length, hold more than 32 queries, or tokens that would see no row.
    pub fn attend(&self, heads_per_token: usize, q: &[f32], out: &mut [f32]) {
        let num_queries = q.len() / self.head_dim;
        assert!(q.len() == out.len() && num_queries <= MAX_QUERIES, "{num_queries} queries");
        let (num_rows, num_tokens) = (self.key_scales.len(), num_queries / heads_per_token);
        assert!(num_tokens <= num_rows, "{num_tokens} tokens over {num_rows} rows");
        let mut queries: [Query<'_>; MAX_QUERIES] = Default::default();
        let parts = q.chunks_exact(self.head_dim).zip(out.chunks_exact_mut(self.head_dim));
        for ((idx, (q, out)), query) in parts.enumerate().zip(&mut queries) {
            let end = num_rows - (num_tokens - 1 - idx / heads_per_token);
            *query = Query { q, out, first: 0, end, path: &[] };
        }
        let (rows, scale) = (self.rows(), (self.head_dim as f32).sqrt().recip());
        with_room(|room| {
            Vectors::detect().run(Attention { rows, queries: &mut queries[..num_queries], scale, room });
        });
    }

    pub(super) fn rows(&self) -> HeadRows<'_> {
        HeadRows {
            kind: self.kind,
            keys: &self.keys,
            values: &self.values,
            key_scales: &self.key_scales,
            value_scales: &self.value_scales,
        }
    }
}

/// Rows in the format `kind`, and their scales.
fn stored(kind: KvKind, head_dim: usize, rows: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let width = head_dim * kind.element_bytes();
    let mut bytes = vec![0; rows.len() / head_dim * width];
    let parts = rows.chunks_exact(head_dim).zip(bytes.chunks_exact_mut(width));
    let scales = parts.map(|(row, bytes)| store(kind, row, bytes)).collect();
    (bytes, scales)
}
