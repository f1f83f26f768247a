//! The interpreter of exported models: against the CPU backend by default, and with `TAKT_REQUIRE_ONNX=1` against onnx's own evaluator.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod case;
mod evaluator;
mod heads;
mod lanes;
mod models;
#[path = "../../../engine-builder/tests/onnx_export/python.rs"]
#[allow(dead_code, reason = "what judges exports is not needed here")]
mod python;
mod section;
