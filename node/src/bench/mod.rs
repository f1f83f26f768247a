//! `takt bench`: how fast a model runs here, beside how fast this machine reads memory; how well deadlines are kept; what speculation
//! brings; what asking over ROS 2 costs; how a rival does beside it; and, on a GPU, what perception beside the model notices of it.

mod busy_threads;
pub mod compare;
pub mod deadlines;
pub mod forms;
pub mod gpu;
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
