//! A stand-in for a robot's perception: a convolution and a matrix product over an image.

use super::{DeviceAddress, Geometry, Launch, LaunchError, aligned, multiple_of, non_zero, to_u32};

/// Channels of the image and of the features.
pub const CHANNELS: usize = 32;
/// Features of a row of the product: 16 pixels'.
pub const INNER: usize = 512;
/// Outputs of a row of the product.
pub const OUTPUTS: usize = 256;
/// What the number of pixels must be a multiple of: whole blocks of the product.
pub const PIXELS: usize = 64 * INNER / CHANNELS;
/// Pixels of a block of the convolution.
const TILE: [usize; 2] = [8, 16];
/// Rows, and outputs, of a block of the product.
const BLOCK_SIDE: usize = 64;
const THREADS: u32 = 128;

/// One link of the chain over an image of `height` (a multiple of 8) times `width` (of 16) pixels, 1024 or a multiple of them.
#[derive(Debug, Clone, Copy)]
pub struct Perception {
    /// F32 `[height, width, 32]`.
    pub image: DeviceAddress,
    /// F32 `[3, 3, 32, 32]`, inputs before outputs.
    pub weights: DeviceAddress,
    /// BF16 `[height, width, 32]`.
    pub features: DeviceAddress,
    /// BF16 `[256, 512]`.
    pub matrix: DeviceAddress,
    /// BF16 `[height · width / 16, 256]`.
    pub out: DeviceAddress,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
}

impl Perception {
    /// The convolution and the product over its features, in that order.
    ///
    /// # Errors
    /// An image that is not whole blocks; a buffer that is missing or misaligned.
    pub fn launches(&self) -> Result<[Launch; 2], LaunchError> {
        let height = multiple_of("height", non_zero("height", self.height)?, TILE[0])?;
        let width = multiple_of("width", non_zero("width", self.width)?, TILE[1])?;
        let too_large = LaunchError::TooLarge { what: "height", found: height, max: usize::MAX / width };
        let num_pixels = multiple_of("pixels", height.checked_mul(width).ok_or(too_large)?, PIXELS)?;
        let features = aligned("features", self.features, 16)?;
        let conv = Geometry {
            grid: [to_u32("grid x", width / TILE[1])?, to_u32("grid y", height / TILE[0])?, 1],
            ..Geometry::linear(1, THREADS)
        };
        let conv = Launch::new(
            "perception_conv",
            conv,
            vec![
                aligned("image", self.image, 16)?.into(),
                aligned("weights", self.weights, 16)?.into(),
                features.into(),
                to_u32("height", height)?.into(),
                to_u32("width", width)?.into(),
            ],
        )?;
        let num_rows = num_pixels * CHANNELS / INNER;
        let grid = [OUTPUTS / BLOCK_SIDE, num_rows / BLOCK_SIDE];
        let gemm = Geometry {
            grid: [to_u32("grid x", grid[0])?, to_u32("grid y", grid[1])?, 1],
            ..Geometry::linear(1, THREADS)
        };
        let gemm = Launch::new(
            "perception_gemm",
            gemm,
            vec![
                features.into(),
                aligned("matrix", self.matrix, 16)?.into(),
                aligned("output", self.out, 16)?.into(),
            ],
        )?;
        Ok([conv, gemm])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_image_and_an_image_of_other_sizes_is_refused() {
        let address = DeviceAddress(256);
        let link = Perception {
            image: address,
            weights: address,
            features: address,
            matrix: address,
            out: address,
            height: 64,
            width: 32,
        };
        let [conv, gemm] = link.launches().unwrap();
        assert_eq!((conv.geometry().grid, gemm.geometry().grid), ([2, 8, 1], [4, 2, 1]));
        let refused = |link: Perception| link.launches().unwrap_err().to_string();
        assert_eq!(refused(Perception { height: 60, ..link }), "height: 60, expected a multiple of 8");
        assert_eq!(refused(Perception { width: 24, ..link }), "width: 24, expected a multiple of 16");
        assert_eq!(refused(Perception { height: 8, ..link }), "pixels: 256, expected a multiple of 1024");
        assert_eq!(refused(Perception { height: 0, ..link }), "height: 0, expected at least 1");
        assert!(refused(Perception { out: DeviceAddress::NULL, ..link }).starts_with("output: address"));
    }
}
