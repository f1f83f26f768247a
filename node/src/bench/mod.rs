//! `takt bench`: how fast a model runs here, beside how fast this machine reads memory; how well deadlines are kept; what speculation
//! brings; what asking over ROS 2 costs; and how a rival does beside it.

mod busy_threads;
pub mod compare;
pub mod deadlines;
pub mod forms;
mod measure;
pub mod ros;
pub mod speculation;
mod svg;
mod system;

pub use measure::{
    Decode, NUM_PREFILLS, NUM_WARM_STEPS, Prefill, Sustained, Window, decode, prefill, read_bandwidth,
    sustain,
};
pub use system::PowerMeter;
