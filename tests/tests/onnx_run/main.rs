//! The interpreter of exported models: against the CPU backend by default, and with `TAKT_REQUIRE_ONNX=1` against onnx's own evaluator.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod case;
mod lanes;
mod models;
mod section;
