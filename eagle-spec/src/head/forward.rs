//! The head's arithmetic, one row at a time, in F32.

use std::path::Path;

use takt_engine::{EngineError, Result, TokenId};

use super::{
    config::{HeadConfig, NUM_CAPTURED},
    files::Files,
    matrix::{Matrix, add, dot, log_softmax, push_normed, rotate},
    vocabulary::target_tokens,
};

/// A loaded EAGLE-3 head.
#[derive(Debug)]
pub struct DraftHead {
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
    /// The target's token of every draft token.
    targets: Vec<TokenId>,
    own_embedding: Option<Matrix>,
    inv_freq: Vec<f32>,
}

/// One sequence's keys and values in a head, and what the last row said.
#[derive(Debug, Clone, Default)]
pub struct DraftLane {
    /// `[num_rows, num_kv_heads · head_dim]`, rotated.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Rows made from the target's features; those behind are proposed.
    committed_len: usize,
    /// Of the last committed row: what is fed back.
    tip: Vec<f32>,
}

impl DraftLane {
    /// Rows made from the target's features.
    #[must_use]
    pub fn committed_len(&self) -> usize {
        self.committed_len
    }

    pub(super) fn cut(&mut self, len: usize) {
        if len < self.committed_len {
            self.committed_len = len;
            self.tip.clear();
        }
    }
}

/// Where one row stands and what it sees besides the committed rows and itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight<'a> {
    pub position: usize,
    /// Proposed rows it descends from.
    pub ancestors: &'a [usize],
}

impl DraftHead {
    /// Reads the head in `folder`: `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// [`EngineError::Io`], [`EngineError::Corrupt`], [`EngineError::Tensor`] naming the tensor, [`EngineError::Unsupported`].
    pub fn open(folder: &Path) -> Result<Self> {
        let config = HeadConfig::read(&folder.join("config.json"))?;
        let files = Files::read(folder)?;
        let tensors = files.tensors(folder)?;
        let HeadConfig { hidden_size, target_hidden_size, intermediate_size, head_dim, vocab_size, .. } =
            config;
        let draft_vocab_size = config.draft_vocab_size;
        let (q_dim, kv_dim) = (config.num_q_heads * head_dim, config.num_kv_heads * head_dim);
        let targets = match tensors.token_offsets(draft_vocab_size)? {
            Some(offsets) => target_tokens(&offsets, tensors.members()?.as_deref(), vocab_size)?,
            None if draft_vocab_size == vocab_size => target_tokens(&vec![0; vocab_size], None, vocab_size)?,
            None => {
                let fact =
                    format!("missing, and the head proposes {draft_vocab_size} of {vocab_size} tokens");
                return Err(EngineError::Tensor { name: "d2t".into(), fact });
            }
        };
        let own_embedding = tensors.own_embedding(vocab_size, hidden_size)?;
        if own_embedding.is_none() && target_hidden_size != hidden_size {
            let fact = format!("missing: the head is {hidden_size} wide and its target {target_hidden_size}");
            return Err(EngineError::Tensor { name: "embed_tokens.weight".into(), fact });
        }
        let fc_norms = (0..NUM_CAPTURED).filter(|_| config.fc_norm);
        let half = head_dim / 2;
        Ok(Self {
            fc: tensors.matrix("fc.weight", hidden_size, NUM_CAPTURED * target_hidden_size)?,
            fc_norms: fc_norms
                .map(|i| tensors.vector(&format!("fc_norm.{i}.weight"), target_hidden_size))
                .collect::<Result<_>>()?,
            input_norm: tensors.layer_vector("input_layernorm.weight", hidden_size)?,
            hidden_norm: tensors.layer_vector("hidden_norm.weight", hidden_size)?,
            q: tensors.layer_matrix("self_attn.q_proj.weight", q_dim, 2 * hidden_size)?,
            k: tensors.layer_matrix("self_attn.k_proj.weight", kv_dim, 2 * hidden_size)?,
            v: tensors.layer_matrix("self_attn.v_proj.weight", kv_dim, 2 * hidden_size)?,
            o: tensors.layer_matrix("self_attn.o_proj.weight", hidden_size, q_dim)?,
            post_attention_norm: tensors.layer_vector("post_attention_layernorm.weight", hidden_size)?,
            gate: tensors.layer_matrix("mlp.gate_proj.weight", intermediate_size, hidden_size)?,
            up: tensors.layer_matrix("mlp.up_proj.weight", intermediate_size, hidden_size)?,
            down: tensors.layer_matrix("mlp.down_proj.weight", hidden_size, intermediate_size)?,
            norm: tensors.vector("norm.weight", hidden_size)?,
            lm_head: tensors.matrix("lm_head.weight", draft_vocab_size, hidden_size)?,
            targets,
            own_embedding,
            inv_freq: (0..half).map(|i| config.rope_theta.powf(-(i as f64) / half as f64) as f32).collect(),
            config,
        })
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// The target's token of every draft token.
    #[must_use]
    pub fn targets(&self) -> &[TokenId] {
        &self.targets
    }

    /// The head's own row for `token`, when it has an embedding of its own.
    pub(super) fn own_embedding(&self, token: TokenId) -> Option<&[f32]> {
        let embedding = self.own_embedding.as_ref()?;
        embedding.values.get(token as usize * embedding.num_cols..)?.get(..embedding.num_cols)
    }

    /// The target's three features of one token `[3 · H]` → the head's width `[h]`.
    ///
    /// # Errors
    /// [`EngineError::Input`] for another width.
    pub fn fuse(&self, features: &[f32]) -> Result<Vec<f32>> {
        if features.len() != self.fc.num_cols {
            return Err(EngineError::Input(format!(
                "{} features of one token, the head takes {}: it belongs to a target of another width",
                features.len(),
                self.fc.num_cols
            )));
        }
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
        Ok(fused)
    }

    /// Adds a committed row: the fused features of a token and the embedding of the next. Proposed rows are forgotten.
    pub(super) fn commit_row(&self, lane: &mut DraftLane, fused: &[f32], embedding: &[f32]) {
        self.forget_proposed(lane);
        let position = lane.committed_len;
        lane.tip = self.run_row(lane, fused, embedding, Sight { position, ancestors: &[] });
        lane.committed_len += 1;
    }

    /// Log-probabilities over the draft vocabulary after the row that left `output`.
    pub(super) fn log_probs(&self, output: &[f32]) -> Vec<f32> {
        let mut logits = self.logits(output);
        log_softmax(&mut logits);
        logits
    }

    /// Draft logits `[Vd]` after the row that left `output`, as [`Self::log_probs`] before the softmax.
    pub(super) fn logits(&self, output: &[f32]) -> Vec<f32> {
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
    pub fn tip_logits(&self, lane: &DraftLane) -> Vec<f32> {
        self.logits(&lane.tip)
    }

    pub(super) fn tip(lane: &DraftLane) -> &[f32] {
        &lane.tip
    }

    /// Drops proposed rows.
    pub(super) fn forget_proposed(&self, lane: &mut DraftLane) {
        let len = lane.committed_len * self.config.num_kv_heads * self.config.head_dim;
        lane.keys.truncate(len);
        lane.values.truncate(len);
    }

    /// Rows of `lane`, proposed ones included: the index the next will have.
    pub(super) fn num_rows(&self, lane: &DraftLane) -> usize {
        lane.keys.len() / (self.config.num_kv_heads * self.config.head_dim)
    }

    /// One row through the layer; its keys and values are appended. Returns what is fed back.
    pub(super) fn run_row(
        &self,
        lane: &mut DraftLane,
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
    fn attend(&self, lane: &DraftLane, q: &[f32], ancestors: &[usize]) -> Vec<f32> {
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
