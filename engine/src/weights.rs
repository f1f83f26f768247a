//! Where a backend takes its weights from.

use crate::{
    Result,
    dir::{EngineDir, UncheckedDir},
    quant::MatrixView,
};

/// A model's tensors under the names of [`crate::spec::DecoderSpec`]: an engine directory, or random weights of a known shape.
/// Read from several threads while a backend packs.
pub trait WeightSource: Sync {
    /// The linear layer `name`, without suffix: `model.layers.0.mlp.up_proj`.
    ///
    /// # Errors
    /// When there is no such tensor or it does not hold.
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>>;

    /// Norm weight or bias under its full name: `model.norm.weight`, `model.layers.0.self_attn.q_proj.bias`.
    ///
    /// # Errors
    /// When there is no such tensor or it does not hold.
    fn vector(&self, name: &str) -> Result<Vec<f32>>;

    /// The embedding, bf16 `[vocab_size, hidden_size]`.
    ///
    /// # Errors
    /// When there is none or it does not hold.
    fn embedding(&self) -> Result<MatrixView<'_>>;

    /// The output head `[vocab_size, hidden_size]`; the embedding when they are one tensor.
    ///
    /// # Errors
    /// When there is none or it does not hold.
    fn lm_head(&self) -> Result<MatrixView<'_>>;

    /// What is still owed before the weights count: a loader runs it beside its packing, and nothing it packed counts when it fails.
    ///
    /// # Errors
    /// When the weights do not hold.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// A loader has copied `bytes` of one of the views: the memory behind them may be given back. They stay readable.
    fn release(&self, _bytes: &[u8]) {}
}

impl WeightSource for EngineDir {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        Self::matrix(self, name)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        Self::vector(self, name)
    }

    fn embedding(&self) -> Result<MatrixView<'_>> {
        Self::embedding(self)
    }

    fn lm_head(&self) -> Result<MatrixView<'_>> {
        Self::lm_head(self)
    }

    fn release(&self, bytes: &[u8]) {
        Self::release(self, bytes);
    }
}

impl WeightSource for UncheckedDir {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        self.contents().matrix(name)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.contents().vector(name)
    }

    fn embedding(&self) -> Result<MatrixView<'_>> {
        self.contents().embedding()
    }

    fn lm_head(&self) -> Result<MatrixView<'_>> {
        self.contents().lm_head()
    }

    fn check(&self) -> Result<()> {
        Self::check(self)
    }

    fn release(&self, bytes: &[u8]) {
        self.contents().release(bytes);
    }
}
