//! The forward pass of one step: every token of the plan is a row, whichever lane it belongs to.
//!
//! Reads like the model: embed, then per layer `norm → QKV → RoPE → store → attention → output projection` and
//! `norm → gate/up → SwiGLU → down`, then the output head for the wanted rows. A row's arithmetic depends on its own tokens
//! only, so logits are the same bit for bit however a prompt is sliced and whichever lanes run together.

use super::{
    activations::Activations,
    arena::{Arena, AttentionTasks},
    attention::{Attention, MAX_QUERIES, Query, with_room},
    linear::{linear, linear_with_largest},
    model::{Layer, Model},
    norm::{RmsNorm, add},
    pool::ThreadPool,
    rope::{PrepareHeads, RopeTable},
    rows::for_each_row,
    simd::Simd,
    swiglu::SwiGlu,
    vectors::{Kernel, Vectors},
};
use crate::{
    TokenId,
    kv::{KvLanes, RowAddress},
    spec::DecoderSpec,
};

/// What every step of a layer reads.
#[derive(Debug)]
pub(super) struct Forward<'a> {
    pub spec: &'a DecoderSpec,
    pub rope: &'a RopeTable,
    pub pool: &'a ThreadPool,
    pub vectors: Vectors,
}

impl Forward<'_> {
    /// Computes all layers for `tokens` as laid out in `arena`, stores their keys and values and leaves logits in `arena`.
    pub(super) fn run(&self, model: &Model, tokens: &[TokenId], arena: &mut Arena, lanes: &mut KvLanes) {
        for (&token, row) in tokens.iter().zip(arena.residual.chunks_exact_mut(self.spec.hidden_size)) {
            model.embed(token, row);
        }
        for (layer_idx, layer) in model.layers.iter().enumerate() {
            self.capture(layer_idx, arena);
            self.norm_rows(&layer.input_norm, arena);
            let normed = std::mem::take(&mut arena.normed);
            self.project_qkv(layer, &normed, arena);
            arena.normed = normed;
            self.store_kv(layer_idx, arena, lanes);
            if layer_idx + 1 == model.layers.len() && !arena.captured.contains(&model.layers.len()) {
                // Nobody attends to what the last layer gives: only the rows that become logits go on.
                arena.keep_wanted(self.spec.hidden_size);
                if arena.num_rows == 0 {
                    return;
                }
            }
            self.attend(layer_idx, arena, lanes);
            self.project_output(layer, arena);
            self.feed_forward(layer, arena);
        }
        self.capture(model.layers.len(), arena);
        self.output_head(model, arena);
    }

    /// Keeps the residual stream if it is wanted at the input of `layer_idx`.
    fn capture(&self, layer_idx: usize, arena: &mut Arena) {
        let (hidden, row_len) = (self.spec.hidden_size, arena.captured.len() * self.spec.hidden_size);
        for (slot, _) in arena.captured.iter().enumerate().filter(|(_, layer)| **layer == layer_idx) {
            let rows = arena.residual.chunks_exact(hidden).zip(arena.features.chunks_exact_mut(row_len));
            for (residual, features) in rows.take(arena.places.len()) {
                features[slot * hidden..][..hidden].copy_from_slice(residual);
            }
        }
    }

    /// `input` → Q, K, V with bias, per-head norm and rotation applied.
    pub(super) fn project_qkv(&self, layer: &Layer, input: &Activations, arena: &mut Arena) {
        let (spec, num_tokens) = (self.spec, arena.places.len());
        let qkv_len = spec.q_dim() + 2 * spec.kv_dim();
        let qkv = &mut arena.qkv[..num_tokens * qkv_len];
        linear(self.pool, &layer.qkv, input, qkv);
        for_each_row(self.pool, 4 * qkv_len, qkv, qkv_len, |token_idx, qkv| {
            self.vectors.run(PrepareHeads {
                qkv,
                bias: &layer.qkv_bias,
                qk_norm: layer.qk_norm.as_ref().map(|(q, k)| (q.as_slice(), k.as_slice())),
                eps: spec.norm_eps,
                dims: (spec.q_dim(), spec.kv_dim()),
                head_dim: spec.head_dim,
                rotation: self.rope.rotation(arena.places[token_idx].position),
            });
        });
    }

    pub(super) fn store_kv(&self, layer_idx: usize, arena: &Arena, lanes: &mut KvLanes) {
        self.vectors.run(StoreKv { spec: self.spec, layer_idx, arena, lanes });
    }

    /// Q and the lanes' keys and values → `attended`.
    pub(super) fn attend(&self, layer_idx: usize, arena: &mut Arena, lanes: &KvLanes) {
        let (spec, head_dim) = (self.spec, self.spec.head_dim);
        let tasks = AttentionTasks::new(spec, arena.blocks.len(), self.pool.num_threads());
        let part_len = tasks.block_len * tasks.heads_per_task * head_dim;
        let num_parts = tasks.part(arena.blocks.len(), 0, 0);
        let window = spec.window(layer_idx).unwrap_or(usize::MAX);
        let longest = arena.places.iter().map(|place| place.position + 1).max().unwrap_or(0).min(window);
        let part_work = 2 * longest * part_len.min(head_dim * tasks.heads_per_task * arena.places.len());
        let mut attended = std::mem::take(&mut arena.attended);
        let (blocks, qkv) = (&arena.blocks, &arena.qkv);
        for_each_row(self.pool, part_work, &mut attended[..num_parts * part_len], part_len, |part, out| {
            let (block_idx, kv_head, split) = tasks.task(part);
            let block = &blocks[block_idx];
            let first_head = kv_head * (spec.num_q_heads / spec.num_kv_heads) + split * tasks.heads_per_task;
            let mut queries: [Query<'_>; MAX_QUERIES] = Default::default();
            let num_queries = block.tokens.len() * tasks.heads_per_task;
            for ((idx, query), out) in
                queries[..num_queries].iter_mut().enumerate().zip(out.chunks_exact_mut(head_dim))
            {
                let (token, head) = (idx / tasks.heads_per_task, first_head + idx % tasks.heads_per_task);
                let token = block.tokens.start + token;
                let end = arena.places[token].position + 1;
                let row_start = token * (spec.q_dim() + 2 * spec.kv_dim());
                let q = &qkv[row_start + head * head_dim..][..head_dim];
                *query = Query { q, out, first: end.saturating_sub(window), end, path: arena.path(token) };
            }
            let (rows, queries) =
                (lanes.head_rows(block.lane, layer_idx, kv_head), &mut queries[..num_queries]);
            let scale = spec.attention_scale;
            with_room(|room| self.vectors.run(Attention { rows, queries, scale, room }));
        });
        arena.attended = attended;
        self.gather_heads(tasks, arena);
    }

    /// `attended` by task → `heads` by token.
    fn gather_heads(&self, tasks: AttentionTasks, arena: &mut Arena) {
        let spec = self.spec;
        let run_len = tasks.heads_per_task * spec.head_dim;
        let part_len = tasks.block_len * run_len;
        let mut heads = std::mem::take(&mut arena.heads);
        let (attended, blocks) = (&arena.attended, &arena.blocks);
        heads.fill(self.pool, arena.num_rows, spec.q_dim(), |row_idx, row| {
            let token_idx = arena.token_of_row(row_idx);
            let block_idx = blocks.partition_point(|block| block.tokens.end <= token_idx);
            let in_block = token_idx - blocks[block_idx].tokens.start;
            for (run_idx, run) in row.chunks_exact_mut(run_len).enumerate() {
                let part = tasks.part(block_idx, run_idx / tasks.num_splits, run_idx % tasks.num_splits);
                run.copy_from_slice(&attended[part * part_len + in_block * run_len..][..run_len]);
            }
        });
        arena.heads = heads;
    }

    pub(super) fn project_output(&self, layer: &Layer, arena: &mut Arena) {
        let delta = &mut arena.delta[..arena.num_rows * self.spec.hidden_size];
        linear(self.pool, &layer.o, &arena.heads, delta);
        self.add_delta(&layer.o_bias, arena);
    }

    pub(super) fn feed_forward(&self, layer: &Layer, arena: &mut Arena) {
        let (num_tokens, inner) = (arena.num_rows, self.spec.intermediate_size);
        self.norm_rows(&layer.post_attention_norm, arena);
        let gate_up = &mut arena.gate_up[..num_tokens * 2 * inner];
        linear(self.pool, &layer.gate_up, &arena.normed, gate_up);
        if !layer.gate_up_bias.is_empty() {
            for_each_row(self.pool, 2 * inner, gate_up, 2 * inner, |_, row| add(row, &layer.gate_up_bias));
        }
        arena.gated.fill(self.pool, num_tokens, inner, |token_idx, out| {
            let (gate, up) = gate_up[token_idx * 2 * inner..][..2 * inner].split_at(inner);
            self.vectors.run(SwiGlu { gate, up, out });
        });
        let delta = &mut arena.delta[..num_tokens * self.spec.hidden_size];
        linear(self.pool, &layer.down, &arena.gated, delta);
        self.add_delta(&layer.down_bias, arena);
    }

    /// Final norm and output head, for the tokens whose logits are wanted.
    fn output_head(&self, model: &Model, arena: &mut Arena) {
        let (hidden, vocab_size, num_rows) =
            (self.spec.hidden_size, self.spec.vocab_size, arena.logits_tokens.len());
        if num_rows == 0 {
            return;
        }
        let mut last = std::mem::take(&mut arena.last);
        last.fill(self.pool, num_rows, hidden, |row_idx, out| {
            let x = arena.residual_of_logits(row_idx, hidden);
            self.vectors.run(RmsNorm { x, weight: &model.final_norm, eps: self.spec.norm_eps, out });
        });
        arena.last = last;
        let logits = &mut arena.logits[..num_rows * vocab_size];
        if arena.wants_largest {
            linear_with_largest(self.pool, &model.lm_head, &arena.last, logits, &mut arena.largest);
        } else {
            linear(self.pool, &model.lm_head, &arena.last, logits);
        }
    }

    /// `normed = RMSNorm(residual)` for every token.
    fn norm_rows(&self, weight: &[f32], arena: &mut Arena) {
        let (residual, hidden) = (&arena.residual, self.spec.hidden_size);
        arena.normed.fill(self.pool, arena.num_rows, hidden, |token_idx, out| {
            let x = &residual[token_idx * hidden..][..hidden];
            self.vectors.run(RmsNorm { x, weight, eps: self.spec.norm_eps, out });
        });
    }

    /// `residual += delta + bias` for every token.
    fn add_delta(&self, bias: &[f32], arena: &mut Arena) {
        let (hidden, num_tokens, delta) = (self.spec.hidden_size, arena.num_rows, &arena.delta);
        let residual = &mut arena.residual[..num_tokens * hidden];
        for_each_row(self.pool, hidden, residual, hidden, |token_idx, row| {
            add(row, &delta[token_idx * hidden..][..hidden]);
            add(row, bias);
        });
    }
}

/// Keys and values of every token into its lane.
struct StoreKv<'a> {
    spec: &'a DecoderSpec,
    layer_idx: usize,
    arena: &'a Arena,
    lanes: &'a mut KvLanes,
}

impl Kernel for StoreKv<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (q_dim, kv_dim, head_dim) = (self.spec.q_dim(), self.spec.kv_dim(), self.spec.head_dim);
        for (place, qkv) in self.arena.places.iter().zip(self.arena.qkv.chunks_exact(q_dim + 2 * kv_dim)) {
            let (keys, values) = qkv[q_dim..].split_at(kv_dim);
            for (kv_head, (key, value)) in
                keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate()
            {
                let at =
                    RowAddress { lane: place.lane, layer_idx: self.layer_idx, kv_head, position: place.row };
                self.lanes.store(at, key, value);
            }
        }
    }
}
