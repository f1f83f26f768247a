//! The target's embedding as heads read it.

use half::bf16;
use takt_engine::{EngineError, Result, TokenId, dir::EngineDir, quant::MatrixData};

use super::Embeddings;

impl Embeddings for EngineDir {
    fn embed(&self, token: TokenId, out: &mut [f32]) -> Result<()> {
        let view = self.embedding()?;
        let MatrixData::Bf16(bytes) = view.data else {
            return Err(EngineError::Unsupported("a draft head over an embedding that is not bf16".into()));
        };
        let width = 2 * view.num_cols;
        let row = bytes.get(token as usize * width..).and_then(|rest| rest.get(..width));
        let Some(row) = row.filter(|_| out.len() == view.num_cols) else {
            return Err(EngineError::Input(format!(
                "token {token} into {} values, the embedding is [{}, {}]",
                out.len(),
                view.num_rows,
                view.num_cols
            )));
        };
        for (value, bytes) in out.iter_mut().zip(row.as_chunks::<2>().0) {
            *value = bf16::from_le_bytes(*bytes).to_f32();
        }
        Ok(())
    }
}
