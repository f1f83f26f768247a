//! One tensor of the checkpoint → its tensors in the engine.

use takt_engine::{
    dir::{MatrixPart, Part, Role},
    quant::{ErrorStats, QuantizedMatrix, non_finite, quantize},
};

use crate::{
    BuildError, Result,
    checkpoint::{Tensor, TensorSource},
    report::TensorError,
    write::WeightsFile,
};

/// Name of the checkpoint's tensor that `part` is made from: a tied head is made from the embedding.
pub(crate) fn source_name(part: &Part, tied: bool) -> String {
    match part {
        Part::Vector(part) => part.name.clone(),
        Part::Tokens(part) => part.name.clone(),
        Part::Matrix(part) if part.role == Role::LmHead && tied => "model.embed_tokens.weight".into(),
        Part::Matrix(part) => format!("{}.weight", part.name),
    }
}

/// Loads, checks, quantizes and writes `part`; gives the loss of a matrix.
pub(crate) fn write_part(
    part: &Part,
    source_name: &str,
    tensors: &dyn TensorSource,
    weights: &mut WeightsFile,
    num_threads: usize,
) -> Result<Option<TensorError>> {
    match part {
        Part::Vector(part) => {
            let tensor = load_finite(tensors, source_name, &[part.len])?;
            let bytes: Vec<u8> = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            weights.write(&part.name, &bytes)?;
            Ok(None)
        }
        // Written by whoever knows them: no checkpoint has token ids as values.
        Part::Tokens(_) => Ok(None),
        Part::Matrix(part) => {
            let (num_rows, num_cols) = (part.num_rows, part.num_cols);
            let tensor = load_finite(tensors, source_name, &[num_rows, num_cols])?;
            let matrix = quantize(part.kind, (num_rows, num_cols), &tensor.values, num_threads)
                .map_err(|e| BuildError::Tensor { name: source_name.into(), fact: e.to_string() })?;
            write_matrix(&part.name, &matrix, weights)?;
            Ok(Some(loss(part, &matrix, &tensor.values, num_threads)))
        }
    }
}

fn load_finite(tensors: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<Tensor> {
    let tensor = tensors.load(name, shape)?;
    let holds = tensor.shape == shape && tensor.values.len() == shape.iter().product::<usize>();
    let fact = if holds {
        non_finite(&tensor.values).map(|fact| format!("{fact}; the checkpoint is damaged"))
    } else {
        Some(format!("has shape {:?}, expected {shape:?}", tensor.shape))
    };
    match fact {
        Some(fact) => Err(BuildError::Tensor { name: name.into(), fact }),
        None => Ok(tensor),
    }
}

fn write_matrix(name: &str, matrix: &QuantizedMatrix, weights: &mut WeightsFile) -> Result<()> {
    weights.write(&format!("{name}.weight"), &matrix.weight)?;
    if !matrix.scales.is_empty() {
        weights.write(&format!("{name}.weight_scale"), &matrix.scales)?;
    }
    if let Some(scale_2) = matrix.scale_2 {
        weights.write(&format!("{name}.weight_scale_2"), &scale_2.to_le_bytes())?;
    }
    Ok(())
}

fn loss(part: &MatrixPart, matrix: &QuantizedMatrix, original: &[f32], num_threads: usize) -> TensorError {
    let stats = ErrorStats::of(matrix, original, num_threads);
    TensorError { name: part.name.clone(), role: part.role, kind: part.kind, stats }
}
