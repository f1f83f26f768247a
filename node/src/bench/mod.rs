//! `takt bench`: how fast a model runs here, beside how fast this machine reads memory; how well deadlines are kept; what speculation
//! brings; and what asking over ROS 2 costs.

mod busy_threads;
pub mod deadlines;
pub mod forms;
mod measure;
pub mod ros;
pub mod speculation;
mod svg;
mod system;

pub use measure::{Decode, Prefill, Sustained, Window, decode, prefill, read_bandwidth, sustain};
pub use system::{PowerMeter, peak_rss_bytes};
