//! NVIDIA GPUs through the kernels of `takt-kernels-cu`.
//!
//! | module | concept |
//! |---|---|
//! | [`options`] | how the backend is set up |
//! | [`device`] | from a machine and an engine directory to a backend: the device, its context, its kernels |
//! | [`shape`] | the few shapes that steps are rounded up to, each captured as a CUDA graph once |
//! | [`input`] | what a step is about: tokens, positions, rows, trees; the bytes that travel to the device |
//! | [`mapped`] | whether and how weights are read where their file is mapped |
//! | [`weights`] | a model's tensors as the engine directory stores them, in device memory or in its mapped file |
//! | [`memory`] | how large everything is, known before a device is asked |
//! | [`workspace`] | everything a step writes, one allocation sized at load |
//! | [`forward`] | a step of some shape as a list of launches: a pure function |
//! | [`norm`], [`product`] | norms of rows, products of matrices |
//! | [`draft`] | a draft head beside the model: what it reads along, and what it proposes |
//! | [`backend`] | all of it as a [`Backend`](crate::backend::Backend) |
//!
//! Lanes, rows of logits, their lists, captured graphs and room are shared with the other backend on GPUs: `backend::device`.
//!
//! Architecture invariant: a step is one graph, one more for its lists of likeliest tokens, one more where a draft head reads along, and one wait,
//! and allocates nothing once its shape was captured. All shapes that serving meets are captured when the
//! backend is opened, with the lists of greedy decoding and of forms; those of texts that are scored the first time they come, which takes milliseconds.

use super::device::{captures, lanes, lists, room, rows};

mod backend;
mod device;
pub(in crate::backend) mod draft;
mod forward;
mod input;
mod mapped;
mod memory;
mod norm;
mod options;
mod product;
mod shape;
mod weights;
mod workspace;

pub use backend::CudaBackend;
pub(crate) use device::open;
pub use device::{kernels, usable_device};
pub use mapped::GpuWeights;
pub(crate) use memory::{DeviceMemory, sms_at_hand};
pub use options::{CudaOptions, GpuOptions, GpuShare};
pub(crate) use weights::placed_bytes;
