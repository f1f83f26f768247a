//! Matrices in onnxruntime's block quantization (`MatMulNBits`, `GatherBlockQuantized`).

use super::{
    array::Fact,
    dtype::{Dtype, Kind, nibble},
    graph::{Graph, TensorId},
    weights::{MAX_CHAIN, Values, floats, load, shape},
};

/// A matrix in onnxruntime's block quantization: `[rows, K / block, block · bits / 8]` codes, low nibble first, with a scale and
/// optionally a packed zero point a block (`MatMulNBits`, `GatherBlockQuantized`).
#[derive(Debug, Clone, Copy)]
pub struct BlockQuantized {
    /// Codes.
    pub codes: TensorId,
    /// Scales.
    pub scales: TensorId,
    /// Zero points; the middle of the range where absent.
    pub zero_points: Option<TensorId>,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Columns that share a scale.
    pub block: usize,
    /// 4 or 8.
    pub bits: usize,
}

impl BlockQuantized {
    /// Checks that every part has the size the attributes call for.
    ///
    /// # Errors
    /// Naming the part.
    pub fn check(&self, graph: &Graph) -> Fact<()> {
        if !matches!(self.bits, 4 | 8) {
            return Err(format!("{} bits, expected 4 or 8", self.bits));
        }
        if self.block < 16 || !self.block.is_power_of_two() {
            return Err(format!("block_size {}", self.block));
        }
        let blocks = self.columns.div_ceil(self.block);
        let total = |parts: &[usize]| {
            parts.iter().try_fold(1_usize, |all, p| all.checked_mul(*p)).ok_or("sizes that overflow")
        };
        let expected = [
            ("codes", Some(self.codes), total(&[self.rows, blocks, self.block * self.bits / 8])?),
            ("scales", Some(self.scales), total(&[self.rows, blocks])?),
        ];
        for (what, tensor, expected) in expected {
            let dims = tensor.and_then(|t| shape(graph, t)).unwrap_or_default();
            if dims.iter().product::<usize>() != expected {
                return Err(format!("{what} of {dims:?}, expected {expected} elements"));
            }
        }
        Ok(())
    }

    /// The matrix `[rows, columns]`.
    ///
    /// # Errors
    /// When a part cannot be read.
    pub fn dequantize(&self, graph: &Graph) -> Fact<Values> {
        let codes = self.stored_bytes(graph, self.codes)?;
        let scales = load(graph, self.scales)?.data;
        let zeros = self.zero_points(graph)?;
        let blocks = self.columns.div_ceil(self.block);
        let bytes_per_row = blocks * self.block * self.bits / 8;
        let mut data = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            let line =
                codes.get(row * bytes_per_row..(row + 1) * bytes_per_row).ok_or("codes are truncated")?;
            for column in 0..self.columns {
                let block = column / self.block;
                let code = if self.bits == 4 { nibble(line, column) } else { line.get(column).copied() }
                    .ok_or("codes are truncated")?;
                let at = row * blocks + block;
                data.push((f32::from(code) - zeros[at]) * scales[at]);
            }
        }
        Ok(Values { shape: vec![self.rows, self.columns], data })
    }

    /// The codes' bytes, whatever shape a Reshape gave them.
    fn stored_bytes(&self, graph: &Graph, tensor: TensorId) -> Fact<bytes::Bytes> {
        let mut at = tensor;
        for _ in 0..MAX_CHAIN {
            if let Some(stored) = &graph.tensor(at).stored {
                return match stored.dtype {
                    Dtype::U8 => Ok(stored.bytes.clone()),
                    other => Err(format!("codes of type {other:?}, expected U8")),
                };
            }
            let node = graph
                .producer(at)
                .filter(|n| matches!(n.op.as_str(), "Reshape" | "Identity"))
                .ok_or("codes that are not stored")?;
            at = node.input(0).ok_or("codes that are not stored")?;
        }
        Err("codes behind too long a chain of operators".into())
    }

    fn zero_points(&self, graph: &Graph) -> Fact<Vec<f32>> {
        let blocks = self.columns.div_ceil(self.block);
        let count = self.rows * blocks;
        let Some(tensor) = self.zero_points else {
            return Ok(vec![f32::from(1_u8 << (self.bits - 1)); count]);
        };
        let stored = graph.tensor(tensor).stored.as_ref().ok_or("zero points that are not stored")?;
        if stored.dtype.kind() == Kind::Float {
            let zeros = floats(stored)?;
            return if zeros.len() == count {
                Ok(zeros)
            } else {
                Err(format!("{} zero points for {count} blocks", zeros.len()))
            };
        }
        let bytes_per_row = (blocks * self.bits).div_ceil(8);
        if stored.dtype != Dtype::U8 || stored.bytes.len() != self.rows * bytes_per_row {
            return Err(format!(
                "zero points {:?} {:?} for {} × {blocks} blocks",
                stored.dtype, stored.dims, self.rows
            ));
        }
        let zero = |at: usize| {
            let line = &stored.bytes[at / blocks * bytes_per_row..];
            let code =
                if self.bits == 4 { nibble(line, at % blocks) } else { line.get(at % blocks).copied() };
            code.map(f32::from).ok_or_else(|| "zero points are truncated".to_owned())
        };
        (0..count).map(zero).collect()
    }
}
