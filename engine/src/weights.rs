//! Where a backend takes its weights from.

use std::sync::Arc;

use memmap2::Mmap;

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

    /// Who is to hear of the bytes of views that a loader reads.
    fn watch(&self) -> &dyn ReadWatch {
        &Unwatched
    }

    /// The mapped file that matrices' views are slices of, which stays mapped as long as it is held; `None` where they are of no file.
    fn mapping(&self) -> Option<Arc<Mmap>> {
        None
    }
}

/// Hears of bytes of a source's views: from several threads, before they are read (what is owed on them is best done while they are on
/// their way to the cache anyway) and after, when they are not needed again.
pub trait ReadWatch: Sync {
    /// `bytes` are about to be read.
    fn before_read(&self, _bytes: &[u8]) {}

    /// `bytes` have been copied: the memory behind them may be given back. They stay readable.
    fn after_read(&self, _bytes: &[u8]) {}
}

/// Nobody listens.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl ReadWatch for Unwatched {}

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

    fn watch(&self) -> &dyn ReadWatch {
        Self::watch(self)
    }

    fn mapping(&self) -> Option<Arc<Mmap>> {
        Some(Self::mapping(self))
    }
}

/// Of contents that are checked while they are read, and after that: nothing that comes of them counts before [`UncheckedDir::check`].
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

    fn watch(&self) -> &dyn ReadWatch {
        self.contents().watch()
    }

    fn mapping(&self) -> Option<Arc<Mmap>> {
        Some(self.contents().mapping())
    }
}
