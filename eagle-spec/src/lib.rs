//! Speculative decoding: a small drafter proposes several tokens, the target verifies them in one step, and what comes out is what the
//! target alone would have said.
//!
//! | module | concept |
//! |---|---|
//! | [`drafter`] | a drafter over the backend's EAGLE-3 head |
//! | [`lookup`] | a drafter without a model: what followed the last tokens before |
//! | [`policy`] | how much to propose and to verify: what pays, by measured cost, and never much slower than plain |
//! | [`tree`] | what is proposed: the dynamic tree of EAGLE-2 and the chain, over any drafter |
//! | [`verify`] | what is accepted: the target's own choices, as far as they were proposed |
//!
//! Architecture invariant: no device code and no clock here. The target is seen through what its backend hands out: features and logits.

pub mod drafter;
pub mod lookup;
pub mod policy;
pub mod tree;
pub mod verify;
