//! Linear layers in their ONNX forms, and the token embedding.

use super::{
    array::Fact,
    block_quantized::BlockQuantized,
    graph::{Graph, Node, TensorId},
    model_file::StoredTensor,
    weights::{self, Values},
};
use crate::Result;

/// Where a matrix's values are.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// A constant `[in, out]` when `transposed`, else `[out, in]`.
    Plain {
        /// The constant.
        tensor: TensorId,
        /// Stored as `[in, out]`.
        transposed: bool,
    },
    /// Codes, scales, zero points.
    Blocks(BlockQuantized),
}

/// `y = x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Index of the node.
    pub node_idx: usize,
    /// Activations it reads.
    pub input: TensorId,
    /// Its result, after the bias.
    pub output: TensorId,
    /// W.
    pub matrix: Matrix,
    /// b, `[out]`.
    pub bias: Option<TensorId>,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y.
    pub out_features: usize,
}

/// The token embedding.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// Index of the node that looks rows up.
    pub node_idx: usize,
    /// Token ids as the node reads them.
    pub indices: TensorId,
    /// `[vocab, hidden]`.
    pub matrix: Matrix,
    /// Rows.
    pub vocab_size: usize,
    /// Columns.
    pub hidden_size: usize,
}

/// A stored matrix, read where it lies.
struct InPlace<'g> {
    stored: &'g StoredTensor,
    transposed: bool,
}

impl InPlace<'_> {
    fn extent(&self) -> (usize, usize) {
        let (rows, columns) = (self.stored.dims[0], self.stored.dims[1]);
        if self.transposed { (columns, rows) } else { (rows, columns) }
    }

    fn element(&self, row: usize, column: usize) -> Option<f64> {
        let flat = if self.transposed {
            column * self.stored.dims[1] + row
        } else {
            row * self.stored.dims[1] + column
        };
        self.stored.dtype.element(&self.stored.bytes, flat)
    }
}

impl Matrix {
    /// Values as `[out, in]`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn load(&self, graph: &Graph) -> Fact<Values> {
        match self {
            Self::Plain { tensor, transposed } => {
                let values = weights::load(graph, *tensor)?;
                Ok(if *transposed { weights::transpose(values) } else { values })
            }
            Self::Blocks(blocks) => blocks.dequantize(graph),
        }
    }

    /// Whether both are the same weight: one stored tensor, or two that hold the same values (exporters store a transposed
    /// copy of a tied embedding). Compares element by element up to the first difference, without unpacking either.
    pub fn equals(&self, other: &Self, graph: &Graph) -> bool {
        if self.root(graph) == other.root(graph) {
            return true;
        }
        let (Some(a), Some(b)) = (self.in_place(graph), other.in_place(graph)) else { return false };
        let (rows, columns) = a.extent();
        let same = |row: usize, column: usize| a.element(row, column) == b.element(row, column);
        (rows, columns) == b.extent() && (0..rows).all(|row| (0..columns).all(|column| same(row, column)))
    }

    /// The stored tensor read as `[out, in]`, when only transpositions and widening casts lie between.
    fn in_place<'g>(&self, graph: &'g Graph) -> Option<InPlace<'g>> {
        let Self::Plain { tensor, transposed } = self else { return None };
        let (mut at, mut transposed) = (*tensor, *transposed);
        loop {
            if let Some(stored) = &graph.tensor(at).stored {
                return (stored.dims.len() == 2).then_some(InPlace { stored, transposed });
            }
            let node = graph.producer(at)?;
            match node.op.as_str() {
                "Identity" => {}
                "Cast" if node.int("to") == Some(1) => {}
                "Transpose" => transposed = !transposed,
                _ => return None,
            }
            at = node.input(0)?;
        }
    }

    /// The stored tensor at the root: two matrices with the same root are the same weight.
    pub fn root(&self, graph: &Graph) -> TensorId {
        let mut at = match self {
            Self::Plain { tensor, .. } => *tensor,
            Self::Blocks(blocks) => blocks.codes,
        };
        while let Some(next) = graph.producer(at).and_then(|n| n.input(0)) {
            at = next;
        }
        at
    }
}

/// Reads `node` as a linear layer on an activation, when it is one of the forms.
///
/// # Errors
/// When it is one, but of a kind that is not understood.
pub fn recognise(
    graph: &Graph,
    node_idx: usize,
    is_constant: impl Fn(TensorId) -> bool,
) -> Result<Option<Linear>> {
    let node = &graph.nodes[node_idx];
    let weight_is_constant =
        node.input(1).is_some_and(&is_constant) && !node.input(0).is_some_and(&is_constant);
    let result = match (node.op.as_str(), node.contrib) {
        ("MatMul", false) | ("FusedMatMul", true) if weight_is_constant => matmul(graph, node_idx, node),
        ("Gemm", false) if weight_is_constant => gemm(graph, node_idx, node, is_constant),
        ("MatMulNBits", true) => n_bits(graph, node_idx, node).map(Some),
        _ => return Ok(None),
    };
    result.map_err(|fact| node.refuse(&fact))
}

fn plain(graph: &Graph, node_idx: usize, node: &Node, transposed: bool) -> Fact<Option<Linear>> {
    let tensor = node.input(1).ok_or("input 1 is missing")?;
    let dims = weights::shape(graph, tensor).ok_or("a weight made by operators that are not understood")?;
    let &[rows, columns] = dims.as_slice() else { return Ok(None) };
    let (in_features, out_features) = if transposed { (rows, columns) } else { (columns, rows) };
    if in_features == 0 || out_features == 0 {
        return Err(format!("a weight of {dims:?}"));
    }
    Ok(Some(Linear {
        node_idx,
        input: node.input(0).ok_or("input 0 is missing")?,
        output: node.output(0).ok_or("no output")?,
        matrix: Matrix::Plain { tensor, transposed },
        bias: None,
        in_features,
        out_features,
    }))
}

fn flag(node: &Node, name: &str) -> bool {
    node.int(name).unwrap_or(0) != 0
}

fn matmul(graph: &Graph, node_idx: usize, node: &Node) -> Fact<Option<Linear>> {
    if node.contrib && (node.float("alpha").unwrap_or(1.0) != 1.0 || flag(node, "transA")) {
        return Err("alpha other than 1 or a transposed activation".into());
    }
    plain(graph, node_idx, node, !(node.contrib && flag(node, "transB")))
}

fn gemm(
    graph: &Graph,
    node_idx: usize,
    node: &Node,
    is_constant: impl Fn(TensorId) -> bool,
) -> Fact<Option<Linear>> {
    let factors = [node.float("alpha"), node.float("beta")];
    if factors.iter().any(|f| f.unwrap_or(1.0) != 1.0) || flag(node, "transA") {
        return Err("alpha or beta other than 1, or a transposed activation".into());
    }
    let Some(mut linear) = plain(graph, node_idx, node, !flag(node, "transB"))? else {
        return Err("a weight that is not a matrix".into());
    };
    if let Some(bias) = node.input(2) {
        let fits = is_constant(bias)
            && weights::shape(graph, bias)
                .is_some_and(|s| s.iter().product::<usize>() == linear.out_features);
        if !fits {
            return Err("a third operand that is not a bias".into());
        }
        linear.bias = unless_zero(graph, bias);
    }
    Ok(Some(linear))
}

/// The bias, unless it adds nothing: exporters give `Gemm` a third operand of zeros.
pub fn unless_zero(graph: &Graph, bias: TensorId) -> Option<TensorId> {
    let zero = weights::load(graph, bias).is_ok_and(|values| values.data.iter().all(|v| *v == 0.0));
    (!zero).then_some(bias)
}

fn size(node: &Node, name: &str) -> Fact<usize> {
    node.int(name)
        .and_then(|v| usize::try_from(v).ok())
        .filter(|v| *v > 0 && *v < 1 << 32)
        .ok_or_else(|| format!("attribute {name} is missing or absurd"))
}

fn n_bits(graph: &Graph, node_idx: usize, node: &Node) -> Fact<Linear> {
    if node.input(4).is_some() {
        return Err("g_idx (columns grouped out of order), which is not understood".into());
    }
    let blocks = BlockQuantized {
        codes: node.input(1).ok_or("input 1 is missing")?,
        scales: node.input(2).ok_or("input 2 is missing")?,
        zero_points: node.input(3),
        rows: size(node, "N")?,
        columns: size(node, "K")?,
        block: size(node, "block_size")?,
        bits: node.int("bits").map_or(Ok(4), |_| size(node, "bits"))?,
    };
    blocks.check(graph)?;
    Ok(Linear {
        node_idx,
        input: node.input(0).ok_or("input 0 is missing")?,
        output: node.output(0).ok_or("no output")?,
        matrix: Matrix::Blocks(blocks),
        bias: node.input(5),
        in_features: blocks.columns,
        out_features: blocks.rows,
    })
}

/// Reads `node` as a look-up of rows in a constant matrix.
///
/// # Errors
/// When it is one, but of a kind that is not understood.
pub fn recognise_embedding(
    graph: &Graph,
    node_idx: usize,
    is_constant: impl Fn(TensorId) -> bool,
) -> Result<Option<Embedding>> {
    let node = &graph.nodes[node_idx];
    let (Some(table), Some(indices)) = (node.input(0), node.input(1)) else { return Ok(None) };
    if !is_constant(table) || is_constant(indices) {
        return Ok(None);
    }
    match (node.op.as_str(), node.contrib) {
        ("Gather", false) if node.int("axis").unwrap_or(0) == 0 => {
            let Some(&[vocab_size, hidden_size]) = weights::shape(graph, table).as_deref() else {
                return Ok(None);
            };
            let matrix = Matrix::Plain { tensor: table, transposed: false };
            Ok(Some(Embedding { node_idx, indices, matrix, vocab_size, hidden_size }))
        }
        ("GatherBlockQuantized", true) => {
            gather_blocks(graph, node_idx, node).map(Some).map_err(|fact| node.refuse(&fact))
        }
        _ => Ok(None),
    }
}

fn gather_blocks(graph: &Graph, node_idx: usize, node: &Node) -> Fact<Embedding> {
    let table = node.required_fact(0)?;
    let scales = node.required_fact(2)?;
    let bits = node.int("bits").map_or(Ok(4), |_| size(node, "bits"))?;
    let dims = weights::shape(graph, table).unwrap_or_default();
    let &[rows, packed] = dims.as_slice() else {
        return Err(format!("a table of {dims:?}, expected two dimensions"));
    };
    if node.int("gather_axis").unwrap_or(0) != 0 || !matches!(node.int("quantize_axis").unwrap_or(1), 1 | -1)
    {
        return Err("expected rows to be gathered and blocks along the columns".into());
    }
    if !matches!(bits, 4 | 8) {
        return Err(format!("{bits} bits, expected 4 or 8"));
    }
    let columns = packed * 8 / bits;
    let block = size(node, "block_size")?;
    let blocks =
        BlockQuantized { codes: table, scales, zero_points: node.input(3), rows, columns, block, bits };
    blocks.check(graph)?;
    let indices = node.required_fact(1)?;
    Ok(Embedding {
        node_idx,
        indices,
        matrix: Matrix::Blocks(blocks),
        vocab_size: rows,
        hidden_size: columns,
    })
}
