//! An EAGLE-3 draft head: features, or its own output of the row before, beside the embedding of the next token, through one layer.
//!
//! A row has either features (a token the target has computed) or `hidden` (a proposal); the other is zero. `fc` has no bias, so it makes nothing of
//! nothing, and one model serves both.

use takt_engine::{
    draft::{DraftSpec, MAX_DRAFT_ROWS, NUM_CAPTURED},
    quant::WeightKind,
};

use super::{
    decoder::FEATURES,
    graph::{Attribute, Value},
    layer::LayerInputs,
    options::Variant,
    port::{Dim, ElementType, Port},
    writer::Writer,
};
use crate::Result;

/// Name of the input with the head's own output of the row before.
pub(super) const HIDDEN: &str = "hidden";
/// Name of the output that is fed back.
pub(super) const NEXT_HIDDEN: &str = "next_hidden";

/// Rows of the cache of a head: those of the text, and those proposed since.
pub(super) fn draft_capacity(capacity: usize) -> usize {
    capacity + MAX_DRAFT_ROWS
}

impl Writer<'_> {
    /// Writes the whole head; `spec` is its layer's already.
    pub(super) fn draft_head(&mut self, head: &DraftSpec, weights: WeightKind) -> Result<()> {
        let (ids, positions) = self.token_inputs();
        let features = self.float_input(FEATURES, head.features_len());
        let hidden = self.float_input(HIDDEN, head.hidden_size);
        let first_past = self.cache_inputs()?;
        let visibility = self.visibility(Variant::Eagle3, &positions, &first_past)?;
        let rotation = self.rotation(&positions, self.capacity)?;
        let embedded = self.embed(&ids)?;
        let fused = self.fuse(head, &features)?;
        let hidden = self.graph.op("Add", "fc.or_hidden", &[&fused, &hidden], &[]);
        let norms = ["layer.input_layernorm.weight", "layer.hidden_norm.weight"];
        let normed_embedding = self.rms_norm("layer.embedded", &embedded, norms[0])?;
        let normed_hidden = self.rms_norm("layer.hidden", &hidden, norms[1])?;
        let axis = [("axis", Attribute::Int(2))];
        let joined = self.graph.op("Concat", "layer.joined", &[&normed_embedding, &normed_hidden], &axis);
        let residual = if head.norm_before_residual { &normed_hidden } else { &hidden };
        let layer = LayerInputs {
            prefix: "layer",
            layer_idx: 0,
            kind: weights,
            rotation: &rotation,
            visibility: &visibility,
            bounds: self.bounds("layer", &norms)?,
        };
        let stream = self.layer(&layer, &joined, residual)?;
        self.outputs(head, &stream)
    }

    fn float_input(&mut self, name: &str, width: usize) -> Value {
        let shape: [Dim; 3] = ["batch".into(), "sequence".into(), width.into()];
        self.graph.input(Port::new(name, ElementType::F32, &shape))
    }

    /// Features through `fc`, each normed first where the head wants it so. Their size has no bound unless they are: what is multiplied stays plain.
    fn fuse(&mut self, head: &DraftSpec, features: &str) -> Result<Value> {
        let mut x = features.to_owned();
        if head.fc_norm {
            let width = head.target_hidden_size;
            let mut normed = Vec::with_capacity(NUM_CAPTURED);
            for idx in 0..NUM_CAPTURED {
                let one =
                    self.slice(&format!("features.{idx}"), features, 2, [idx * width, (idx + 1) * width])?;
                normed.push(self.rms_norm(
                    &format!("features.{idx}.normed"),
                    &one,
                    &format!("fc_norm.{idx}.weight"),
                )?);
            }
            let parts: Vec<&str> = normed.iter().map(String::as_str).collect();
            x = self.graph.op("Concat", "features.normed", &parts, &[("axis", Attribute::Int(2))]);
        }
        let x = self.narrowed(&x);
        self.linear_f32("fc", &x, false)
    }

    fn outputs(&mut self, head: &DraftSpec, stream: &str) -> Result<()> {
        let norm = "norm.weight";
        let next = match head.norm_output {
            true => self.rms_norm("normed", stream, norm)?,
            false => stream.to_owned(),
        };
        self.graph.op("Identity", NEXT_HIDDEN, &[&next], &[]);
        let shape: [Dim; 3] = ["batch".into(), "sequence".into(), head.hidden_size.into()];
        self.graph.output(Port::new(NEXT_HIDDEN, ElementType::F32, &shape));
        let chosen = self.chosen_rows(&next)?;
        let normed = match head.norm_output {
            true => chosen,
            false => self.rms_norm("normed", &chosen, norm)?,
        };
        self.head(&normed, norm, head.draft_vocab_size)
    }
}
