//! Rotary position embedding in 32 bits, from a table of the positions a lane can hold.

use takt_engine::spec::{RopePairing, RopeSpec};

use super::{
    graph::{Attribute, Value},
    port::ElementType,
    target::Form,
    writer::Writer,
};
use crate::Result;

/// Positions whose rows are made at a time.
const ROWS_AT_ONCE: usize = 256;

/// How queries and keys are rotated, made once for all layers.
pub(super) struct Rotation {
    /// [`Form::Operators`]: tables `[positions, pairs]`; [`Form::Primitives`]: the positions' rows, `[batch, 1, sequence, pairs]`.
    cos: Value,
    sin: Value,
    positions: Value,
}

impl Writer<'_> {
    /// The rotation of `positions` `[batch, sequence]`, all below `num_positions`.
    pub(super) fn rotation(&mut self, positions: &str, num_positions: usize) -> Result<Rotation> {
        let cos = self.rotary_table("rope.cos", num_positions, f64::cos)?;
        let sin = self.rotary_table("rope.sin", num_positions, f64::sin)?;
        let positions = positions.to_owned();
        if self.form == Form::Operators {
            return Ok(Rotation { cos, sin, positions });
        }
        let mut rows = |name: &str, table: &str| {
            let rows = self.graph.op("Gather", &format!("{name}.rows"), &[table, &positions], &[]);
            self.unsqueeze(&format!("{name}.heads"), &rows, 1)
        };
        let (cos, sin) = (rows("rope.cos", &cos)?, rows("rope.sin", &sin)?);
        Ok(Rotation { cos, sin, positions })
    }

    /// Angles are products of 32-bit floats, as transformers and the backends compute them.
    fn rotary_table(&mut self, name: &str, num_positions: usize, of: fn(f64) -> f64) -> Result<Value> {
        let RopeSpec { inv_freq, attention_factor, .. } = &self.spec.rope;
        let row = |position: usize| {
            inv_freq.iter().flat_map(move |freq| {
                let angle = position as f32 * freq;
                (of(f64::from(angle)) as f32 * attention_factor).to_le_bytes()
            })
        };
        let chunks = (0..num_positions)
            .step_by(ROWS_AT_ONCE)
            .map(|first| (first..num_positions.min(first + ROWS_AT_ONCE)).flat_map(row).collect::<Vec<u8>>());
        let value = self.graph.rows(name, ElementType::F32, &[num_positions, inv_freq.len()], chunks)?;
        self.advanced(name)?;
        Ok(value)
    }

    /// Rotates `x` `[batch, heads, sequence, head_dim]`, 32 bits.
    pub(super) fn rotate(&mut self, label: &str, x: &str, rotation: &Rotation) -> Result<Value> {
        let (num_pairs, head_dim) = (self.spec.rope.inv_freq.len(), self.spec.head_dim);
        let pairing = self.spec.rope.pairing;
        let Rotation { cos, sin, positions } = rotation;
        if self.form == Form::Operators {
            let mut attributes =
                vec![("interleaved", Attribute::Int(i64::from(pairing == RopePairing::Interleaved)))];
            if 2 * num_pairs < head_dim {
                attributes.push(("rotary_embedding_dim", Attribute::Int(2 * num_pairs as i64)));
            }
            return Ok(self.graph.op("RotaryEmbedding", label, &[x, cos, sin, positions], &attributes));
        }
        let part = |what: &str| format!("{label}.{what}");
        let (first, second) = self.pairs(label, x)?;
        let graph = &mut self.graph;
        let mut product = |name: &str, a: &str, b: &str| graph.op("Mul", &part(name), &[a, b], &[]);
        let (ac, bs) = (product("first_cos", &first, cos), product("second_sin", &second, sin));
        let (bc, as_) = (product("second_cos", &second, cos), product("first_sin", &first, sin));
        let new_first = graph.op("Sub", &part("new_first"), &[&ac, &bs], &[]);
        let new_second = graph.op("Add", &part("new_second"), &[&bc, &as_], &[]);
        let rotated = match pairing {
            RopePairing::Half => vec![new_first, new_second],
            RopePairing::Interleaved => vec![self.interleave(label, &new_first, &new_second)?],
        };
        let mut parts: Vec<&str> = rotated.iter().map(String::as_str).collect();
        let rest;
        if 2 * num_pairs < head_dim {
            rest = self.slice(&part("rest"), x, 3, [2 * num_pairs, head_dim])?;
            parts.push(&rest);
        }
        if let [only] = parts[..] {
            return Ok(only.to_owned());
        }
        Ok(self.graph.op("Concat", label, &parts, &[("axis", Attribute::Int(3))]))
    }

    /// The first and the second elements of all pairs, `[…, pairs]` each.
    fn pairs(&mut self, label: &str, x: &str) -> Result<(Value, Value)> {
        let num_pairs = self.spec.rope.inv_freq.len();
        let (first, second) = (format!("{label}.first"), format!("{label}.second"));
        if self.spec.rope.pairing == RopePairing::Half {
            let first = self.slice(&first, x, 3, [0, num_pairs])?;
            return Ok((first, self.slice(&second, x, 3, [num_pairs, 2 * num_pairs])?));
        }
        let mut columns = |name: &str, offset: i64| -> Result<Value> {
            let at: Vec<i64> = (0..num_pairs as i64).map(|pair| 2 * pair + offset).collect();
            let at = self.graph.ints(&at)?;
            Ok(self.graph.op("Gather", name, &[x, &at], &[("axis", Attribute::Int(3))]))
        };
        Ok((columns(&first, 0)?, columns(&second, 1)?))
    }

    /// `a₀ b₀ a₁ b₁ …` along the last axis.
    fn interleave(&mut self, label: &str, a: &str, b: &str) -> Result<Value> {
        let a = self.unsqueeze(&format!("{label}.first_column"), a, 4)?;
        let b = self.unsqueeze(&format!("{label}.second_column"), b, 4)?;
        let columns = format!("{label}.columns");
        let both = self.graph.op("Concat", &columns, &[&a, &b], &[("axis", Attribute::Int(4))]);
        let len = 2 * self.spec.rope.inv_freq.len() as i64;
        self.reshape(&format!("{label}.interleaved"), &both, &[0, 0, 0, len])
    }
}
