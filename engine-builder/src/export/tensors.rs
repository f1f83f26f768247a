//! Where a model's weights come from: the target's, or those of its draft head.

use takt_engine::{
    Result,
    draft::DraftSource,
    quant::MatrixView,
    weights::{ReadWatch, WeightSource},
};

/// Names a tensor that both models have as a matrix, beside those of the linear layers.
pub(super) const EMBEDDING: &str = "model.embed_tokens";
/// The output head.
pub(super) const LM_HEAD: &str = "lm_head";

/// Matrices and vectors by the engine's names.
pub(super) trait Tensors {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>>;
    fn vector(&self, name: &str) -> Result<Vec<f32>>;
    /// Hears that bytes were copied, so that the memory behind a mapped file is given back.
    fn watch(&self) -> &dyn ReadWatch;
}

/// The target's.
pub(super) struct TargetTensors<'a>(pub &'a dyn WeightSource);

impl Tensors for TargetTensors<'_> {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        match name {
            EMBEDDING => self.0.embedding(),
            LM_HEAD => self.0.lm_head(),
            _ => self.0.matrix(name),
        }
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.0.vector(name)
    }

    fn watch(&self) -> &dyn ReadWatch {
        self.0.watch()
    }
}

/// A head's; the embedding is its target's where it has none.
pub(super) struct DraftTensors<'a> {
    pub head: &'a dyn DraftSource,
    pub target: &'a dyn WeightSource,
    pub own_embedding: bool,
}

impl Tensors for DraftTensors<'_> {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        match name {
            EMBEDDING if self.own_embedding => self.head.matrix("embed_tokens"),
            EMBEDDING => self.target.embedding(),
            _ => self.head.matrix(name),
        }
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.head.vector(name)
    }

    fn watch(&self) -> &dyn ReadWatch {
        self.head.watch()
    }
}
