//! `takt bench`: how fast a model runs here, beside how fast this machine reads memory; how well deadlines are kept; and what speculation
//! brings.

pub mod deadlines;
pub mod forms;
mod measure;
pub mod speculation;
mod system;

pub use measure::{Decode, Prefill, Sustained, Window, decode, prefill, read_bandwidth, sustain};
pub use system::{PowerMeter, peak_rss_bytes};
