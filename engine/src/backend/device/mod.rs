//! What backends on NVIDIA GPUs share, whoever computes: lanes in device memory, rows of logits and what of them comes to the host, waiting, room.
//!
//! | module | concept |
//! |---|---|
//! | [`room`] | how much memory there is, and whether an engine fits |
//! | [`lanes`] | keys and values in device memory, and snapshots of them |
//! | [`rows`] | a step's rows of logits: what of them comes to the host |
//! | [`lists`] | the likeliest tokens of the rows, which travel instead |
//! | [`choices`] | tokens chosen behind the lists, which travel instead of those |
//! | [`captures`] | captured graphs by shape, and how long each takes |
//! | [`error`] | the driver's errors as the engine's |

pub(super) mod captures;
mod choices;
mod error;
pub(super) mod lanes;
pub(super) mod lists;
pub(super) mod room;
pub(super) mod rows;
