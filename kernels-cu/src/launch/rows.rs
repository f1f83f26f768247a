//! Rows of F32 matrices moved.

use super::{
    DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, linear::optional, non_zero, to_u32,
};

const THREADS: u32 = 256;

/// `out[i] = in[rows[i]]`, or zeros where `rows[i]` is negative: the rows whose logits are wanted, or a layer's features beside others'.
#[derive(Debug, Clone, Copy)]
pub struct CopyRows {
    /// F32, rows `in_stride` elements apart.
    pub from: DeviceAddress,
    /// I32 `[num_rows]`; null for the rows in order.
    pub rows: DeviceAddress,
    /// F32, rows `out_stride` elements apart.
    pub to: DeviceAddress,
    /// Elements from row to row of `from`.
    pub in_stride: usize,
    /// Elements from row to row of `to`.
    pub out_stride: usize,
    /// Rows written.
    pub num_rows: usize,
    /// Elements of a row, at most either stride.
    pub width: usize,
}

impl CopyRows {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, rows wider than their stride, an address that is missing or misaligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        at_most("width", non_zero("width", self.width)?, self.in_stride.min(self.out_stride))?;
        let arguments = vec![
            aligned("source rows", self.from, 4)?.into(),
            optional("row indices", self.rows, 4)?.into(),
            aligned("copied rows", self.to, 4)?.into(),
            wide(self.in_stride).into(),
            wide(self.out_stride).into(),
            to_u32("width", self.width)?.into(),
        ];
        let blocks = to_u32("rows", non_zero("rows", self.num_rows)?)?;
        Launch::new("copy_rows_f32", Geometry::linear(blocks, THREADS), arguments)
    }
}

/// `out[rows[i]] = in[i]`, and nothing where `rows[i]` is negative: features to where they wait, what a draft head said to where it is fed back.
#[derive(Debug, Clone, Copy)]
pub struct ScatterRows {
    /// F32, rows `in_stride` elements apart.
    pub from: DeviceAddress,
    /// I32 `[num_rows]`, no index twice.
    pub rows: DeviceAddress,
    /// F32, rows `out_stride` elements apart.
    pub to: DeviceAddress,
    /// Elements from row to row of `from`.
    pub in_stride: usize,
    /// Elements from row to row of `to`.
    pub out_stride: usize,
    /// Rows read.
    pub num_rows: usize,
    /// Elements of a row, at most either stride.
    pub width: usize,
}

impl ScatterRows {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, rows wider than their stride, an address that is missing or misaligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        at_most("width", non_zero("width", self.width)?, self.in_stride.min(self.out_stride))?;
        let arguments = vec![
            aligned("source rows", self.from, 4)?.into(),
            aligned("row indices", self.rows, 4)?.into(),
            aligned("copied rows", self.to, 4)?.into(),
            wide(self.in_stride).into(),
            wide(self.out_stride).into(),
            to_u32("width", self.width)?.into(),
        ];
        let blocks = to_u32("rows", non_zero("rows", self.num_rows)?)?;
        Launch::new("scatter_rows_f32", Geometry::linear(blocks, THREADS), arguments)
    }
}

fn wide(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_wider_than_their_stride_are_refused() {
        let copy = CopyRows {
            from: DeviceAddress(16),
            rows: DeviceAddress::NULL,
            to: DeviceAddress(32),
            in_stride: 8,
            out_stride: 24,
            num_rows: 3,
            width: 8,
        };
        assert_eq!(copy.launch().unwrap().geometry().grid, [3, 1, 1]);
        assert!(CopyRows { width: 9, ..copy }.launch().is_err());
        assert_eq!(CopyRows { num_rows: 0, ..copy }.launch(), Err(LaunchError::Zero { what: "rows" }));
    }

    #[test]
    fn rows_are_not_scattered_without_indices() {
        let scatter = ScatterRows {
            from: DeviceAddress(16),
            rows: DeviceAddress(32),
            to: DeviceAddress(64),
            in_stride: 8,
            out_stride: 24,
            num_rows: 3,
            width: 8,
        };
        assert_eq!(scatter.launch().unwrap().geometry().grid, [3, 1, 1]);
        assert!(ScatterRows { rows: DeviceAddress::NULL, ..scatter }.launch().is_err());
        assert!(ScatterRows { width: 9, ..scatter }.launch().is_err());
    }
}
