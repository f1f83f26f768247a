//! What the caller of an exported decoder feeds, and made-up values for it.

use super::{
    array::{Array, Fact},
    dtype::{Dtype, Kind},
    evaluate::Evaluator,
    graph::{Graph, GraphInput, TensorId},
};
use crate::{BuildError, Result};

/// Meaning of a graph input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token ids.
    Tokens,
    /// 1 for every token, past and present.
    Mask,
    /// Position of each present token.
    Positions,
    /// Cached keys or values of one layer, `[1, heads, past, width]`.
    Past,
}

/// How many tokens a trial run sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Tokens already in the cache.
    pub past: usize,
    /// Tokens fed.
    pub len: usize,
}

/// The inputs of a decoder with their roles.
#[derive(Debug, Clone)]
pub struct Inputs {
    roles: Vec<(TensorId, Role)>,
    /// The export fixes the number of tokens.
    pub fixed_len: Option<usize>,
}

impl Inputs {
    /// Assigns roles: the token ids are known from the embedding, the others by type, rank and, between mask and positions, name.
    ///
    /// # Errors
    /// Naming an input that fits no role.
    pub fn new(graph: &Graph, tokens: TensorId) -> Result<Self> {
        let roles = graph
            .inputs
            .iter()
            .map(|input| Ok((input.tensor, role(graph, input, tokens)?)))
            .collect::<Result<Vec<_>>>()?;
        let ids = graph.inputs.iter().find(|i| i.tensor == tokens);
        let fixed_len = ids.and_then(|i| i.dims.last().copied().flatten());
        let batch = ids.filter(|i| i.dims.len() > 1).and_then(|i| i.dims[0]).unwrap_or(1);
        if batch != 1 || ids.is_some_and(|i| i.dims.len() > 2) || fixed_len == Some(0) {
            return Err(BuildError::Unsupported(format!(
                "ONNX input {:?} of dimensions {:?}, expected [1, tokens]; export with a batch of 1 or a dynamic batch",
                graph.tensor(tokens).name,
                ids.map(|i| i.dims.clone()).unwrap_or_default()
            )));
        }
        Ok(Self { roles, fixed_len })
    }

    /// Whether the graph takes a key/value cache.
    pub fn has_past(&self) -> bool {
        self.roles.iter().any(|(_, role)| *role == Role::Past)
    }

    /// Gives the `needed` inputs their values for a run of `extent`.
    ///
    /// # Errors
    /// When a declared shape does not fit.
    pub fn feed(
        &self,
        graph: &Graph,
        evaluator: &mut Evaluator<'_>,
        extent: Extent,
        needed: impl Fn(TensorId) -> bool,
    ) -> Fact<()> {
        for (tensor, role) in self.roles.iter().filter(|(tensor, _)| needed(*tensor)) {
            if let Some(input) = graph.inputs.iter().find(|i| i.tensor == *tensor) {
                evaluator.set(*tensor, values(input, *role, extent)?);
            }
        }
        Ok(())
    }
}

fn role(graph: &Graph, input: &GraphInput, tokens: TensorId) -> Result<Role> {
    if input.tensor == tokens {
        return Ok(Role::Tokens);
    }
    let name = graph.tensor(input.tensor).name.as_str();
    let kind = Dtype::from_number(input.elem_type).ok().map(Dtype::kind);
    match (kind, input.dims.len()) {
        (Some(Kind::Float), 4) if !matches!(input.dims[2], Some(1..)) => Ok(Role::Past),
        (Some(Kind::Int), 1) => Ok(Role::Positions),
        (Some(Kind::Int | Kind::Bool), 2) if name.to_ascii_lowercase().contains("pos") => Ok(Role::Positions),
        (Some(_), 2) => Ok(Role::Mask),
        _ => Err(BuildError::Unsupported(format!(
            "ONNX input {name:?} (data type {}, dimensions {:?}) is neither token ids, attention mask, positions nor a growing key/value cache",
            input.elem_type, input.dims
        ))),
    }
}

fn values(input: &GraphInput, role: Role, extent: Extent) -> Fact<Array> {
    let dim = |axis: usize| input.dims.get(axis).copied().flatten();
    let rows = |len: usize| if input.dims.len() == 1 { vec![len] } else { vec![1, len] };
    match role {
        Role::Tokens => Array::filled(rows(extent.len), Kind::Int, 0.0),
        Role::Mask => Array::filled(rows(extent.past + extent.len), Kind::Int, 1.0),
        Role::Positions => Array::ints(extent.past..extent.past + extent.len).reshaped(rows(extent.len)),
        Role::Past => {
            Array::filled(vec![1, dim(1).unwrap_or(1), extent.past, dim(3).unwrap_or(1)], Kind::Float, 0.0)
        }
    }
}
