//! C++ that stands in for TensorRT's own classes, made of whichever headers there are.
//!
//! TensorRT's public classes (`IBuilder`) call through a pointer to an abstract class of the library's (`apiv::VBuilder`); the parser's are abstract
//! themselves. For each of these abstract classes `Recorded…` is made here: every method writes down the call, fails if it was told to, and
//! otherwise calls a virtual function `on_…` of the same signature that gives a default. The behaviours in `cpp/` override what they need.
//! Whatever a version of TensorRT adds is recorded as well, so nothing that is called can go unseen.

mod emit;
mod parse;
mod tokens;

pub use emit::emit;
#[allow(unused_imports, reason = "for who looks at what was read")]
pub use parse::{Headers, Method, parse};
