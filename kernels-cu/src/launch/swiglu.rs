//! The gate of the feed-forward network by itself: what [`super::linear::Output::SwiGlu`] is held against.

use super::{DeviceAddress, Geometry, Launch, LaunchError, aligned, non_zero, to_u32};

const THREADS: u32 = 256;
/// Elements of one block.
const BLOCK_ELEMENTS: usize = 4 * 256;

/// `out = silu(gate) · up`, element by element.
#[derive(Debug, Clone, Copy)]
pub struct SwiGlu {
    /// F32 `[num_tokens, width]`, 16-byte aligned.
    pub gate: DeviceAddress,
    /// The same.
    pub up: DeviceAddress,
    /// BF16 `[num_tokens, width]`, 16-byte aligned.
    pub out: DeviceAddress,
    /// Tokens of the captured shape.
    pub num_tokens: usize,
    /// Inner features.
    pub width: usize,
}

impl SwiGlu {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large; a buffer that is missing or misaligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        let num_tokens = non_zero("tokens", self.num_tokens)?;
        let too_large = LaunchError::TooLarge { what: "elements", found: num_tokens, max: usize::MAX };
        let num_elements = num_tokens.checked_mul(non_zero("width", self.width)?).ok_or(too_large)?;
        let blocks = to_u32("grid x", num_elements.div_ceil(BLOCK_ELEMENTS))?;
        let arguments = vec![
            aligned("gate", self.gate, 16)?.into(),
            aligned("up", self.up, 16)?.into(),
            aligned("output", self.out, 16)?.into(),
            u64::try_from(num_elements).unwrap_or(u64::MAX).into(),
        ];
        Launch::new("swiglu_bf16", Geometry::linear(blocks, THREADS), arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_elements_and_there_is_none_without_tokens() {
        let address = DeviceAddress(16);
        let gate = SwiGlu { gate: address, up: address, out: address, num_tokens: 3, width: 1000 };
        assert_eq!(gate.launch().unwrap().geometry().grid, [3, 1, 1]);
        assert_eq!(SwiGlu { num_tokens: 0, ..gate }.launch(), Err(LaunchError::Zero { what: "tokens" }));
        assert!(SwiGlu { width: usize::MAX, ..gate }.launch().is_err());
        assert!(SwiGlu { up: DeviceAddress(8), ..gate }.launch().is_err());
    }
}
