//! The head's arithmetic, one row at a time, in F32.

use takt_engine::draft::NUM_CAPTURED;
use takt_engine_builder::draft::{HeadConfig, PublishedHead};

use super::matrix::{Matrix, add, dot, log_softmax, push_normed, rotate};

/// An EAGLE-3 head.
#[derive(Debug)]
pub struct ReferenceHead {
    config: HeadConfig,
    fc: Matrix,
    /// A norm for each captured feature, with `fc_norm`.
    fc_norms: Vec<Vec<f32>>,
    input_norm: Vec<f32>,
    hidden_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    post_attention_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    norm: Vec<f32>,
    lm_head: Matrix,
    inv_freq: Vec<f32>,
}

/// One sequence's keys and values in a head, and what the last row said.
#[derive(Debug, Clone, Default)]
pub struct ReferenceLane {
    /// `[num_rows, num_kv_heads · head_dim]`, rotated.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Rows made from the target's features; those behind are proposed.
    committed_len: usize,
    /// Of the last committed row: what is fed back.
    tip: Vec<f32>,
}

/// Where one row stands and what it sees besides the committed rows and itself.
#[derive(Debug, Clone, Copy)]
struct Sight<'a> {
    pub position: usize,
    /// Proposed rows it descends from.
    pub ancestors: &'a [usize],
}

impl ReferenceHead {
    /// The weights of a published head as they are.
    #[must_use]
    pub fn new(head: &PublishedHead, rope_theta: f64) -> Self {
        let config = head.config().clone();
        let HeadConfig { hidden_size, target_hidden_size, intermediate_size, head_dim, .. } = config;
        let (q_dim, kv_dim) = (config.num_q_heads * head_dim, config.num_kv_heads * head_dim);
        let matrix = |name: &str, num_rows, num_cols| Matrix {
            num_cols,
            values: head.values(&format!("{name}.weight"), &[num_rows, num_cols]).unwrap(),
        };
        let vector = |name: &str, len| head.values(&format!("{name}.weight"), &[len]).unwrap();
        let fc_norms = (0..NUM_CAPTURED).filter(|_| config.fc_norm);
        let half = head_dim / 2;
        Self {
            fc: matrix("fc", hidden_size, NUM_CAPTURED * target_hidden_size),
            fc_norms: fc_norms.map(|i| vector(&format!("fc_norm.{i}"), target_hidden_size)).collect(),
            input_norm: vector("layer.input_layernorm", hidden_size),
            hidden_norm: vector("layer.hidden_norm", hidden_size),
            q: matrix("layer.self_attn.q_proj", q_dim, 2 * hidden_size),
            k: matrix("layer.self_attn.k_proj", kv_dim, 2 * hidden_size),
            v: matrix("layer.self_attn.v_proj", kv_dim, 2 * hidden_size),
            o: matrix("layer.self_attn.o_proj", hidden_size, q_dim),
            post_attention_norm: vector("layer.post_attention_layernorm", hidden_size),
            gate: matrix("layer.mlp.gate_proj", intermediate_size, hidden_size),
            up: matrix("layer.mlp.up_proj", intermediate_size, hidden_size),
            down: matrix("layer.mlp.down_proj", hidden_size, intermediate_size),
            norm: vector("norm", hidden_size),
            lm_head: matrix("lm_head", config.draft_vocab_size, hidden_size),
            inv_freq: (0..half).map(|i| rope_theta.powf(-(i as f64) / half as f64) as f32).collect(),
            config,
        }
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// The target's three features of one token `[3 · H]` → the head's width `[h]`.
    #[must_use]
    pub fn fuse(&self, features: &[f32]) -> Vec<f32> {
        let mut fused = Vec::with_capacity(self.config.hidden_size);
        if self.fc_norms.is_empty() {
            self.fc.mul(features, &mut fused);
        } else {
            let mut normed = Vec::with_capacity(features.len());
            let width = self.config.target_hidden_size;
            for (feature, norm) in features.chunks_exact(width).zip(&self.fc_norms) {
                push_normed(feature, norm, self.config.norm_eps, &mut normed);
            }
            self.fc.mul(&normed, &mut fused);
        }
        fused
    }

    /// Adds a committed row: the fused features of a token and the embedding of the next. Proposed rows are forgotten.
    pub fn commit_row(&self, lane: &mut ReferenceLane, fused: &[f32], embedding: &[f32]) {
        self.forget_proposed(lane);
        let position = lane.committed_len;
        lane.tip = self.run_row(lane, fused, embedding, Sight { position, ancestors: &[] });
        lane.committed_len += 1;
    }

    /// Draft logits `[Vd]` after the row that left `output`.
    fn logits(&self, output: &[f32]) -> Vec<f32> {
        let mut normed = Vec::with_capacity(output.len());
        if self.config.norm_output {
            normed.extend_from_slice(output); // normed already, as it is fed back
        } else {
            push_normed(output, &self.norm, self.config.norm_eps, &mut normed);
        }
        let mut logits = Vec::with_capacity(self.config.draft_vocab_size);
        self.lm_head.mul(&normed, &mut logits);
        logits
    }

    /// Draft logits `[Vd]` after the last committed row.
    #[must_use]
    pub fn tip_logits(&self, lane: &ReferenceLane) -> Vec<f32> {
        self.logits(&lane.tip)
    }

    /// Draft logits `[num_tokens, Vd]` of a chain: `embeddings[0]` follows the last committed row, each further one the row before.
    pub fn chain_logits(&self, lane: &mut ReferenceLane, embeddings: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let mut output = lane.tip.clone();
        let (mut rows, mut all) = (Vec::new(), Vec::new());
        for (idx, embedding) in embeddings.iter().enumerate() {
            let sight = Sight { position: lane.committed_len + idx, ancestors: &rows };
            let row = self.num_rows(lane);
            output = self.run_row(lane, &output, embedding, sight);
            rows.push(row);
            all.push(self.logits(&output));
        }
        self.forget_proposed(lane);
        all
    }

    /// Drops proposed rows.
    fn forget_proposed(&self, lane: &mut ReferenceLane) {
        let len = lane.committed_len * self.config.num_kv_heads * self.config.head_dim;
        lane.keys.truncate(len);
        lane.values.truncate(len);
    }

    /// Rows of `lane`, proposed ones included: the index the next will have.
    fn num_rows(&self, lane: &ReferenceLane) -> usize {
        lane.keys.len() / (self.config.num_kv_heads * self.config.head_dim)
    }

    /// One row through the layer; its keys and values are appended. Returns what is fed back.
    fn run_row(
        &self,
        lane: &mut ReferenceLane,
        hidden: &[f32],
        embedding: &[f32],
        sight: Sight<'_>,
    ) -> Vec<f32> {
        let HeadConfig { hidden_size, head_dim, norm_eps, .. } = self.config;
        let mut joined = Vec::with_capacity(2 * hidden_size);
        push_normed(embedding, &self.input_norm, norm_eps, &mut joined);
        push_normed(hidden, &self.hidden_norm, norm_eps, &mut joined);
        let mut residual =
            if self.config.norm_before_residual { joined[hidden_size..].to_vec() } else { hidden.to_vec() };
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        self.q.mul(&joined, &mut q);
        self.k.mul(&joined, &mut k);
        self.v.mul(&joined, &mut v);
        rotate(&mut q, head_dim, sight.position, &self.inv_freq);
        rotate(&mut k, head_dim, sight.position, &self.inv_freq);
        lane.keys.extend_from_slice(&k);
        lane.values.extend_from_slice(&v);
        let attended = self.attend(lane, &q, sight.ancestors);
        let mut delta = Vec::with_capacity(hidden_size);
        self.o.mul(&attended, &mut delta);
        add(&mut residual, &delta);
        let mut normed = Vec::with_capacity(hidden_size);
        push_normed(&residual, &self.post_attention_norm, norm_eps, &mut normed);
        let (mut gate, mut up) = (Vec::new(), Vec::new());
        self.gate.mul(&normed, &mut gate);
        self.up.mul(&normed, &mut up);
        for (gate, up) in gate.iter_mut().zip(&up) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
        self.down.mul(&gate, &mut delta);
        add(&mut residual, &delta);
        if self.config.norm_output {
            normed.clear();
            push_normed(&residual, &self.norm, norm_eps, &mut normed);
            return normed;
        }
        residual
    }

    /// Attention of the last row over the committed rows, `ancestors` and itself.
    fn attend(&self, lane: &ReferenceLane, q: &[f32], ancestors: &[usize]) -> Vec<f32> {
        let HeadConfig { head_dim, num_q_heads, num_kv_heads, .. } = self.config;
        let (kv_dim, last) = (num_kv_heads * head_dim, self.num_rows(lane) - 1);
        let seen = || (0..lane.committed_len.min(last)).chain(ancestors.iter().copied()).chain([last]);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut out = vec![0.0; num_q_heads * head_dim];
        let mut weights: Vec<f32> = Vec::with_capacity(last + 1);
        for (head, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let column = head / (num_q_heads / num_kv_heads) * head_dim;
            let row = |rows: &'_ [f32], idx: usize| -> std::ops::Range<usize> {
                let start = idx * kv_dim + column;
                start..(start + head_dim).min(rows.len())
            };
            weights.clear();
            weights.extend(seen().map(|idx| dot(q, &lane.keys[row(&lane.keys, idx)]) * scale));
            log_softmax(&mut weights);
            for (weight, idx) in weights.iter().zip(seen()) {
                let weight = weight.exp();
                for (out, value) in out.iter_mut().zip(&lane.values[row(&lane.values, idx)]) {
                    *out += weight * value;
                }
            }
        }
        out
    }
}
