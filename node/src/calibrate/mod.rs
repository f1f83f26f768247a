//! Measures what sections cost on this device: `takt calibrate`, and briefly every node that starts without a table.

mod device_key;
mod measure;

pub use device_key::DeviceKey;
pub use measure::{Effort, measure};
