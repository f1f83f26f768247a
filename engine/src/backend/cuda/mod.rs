//! NVIDIA GPUs through the kernels of `takt-kernels-cu`.
//!
//! | module | concept |
//! |---|---|
//! | [`options`] | how the backend is set up |
//! | [`device`] | from a machine and an engine directory to a backend: the device, its context, its kernels |
//! | [`shape`] | the few shapes that steps are rounded up to, each captured as a CUDA graph once |
//! | [`input`] | what a step is about: tokens, positions, rows, trees; the bytes that travel to the device |
//! | [`mapped`] | whether and how weights are read where their file is mapped |
//! | [`room`] | how much memory there is, and whether an engine fits |
//! | [`weights`] | a model's tensors as the engine directory stores them, in device memory or in its mapped file |
//! | [`lanes`] | keys and values in device memory, and snapshots of them |
//! | [`workspace`] | everything a step writes, one allocation sized at load |
//! | [`forward`] | a step of some shape as a list of launches: a pure function |
//! | [`rows`] | a step's rows of logits: what of them comes to the host |
//! | [`lists`] | the likeliest tokens of the rows, which travel instead |
//! | [`product`] | products of matrices |
//! | [`captures`] | captured graphs by shape, and how long each takes |
//! | [`draft`] | a draft head beside the model: what it reads along, and what it proposes |
//! | [`backend`] | all of it as a [`Backend`](crate::backend::Backend) |
//!
//! Architecture invariant: a step is one graph, one more for its lists of likeliest tokens, one more where a draft head reads along, and one wait,
//! and allocates nothing once its shape was captured. The usual shapes are captured when the backend is opened, others (trees, prompts beside decoding lanes) the first time they come, which takes milliseconds.

mod backend;
mod captures;
mod device;
mod draft;
mod error;
mod forward;
mod input;
mod lanes;
mod lists;
mod mapped;
mod options;
mod product;
mod room;
mod rows;
mod shape;
mod weights;
mod workspace;

pub use backend::CudaBackend;
pub(crate) use device::open;
pub use device::{kernels, usable_device};
pub use mapped::GpuWeights;
pub use options::{CudaOptions, GpuOptions, GpuShare};
