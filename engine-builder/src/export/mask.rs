//! Which keys a query sees: from positions, or from the caller, who knows the trees.

use std::collections::BTreeMap;

use super::{
    graph::Value,
    options::Variant,
    port::{Dim, ElementType, Port},
    target::Form,
    writer::Writer,
};
use crate::Result;

/// Name of the mask's input.
pub(super) const MASK: &str = "attention_mask";
/// Name of the input with the positions of keys.
pub(super) const KV_POSITIONS: &str = "kv_positions";
/// A position no query is at or behind.
const NEVER: i64 = 1 << 40;

/// Masks of all layers.
pub(super) struct Visibility {
    /// `[batch, 1, sequence, kv]`, true where a query sees a key, by window.
    masks: BTreeMap<Option<usize>, Value>,
    /// How many keys there are, as a vector of one value; [`Form::Operators`] cuts its cache to that.
    pub kv_len: Value,
}

impl Visibility {
    /// The mask of a layer with this window.
    pub(super) fn mask(&self, window: Option<usize>) -> &str {
        self.masks.get(&window).map_or("", String::as_str)
    }
}

impl Writer<'_> {
    /// The masks for `positions` `[batch, sequence]`; `first_past` is the first layer's cached keys, whose length [`Form::Primitives`] goes by.
    pub(super) fn visibility(
        &mut self,
        variant: Variant,
        positions: &str,
        first_past: &str,
    ) -> Result<Visibility> {
        let (seen, key_positions) = match (variant, self.form) {
            (Variant::Eagle3, _) => self.told_mask()?,
            (Variant::Plain, Form::Operators) => self.mask_in_place(positions)?,
            (Variant::Plain, Form::Primitives) => self.mask_after_past(positions, first_past)?,
        };
        let kv_len = self.dim("kv_len", &seen, 2);
        let mut masks = BTreeMap::new();
        let windows: Vec<Option<usize>> =
            (0..self.spec.num_layers).map(|idx| self.spec.window(idx)).collect();
        for window in windows {
            if masks.contains_key(&window) {
                continue;
            }
            let seen = match window {
                None => seen.clone(),
                Some(window) => self.windowed(window, positions, &seen, &key_positions)?,
            };
            let name = window.map_or("mask".to_owned(), |window| format!("mask.window_{window}"));
            masks.insert(window, self.unsqueeze(&name, &seen, 1)?);
        }
        Ok(Visibility { masks, kv_len })
    }

    /// The caller's mask `[batch, sequence, kv]`, and positions of keys where a window asks for them.
    fn told_mask(&mut self) -> Result<(Value, Value)> {
        let shape: [Dim; 3] = ["batch".into(), "sequence".into(), "kv".into()];
        let mask = self.graph.input(Port::new(MASK, ElementType::Bool, &shape));
        if self.spec.windows.iter().all(Option::is_none) {
            return Ok((mask, String::new()));
        }
        let shape: [Dim; 2] = ["batch".into(), "kv".into()];
        let positions = self.graph.input(Port::new(KV_POSITIONS, ElementType::I64, &shape));
        Ok((mask, self.unsqueeze("kv_positions.rows", &positions, 1)?))
    }

    /// Row `t` of the cache is position `t`: seen by every query that is not before it.
    fn mask_in_place(&mut self, positions: &str) -> Result<(Value, Value)> {
        let keys = self.graph.input(Port::new(KV_POSITIONS, ElementType::I64, &["kv".into()]));
        let queries = self.unsqueeze("positions.column", positions, 2)?;
        Ok((self.graph.op("LessOrEqual", "seen", &[&keys, &queries], &[]), keys))
    }

    /// The past's rows, of which a lane has as many as its first position says, then the new ones.
    fn mask_after_past(&mut self, positions: &str, first_past: &str) -> Result<(Value, Value)> {
        let past_len = self.dim("past_len", first_past, 2);
        let axes = self.graph.ints(&[0])?;
        let past_len = self.graph.op("Squeeze", "past_len.single", &[&past_len, &axes], &[]);
        let (zero, one) = (self.graph.int(0)?, self.graph.int(1)?);
        let rows = self.graph.op("Range", "past.rows", &[&zero, &past_len, &one], &[]);
        let first = self.slice("positions.first", positions, 1, [0, 1])?;
        let held = self.graph.op("Less", "past.held", &[&rows, &first], &[]);
        let never = self.graph.int(NEVER)?;
        let past = self.graph.op("Where", "past.positions", &[&held, &rows, &never], &[]);
        let attributes = [("axis", super::graph::Attribute::Int(1))];
        let keys = self.graph.op("Concat", "kv.positions", &[&past, positions], &attributes);
        let keys = self.unsqueeze("kv.positions.row", &keys, 1)?;
        let queries = self.unsqueeze("positions.column", positions, 2)?;
        Ok((self.graph.op("LessOrEqual", "seen", &[&keys, &queries], &[]), keys))
    }

    /// `seen`, but only keys of the last `window` positions.
    fn windowed(&mut self, window: usize, positions: &str, seen: &str, keys: &str) -> Result<Value> {
        let column = "positions.column";
        let queries = match self.graph.knows(column) {
            true => column.to_owned(),
            false => self.unsqueeze(column, positions, 2)?,
        };
        let part = |what: &str| format!("window_{window}.{what}");
        let limit = self.graph.int(window as i64)?;
        let distance = self.graph.op("Sub", &part("distance"), &[&queries, keys], &[]);
        let near = self.graph.op("Less", &part("near"), &[&distance, &limit], &[]);
        Ok(self.graph.op("And", &part("seen"), &[seen, &near], &[]))
    }
}
