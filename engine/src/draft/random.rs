//! Random heads of the published dimensions, for measuring speed without a checkpoint.

use super::{DraftSource, DraftSpec, TARGET_TOKENS};
use crate::{
    EngineError, Result, TokenId,
    dir::{MatrixPart, Part},
    quant::{MatrixView, NVFP4_BLOCK, WeightKind},
    shapes::Buffers,
    spec::DecoderSpec,
};

/// Draft tokens of published EAGLE-3 heads.
const MAX_DRAFT_VOCAB: usize = 32_000;

/// A head with random weights: what it proposes is worth nothing, what it costs is real. Matrices of one format share one buffer, as those of
/// [`crate::shapes::RandomWeights`] do.
#[derive(Debug)]
pub struct RandomHead {
    spec: DraftSpec,
    matrices: Vec<MatrixPart>,
    norms: Vec<(String, usize)>,
    layers: Buffers,
    head: Buffers,
}

impl RandomHead {
    /// A head for `target`: its width, its heads, its feed-forward layer, 32,000 draft tokens; the same for the same `seed`.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for an invalid decoder or a width the format does not divide.
    pub fn new(target: &DecoderSpec, weights: WeightKind, lm_head: WeightKind, seed: u64) -> Result<Self> {
        let spec = spec_for(target);
        spec.validate(target)?;
        let (mut matrices, mut norms) = (Vec::new(), Vec::new());
        for part in spec.parts(weights, lm_head) {
            match part {
                Part::Matrix(matrix) => matrices.push(matrix),
                Part::Vector(vector) => norms.push((vector.name, vector.len)),
                Part::Tokens(_) => {} // [`Self::target_tokens`]
            }
        }
        if let Some(odd) = matrices.iter().find(|matrix| !divides(matrix.kind, matrix.num_cols)) {
            let fact = format!("{} weights with {} columns in {}", odd.kind, odd.num_cols, odd.name);
            return Err(EngineError::Unsupported(fact));
        }
        let shapes: Vec<(usize, usize)> = matrices
            .iter()
            .filter(|matrix| matrix.name != "lm_head")
            .map(|matrix| (matrix.num_rows, matrix.num_cols))
            .collect();
        let layers = Buffers::random(weights, &shapes, seed);
        let head = Buffers::random(lm_head, &[(spec.draft_vocab_size, spec.hidden_size)], seed + 1);
        Ok(Self { spec, matrices, norms, layers, head })
    }

    /// What the head is.
    #[must_use]
    pub fn spec(&self) -> &DraftSpec {
        &self.spec
    }
}

/// Features after the second layer, in the middle, and before the last three, as published heads take them.
fn spec_for(target: &DecoderSpec) -> DraftSpec {
    let num_layers = target.num_layers;
    DraftSpec {
        hidden_size: target.hidden_size,
        target_hidden_size: target.hidden_size,
        intermediate_size: target.intermediate_size,
        num_q_heads: target.num_q_heads,
        num_kv_heads: target.num_kv_heads,
        head_dim: target.head_dim,
        vocab_size: target.vocab_size,
        draft_vocab_size: target.vocab_size.min(MAX_DRAFT_VOCAB),
        norm_eps: target.norm_eps,
        rope_theta: target.rope.theta,
        max_positions: target.max_context,
        norm_before_residual: false,
        norm_output: false,
        fc_norm: false,
        own_embedding: false,
        captured: [2.min(num_layers), num_layers / 2, num_layers.saturating_sub(3)],
    }
}

fn divides(kind: WeightKind, num_cols: usize) -> bool {
    num_cols.is_multiple_of(if kind == WeightKind::Nvfp4 { NVFP4_BLOCK } else { 2 })
}

impl DraftSource for RandomHead {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        let found = self.matrices.iter().find(|matrix| matrix.name == name).ok_or_else(|| unknown(name))?;
        let buffers = if name == "lm_head" { &self.head } else { &self.layers };
        Ok(buffers.view(found.kind, found.num_rows, found.num_cols))
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let found = self.norms.iter().find(|(norm, _)| norm == name).ok_or_else(|| unknown(name))?;
        Ok(vec![1.0; found.1])
    }

    /// Spread over the target's vocabulary, so that embedding rows are not all cached.
    fn target_tokens(&self) -> Result<Vec<TokenId>> {
        let (num_draft, num_all) = (self.spec.draft_vocab_size as u64, self.spec.vocab_size as u64);
        let token = |idx: u64| TokenId::try_from(idx * num_all / num_draft.max(1));
        let all: std::result::Result<Vec<TokenId>, _> = (0..num_draft).map(token).collect();
        all.map_err(|_| unknown(TARGET_TOKENS))
    }
}

fn unknown(name: &str) -> EngineError {
    EngineError::Tensor { name: name.into(), fact: "no such tensor in a draft head".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{Backend as _, cpu::CpuBackend},
        draft::{DraftPlan, DraftRow},
        engine::EngineOptions,
        kv::{KvKind, LaneId},
        shapes::{RandomWeights, decoder_spec},
        step::{LogitsWanted, StepPlan},
    };

    #[test]
    fn a_random_head_drafts_after_a_random_model_in_every_format() {
        let target = DecoderSpec {
            num_layers: 4,
            hidden_size: 64,
            intermediate_size: 160,
            vocab_size: 96,
            ..decoder_spec("qwen3-0.6b").unwrap()
        };
        for kind in WeightKind::ALL {
            let source = RandomWeights::new(&target, kind, kind, 1).unwrap();
            let options = EngineOptions { lane_capacity: Some(64), ..EngineOptions::default() };
            let mut backend =
                CpuBackend::new(&target, &source, &options.cpu_options(&target, KvKind::Bf16)).unwrap();
            let head = RandomHead::new(&target, kind, kind, 2).unwrap();
            backend.attach_draft(head.spec(), &head).unwrap();
            let mut plan = StepPlan::default();
            plan.push(LaneId(0), &[1, 2, 3], LogitsWanted::Last);
            backend.run_step(&plan).unwrap();
            let row = DraftRow { lane: LaneId(0), parent: None, token: 7 };
            let output =
                backend.draft(&DraftPlan { rows: vec![row], top_k: 4, wants_logits: false }).unwrap();
            assert!(output.row(0).all(|(token, log_prob)| token < 96 && log_prob.is_finite()), "{kind}");
        }
    }

    #[test]
    fn heads_of_known_shapes_are_valid_and_their_tokens_differ() {
        for name in crate::shapes::NAMES {
            spec_for(&decoder_spec(name).unwrap()).validate(&decoder_spec(name).unwrap()).unwrap();
        }
        let target = DecoderSpec { vocab_size: 40_000, hidden_size: 32, ..decoder_spec("qwen3-4b").unwrap() };
        let head = RandomHead::new(&target, WeightKind::Nvfp4, WeightKind::Fp8, 1).unwrap();
        let tokens = head.target_tokens().unwrap();
        assert_eq!(tokens.len(), 32_000);
        assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]) && *tokens.last().unwrap() < 40_000);
    }
}
