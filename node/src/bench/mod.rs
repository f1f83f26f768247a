//! `takt bench`: how fast a model runs here, beside how fast this machine reads memory; and how well deadlines are kept.

pub mod deadlines;
pub mod forms;
mod measure;
mod system;

pub use measure::{Decode, Prefill, Sustained, Window, decode, prefill, read_bandwidth, sustain};
pub use system::{PowerMeter, peak_rss_bytes};
