//! EAGLE-3's arithmetic once more, plainly: F32, one row at a time, weights as published. The oracle of the backends' heads for the habits that the
//! golden files do not have; checked against those itself.

mod forward;
mod matrix;

pub use forward::{ReferenceHead, ReferenceLane};
