//! Measures what sections cost on this device: `takt calibrate`, and briefly every node that starts without a table.

mod device_key;
mod masks;
mod measure;

pub use device_key::DeviceKey;
pub(crate) use masks::measure_masks;
pub use measure::{Effort, grid_of, measure};
