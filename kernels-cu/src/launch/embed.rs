//! Rows of the embedding.

use super::{DeviceAddress, Geometry, Launch, LaunchError, aligned, non_zero, to_u32};

const THREADS: u32 = 256;

/// `out[token] = embedding[token_ids[token]]`; a row of zeros for an id outside the vocabulary, as padding has it (−1).
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    /// BF16 `[vocab_size, width]`, 16-byte aligned.
    pub embedding: DeviceAddress,
    /// I32 `[num_tokens]`.
    pub token_ids: DeviceAddress,
    /// F32 `[num_tokens, width]`, 16-byte aligned: the residual stream.
    pub out: DeviceAddress,
    /// Tokens of the captured shape.
    pub num_tokens: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Its columns.
    pub width: usize,
}

impl Embed {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large; a buffer that is missing or misaligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        let num_tokens = to_u32("tokens", non_zero("tokens", self.num_tokens)?)?;
        let arguments = vec![
            aligned("embedding", self.embedding, 16)?.into(),
            aligned("token ids", self.token_ids, 4)?.into(),
            aligned("residual stream", self.out, 16)?.into(),
            to_u32("vocabulary", non_zero("vocabulary", self.vocab_size)?)?.into(),
            to_u32("width", non_zero("width", self.width)?)?.into(),
        ];
        Launch::new("embed_bf16", Geometry::linear(num_tokens, THREADS), arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_a_token_and_nothing_without_tokens() {
        let embed = Embed {
            embedding: DeviceAddress(16),
            token_ids: DeviceAddress(4),
            out: DeviceAddress(32),
            num_tokens: 7,
            vocab_size: 100,
            width: 64,
        };
        assert_eq!(embed.launch().unwrap().geometry().grid, [7, 1, 1]);
        assert_eq!(Embed { num_tokens: 0, ..embed }.launch(), Err(LaunchError::Zero { what: "tokens" }));
        assert!(Embed { out: DeviceAddress(4), ..embed }.launch().is_err());
        assert!(Embed { vocab_size: 0, ..embed }.launch().is_err());
    }
}
