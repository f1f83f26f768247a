//! A step of some shape as a list of launches: embed, then per layer `norm → QKV → RoPE and store → attention → output projection` and
//! `norm → gate/up with SwiGLU → down`, then the output head for the wanted rows.
//!
//! A pure function of the model's place in memory and the shape: what a launch reads that changes from step to step lies in device memory.

use takt_kernels_cu::launch::{
    DeviceAddress, Launch,
    attention::{Attention, AttentionStep, Merging},
    embed::Embed,
    linear::Output,
    rope_kv::{Pairing, QkNorm, RopeKv, RopeTable},
    rows::{CopyRows, ScatterRows},
};

use super::{
    input::{InputAddresses, MAX_TREE_DEPTH},
    lanes::DeviceLanes,
    norm::norm,
    product::product,
    shape::StepShape,
    weights::{DeviceLayer, DeviceMatrix, DeviceModel},
    workspace::Workspace,
};
use crate::{
    Result,
    spec::{DecoderSpec, RopePairing},
};

/// What every launch of a step refers to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forward<'a> {
    pub spec: &'a DecoderSpec,
    pub model: &'a DeviceModel,
    pub lanes: &'a DeviceLanes,
    pub input: InputAddresses,
    pub workspace: Workspace,
    /// Multiprocessors that our kernels run on.
    pub num_sms: usize,
    /// Positions that a lane holds.
    pub capacity: usize,
    pub captured: Captured<'a>,
}

/// Layers at whose input the residual stream is kept, and where: F32 `[M, captured, D]`; or, for a draft head, each token's in the row of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Captured<'a> {
    pub layers: &'a [usize],
    pub features: DeviceAddress,
    /// I32 `[M]`; null for the rows in order.
    pub rows: DeviceAddress,
}

impl Forward<'_> {
    /// The launches of a step of `shape`, in order.
    ///
    /// # Errors
    /// [`crate::EngineError::Unsupported`] for sizes without a kernel.
    pub(super) fn launches(&self, shape: StepShape) -> Result<Vec<Launch>> {
        let mut list = Vec::new();
        let (spec, workspace) = (self.spec, &self.workspace);
        let embed = Embed {
            embedding: self.model.embedding,
            token_ids: self.input.token_ids,
            out: workspace.residual,
            num_tokens: shape.num_tokens,
            vocab_size: spec.vocab_size,
            width: spec.hidden_size,
        };
        list.push(embed.launch()?);
        for (layer_idx, layer) in self.model.layers.iter().enumerate() {
            self.capture(layer_idx, shape, &mut list)?;
            self.project_qkv(layer_idx, layer, shape, &mut list)?;
            let is_last = layer_idx + 1 == spec.num_layers;
            if is_last && shape.num_logits == 0 && !self.captured.layers.contains(&spec.num_layers) {
                // Nobody attends to what the last layer gives.
                return Ok(list);
            }
            self.attend(layer_idx, layer, shape, &mut list)?;
            self.feed_forward(layer, shape, &mut list)?;
        }
        self.capture(spec.num_layers, shape, &mut list)?;
        self.output_head(shape, &mut list)?;
        Ok(list)
    }

    /// How attention of `shape` merges its splits, and the F32 values of its partial results.
    pub(super) fn merging(
        spec: &DecoderSpec,
        step: &AttentionStep,
        num_sms: usize,
    ) -> Result<Option<(usize, (usize, usize))>> {
        let blocks = Merging::for_gpu(step, spec.num_q_heads, spec.num_kv_heads, num_sms);
        blocks.map(|blocks| Ok((blocks, step.partial_lens(spec.num_q_heads, spec.head_dim)?))).transpose()
    }

    /// What attention of a step of `shape` covers; addresses are not needed to size it.
    pub(super) fn attention_step(
        shape: StepShape,
        capacity: usize,
        input: Option<&InputAddresses>,
    ) -> AttentionStep {
        let at = |field: fn(&InputAddresses) -> DeviceAddress| input.map_or(DeviceAddress::NULL, field);
        AttentionStep {
            segments: at(|input| input.segments),
            positions: at(|input| input.positions),
            lanes: at(|input| input.lanes),
            committed_lens: at(|input| input.committed_lens),
            num_tokens: shape.num_tokens,
            num_segments: shape.num_segments,
            max_segment_len: shape.max_segment_len,
            max_positions: capacity,
        }
    }

    /// Keeps the residual stream if it is wanted at the input of `layer_idx`.
    fn capture(&self, layer_idx: usize, shape: StepShape, list: &mut Vec<Launch>) -> Result<()> {
        let (hidden, num_captured) = (self.spec.hidden_size, self.captured.layers.len());
        for (slot, _) in self.captured.layers.iter().enumerate().filter(|(_, layer)| **layer == layer_idx) {
            let to = self.captured.features.offset(slot * hidden * size_of::<f32>())?;
            let (from, rows, num_rows) = (self.workspace.residual, self.captured.rows, shape.num_tokens);
            let (in_stride, out_stride, width) = (hidden, num_captured * hidden, hidden);
            list.push(if rows == DeviceAddress::NULL {
                CopyRows { from, rows, to, in_stride, out_stride, num_rows, width }.launch()?
            } else {
                ScatterRows { from, rows, to, in_stride, out_stride, num_rows, width }.launch()?
            });
        }
        Ok(())
    }

    fn project_qkv(
        &self,
        layer_idx: usize,
        layer: &DeviceLayer,
        shape: StepShape,
        list: &mut Vec<Launch>,
    ) -> Result<()> {
        let (spec, workspace) = (self.spec, &self.workspace);
        list.push(self.norm(layer.input_norm, shape)?);
        let matrices: Vec<_> = layer.qkv.iter().zip(workspace.qkv).collect();
        list.push(self.linear(&matrices, workspace.normed, shape.num_tokens, Output::Store)?);
        let (cos, sin) = self.model.rope;
        let rope = RopeKv {
            q: workspace.qkv[0],
            k: workspace.qkv[1],
            v: workspace.qkv[2],
            q_stride: spec.q_dim(),
            kv_stride: spec.kv_dim(),
            bias: None,
            norm: layer.qk_norm.map(|(q, k)| QkNorm { q, k, eps: spec.norm_eps }),
            rope: RopeTable {
                cos,
                sin,
                num_pairs: spec.rope.inv_freq.len(),
                pairing: match spec.rope.pairing {
                    RopePairing::Half => Pairing::Half,
                    RopePairing::Interleaved => Pairing::Interleaved,
                },
            },
            positions: self.input.positions,
            lanes: self.input.lanes,
            rows: self.input.rows,
            q_out: workspace.q,
            cache: self.lanes.cache(layer_idx)?,
            num_tokens: shape.num_tokens,
            num_heads: spec.num_q_heads,
        };
        list.push(rope.launch()?);
        Ok(())
    }

    fn attend(
        &self,
        layer_idx: usize,
        layer: &DeviceLayer,
        shape: StepShape,
        list: &mut Vec<Launch>,
    ) -> Result<()> {
        let (spec, workspace) = (self.spec, &self.workspace);
        let step = Self::attention_step(shape, self.capacity, Some(&self.input));
        let attention = Attention {
            q: workspace.q,
            out: workspace.heads,
            cache: self.lanes.cache(layer_idx)?,
            step,
            tree_rows: shape.has_tree.then_some((self.input.tree_rows, MAX_TREE_DEPTH)),
            num_heads: spec.num_q_heads,
            window: spec.window(layer_idx),
            scale: spec.attention_scale,
        };
        let merging = match Self::merging(spec, &step, self.num_sms)? {
            None => Merging::InOrder,
            Some((num_blocks, _)) => Merging::Beside {
                partial_out: workspace.partial.0,
                partial_state: workspace.partial.1,
                num_blocks,
            },
        };
        list.extend(attention.launches(merging)?);
        let o = [(&layer.o, workspace.residual)];
        list.push(self.linear(&o, workspace.heads, shape.num_tokens, Output::Add)?);
        Ok(())
    }

    fn feed_forward(&self, layer: &DeviceLayer, shape: StepShape, list: &mut Vec<Launch>) -> Result<()> {
        let workspace = &self.workspace;
        list.push(self.norm(layer.post_attention_norm, shape)?);
        // The gate's place takes what comes of both.
        let gate_up = layer.gate_up.each_ref().map(|matrix| (matrix, workspace.gated));
        list.push(self.linear(&gate_up, workspace.normed, shape.num_tokens, Output::SwiGlu)?);
        let down = [(&layer.down, workspace.residual)];
        list.push(self.linear(&down, workspace.gated, shape.num_tokens, Output::Add)?);
        Ok(())
    }

    /// Final norm and output head, for the tokens whose logits are wanted.
    fn output_head(&self, shape: StepShape, list: &mut Vec<Launch>) -> Result<()> {
        if shape.num_logits == 0 {
            return Ok(());
        }
        let (hidden, workspace) = (self.spec.hidden_size, &self.workspace);
        let wanted = CopyRows {
            from: workspace.residual,
            rows: self.input.logits_rows,
            to: workspace.last,
            in_stride: hidden,
            out_stride: hidden,
            num_rows: shape.num_logits,
            width: hidden,
        };
        list.push(wanted.launch()?);
        let (rows, size) = ((workspace.last, workspace.last_normed), (shape.num_logits, hidden));
        list.push(norm(rows, self.model.final_norm, size, self.spec.norm_eps)?);
        let head = [(&self.model.lm_head, workspace.logits)];
        list.push(self.linear(&head, workspace.last_normed, shape.num_logits, Output::Store)?);
        Ok(())
    }

    /// `normed = RMSNorm(residual)` for every token.
    fn norm(&self, weight: DeviceAddress, shape: StepShape) -> Result<Launch> {
        let rows = (self.workspace.residual, self.workspace.normed);
        norm(rows, weight, (shape.num_tokens, self.spec.hidden_size), self.spec.norm_eps)
    }

    /// Matrices of one format with the same input `x`, each with its output.
    fn linear(
        &self,
        matrices: &[(&DeviceMatrix, DeviceAddress)],
        x: DeviceAddress,
        num_tokens: usize,
        output: Output,
    ) -> Result<Launch> {
        product(matrices, x, num_tokens, output, self.num_sms)
    }
}
