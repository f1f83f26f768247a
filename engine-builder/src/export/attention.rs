//! Attention over the cache: how new keys and values get into it, and how queries read it.

use super::{
    graph::{Attribute, Value},
    mask::Visibility,
    port::{Dim, ElementType, Port},
    target::Form,
    writer::Writer,
};
use crate::Result;

/// Name of the input that says where [`Form::Operators`] writes, `[batch]`.
pub(super) const WRITE_INDICES: &str = "write_indices";
/// A score that is zero after the softmax, and finite: a row that sees nothing stays a number.
const HIDDEN: f32 = -1e30;

/// The names of a layer's cache: inputs and outputs.
pub(super) fn cache_names(layer_idx: usize) -> [[String; 2]; 2] {
    ["key", "value"]
        .map(|what| [format!("past_key_values.{layer_idx}.{what}"), format!("present.{layer_idx}.{what}")])
}

impl Writer<'_> {
    /// Declares the inputs of the cache; returns where the first layer's keys come in, as products take them.
    pub(super) fn cache_inputs(&mut self) -> Result<Value> {
        let rows: Dim = match self.form {
            Form::Operators => self.capacity.into(),
            Form::Primitives => "past".into(),
        };
        if self.form == Form::Operators {
            let port = Port::new(WRITE_INDICES, ElementType::I64, &["batch".into()]);
            self.graph.input(port);
        }
        for layer_idx in 0..self.spec.num_layers {
            for [past, _] in cache_names(layer_idx) {
                let shape = self.cache_shape(rows.clone());
                let port = Port::new(past, self.kv.element(self.compute), &shape);
                self.graph.input(port);
            }
        }
        let [[first, _], _] = cache_names(0);
        self.first_past(first)
    }

    fn cache_shape(&self, rows: Dim) -> [Dim; 4] {
        ["batch".into(), self.spec.num_kv_heads.into(), rows, self.spec.head_dim.into()]
    }

    /// `q` `[batch, H, sequence, d]`, scaled, over the cache with `new` keys and values `[batch, G, sequence, d]`; all in the type that is computed in.
    pub(super) fn attend(
        &mut self,
        label: &str,
        layer_idx: usize,
        q: &str,
        new: [&str; 2],
        visibility: &Visibility,
    ) -> Result<Value> {
        let mut cached = Vec::with_capacity(2);
        let scales = self.cache_scales.get(layer_idx).map_or([None; 2], |scales| scales.map(Some));
        for ((names, new), scale) in cache_names(layer_idx).iter().zip(new).zip(scales) {
            cached.push(self.update_cache(names, new, scale, visibility)?);
        }
        let mask = visibility.mask(self.spec.window(layer_idx));
        match self.form {
            Form::Operators => {
                // Without the second one the standard's softmax is in the type of queries and keys.
                let precision = Attribute::Int(ElementType::F32 as i64);
                let attributes = [("scale", Attribute::Float(1.0)), ("softmax_precision", precision)];
                Ok(self.graph.op("Attention", label, &[q, &cached[0], &cached[1], mask], &attributes))
            }
            Form::Primitives => self.attend_plainly(label, q, [&cached[0], &cached[1]], mask),
        }
    }

    /// The layer's rows that may be seen, the new ones among them, in the type that is computed in; a cache of 8 bits has a `scale`.
    fn update_cache(
        &mut self,
        names: &[String; 2],
        new: &str,
        scale: Option<f32>,
        visibility: &Visibility,
    ) -> Result<Value> {
        let [past, present] = names;
        let rows = format!("{present}.rows");
        let (value, len): (Value, Dim) = match self.form {
            Form::Operators => {
                let updated = self.graph.op(
                    "TensorScatter",
                    present,
                    &[past, new, WRITE_INDICES],
                    &[("axis", Attribute::Int(-2))],
                );
                (self.slice_to(&rows, &updated, 2, &visibility.kv_len)?, self.capacity.into())
            }
            Form::Primitives => {
                let [past, new] = match scale {
                    Some(scale) => self.through_fp8_cache(names, new, scale)?,
                    None => [past.clone(), self.graph.op("Identity", present, &[new], &[])],
                };
                let axis = [("axis", Attribute::Int(2))];
                (self.graph.op("Concat", &rows, &[&past, &new], &axis), "sequence".into())
            }
        };
        let shape = self.cache_shape(len);
        self.graph.output(Port::new(present, self.kv.element(self.compute), &shape));
        Ok(value)
    }

    /// `softmax(q·kᵀ + mask) · v`. Queries of a key head are rows of one product, so that keys and values are not repeated.
    fn attend_plainly(&mut self, label: &str, q: &str, [k, v]: [&str; 2], mask: &str) -> Result<Value> {
        let spec = self.spec;
        let (heads, kv_heads, head_dim) =
            (spec.num_q_heads as i64, spec.num_kv_heads as i64, spec.head_dim as i64);
        let part = |what: &str| format!("{label}.{what}");
        let hidden = self.graph.float(HIDDEN)?;
        let (kv_len, sequence) = (self.dim(&part("kv"), k, 2), self.dim(&part("sequence"), q, 2));
        let grouped = self.reshape(&part("grouped"), q, &[0, kv_heads, -1, head_dim])?;
        let keys = self.transpose(&part("keys"), k, &[0, 1, 3, 2]);
        let scores = self.graph.op("MatMul", &part("products"), &[&grouped, &keys], &[]);
        let scores = self.widened(&scores);
        // [batch, G, H/G · sequence, kv] ↔ [batch, H, sequence, kv]: the same numbers in the same order.
        let (batch, h) = (self.graph.ints(&[0])?, self.graph.ints(&[heads])?);
        let axis = [("axis", Attribute::Int(0))];
        let shape = self.graph.op("Concat", &part("shape"), &[&batch, &h, &sequence, &kv_len], &axis);
        let scores = self.graph.op("Reshape", &part("by_head"), &[&scores, &shape], &[]);
        let scores = self.graph.op("Where", &part("masked"), &[mask, &scores, &hidden], &[]);
        let weights = self.graph.op("Softmax", &part("weights"), &[&scores], &[("axis", Attribute::Int(3))]);
        let weights = self.narrowed(&weights);
        let (g, rest) = (self.graph.ints(&[kv_heads])?, self.graph.ints(&[-1])?);
        let shape = self.graph.op("Concat", &part("group_shape"), &[&batch, &g, &rest, &kv_len], &axis);
        let weights = self.graph.op("Reshape", &part("by_group"), &[&weights, &shape], &[]);
        let mixed = self.graph.op("MatMul", &part("mixed"), &[&weights, v], &[]);
        let shape = self.graph.op("Shape", &part("q_shape"), &[q], &[]);
        Ok(self.graph.op("Reshape", label, &[&mixed, &shape], &[]))
    }
}
