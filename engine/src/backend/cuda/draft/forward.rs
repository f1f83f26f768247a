//! The head's arithmetic as lists of launches: what it reads along (`norm → fc → join → K and V → RoPE and store`) and a level of drafting
//! (`join → QKV → RoPE and store → attention → output projection`, `norm → gate/up with SwiGLU → down`, `norm → output head → likeliest`).
//!
//! Pure functions of the head's place in memory and the shape, as the target's are. With one layer a committed row needs its keys and values only.

use takt_kernels_cu::launch::{
    DeviceAddress, Launch,
    attention::{Attention, AttentionStep, Merging},
    embed::Embed,
    linear::Output,
    logits::{Logits, LogitsScratch},
    rms_norm::NormRows,
    rope_kv::{Pairing, RopeKv, RopeTable},
    rows::{CopyRows, ScatterRows},
};

use super::{
    input::{LevelAddresses, ReadAddresses},
    model::Tensors,
    shape::{LevelShape, ReadShape},
    workspace::{Workspace, output_of},
};
use crate::{
    Result,
    backend::cuda::{lanes::DeviceLanes, norm::norm, product::product, weights::DeviceMatrix},
    draft::{DraftSpec, MAX_DRAFT_ROWS, NUM_CAPTURED},
};

/// What every launch refers to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forward<'a> {
    pub spec: &'a DraftSpec,
    pub tensors: &'a Tensors,
    pub lanes: &'a DeviceLanes,
    pub workspace: Workspace,
    /// The head's embedding or the target's, BF16 `[V, h]`.
    pub embedding: DeviceAddress,
    /// Positions that a lane holds, proposed ones included.
    pub capacity: usize,
    /// Multiprocessors that our kernels run on.
    pub num_sms: usize,
}

impl Forward<'_> {
    /// The launches that read rows along, in order.
    ///
    /// # Errors
    /// [`crate::EngineError::Unsupported`] for sizes without a kernel.
    pub fn read(&self, input: &ReadAddresses, shape: ReadShape) -> Result<Vec<Launch>> {
        let (spec, tensors, workspace) = (self.spec, self.tensors, &self.workspace);
        let (h, num_rows) = (spec.hidden_size, shape.num_rows);
        let mut list = self.features(input, shape)?;
        let fc = [(&tensors.fc, workspace.residual)];
        list.push(self.linear(&fc, workspace.featured, num_rows, Output::Store)?);
        let tips = ScatterRows {
            from: workspace.residual,
            rows: input.tips,
            to: workspace.hidden,
            in_stride: h,
            out_stride: h,
            num_rows,
            width: h,
        };
        list.push(tips.launch()?);
        list.extend(self.embedded(input.next_tokens, num_rows)?);
        list.push(self.hidden_beside(
            workspace.residual,
            DeviceAddress::NULL,
            DeviceAddress::NULL,
            num_rows,
        )?);
        let [_, k, v] = &tensors.qkv;
        let kv = [(k, workspace.qkv[1]), (v, workspace.qkv[2])];
        list.push(self.linear(&kv, workspace.joined, num_rows, Output::Store)?);
        let places = [input.positions, input.lanes, input.positions];
        list.push(self.rope(places, num_rows, 0)?);
        Ok(list)
    }

    /// Features of the rows → `featured`, normed one by one where the head wants it so.
    fn features(&self, input: &ReadAddresses, shape: ReadShape) -> Result<Vec<Launch>> {
        let (width, workspace) = (self.spec.target_hidden_size, &self.workspace);
        let row_len = NUM_CAPTURED * width;
        let part = |first: usize, width: usize, weight: DeviceAddress| -> Result<Launch> {
            let norm = NormRows {
                from: workspace.features.offset(first * size_of::<f32>())?,
                rows: input.sources,
                weight,
                exact: DeviceAddress::NULL,
                out: workspace.featured.offset(first * size_of::<u16>())?,
                in_stride: row_len,
                out_stride: row_len,
                num_rows: shape.num_rows,
                width,
                eps: self.spec.norm_eps,
            };
            Ok(norm.launch()?)
        };
        match &self.tensors.fc_norms {
            None => Ok(vec![part(0, row_len, DeviceAddress::NULL)?]),
            Some(norms) => {
                norms.iter().enumerate().map(|(idx, &weight)| part(idx * width, width, weight)).collect()
            }
        }
    }

    /// The launches of one level, in order.
    ///
    /// # Errors
    /// [`crate::EngineError::Unsupported`] for sizes without a kernel.
    pub fn level(&self, input: &LevelAddresses, shape: LevelShape) -> Result<Vec<Launch>> {
        let (spec, tensors, workspace) = (self.spec, self.tensors, &self.workspace);
        let num_rows = shape.num_rows;
        let mut list = self.embedded(input.tokens, num_rows)?;
        list.extend(self.hidden(input, num_rows)?);
        let qkv: Vec<_> = tensors.qkv.iter().zip(workspace.qkv).collect();
        list.push(self.linear(&qkv, workspace.joined, num_rows, Output::Store)?);
        let places = [input.positions, input.lanes, input.rows];
        list.push(self.rope(places, num_rows, spec.num_q_heads)?);
        list.extend(self.attend(input, shape)?);
        let o = [(&tensors.o, workspace.residual)];
        list.push(self.linear(&o, workspace.heads, num_rows, Output::Add)?);
        list.push(self.norm(tensors.post_attention_norm, num_rows)?);
        // The gate's place takes what comes of both.
        let gate_up = tensors.gate_up.each_ref().map(|matrix| (matrix, workspace.gated));
        list.push(self.linear(&gate_up, workspace.normed, num_rows, Output::SwiGlu)?);
        let down = [(&tensors.down, workspace.residual)];
        list.push(self.linear(&down, workspace.gated, num_rows, Output::Add)?);
        list.extend(self.propose(input, shape)?);
        Ok(list)
    }

    /// Embeddings of `tokens`, normed, as the first half of `joined`.
    fn embedded(&self, tokens: DeviceAddress, num_rows: usize) -> Result<Vec<Launch>> {
        let (h, workspace) = (self.spec.hidden_size, &self.workspace);
        let embed = Embed {
            embedding: self.embedding,
            token_ids: tokens,
            out: workspace.embedded,
            num_tokens: num_rows,
            vocab_size: self.spec.vocab_size,
            width: h,
        };
        let norm = NormRows {
            from: workspace.embedded,
            rows: DeviceAddress::NULL,
            weight: self.tensors.input_norm,
            exact: DeviceAddress::NULL,
            out: workspace.joined,
            in_stride: h,
            out_stride: 2 * h,
            num_rows,
            width: h,
            eps: self.spec.norm_eps,
        };
        Ok(vec![embed.launch()?, norm.launch()?])
    }

    /// Rows of `from`, normed, as the second half of `joined`; unrounded in `exact`.
    fn hidden_beside(
        &self,
        from: DeviceAddress,
        rows: DeviceAddress,
        exact: DeviceAddress,
        num_rows: usize,
    ) -> Result<Launch> {
        let h = self.spec.hidden_size;
        let norm = NormRows {
            from,
            rows,
            weight: self.tensors.hidden_norm,
            exact,
            out: self.workspace.joined.offset(h * size_of::<u16>())?,
            in_stride: h,
            out_stride: 2 * h,
            num_rows,
            width: h,
            eps: self.spec.norm_eps,
        };
        Ok(norm.launch()?)
    }

    /// What each row goes on from → `joined` and `residual`: as it is, or normed where the head wants it so.
    fn hidden(&self, input: &LevelAddresses, num_rows: usize) -> Result<Vec<Launch>> {
        let (h, workspace) = (self.spec.hidden_size, &self.workspace);
        if self.spec.norm_before_residual {
            return Ok(vec![self.hidden_beside(
                workspace.hidden,
                input.from,
                workspace.residual,
                num_rows,
            )?]);
        }
        let copy = CopyRows {
            from: workspace.hidden,
            rows: input.from,
            to: workspace.residual,
            in_stride: h,
            out_stride: h,
            num_rows,
            width: h,
        };
        let beside = self.hidden_beside(workspace.hidden, input.from, DeviceAddress::NULL, num_rows)?;
        Ok(vec![copy.launch()?, beside])
    }

    /// Queries of `num_heads` heads made ready, keys and values stored; of rows at `[positions, lanes, rows of them]`.
    fn rope(&self, places: [DeviceAddress; 3], num_tokens: usize, num_heads: usize) -> Result<Launch> {
        let (spec, workspace) = (self.spec, &self.workspace);
        let [positions, lanes, rows] = places;
        let (cos, sin) = self.tensors.rope;
        let if_queried = |address| if num_heads == 0 { DeviceAddress::NULL } else { address };
        let rope = RopeKv {
            q: if_queried(workspace.qkv[0]),
            k: workspace.qkv[1],
            v: workspace.qkv[2],
            q_stride: spec.q_dim(),
            kv_stride: spec.kv_dim(),
            bias: None,
            norm: None,
            rope: RopeTable { cos, sin, num_pairs: spec.head_dim / 2, pairing: Pairing::Half },
            positions,
            lanes,
            rows,
            q_out: if_queried(workspace.q),
            cache: self.lanes.cache(0)?,
            num_tokens,
            num_heads,
        };
        Ok(rope.launch()?)
    }

    /// What attention of a level covers: trees only, of which the root is the last row read.
    pub fn attention_step(
        shape: LevelShape,
        capacity: usize,
        input: Option<&LevelAddresses>,
    ) -> AttentionStep {
        let at = |field: fn(&LevelAddresses) -> DeviceAddress| input.map_or(DeviceAddress::NULL, field);
        AttentionStep {
            segments: at(|input| input.segments),
            positions: at(|input| input.positions),
            lanes: at(|input| input.lanes),
            committed_lens: at(|input| input.committed_lens),
            num_tokens: shape.num_rows,
            num_segments: shape.num_segments,
            max_segment_len: shape.max_segment_len,
            max_positions: capacity,
        }
    }

    fn attend(&self, input: &LevelAddresses, shape: LevelShape) -> Result<Vec<Launch>> {
        let (spec, workspace) = (self.spec, &self.workspace);
        let step = Self::attention_step(shape, self.capacity, Some(input));
        let attention = Attention {
            q: workspace.q,
            out: workspace.heads,
            cache: self.lanes.cache(0)?,
            step,
            tree_rows: Some((input.tree_rows, MAX_DRAFT_ROWS)),
            num_heads: spec.num_q_heads,
            window: None,
            scale: 1.0 / (spec.head_dim as f32).sqrt(),
        };
        let merging = match Merging::for_gpu(&step, spec.num_q_heads, spec.num_kv_heads, self.num_sms) {
            None => Merging::InOrder,
            Some(num_blocks) => Merging::Beside {
                partial_out: workspace.partial.0,
                partial_state: workspace.partial.1,
                num_blocks,
            },
        };
        Ok(attention.launches(merging)?)
    }

    /// What each row says is kept to be fed back; and the likeliest tokens after it.
    fn propose(&self, input: &LevelAddresses, shape: LevelShape) -> Result<Vec<Launch>> {
        let (spec, tensors, workspace) = (self.spec, self.tensors, &self.workspace);
        let (h, num_rows) = (spec.hidden_size, shape.num_rows);
        let last = NormRows {
            from: workspace.residual,
            rows: DeviceAddress::NULL,
            weight: tensors.norm,
            // The output after the norm is fed back where the head wants it so.
            exact: if spec.norm_output { workspace.residual } else { DeviceAddress::NULL },
            out: workspace.normed,
            in_stride: h,
            out_stride: h,
            num_rows,
            width: h,
            eps: spec.norm_eps,
        };
        let kept = ScatterRows {
            from: workspace.residual,
            rows: input.to,
            to: workspace.hidden,
            in_stride: h,
            out_stride: h,
            num_rows,
            width: h,
        };
        let lm_head = [(&tensors.lm_head, workspace.logits)];
        let logits = Logits {
            logits: workspace.logits,
            masks: None,
            scratch: LogitsScratch { keys: workspace.keys, sums: workspace.sums },
            output: output_of(workspace.output, shape)?,
            num_rows,
            vocab_size: spec.draft_vocab_size,
            k: shape.k,
        };
        let head = self.linear(&lm_head, workspace.normed, num_rows, Output::Store)?;
        let mut list = vec![last.launch()?, kept.launch()?, head];
        list.extend(logits.launches()?);
        Ok(list)
    }

    /// `normed = RMSNorm(residual)` for every row.
    fn norm(&self, weight: DeviceAddress, num_rows: usize) -> Result<Launch> {
        let rows = (self.workspace.residual, self.workspace.normed);
        norm(rows, weight, (num_rows, self.spec.hidden_size), self.spec.norm_eps)
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
