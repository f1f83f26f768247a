//! The head's arithmetic, in the order of a forward pass: fuse, join, the layer, the output head.

use super::{CpuDraft, Host, model::DraftModel, top_k::TopK};
use crate::{
    TokenId,
    backend::cpu::{forward::Forward, linear::linear, norm::RmsNorm},
    draft::{DraftOutput, DraftPlan, DraftRow, NUM_CAPTURED},
    kv::LaneId,
    quant::{MatrixData, MatrixView},
};

impl CpuDraft {
    /// The first `num_rows` features of the lane's backlog → `residual` through `fc`.
    pub(super) fn fuse(&mut self, lane: LaneId, num_rows: usize, host: Host<'_>) {
        let (h, width, eps) = (self.spec.hidden_size, self.spec.target_hidden_size, self.spec.norm_eps);
        let (features, norms) = (&self.rows[lane.0].features, &self.model.fc_norms);
        self.featured.fill(host.pool, num_rows, NUM_CAPTURED * width, |row_idx, out| {
            let row = &features[row_idx * NUM_CAPTURED * width..][..NUM_CAPTURED * width];
            if norms.is_empty() {
                out.copy_from_slice(row);
                return;
            }
            for ((x, weight), out) in row.chunks_exact(width).zip(norms).zip(out.chunks_exact_mut(width)) {
                host.vectors.run(RmsNorm { x, weight, eps, out });
            }
        });
        linear(host.pool, &self.model.fc, &self.featured, &mut self.arena.residual[..num_rows * h]);
    }

    /// What each row of the plan goes on from → `residual`, and its token's embedding.
    pub(super) fn fill_hidden(&mut self, plan: &DraftPlan, host: Host<'_>) {
        let h = self.spec.hidden_size;
        for (place, row) in plan.rows.iter().enumerate() {
            let rows = &self.rows[row.lane.0];
            let hidden = match row.parent {
                None => &rows.tip,
                Some(parent) => &rows.outputs[parent * h..(parent + 1) * h],
            };
            self.arena.residual[place * h..(place + 1) * h].copy_from_slice(hidden);
            self.model.embed(row.token, &mut self.embedded[place * h..(place + 1) * h], host);
        }
        self.join(plan.rows.len(), host);
    }

    /// Embedding and hidden, each normed, beside each other; the normed hidden is the residual where the head wants it so.
    pub(super) fn join(&mut self, num_rows: usize, host: Host<'_>) {
        let (h, eps) = (self.spec.hidden_size, self.spec.norm_eps);
        let (embedded, residual, model) = (&self.embedded, &self.arena.residual, &self.model);
        self.joined.fill(host.pool, num_rows, 2 * h, |row_idx, out| {
            let (first, second) = out.split_at_mut(h);
            let range = row_idx * h..(row_idx + 1) * h;
            let weight = &model.layer.input_norm;
            host.vectors.run(RmsNorm { x: &embedded[range.clone()], weight, eps, out: first });
            host.vectors.run(RmsNorm { x: &residual[range], weight: &model.hidden_norm, eps, out: second });
        });
        if self.spec.norm_before_residual {
            for (row_idx, residual) in self.arena.residual.chunks_exact_mut(h).enumerate().take(num_rows) {
                residual.copy_from_slice(&self.joined.row(row_idx)[h..]);
            }
        }
    }

    /// The whole layer over the rows laid out, and the last norm where it is fed back.
    pub(super) fn run_layer(&mut self, rows: &[DraftRow], host: Host<'_>) {
        let forward =
            Forward { spec: &self.layer_spec, rope: &self.rope, pool: host.pool, vectors: host.vectors };
        let (layer, arena) = (&self.model.layer, &mut self.arena);
        forward.project_qkv(layer, &self.joined, arena);
        forward.store_kv(0, arena, &mut self.lanes);
        forward.attend(0, arena, &self.lanes);
        forward.project_output(layer, arena);
        forward.feed_forward(layer, arena);
        if self.spec.norm_output {
            let h = self.spec.hidden_size;
            for residual in arena.residual.chunks_exact_mut(h).take(rows.len()) {
                let out = &mut arena.delta[..h];
                host.vectors.run(RmsNorm {
                    x: residual,
                    weight: &self.model.norm,
                    eps: self.spec.norm_eps,
                    out,
                });
                residual.copy_from_slice(out);
            }
        }
    }

    /// The output head over all rows, and the likeliest tokens of each.
    pub(super) fn propose(&mut self, plan: &DraftPlan, host: Host<'_>) -> DraftOutput<'_> {
        let (h, vocab_size, num_rows) = (self.spec.hidden_size, self.spec.draft_vocab_size, plan.rows.len());
        let (residual, norm_output, eps) = (&self.arena.residual, self.spec.norm_output, self.spec.norm_eps);
        let norm = &self.model.norm;
        self.arena.last.fill(host.pool, num_rows, h, |row_idx, out| {
            let x = &residual[row_idx * h..][..h];
            if norm_output {
                out.copy_from_slice(x); // normed already, as it is fed back
            } else {
                host.vectors.run(RmsNorm { x, weight: norm, eps, out });
            }
        });
        let logits = &mut self.arena.logits[..num_rows * vocab_size];
        linear(host.pool, &self.model.lm_head, &self.arena.last, logits);
        let num_proposals = plan.top_k.min(vocab_size);
        let lists =
            self.tokens.chunks_exact_mut(num_proposals).zip(self.log_probs.chunks_exact_mut(num_proposals));
        for (logits, (ids, log_probs)) in logits.chunks_exact(vocab_size).zip(lists) {
            host.vectors.run(TopK { logits, ids, log_probs });
            ids.iter_mut().for_each(|id| *id = self.model.targets[*id as usize]);
        }
        DraftOutput {
            num_proposals,
            tokens: &self.tokens[..num_rows * num_proposals],
            log_probs: &self.log_probs[..num_rows * num_proposals],
            logits: if plan.wants_logits { logits } else { &[] },
        }
    }
}

impl DraftModel {
    /// The head's embedding of `token`, which is in the vocabulary.
    pub(super) fn embed(&self, token: TokenId, out: &mut [f32], host: Host<'_>) {
        match &self.embedding {
            None => (host.embed)(token, out),
            Some(rows) => {
                let width = out.len() * 2;
                let row = &rows.as_slice()[token as usize * width..][..width];
                MatrixView { num_rows: 1, num_cols: out.len(), data: MatrixData::Bf16(row) }
                    .dequantize_row(0, out);
            }
        }
    }
}
