//! Attention heads in plain form, and the textbook attention and rotation on them.

use super::array::{Array, Fact};
use super::dtype::Kind;
use takt_engine::spec::RopePairing;

/// Values of one sequence by head: `[num_heads, len, width]`.
#[derive(Debug, Clone)]
pub struct Heads {
    /// Heads.
    pub num_heads: usize,
    /// Positions.
    pub len: usize,
    /// Elements of a head.
    pub width: usize,
    /// Values.
    pub data: Vec<f64>,
}

impl Heads {
    /// From `[1, heads, len, width]`.
    pub fn from_4d(a: &Array) -> Fact<Self> {
        match a.shape[..] {
            [1, num_heads, len, width] => Ok(Self { num_heads, len, width, data: a.data.clone() }),
            _ => Err(format!("heads of shape {:?}, expected [1, heads, tokens, width]", a.shape)),
        }
    }

    /// From rows of `len` tokens, columns `first..first + num_heads · width` of each.
    pub fn from_rows(rows: &[f64], len: usize, columns: Columns) -> Fact<Self> {
        let Columns { first, num_heads, width } = columns;
        let stride = rows.len() / len.max(1);
        if len == 0 || num_heads * width + first > stride || rows.len() != stride * len {
            return Err(format!("{num_heads} heads of {width} from rows of {stride}"));
        }
        let mut data = Vec::with_capacity(num_heads * len * width);
        for head in 0..num_heads {
            for token in 0..len {
                let start = token * stride + first + head * width;
                data.extend_from_slice(&rows[start..start + width]);
            }
        }
        Ok(Self { num_heads, len, width, data })
    }

    /// Back to `[len, heads · width]`.
    pub fn to_rows(&self) -> Vec<f64> {
        let mut rows = Vec::with_capacity(self.data.len());
        for token in 0..self.len {
            for head in 0..self.num_heads {
                rows.extend_from_slice(self.row(head, token));
            }
        }
        rows
    }

    /// As `[1, heads, len, width]`.
    pub fn to_4d(&self) -> Fact<Array> {
        Array::new(vec![1, self.num_heads, self.len, self.width], Kind::Float, self.data.clone())
    }

    /// One token of one head.
    pub fn row(&self, head: usize, token: usize) -> &[f64] {
        let start = (head * self.len + token) * self.width;
        &self.data[start..start + self.width]
    }

    /// Turns every pair of the first `2 · table.width` elements by the table's row of its position.
    pub fn rotate(&mut self, table: &RotaryTable, pairing: RopePairing) -> Fact<()> {
        let pairs = table.width;
        if pairs == 0 || 2 * pairs > self.width || table.rows() < self.len {
            return Err(format!(
                "a rotary table of {} rows and {pairs} pairs for {} tokens of {}",
                table.rows(),
                self.len,
                self.width
            ));
        }
        for (position, row) in self.data.chunks_exact_mut(self.width).enumerate() {
            let token = position % self.len;
            for pair in 0..pairs {
                let (cos, sin) = (table.cos[token * pairs + pair], table.sin[token * pairs + pair]);
                let (first, second) = match pairing {
                    RopePairing::Half => (pair, pair + pairs),
                    RopePairing::Interleaved => (2 * pair, 2 * pair + 1),
                };
                let (a, b) = (row[first], row[second]);
                row[first] = a * cos - b * sin;
                row[second] = b * cos + a * sin;
            }
        }
        Ok(())
    }

    /// RMSNorm of each head.
    pub fn normalize(&mut self, weight: &[f64], epsilon: f64) -> Fact<()> {
        if weight.len() != self.width {
            return Err(format!("a norm of {} for heads of {}", weight.len(), self.width));
        }
        for row in self.data.chunks_exact_mut(self.width) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / weight.len() as f64;
            let factor = 1.0 / (mean + epsilon).sqrt();
            row.iter_mut().zip(weight).for_each(|(v, w)| *v *= factor * w);
        }
        Ok(())
    }
}

/// Where heads lie in a row.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// First column.
    pub first: usize,
    /// Heads.
    pub num_heads: usize,
    /// Columns of a head.
    pub width: usize,
}

/// Cosines and sines, `[rows, width]` each, one column a pair.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// Pairs.
    pub width: usize,
    /// Cosines.
    pub cos: Vec<f64>,
    /// Sines.
    pub sin: Vec<f64>,
}

impl RotaryTable {
    /// From two arrays whose last dimension is the pair.
    pub fn new(cos: &Array, sin: &Array) -> Fact<Self> {
        let width = cos.shape.last().copied().unwrap_or(0);
        if cos.data.len() != sin.data.len() || width == 0 || sin.shape.last() != Some(&width) {
            return Err(format!("cosines {:?} and sines {:?}", cos.shape, sin.shape));
        }
        Ok(Self { width, cos: cos.data.clone(), sin: sin.data.clone() })
    }

    /// Positions in the table.
    pub fn rows(&self) -> usize {
        self.cos.len() / self.width.max(1)
    }

    /// The rows of given positions.
    pub fn at(&self, positions: &[i64]) -> Fact<Self> {
        let mut table = Self { width: self.width, cos: Vec::new(), sin: Vec::new() };
        for position in positions {
            let row = usize::try_from(*position)
                .ok()
                .filter(|r| *r < self.rows())
                .ok_or_else(|| format!("position {position} in a table of {}", self.rows()))?;
            let span = row * self.width..(row + 1) * self.width;
            table.cos.extend_from_slice(&self.cos[span.clone()]);
            table.sin.extend_from_slice(&self.sin[span]);
        }
        Ok(table)
    }
}

/// `softmax(scale · q·kᵀ + bias(head, query, key)) · v`, each key/value head serving `q.num_heads / k.num_heads` query heads.
pub fn attend(
    q: &Heads,
    k: &Heads,
    v: &Heads,
    scale: f64,
    bias: impl Fn(usize, usize, usize) -> f64,
) -> Fact<Heads> {
    let fits = k.num_heads > 0
        && q.num_heads.is_multiple_of(k.num_heads)
        && q.width == k.width
        && v.num_heads == k.num_heads
        && v.len == k.len;
    if !fits {
        return Err(format!(
            "attention of {} query heads of {} over {} keys heads of {} and {} value heads",
            q.num_heads, q.width, k.num_heads, k.width, v.num_heads
        ));
    }
    let group = q.num_heads / k.num_heads;
    let mut data = Vec::with_capacity(q.num_heads * q.len * v.width);
    for head in 0..q.num_heads {
        for query in 0..q.len {
            let score = |key: usize| {
                let dot: f64 =
                    q.row(head, query).iter().zip(k.row(head / group, key)).map(|(a, b)| a * b).sum();
                dot * scale + bias(head, query, key)
            };
            let scores: Vec<f64> = (0..k.len).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut out = vec![0.0; v.width];
            for (key, weight) in weights.iter().enumerate() {
                out.iter_mut().zip(v.row(head / group, key)).for_each(|(o, v)| *o += weight / total * v);
            }
            data.extend(out);
        }
    }
    Ok(Heads { num_heads: q.num_heads, len: q.len, width: v.width, data })
}
